"""Runs side by side, and the list of all runs: small pages made from report.json files."""

import csv
import os
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from automl.errors import StorageError, UsageError
from automl.evaluation.intervals import bootstrap_difference
from automl.reporting.formats import LOWER_IS_BETTER, METRIC_NAMES, number, span, words
from automl.reporting.page import complete, read_report
from automl.reporting.render import render_page, stamp
from automl.tracking.compare import digest_test_set
from automl.writing import write_text

PREFIX = "probability_"
# Settings that do not bear on the result.
UNLIKE_ANYWAY = ("name", "out", "study", "tracking", "tracking_uri", "experiment", "cache_dir")


def compare_runs(folders: list[Path], out: Path | None = None) -> Path:
    """Write a page with the runs' metrics as columns and differences to the first run.

    Differences have paired intervals where both runs hold predictions of the same test
    images; where they do not, the page says so and shows none.

    Args:
        folders: two or more run folders; the first is what the others are compared with.
        out: the HTML file; compare.html beside the first folder if None.

    Raises:
        UsageError: fewer than two runs.
        StorageError: a report.json is absent or cannot be read.
    """
    if len(folders) < 2:
        raise UsageError("A comparison needs two or more runs, such as reports/a reports/b.")
    out = out or folders[0].parent / "compare.html"
    runs = [describe_run(folder, out.parent) for folder in folders]
    first, others = runs[0], runs[1:]
    for run in others:
        run["same"] = bool(first["test_digest"]) and run["test_digest"] == first["test_digest"]
        run["differences"] = paired_differences(first, run) if run["same"] else {}
    page = render_page(
        "compare.html",
        title="automl: runs side by side",
        runs=runs,
        first=first,
        others=others,
        metrics=[metric_row(name, runs) for name in METRIC_NAMES],
        settings=setting_rows(runs),
        rendered_at=stamp(None),
    )
    return write_text(out, page)


def write_index(reports_dir: Path) -> Path:
    """Write ``reports_dir``/index.html: every run with a readable report, newest first."""
    runs, unreadable = [], []
    for folder in sorted(reports_dir.iterdir()):
        if (folder / "report.json").is_file():
            try:
                runs.append(describe_run(folder, reports_dir))
            except StorageError as error:
                unreadable.append({"name": folder.name, "message": str(error)})
        elif (folder / "journal.jsonl").is_file():
            unreadable.append({"name": folder.name, "message": "The search has not finished."})
    runs.sort(key=lambda run: run["report"]["run"]["created"], reverse=True)
    page = render_page(
        "index.html",
        title="automl: all runs",
        runs=runs,
        unreadable=unreadable,
        rendered_at=stamp(None),
    )
    return write_text(reports_dir / "index.html", page)


def describe_run(folder: Path, seen_from: Path) -> dict[str, Any]:
    """What both pages show of a run."""
    report = complete(read_report(folder / "report.json"))
    test = report["evaluation"]["test"]
    link = os.path.relpath(folder / "report.html", seen_from)
    return {
        "folder": folder,
        "link": quote(link.replace(os.sep, "/")),
        "report": report,
        "name": report["run"]["name"],
        "test": test,
        "metrics": test["metrics"],
        "level": report["verdict"]["level"] if report["verdict"] else None,
        "test_digest": digest_test_set(folder / "predictions.csv"),
        "differences": {},
        "same": True,
    }


def metric_row(name: str, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """One metric of every run, and its difference to the first, as text."""
    cells = []
    for run in runs:
        item, difference = run["metrics"].get(name), run["differences"].get(name)
        cells.append(
            {
                "value": number(item["value"] if item else None),
                "span": span(item),
                "difference": signed(difference),
                "settled": settle(difference, name in LOWER_IS_BETTER),
            }
        )
    return {"name": words(name), "lower": name in LOWER_IS_BETTER, "cells": cells}


def settle(difference: dict[str, float | None] | None, lower_is_better: bool) -> str:
    """better or worse where the interval leaves out zero, else ""."""
    if not difference or difference["low"] is None or difference["low"] * difference["high"] <= 0:
        return ""
    return "better" if (difference["low"] > 0) != lower_is_better else "worse"


def signed(item: dict[str, float | None] | None) -> str:
    if not item or item["value"] is None:
        return ""
    sign = "+" if item["value"] >= 0 else ""
    return f"{sign}{number(item['value'])} ({number(item['low'])} to {number(item['high'])})"


def setting_rows(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Settings and winners' hyperparameters that are not the same in all runs."""
    columns = [
        {
            **run["report"]["run"]["config"],
            **{
                f"best {name}": value
                for name, value in run["report"]["search"]["best"]["params"].items()
            },
            "weights": run["report"]["run"]["weights"],
            "seed": run["report"]["run"]["seed"],
        }
        for run in runs
    ]
    names = dict.fromkeys(n for column in columns for n in column if n not in UNLIKE_ANYWAY)
    rows = [
        {"name": words(name), "values": [column.get(name) for column in columns]} for name in names
    ]
    return [row for row in rows if any(value != row["values"][0] for value in row["values"])]


def paired_differences(first: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """``other`` minus ``first`` in every metric, on the same images; {} without predictions."""
    classes = list(first["report"]["dataset"]["classes"])
    if classes != list(other["report"]["dataset"]["classes"]):
        return {}
    mine, theirs = (read_predictions(run["folder"], classes) for run in (first, other))
    images = sorted(mine)
    y_true = np.array([mine[image][0] for image in images])
    before, after = (np.array([side[image][1] for image in images]) for side in (mine, theirs))
    groups = read_groups(first["folder"] / "split.csv", images)
    thresholds = (other["test"]["threshold"], first["test"]["threshold"])
    positive = first["report"]["dataset"]["positive"]
    index = classes.index(positive) if positive in classes else 1
    found = bootstrap_difference(y_true, after, before, thresholds, groups, positive_index=index)
    return {
        name: {key: float(value) if np.isfinite(value) else None for key, value in item.items()}
        for name, item in found.items()
    }


def read_predictions(folder: Path, classes: list[str]) -> dict[str, tuple[int, list[float]]]:
    """predictions.csv as image → (label's index, probabilities)."""
    path = folder / "predictions.csv"
    # A leading apostrophe is how a CSV keeps a spreadsheet from running a label as a formula.
    index = {name: i for i, name in enumerate(classes)}
    index |= {f"'{name}": i for name, i in index.items()}
    try:
        with open(path, newline="", encoding="utf-8") as file:
            return {
                row["image"]: (index[row["label"]], [float(row[PREFIX + name]) for name in classes])
                for row in csv.DictReader(file)
            }
    except (OSError, KeyError, ValueError) as error:
        raise StorageError(
            f"{path} does not fit its report ({error}). Restore it, or run the search again."
        ) from error


def read_groups(path: Path, images: list[str]) -> np.ndarray | None:
    """The group of every image, int (n,), from split.csv; None without such a file."""
    if not path.is_file():
        return None
    with open(path, newline="", encoding="utf-8") as file:
        group = {row["image"]: row.get("group") or row["image"] for row in csv.DictReader(file)}
    return np.unique([group.get(image, image) for image in images], return_inverse=True)[1]
