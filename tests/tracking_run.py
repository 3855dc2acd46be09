"""A search's run folder as a pipeline leaves it, without training: for the tests of tracking.

The plan is Hyperband's for R=9 and eta=3: brackets of 9, 5 and 3 configurations, 22 trials.
"""

import csv
import json
import os
import socket
from pathlib import Path
from typing import Any

import numpy as np

from automl.tracking.journal import FILE_NAME, Journal

RUNGS = {2: ((9, 1), (3, 3), (1, 9)), 1: ((5, 3), (1, 9)), 0: ((3, 9),)}
BEGAN = 1_790_000_000.0
CLASSES = ("healthy", "tumour")
FAILED = "0003-0"


def make_events(
    run_id: str = "a" * 32, name: str = "heads", pid: int = 1, **config: Any
) -> list[dict[str, Any]]:
    """The whole journal of 22 trials on 17 configurations, one of which ends in NaN."""
    brackets = [
        {
            "bracket": bracket,
            "rungs": [
                {"round": i, "size": size, "epochs": epochs}
                for i, (size, epochs) in enumerate(rungs)
            ],
        }
        for bracket, rungs in RUNGS.items()
    ]
    plan = {"brackets": brackets, "trials": 22, "configurations": 17, "epochs": 78,
            "seconds": 1000.0}  # fmt: skip
    clock = BEGAN
    events: list[dict[str, Any]] = []

    def add(event: str, **values: Any) -> None:
        nonlocal clock
        clock += 0.25 + values.get("seconds", 0.0)
        events.append({"event": event, "time": round(clock, 3), **values})

    add(
        "search_started", schema=1, run_id=run_id, name=name, created="2026-09-21T10:13:20",
        command="run_search.py --data scans", fingerprint={"data": "d" * 64},
        config={"preset": "fast", "objective": "roc_auc", "data": "scans", "seed": 0,
                "fine_tune_depths": [0, 2, 4], "tracking_uri": None, "experiment": "automl",
                **config},
        dataset={"name": "scans", "digest": "d" * 64, "images": 120, "kind": "folders",
                 "classes": {"healthy": 60, "tumour": 60}, "synthetic": True,
                 "split": {"train": 84, "val": 18, "test": 18}},
        plan=plan, versions={"tensorflow": "2.21.0", "automl": "0.1.0"},
        machine={"python": "3.11.7", "cpu": "Drawn CPU", "cores": 2, "git": None},
        space=[{"name": "fine_tune_depth", "kind": "choice", "values": [0, 2, 4]},
               {"name": "dropout", "kind": "fixed", "default": 0.2},
               {"name": "learning_rate", "kind": "float", "low": 1e-4, "high": 1e-2,
                "sampling": "log"}],
    )  # fmt: skip
    add("session_started", session=0, pid=pid, host=socket.gethostname(), versions={})
    first = 0
    scores: dict[str, float] = {}
    for bracket, rungs in RUNGS.items():
        chosen = list(range(first, first + rungs[0][0]))
        first += rungs[0][0]
        done = 0
        for number, (size, epochs) in enumerate(rungs):
            if number:
                ranked = [c for c in chosen if f"{c:04d}-{number - 1}" in scores]
                ranked.sort(key=lambda c: -scores[f"{c:04d}-{number - 1}"])
                chosen = sorted(ranked[:size])
            for configuration in chosen:
                trial = f"{configuration:04d}-{number}"
                run_trial(add, trial, configuration, bracket, number, done, epochs, scores)
            done = epochs
    best = max(scores, key=lambda trial: scores[trial])
    add("search_ended", best=best, score=scores[best], wall_seconds=160.0,
        stages={"cache": 9.5, "trials": 150.5})  # fmt: skip
    add("exported", format="saved_model", folder="model", digest="e" * 64)
    add("evaluated", on="test", images=18,
        metrics={"roc_auc": {"value": 0.93, "low": 0.88, "high": 0.97},
                 "accuracy": {"value": 0.9, "low": 0.85, "high": 0.95}})  # fmt: skip
    add("session_ended", reason="done")
    return events


def run_trial(
    add: Any, trial: str, configuration: int, bracket: int, number: int, done: int, epochs: int,
    scores: dict[str, float],
) -> None:  # fmt: skip
    """One trial: its beginning and its end, a curve that depends on its number alone."""
    random = np.random.default_rng(configuration)
    params = {
        "fine_tune_depth": (0, 2, 4)[configuration % 3],
        "head_units": (0, 128)[configuration % 2],
        "dropout": 0.2,
        "learning_rate": float(f"{10 ** random.uniform(-4, -2):.6g}"),
    }
    parent = f"{configuration:04d}-{number - 1}" if number else None
    add("trial_started", trial=trial, configuration=configuration, bracket=bracket, round=number,
        initial_epoch=done, epochs=epochs, params=params, parent=parent, attempt=0)  # fmt: skip
    level = random.uniform(0.6, 0.8)
    history = [
        {
            "epoch": epoch, "seconds": 2.0, "loss": round(0.7 / epoch, 5),
            "val_loss": round(0.72 / epoch, 5), "val_accuracy": round(level, 5),
            "val_roc_auc": round(level + 0.01 * epoch, 5), "learning_rate": params["learning_rate"],
        }
        for epoch in range(done + 1, epochs + 1)
    ]  # fmt: skip
    values = {"trial": trial, "attempt": 0, "seconds": 2.0 * len(history), "elapsed": 1.0}
    if trial == FAILED:
        history[-1] = {"epoch": epochs, "seconds": 2.0, "loss": None, "val_loss": None}
        add("trial_ended", status="failed", score=None, reason="nan", epoch_of_score=None,
            message="The loss became NaN.", history=history, **values)  # fmt: skip
        return
    scores[trial] = history[-1]["val_roc_auc"]
    add("trial_ended", status="completed", score=scores[trial], reason=None, message=None,
        epoch_of_score=epochs, history=history, **values)  # fmt: skip


def write_events(folder: Path, events: list[dict[str, Any]]) -> None:
    """Append ``events`` to the run's journal with their own times."""
    folder.mkdir(parents=True, exist_ok=True)
    with Journal(folder / FILE_NAME) as journal:
        for event in events:
            journal.append(**event)


def write_files(folder: Path, skill: float = 2.0, split: str = "s" * 64) -> None:
    """The files that a finished run has beside its journal; ``skill`` separates the classes."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(1)
    noise = random.normal(size=60)
    with open(folder / "predictions.csv", "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        columns = ["image", "label", "predicted", *(f"probability_{name}" for name in CLASSES)]
        table.writerow(columns)
        for row in range(60):
            value = 1 / (1 + np.exp(-(skill * (row % 2 - 0.5) + noise[row])))
            label, predicted = CLASSES[row % 2], CLASSES[int(value > 0.5)]
            table.writerow([f"{row:03d}.png", label, predicted, 1 - value, value])
    with open(folder / "split.csv", "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["image", "label", "group", "split"])
        for row in range(60):
            table.writerow([f"{row:03d}.png", CLASSES[row % 2], f"p{row // 2}", "test"])
    metrics = {"roc_auc": {"value": 0.93, "low": 0.88, "high": 0.97}}
    report = {"split": {"digest": split}, "evaluation": {"test": {"metrics": metrics}}}
    (folder / "report.json").write_text(json.dumps(report), encoding="utf-8")
    page = "<!doctype html><title>Report</title><h1>Report of a drawn search</h1>"
    (folder / "report.html").write_text(page, encoding="utf-8")
    (folder / "audit.json").write_text('{"findings": []}', encoding="utf-8")
    (folder / "trials.csv").write_text("number,status\n1,completed\n", encoding="utf-8")
    (folder / "config.yaml").write_text("preset: fast\n", encoding="utf-8")


def write_model(folder: Path) -> None:
    """A SavedModel with the signatures of the contract, whose answer is the mean brightness."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import tensorflow as tf

    class Brightness(tf.Module):
        def _answer(self, images: Any) -> dict[str, Any]:
            positive = tf.reduce_mean(images, axis=[1, 2, 3]) / 255.0
            index = tf.cast(positive >= 0.4, tf.int64)
            return {
                "probabilities": tf.stack([1.0 - positive, positive], axis=1),
                "class_index": index,
                "label": tf.gather(tf.constant(CLASSES), index),
            }

        @tf.function(input_signature=[tf.TensorSpec((None, None, None, 3), tf.float32)])
        def serving_default(self, images: Any) -> dict[str, Any]:
            return self._answer(images)

        @tf.function(input_signature=[tf.TensorSpec((None,), tf.string)])
        def encoded(self, files: Any) -> dict[str, Any]:
            def read(data: Any) -> Any:
                image = tf.io.decode_image(data, channels=3, expand_animations=False)
                return tf.image.resize(tf.cast(image, tf.float32), (8, 8))

            spec = tf.TensorSpec((8, 8, 3), tf.float32)
            return self._answer(tf.map_fn(read, files, fn_output_signature=spec))

    module = Brightness()
    signatures = {"serving_default": module.serving_default, "encoded": module.encoded}
    tf.saved_model.save(module, str(folder / "model"), signatures=signatures)
    extra = folder / "model" / "assets.extra"
    extra.mkdir()
    info = {"name": "heads", "classes": CLASSES, "positive": "tumour", "threshold": 0.4,
            "temperature": 1.3, "image_size": 8, "hashes": {"data": "d" * 64},
            "versions": {"tensorflow": tf.__version__}}  # fmt: skip
    (extra / "automl.json").write_text(json.dumps(info), encoding="utf-8")


def write_placeholder_model(folder: Path) -> None:
    """A model folder that is logged and compared, but never loaded: no TensorFlow needed."""
    extra = folder / "model" / "assets.extra"
    extra.mkdir(parents=True)
    (folder / "model" / "saved_model.pb").write_bytes(b"not loaded by these tests")
    info = {"name": "heads", "classes": CLASSES, "threshold": 0.4, "temperature": 1.3,
            "versions": {"tensorflow": "2.21.0"}}  # fmt: skip
    (extra / "automl.json").write_text(json.dumps(info), encoding="utf-8")


def read_store(uri: str, search: str = "a" * 32, experiment: str = "automl") -> dict[str, Any]:
    """All that a store tells of a search, without the ids that the store itself gives."""
    import mlflow

    client = mlflow.MlflowClient(uri)
    experiment_id = client.get_experiment_by_name(experiment).experiment_id
    runs = client.search_runs(
        [experiment_id], f"tags.\"automl.run_id\" = '{search}'", max_results=500
    )
    names = {run.info.run_id: run.data.tags.get("automl.configuration", "search") for run in runs}
    assert len(set(names.values())) == len(names), "a configuration has two runs"
    content: dict[str, Any] = {}
    for run in runs:
        tags = dict(run.data.tags)
        if "mlflow.parentRunId" in tags:
            tags["mlflow.parentRunId"] = names[tags["mlflow.parentRunId"]]
        points = sorted(
            (point.key, point.step, point.timestamp, point.value)
            for key in run.data.metrics
            for point in client.get_metric_history(run.info.run_id, key)
        )
        files = client.list_artifacts(run.info.run_id)
        content[names[run.info.run_id]] = {
            "name": run.info.run_name,
            "status": run.info.status,
            "start": run.info.start_time,
            "end": run.info.end_time,
            "params": dict(run.data.params),
            "tags": tags,
            "points": points,
            "data": [(d.dataset.name, d.dataset.digest) for d in run.inputs.dataset_inputs],
            "files": sorted((item.path, item.file_size) for item in files),
        }
    models = [
        model
        for model in client.search_logged_models([experiment_id])
        if model.source_run_id in names
    ]
    content["models"] = sorted(
        (
            model.name,
            model.status.name,
            model.tags["automl.model"],
            names[model.source_run_id],
            sorted(item.path for item in client.list_logged_model_artifacts(model.model_id)),
        )
        for model in models
    )
    content["versions"] = [
        {
            "version": str(version.version),
            "status": version.status,
            "description": version.description,
            "tags": {k: v for k, v in version.tags.items() if k != "automl.model_id"},
            "aliases": sorted(client.get_model_version(version.name, version.version).aliases),
        }
        for model in models
        for version in client.search_model_versions(f"run_id = '{model.source_run_id}'")
    ]
    return content
