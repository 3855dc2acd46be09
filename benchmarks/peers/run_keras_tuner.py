"""Plain KerasTuner: stock Hyperband over whole models, written as a competent user would.

Images decoded once into memory, tf.data with prefetching, the backbone frozen below the cut and
BatchNorm in inference mode, the training set oversampled, the features standardised, early
stopping. The space is automl's own, so that the difference is the search and not the space.
"""

import tempfile

import keras
import keras_tuner
import numpy as np
import tensorflow as tf
from best_keras import BestSoFar, TimeIsUp
from job import balanced_rows, read_images, read_job

from automl.search.space import MobileNetHyperModel
from automl.search.weights import load_backbone

DEPTHS, WIDTH, MAX_EPOCHS, FACTOR, BATCH = (0, 1, 2, 4, 7), 1.0, 9, 3, 32


def main() -> None:
    job = read_job()
    images = {part: read_images(paths, job.image_size) for part, paths in job.paths.items()}
    rows = balanced_rows(job.labels["train"], job.seed)
    train = stream(images["train"][rows], job.labels["train"][rows], job.seed)
    val = stream(images["val"], job.labels["val"], None)
    backbone = load_backbone(job.image_size, WIDTH, "imagenet", job.seed)
    features = backbone.predict(images["train"][:512].astype("float32"), verbose=0)
    variance = np.maximum(features.var(axis=0), 0.01 * features.var(axis=0).mean())
    clock = BestSoFar(job, "val_roc_auc")
    with tempfile.TemporaryDirectory(dir=job.folder) as folder:
        tuner = keras_tuner.Hyperband(
            MobileNetHyperModel(
                2,
                job.image_size,
                depths=DEPTHS,
                widths=(WIDTH,),
                weights="imagenet",
                seed=job.seed,
                statistics=(features.mean(axis=0), variance),
            ),
            keras_tuner.Objective("val_roc_auc", "max"),
            max_epochs=MAX_EPOCHS,
            factor=FACTOR,
            seed=job.seed + 1,  # KerasTuner takes 0 for none
            directory=folder,
            project_name="peer",
        )
        patience = keras.callbacks.EarlyStopping("val_roc_auc", patience=3, mode="max")
        try:
            tuner.search(train, validation_data=val, callbacks=[patience, clock], verbose=0)
        except TimeIsUp:
            print("the budget is over")
    answers = clock.best_model().predict(images["test"].astype("float32"), verbose=0)
    job.write(answers, clock.seconds, **clock.notes)


def stream(images: np.ndarray, labels: np.ndarray, seed: int | None) -> tf.data.Dataset:
    """Batches of float32 pixels in 0–255, shuffled if there is a seed."""
    data = tf.data.Dataset.from_tensor_slices((images, labels))
    if seed is not None:
        data = data.shuffle(len(labels), seed=seed)
    data = data.batch(BATCH).map(
        lambda x, label: (tf.cast(x, tf.float32), label), num_parallel_calls=tf.data.AUTOTUNE
    )
    return data.prefetch(tf.data.AUTOTUNE)


if __name__ == "__main__":
    main()
