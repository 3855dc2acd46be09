"""AutoKeras 3.0.0: its ImageClassifier as documented, or with the backbone of the others.

    pip install --no-deps autokeras==3.0.0 dm-tree wrapt    # tensorboard too, for KerasTuner

As documented it chooses among plain convolutions, ResNet, Xception and EfficientNet, and draws
whether to start from ImageNet. Those weights are fetched when a trial asks for them; without a
network that trial fails and the search goes on, as it would for anyone. ``mobilenet`` as the
second argument gives it a block of its own with MobileNetV2 and the weights all others have.
"""

import sys
import tempfile
from typing import Any

import autokeras
import keras
import keras_tuner
from autokeras.engine.block import Block
from best_keras import BestSoFar, TimeIsUp
from job import read_images, read_job

from automl.search.weights import load_backbone


def accept_numpy_units() -> None:
    """AutoKeras 3.0.0 hands NumPy integers to ``Dense``, and Keras 3.15 refuses them."""
    original = keras.layers.Dense.__init__

    def init(self: Any, units: Any, *args: Any, **options: Any) -> None:
        original(self, int(units), *args, **options)

    keras.layers.Dense.__init__ = init


class MobileNet(Block):
    """MobileNetV2 with the common ImageNet weights; frozen or trained as a whole."""

    def build(self, hp: keras_tuner.HyperParameters, inputs: Any = None) -> Any:
        image = keras.tree.flatten(inputs)[0]
        backbone = load_backbone(int(image.shape[1]), 1.0, "imagenet", 0)
        backbone.trainable = True
        for layer in backbone.layers:
            layer.trainable = hp.Boolean("trainable", default=False)
        return backbone(image, training=False)


def main() -> None:
    job = read_job()
    accept_numpy_units()
    images = {part: read_images(paths, job.image_size) for part, paths in job.paths.items()}
    clock = BestSoFar(job, "val_auc")
    patience = keras.callbacks.EarlyStopping("val_auc", patience=5, mode="max")
    metrics = [keras.metrics.AUC(name="auc")]
    options = {
        "max_trials": 1000,
        "objective": keras_tuner.Objective("val_auc", "max"),
        "overwrite": True,
        "seed": job.seed + 1,
    }
    with tempfile.TemporaryDirectory(dir=job.folder) as folder:
        if sys.argv[2:] == ["mobilenet"]:
            entry = autokeras.ImageInput()
            output = autokeras.ClassificationHead(metrics=metrics)(MobileNet()(entry))
            tool = autokeras.AutoModel(entry, output, directory=folder, **options)
        else:
            tool = autokeras.ImageClassifier(directory=folder, metrics=metrics, **options)
        # After three failures in a row it would give up; fetching weights fails more often.
        tool.tuner.oracle.max_consecutive_failed_trials = 1000
        try:
            tool.fit(
                images["train"],
                job.labels["train"],
                validation_data=(images["val"], job.labels["val"]),
                callbacks=[patience, clock],
                verbose=0,
            )
        except TimeIsUp:
            print("the budget is over")
    answers = clock.best_model().predict(images["test"], verbose=0)
    job.write(answers, clock.seconds, **clock.notes)


if __name__ == "__main__":
    main()
