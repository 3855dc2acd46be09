"""Ludwig 0.11.0, the last for Python 3.11: one declarative model, trained as it comes.

    pip install ludwig==0.11.0      # in an environment of its own

Its search needs a Ray cluster and knows no images; what remains is its trainer. The backbone is
its encoder ``mobilenetv2`` (torchvision's) with the common ImageNet weights where torchvision
looks for its own. It stops early on validation; for the budget a callback ends the training.
"""

import os
from typing import Any

import numpy as np
import pandas as pd
import torch
from job import read_images, read_job
from torch_backbone import define_nms, take_imagenet_norm, transplant


def main() -> None:
    job = read_job()
    define_nms()
    import torchvision

    torch.set_num_threads(2)
    pixels = read_images(job.paths["train"][:256], job.image_size)
    network = torchvision.models.mobilenet_v2(weights=None)
    transplant(network, job.backbone, pixels)
    take_imagenet_norm(network.features[0][0], network.features[0][1])
    os.environ["TORCH_HOME"] = str(job.folder / "torch")
    folder = job.folder / "torch" / "hub" / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    name = torchvision.models.MobileNet_V2_Weights.DEFAULT.url.rsplit("/", 1)[1]
    torch.save(network.state_dict(), folder / name)

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
        column = list(read_images(paths, job.image_size))
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
                    "preprocessing": {
                        "height": job.image_size,
                        "width": job.image_size,
                        "num_channels": 3,
                        "in_memory": True,
                    },
                }
            ],
            "output_features": [{"name": "label", "type": "binary"}],
            "trainer": {
                "epochs": 100,
                "batch_size": 32,
                "learning_rate": 1e-4,
                "early_stop": 10,
                "checkpoints_per_epoch": 2,
                "validation_field": "label",
                "validation_metric": "roc_auc",
            },
        },
        backend="local",
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
