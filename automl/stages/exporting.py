"""The delivered model: files, guards, and the proof that they answer alike."""

import os
import resource
import time
from pathlib import Path
from typing import Any

import numpy as np

from automl.config import SearchConfig
from automl.console import Console
from automl.records import ModelInfo, Scan, Split
from automl.serving.export import export_saved_model, measure_folder, prove_model
from automl.serving.guards import add_guards, fit_guards
from automl.serving.parity import FILES, TestSet
from automl.serving.predictor import Predictor, load
from automl.stages.evaluating import TakeRows, Winner

# Equal numbers show themselves on a few: another runtime of the same file differs everywhere.
PROOF_IMAGES = 256


def export_winner(
    winner: Winner,
    scan: Scan,
    split: Split,
    config: SearchConfig,
    folder: Path,
    parts: dict[str, Any],
    console: Console,
) -> tuple[Predictor, dict[str, Any]]:
    """model.keras and model/ with its guards, proved equal in a process of its own."""
    dataset = scan.dataset
    test, train, val = (split.rows(name) for name in ("test", "train", "val"))
    steps = 5
    console.progress("exporting the model", 0, steps)
    part = folder / "model.part.keras"
    winner.model.save(part)
    os.replace(part, folder / "model.keras")
    metrics = parts["evaluation"]["test"]["metrics"]
    info = ModelInfo(
        name=folder.name,
        classes=dataset.classes,
        positive=dataset.positive,
        threshold=0.5 if winner.threshold is None else winner.threshold,
        temperature=winner.temperature,
        image_size=config.image_size,
        headline={name: metrics[name] for name in ("roc_auc", "balanced_accuracy", "accuracy")},
        detail={
            "data": scan.digest,
            "split": split.digest,
            "weights": config.weights_used,
            "mirror": winner.mirror["used"],
        },
    )
    export_saved_model(winner.model, info, folder / "model")
    console.progress("exporting the model", 1, steps)
    predictor = load(folder / "model")
    assert scan.pixels is not None
    seen = predictor.describe(TakeRows(scan.pixels, train))
    console.progress("exporting the model", 2, steps)
    guards = fit_guards(
        seen.features,
        seen.statistics,
        seen.thumbnails,
        [scan.facts[row]["sha256"] for row in train],
        winner.val,
        dataset.targets[val],
        groups_train=split.group[train],
        seed=config.seed,
    )
    add_guards(folder / "model", guards)
    console.progress("exporting the model", 3, steps)
    some = test[:PROOF_IMAGES]
    proofs = prove_model(
        folder / "model", TestSet(np.asarray(scan.pixels[some]), winner.test[: len(some)])
    )
    console.progress("exporting the model", 4, steps)
    latency = []
    for row in test[:64]:
        started = time.perf_counter()
        predictor.engine.run(np.asarray(scan.pixels[row : row + 1]))
        latency.append(1000 * (time.perf_counter() - started))
    console.progress("exporting the model", 5, steps)
    cost = {
        "latency": {
            "p50_ms": round(float(np.quantile(latency, 0.5)), 2),
            "p95_ms": round(float(np.quantile(latency, 0.95)), 2),
        },
        "images_per_second": round(1000 / float(np.median(latency)), 1),
        "model_mb": round(measure_folder(folder / "model") / 1e6, 2),
        "exports": [
            {
                "format": name,
                "mb": round(measure_folder(folder / "model", FILES.get(name, "*")) / 1e6, 2),
                "parity": proof.to_json(),
            }
            for name, proof in proofs.items()
        ],
    }
    return load(folder / "model"), cost


def peak_memory_mb() -> dict[str, float]:
    """The largest resident sizes so far, of this process and of its largest child."""
    return {
        "driver": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
        "worker": round(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024, 1),
    }
