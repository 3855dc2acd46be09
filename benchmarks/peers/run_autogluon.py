"""AutoGluon MultiModal 1.6.3 on image files, with its own limit of time.

    pip install autogluon.multimodal==1.6.3      # in an environment of its own

Its usual backbones are fetched from a hub. Here it gets MobileNetV2 with the common ImageNet
weights, by its documented way for a local timm model; all else is as it comes: augmentation,
layer-wise rates, early stopping, averaging of its three best checkpoints.
"""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from job import Job, read_images, read_job
from torch_backbone import import_torchvision, transplant

# After its limit it averages checkpoints and judges the averages on validation.
AFTER_SHARE = 0.1
ARCHITECTURE = "mobilenetv2_keras"


def mobilenetv2_keras(pretrained: bool = False, **options: object) -> torch.nn.Module:
    """timm's MobileNetV2 with TensorFlow's padding, which the weights were trained with."""
    import timm

    return timm.create_model("mobilenetv2_100", pretrained=False, pad_type="same", **options)


def write_backbone(job: Job) -> Path:
    """The folder that AutoGluon takes for a local timm model."""
    import timm
    from timm.models import register_model

    register_model(mobilenetv2_keras)
    model = timm.create_model(ARCHITECTURE, num_classes=0)
    transplant(model, job.backbone, read_images(job.paths["train"][:256], job.image_size))
    folder = job.folder / "backbone"
    folder.mkdir(exist_ok=True)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    size = [3, job.image_size, job.image_size]
    config = {
        "architecture": ARCHITECTURE,
        "num_classes": 0,
        "num_features": model.num_features,
        "pretrained_cfg": {
            "input_size": size,
            "test_input_size": size,
            "mean": [0.5, 0.5, 0.5],
            "std": [0.5, 0.5, 0.5],
            "interpolation": "bilinear",
            "crop_pct": 1.0,
        },
    }
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def main() -> None:
    job = read_job()
    import_torchvision()
    import lightning.pytorch as pl
    from autogluon.multimodal import MultiModalPredictor
    from autogluon.multimodal.learners.base import BaseLearner

    torch.set_num_threads(2)
    best = {"score": -np.inf, "seconds": float("nan"), "validations": 0}

    class Clock(pl.Callback):
        """Only looks: when the best score on validation was reached."""

        def on_validation_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
            score = trainer.callback_metrics.get("val_roc_auc")
            if score is None or trainer.sanity_checking:
                return
            best["validations"] += 1
            if float(score) > best["score"]:
                best.update(score=float(score), seconds=job.seconds)
            print(f"{job.seconds:.0f} s: val_roc_auc {float(score):.4f}")

    given = BaseLearner.get_callbacks_per_run

    def with_clock(self: BaseLearner, *args: object, **options: object) -> list[pl.Callback]:
        callbacks = given(self, *args, **options)
        return [*callbacks, Clock()] if options.get("is_train", True) else callbacks

    BaseLearner.get_callbacks_per_run = with_clock
    tables = {
        part: pd.DataFrame({"image": paths, **label(job, part)})
        for part, paths in job.paths.items()
    }
    predictor = MultiModalPredictor(
        label="label",
        problem_type="binary",
        eval_metric="roc_auc",
        path=str(job.folder / "autogluon"),
        verbosity=2,
    )
    predictor.fit(
        tables["train"],
        tuning_data=tables["val"],
        column_types={"image": "image_path"},
        time_limit=max(10.0, job.seconds_left - AFTER_SHARE * job.budget),
        seed=job.seed,
        hyperparameters={
            "model.names": ["timm_image"],
            "model.timm_image.checkpoint_name": str(write_backbone(job)),
            "model.timm_image.image_size": job.image_size,
            "env.num_gpus": 0,
            "env.precision": 32,
            "env.per_gpu_batch_size": 32,
            "env.num_workers": 2,
        },
    )
    answers = predictor.predict_proba(tables["test"], as_pandas=False)
    job.write(
        np.asarray(answers)[:, 1],
        best["seconds"],
        val_score=best["score"],
        validations=best["validations"],
    )


def label(job: Job, part: str) -> dict[str, np.ndarray]:
    return {} if part == "test" else {"label": job.labels[part]}


if __name__ == "__main__":
    main()
