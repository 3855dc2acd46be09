"""A finished model on images from elsewhere: the honest question behind every test set."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from automl.config import make_config
from automl.console import Console, hush
from automl.data.sources import read_source
from automl.errors import DataError
from automl.evaluation.intervals import (
    Interval,
    bootstrap_metrics,
    group_codes,
    independent_difference,
)
from automl.evaluation.metrics import METRICS
from automl.evaluation.plain import to_json
from automl.records import Run

# Images of a class without which it does not count as tested.
FEWEST = 2
NOTHING: Interval = dict.fromkeys(("value", "low", "high"), float("nan"))


def evaluate_external(
    run: Run,
    data: str,
    mapping: str | None,
    console: Console,
    columns: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """One entry of the report's "external" part.

    A data set need not have every class; see ``find_undefined``.

    Args:
        run: a finished run.
        data: a folder or CSV, as for a search; all of its images are used.
        mapping: labels of ``data`` that mean one of the model's classes, such as
            "glioma=tumour,notumor=healthy"; others are matched by name.
        columns: settings that name the columns of a CSV, as for a search.

    Returns:
        name, images, unreadable, seen_in_training, unlike_training, metrics, without_seen
        (metrics of the images that are no twins of training images), change (external minus
        internal, with intervals of the difference), lacking (classes without images), undefined
        (metrics that therefore have no value) and map.

    Raises:
        UsageError: a label that the model does not know.
        DataError: no class has two images that can be read.
    """
    dataset = read_source(make_config({"data": data, **(columns or {})}))
    with hush():
        from automl.serving.predictor import load
        from automl.serving.tables import predict_dataset

    predictor = load(run.model_dir)
    called = (run.report.get("study") or {}).get("class_names")
    answers = predict_dataset(predictor, dataset, mapping, console.progress, called)
    classes = predictor.info.classes
    counts = np.bincount(answers.y_true, minlength=len(classes))
    enough = counts >= FEWEST
    if not enough.any():
        listed = ", ".join(f"{name} {count}" for name, count in zip(classes, counts, strict=True))
        raise DataError(
            f"{data} has too few readable images for an evaluation: {listed}. At least one class "
            f"needs {FEWEST} or more."
        )
    undefined = find_undefined(enough)
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

    def measure(keep: np.ndarray) -> dict[str, Interval]:
        units = None if groups is None else groups[keep]
        found = bootstrap_metrics(
            answers.y_true[keep], answers.probabilities[keep], threshold, units, seed
        )
        return found | dict.fromkeys(undefined, NOTHING)

    metrics = measure(np.ones(len(readable), bool))
    fresh = np.bincount(answers.y_true[~seen], minlength=len(classes))
    internal = run.report["evaluation"]["test"]["metrics"]
    # A mean over some of the classes is not to be held against one over all of them.
    comparable = metrics if enough.all() or len(classes) == 2 else ()
    change = {
        name: independent_difference(metrics[name], internal[name])
        for name in comparable
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
            "without_seen": measure(~seen)
            if seen.any() and (fresh[enough] >= FEWEST).all()
            else None,
            "change": change,
            "lacking": [name for name, some in zip(classes, enough, strict=True) if not some],
            "undefined": undefined,
            "map": mapping,
            "findings": [asdict(finding) for finding in dataset.findings],
        }
    )


def find_undefined(enough: np.ndarray) -> list[str]:
    """Metrics that say nothing where not every class has images.

    Of two classes the other one's rate is left: sensitivity where all are positive, specificity
    where all are negative. Precision, accuracy and calibration would be those of a mixture that
    nobody will meet. Of more classes means over those that occur remain, if two or more do.

    Args:
        enough: for each class, the positive one of two last, whether it has images.
    """
    if enough.all() or (len(enough) > 2 and enough.sum() > 1):
        return []
    kept = {"recall"} if len(enough) > 2 or enough[1] else {"specificity"}
    return [name for name in METRICS if name not in kept]
