"""Ludwig 0.11.0, the last for Python 3.11: one declarative model, trained as it comes.

    pip install ludwig==0.11.0      # in an environment of its own

Its search needs a Ray cluster and knows no images; what remains is its trainer. The backbone is
its encoder ``mobilenetv2`` (torchvision's), which gets the common ImageNet weights in place of
torchvision's own; that encoder sees 224 pixels, whatever is asked. It stops early on validation;
for the budget a callback ends the training.
"""

import logging
import sys
import types
from importlib.machinery import ModuleSpec
from importlib.metadata import version
from typing import Any

import numpy as np
import pandas as pd
import torch
from job import read_images, read_job
from torch_backbone import (
    import_torchvision,
    pad_as_tensorflow,
    take_imagenet_norm,
    transplant,
)

# What torchvision's MobileNetV2 resizes to, and what it cuts out of the middle.
SIZE, CROP = 232, 224


def skip_torchaudio() -> None:
    """Ludwig imports it for its audio columns; built for CUDA, it cannot be loaded without."""
    try:
        import torchaudio  # noqa: F401
    except OSError:
        empty = types.ModuleType("torchaudio")
        empty.__spec__ = ModuleSpec("torchaudio", None)
        empty.__version__ = version("torchaudio")
        sys.modules["torchaudio"] = empty


def main() -> None:
    job = read_job()
    import_torchvision()
    skip_torchaudio()
    import torchvision

    torch.set_num_threads(2)
    make_empty = torchvision.models.mobilenet_v2

    def mobilenet_v2(*, weights: Any = None, **options: Any) -> torch.nn.Module:
        network = make_empty(weights=None, **options)
        pad_as_tensorflow(network)
        if weights is not None:
            pixels = read_images(job.paths["train"][:256], CROP)
            transplant(network, job.backbone, pixels)
            take_imagenet_norm(network.features[0][0], network.features[0][1])
        return network

    # Ludwig remembers torchvision's functions when it is imported.
    torchvision.models.mobilenet_v2 = mobilenet_v2
    from ludwig.api import LudwigModel
    from ludwig.callbacks import Callback

    best = {"score": -np.inf, "seconds": float("nan"), "evaluations": 0}

    class Clock(Callback):
        def on_batch_end(self, trainer: Any, tracker: Any, path: str, **_: Any) -> None:
            if not job.seconds_left:
                trainer.total_steps = tracker.steps

        def on_eval_end(self, trainer: Any, tracker: Any, path: str) -> None:
            score = tracker.validation_metrics["label"]["roc_auc"][-1].value
            best["evaluations"] += 1
            if score > best["score"]:
                best.update(score=score, seconds=job.seconds)
            print(f"{job.seconds:.0f} s: validation ROC AUC {score:.4f}")

    tables = {}
    for part, paths in job.paths.items():
        column = list(read_images(paths, SIZE))
        # The test set's labels are not known here; the column must be there.
        labels = job.labels.get(part, np.zeros(len(paths), dtype=np.int64))
        tables[part] = pd.DataFrame({"image": column, "label": labels.astype(bool)})
    model = LudwigModel(
        {
            "input_features": [
                {
                    "name": "image",
                    "type": "image",
                    "encoder": {"type": "mobilenetv2", "use_pretrained": True, "trainable": True},
                    "preprocessing": {"num_channels": 3, "in_memory": True},
                }
            ],
            "output_features": [{"name": "label", "type": "binary"}],
            "trainer": {
                "epochs": 100,
                "batch_size": 32,
                "eval_batch_size": 64,
                "learning_rate": 1e-4,
                "early_stop": 12,
                "checkpoints_per_epoch": 4,
                "validation_field": "label",
                "validation_metric": "roc_auc",
            },
        },
        backend="local",
        logging_level=logging.INFO,
        callbacks=[Clock()],
    )
    model.train(
        training_set=tables["train"],
        validation_set=tables["val"],
        random_seed=job.seed,
        output_directory=str(job.folder / "ludwig"),
        skip_save_processed_input=True,
        skip_save_progress=True,
        skip_save_log=True,
    )
    answers, _ = model.predict(tables["test"], skip_save_predictions=True)
    job.write(
        answers["label_probabilities_True"].to_numpy(),
        best["seconds"],
        val_score=best["score"],
        evaluations=best["evaluations"],
    )


if __name__ == "__main__":
    main()
