"""A finished model on images from elsewhere: the honest question behind every test set."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from automl.config import make_config
from automl.console import Console, hush
from automl.data.sources import load_dataset
from automl.errors import DataError
from automl.evaluation.intervals import (
    bootstrap_metrics,
    group_codes,
    independent_difference,
)
from automl.evaluation.plain import to_json
from automl.records import Run


def evaluate_external(
    run: Run,
    data: str,
    mapping: str | None,
    console: Console,
    columns: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """One entry of the report's "external" part.

    Args:
        run: a finished run.
        data: a folder or CSV, as for a search; all of its images are used.
        mapping: labels of ``data`` that mean one of the model's classes, such as
            "glioma=tumour,notumor=healthy"; others are matched by name.
        columns: settings that name the columns of a CSV, as for a search.

    Returns:
        name, images, unreadable, seen_in_training, unlike_training, metrics, without_seen
        (metrics of the images that are no twins of training images), change (external minus
        internal, with intervals of the difference) and map.

    Raises:
        UsageError: a label that the model does not know.
        DataError: fewer than two images of a class can be read.
    """
    dataset = load_dataset(make_config({"data": data, **(columns or {})}))
    with hush():
        from automl.serving.predictor import load
        from automl.serving.tables import predict_dataset

    predictor = load(run.model_dir)
    answers = predict_dataset(predictor, dataset, mapping, progress=console.progress)
    classes = predictor.info.classes
    counts = np.bincount(answers.y_true, minlength=len(classes))
    if (counts < 2).any():
        listed = ", ".join(f"{name} {count}" for name, count in zip(classes, counts, strict=True))
        raise DataError(
            f"{data} has too few readable images of a class for an evaluation: {listed}. "
            "Each needs at least two."
        )
    samples = [dataset.samples[row] for row in answers.rows]
    patients = [sample.group for sample in samples]
    # Codes of the patients, where all are known; else every image stands for itself.
    groups = (
        None
        if None in patients
        else group_codes(np.unique(patients, return_inverse=True)[1], len(patients))
    )
    threshold = predictor.info.threshold if len(classes) == 2 else None
    readable = [p for p in answers.predictions if p.label is not None]
    seen = np.array(["seen-in-training" in p.flags for p in readable])
    seed = run.report["run"]["seed"]

    def measure(keep: np.ndarray) -> dict[str, Any]:
        units = None if groups is None else groups[keep]
        return bootstrap_metrics(
            answers.y_true[keep], answers.probabilities[keep], threshold, units, seed
        )

    metrics = measure(np.ones(len(readable), bool))
    fresh = np.bincount(answers.y_true[~seen], minlength=len(classes))
    internal = run.report["evaluation"]["test"]["metrics"]
    change = {
        name: independent_difference(metrics[name], internal[name])
        for name in metrics
        if name in internal
    }
    return to_json(
        {
            "name": dataset.name if data == "sample" else Path(data).name,
            "images": len(readable),
            "unreadable": len(answers.predictions) - len(readable),
            "seen_in_training": int(seen.sum()),
            "unlike_training": sum("unlike-training" in p.flags for p in readable),
            "metrics": metrics,
            "without_seen": measure(~seen) if seen.any() and (fresh >= 2).all() else None,
            "change": change,
            "map": mapping,
            "findings": [asdict(finding) for finding in dataset.findings],
        }
    )
