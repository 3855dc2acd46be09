"""What the split does to the number: the winner's configuration on the other kind of split."""

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from automl.config import SearchConfig
from automl.console import Console
from automl.data.split import rows_without_twins
from automl.evaluation.intervals import bootstrap_metrics
from automl.evaluation.plain import to_json
from automl.records import Scan, Split, Study
from automl.search.spec import TrialError, TrialTask
from automl.search.trial import run_trial
from automl.search.worker import WorkerError, WorkerPool
from automl.stages.evaluating import finish_model
from automl.stages.searching import SearchPlan
from automl.tracking.journal import Journal

SHOWN = ("accuracy", "balanced_accuracy", "roc_auc")


def compare_splits(
    study: Study,
    plan: SearchPlan,
    metrics: dict[str, Any],
    scan: Scan,
    split: Split,
    other: Split,
    config: SearchConfig,
    folder: Path,
    journal: Journal,
    console: Console,
) -> list[dict[str, Any]]:
    """The "comparison" of the report's split: one row for this split, one for the other.

    The winner's configuration is trained from the start for the same epochs, calibrated on the
    other split's validation images and scored once on its test images.

    Args:
        metrics: of the winner on this split's test images.
        other: the same images divided otherwise, see ``divide_otherwise``.
    """
    console.progress(f"comparing with a {other.kind} split", 0, 1)
    best = study.best
    spec = replace(
        plan.study.spec,
        train_rows=other.rows("train"),
        val_rows=other.rows("val"),
        # Activations of further depths would be computed for nothing.
        depths=(int(best.params["fine_tune_depth"]),),
    )
    task = TrialTask(
        trial="comparison",
        configuration=best.configuration,
        params=best.params,
        epochs=best.epochs - best.refines,
        max_epochs=max(epochs for rungs in plan.study.schedule for _, epochs in rungs),
        parent=None,
        checkpoint=plan.study.checkpoint("comparison"),
        batch_size=plan.study.batch_size,
    )
    started = time.monotonic()
    pool = WorkerPool(1, folder / "worker.log", lambda kind, *rest: console.progress(*rest))
    try:
        pool.submit(run_trial, spec, task).result()
        if best.refines:
            task = replace(task, epochs=best.epochs, parent=task.checkpoint, refines=best.refines)
            pool.submit(run_trial, spec, task).result()
    except (TrialError, WorkerError) as error:
        # The search has its result; a comparison that failed must not take it along.
        failure = f"It could not be trained ({error.reason}): {error.message}"
        return [describe(split, metrics), describe(other, message=failure)]
    finally:
        pool.shutdown()
    rival = finish_model(replace(study, checkpoint=task.checkpoint), spec, scan, other, console)
    task.checkpoint.unlink()
    test = other.rows("test")
    scores = to_json(
        bootstrap_metrics(
            scan.dataset.targets[test], rival.test, rival.threshold, other.group[test], config.seed
        )
    )
    journal.append("evaluated", on=f"comparison_{other.kind}", images=len(test), metrics=scores)
    console.progress(f"comparing with a {other.kind} split", 1, 1)
    seconds = round(time.monotonic() - started, 1)
    return [describe(split, metrics), describe(other, scores, seconds)]


def describe(
    split: Split,
    metrics: dict[str, Any] | None = None,
    seconds: float | None = None,
    message: str | None = None,
) -> dict[str, Any]:
    """One row: ``touched`` counts test images with a near-copy or patient in train or val."""
    test = split.rows("test")
    return {
        "kind": split.kind,
        "test": len(test),
        "touched": int(np.sum(~np.isin(test, rows_without_twins(split)))),
        "leaking_pairs": split.leaking_pairs,
        "metrics": {name: metrics[name] for name in SHOWN} if metrics else {},
        "seconds": seconds,
        "message": message,
    }
