"""Further formats of a finished run's model, proved on the images of its own test set."""

import csv
from pathlib import Path
from typing import Any

import numpy as np

from automl.config import make_config
from automl.console import Console, hush
from automl.data.pixels import scan_images
from automl.data.sources import cache_folder, load_dataset
from automl.data.split import read_split
from automl.data.split_file import plain_cell
from automl.errors import AutomlError, DataError
from automl.pipeline import load_run, write_report
from automl.tracking.journal import FILE_NAME, Journal, read_journal

# Enough to fit a line to each feature of the rounded network.
CALIBRATION_IMAGES = 384


def export_run(folder: Path, formats: list[str], console: Console) -> list[dict[str, Any]]:
    """Write ``folder``/exports/FORMAT for each format, and add the proofs to the report.

    Where the run's images are gone or have changed, the formats are written without a proof
    and a warning says so.

    Returns:
        What ``export_model`` returns: format, folder, mb, digest and parity.

    Raises:
        UsageError: an unknown format, or one whose converter is missing.
        ModelError: the run has no model, or an export cannot be run.
    """
    report = load_run(folder).report
    with hush():
        from automl.serving.export import export_model
    try:
        proof, _ = gather_images(folder, console)
    except AutomlError as error:
        console.warn(f"The formats are written without a proof: {error}")
        proof = {}
    results = export_model(folder, formats, progress=console.progress, **proof)
    with Journal(folder / FILE_NAME) as journal:
        for result in results:
            journal.append("exported", **{k: result[k] for k in ("format", "folder", "digest")})
    kept = [item for item in report["cost"].get("exports", []) if item["format"] not in formats]
    report["cost"]["exports"] = kept + [
        {key: result[key] for key in ("format", "mb", "parity")} for result in results
    ]
    write_report(folder, report)
    return results


def gather_images(folder: Path, console: Console) -> tuple[dict[str, Any], list[Path]]:
    """The proof's arguments of ``export_model``, images and calibration; and the test files.

    Raises:
        DataError: the images are not those of the search.
    """
    from automl.serving.parity import TestSet

    start = next(e for e in read_journal(folder / FILE_NAME) if e["event"] == "search_started")
    config = make_config(start["config"])
    dataset = load_dataset(config)
    scan = scan_images(dataset, config.image_size, cache_folder(config), console.progress)
    if scan.digest != start["dataset"]["digest"]:
        raise DataError(f"the images under {config.data} have changed since the search.")
    split = read_split(folder / "split.csv", scan.dataset)
    samples = scan.dataset.samples
    predicted = read_rows(folder / "predictions.csv")
    groups = read_rows(folder / "split.csv")
    columns = [f"probability_{name}" for name in scan.dataset.classes]
    test = [row for row in split.rows("test") if samples[row].image in predicted]
    expected = [
        [float(predicted[samples[row].image][column]) for column in columns] for row in test
    ]
    named = [groups[samples[row].image].get("group", str(row)) for row in test]
    train = split.rows("train")
    count = min(CALIBRATION_IMAGES, len(train))
    chosen = np.sort(np.random.default_rng(config.seed).choice(train, count, replace=False))
    images = TestSet(
        pixels=scan.pixels[test],
        expected=np.array(expected),
        y_true=scan.dataset.targets[test],
        groups=np.unique(named, return_inverse=True)[1],
    )
    proof = {"images": images, "calibration": scan.pixels[chosen]}
    return proof, [samples[row].path for row in test]


def read_rows(path: Path) -> dict[str, dict[str, str]]:
    """A CSV's rows by their column "image"."""
    with open(path, encoding="utf-8", newline="") as file:
        return {plain_cell(row["image"]): row for row in csv.DictReader(file)}
