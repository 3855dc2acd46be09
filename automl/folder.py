"""A run's folder: its name, what may be done with one that exists, and its small files."""

import csv
import io
import json
import shutil
from collections.abc import Iterable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from automl.config import SearchConfig
from automl.data.split_file import neutral_cell
from automl.errors import ResumeError, StorageError, UsageError
from automl.records import Study
from automl.tracking.journal import FILE_NAME, read_journal
from automl.writing import write_text


def open_folder(config: SearchConfig, dataset_name: str, *, resume: bool, overwrite: bool) -> Path:
    """Make, find again or clear the run's folder.

    Without a name a run is called after its data and the day, with a number if need be;
    and ``resume`` finds the last one of that data that did not end.

    Raises:
        UsageError: the run exists and neither ``resume`` nor ``overwrite`` was given, or
            there is nothing to resume.
        StorageError: the folder cannot be written.
    """
    out = Path(config.out)
    folder = out / (config.name or free_name(out, dataset_name, resume))
    exists = folder.exists() and any(folder.iterdir())
    if resume and not (folder / FILE_NAME).exists():
        raise UsageError(
            f"There is nothing to resume in {folder}. Leave out --resume, or name a run "
            "with --name."
        )
    if exists and not resume and not overwrite:
        raise UsageError(
            f"The run {folder} exists already. Go on with it (--resume), throw it away "
            "(--overwrite), or choose another --name."
        )
    if (
        exists
        and overwrite
        and not (folder / FILE_NAME).exists()
        and not (folder / ".gitignore").exists()
    ):
        raise UsageError(
            f"{folder} is not a run of automl, so --overwrite leaves it alone. Choose another "
            "--name."
        )
    try:
        if exists and overwrite:
            shutil.rmtree(folder)
        folder.mkdir(parents=True, exist_ok=True)
        # As coverage.py does: no patient's image is ever committed by accident.
        write_text(folder / ".gitignore", "*\n")
    except OSError as error:
        raise StorageError(
            f"Cannot write the run folder {folder}: {error.strerror}. Choose another with --out."
        ) from error
    return folder


def free_name(out: Path, dataset_name: str, resume: bool) -> str:
    """``NAME-2026-01-31``, ``NAME-2026-01-31-2`` …; with ``resume`` the last unfinished one."""
    kept = "".join(c if c.isalnum() or c in "-_." else "-" for c in dataset_name).strip("-.")
    stem = kept[:60] or "run"
    if resume:
        runs = [
            path
            for path in out.glob(f"{stem}-*")
            if (path / FILE_NAME).exists() and not (path / "report.json").exists()
        ]
        if not runs:
            raise UsageError(
                f"No unfinished run of {dataset_name} is in {out}. Leave out --resume."
            )
        return max(runs, key=lambda path: (path / FILE_NAME).stat().st_mtime).name
    name = f"{stem}-{datetime.now():%Y-%m-%d}"
    number = 1
    while (out / (name if number == 1 else f"{name}-{number}")).exists():
        number += 1
    return name if number == 1 else f"{name}-{number}"


def check_fingerprint(journal_events: Sequence[dict[str, Any]], now: dict[str, Any]) -> None:
    """Refuse to go on with another search than the one that the journal began.

    Raises:
        ResumeError: names what differs, then and now.
    """
    started = next((e for e in journal_events if e["event"] == "search_started"), None)
    if started is None:
        return
    then = started["fingerprint"]
    changed = [name for name in sorted(then.keys() | now.keys()) if then.get(name) != now.get(name)]
    if changed:
        listed = "; ".join(
            f"{name} was {brief(then.get(name))} and is {brief(now.get(name))}" for name in changed
        )
        raise ResumeError(
            f"This is not the search that was begun: {listed}. Resume it with the data and options "
            "it began with (see config.yaml), or start anew with --overwrite or another --name."
        )


def brief(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."


def count_test_evaluations(folder: Path) -> int:
    """How often the run's test set has been scored."""
    events = read_journal(folder / FILE_NAME)
    return sum(event["event"] == "evaluated" and event["on"] == "test" for event in events)


def write_config(path: Path, settings: dict[str, Any]) -> None:
    write_text(path, yaml.safe_dump(settings, sort_keys=False, allow_unicode=True))


def write_table(path: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """A CSV file; None is an empty cell and text cannot be a formula."""
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow([disarm(column) for column in columns])
    writer.writerows([[disarm(cell) for cell in row] for row in rows])
    write_text(path, buffer.getvalue())


def disarm(cell: Any) -> Any:
    if cell is None:
        return ""
    if isinstance(cell, str):
        cell = cell.encode("utf-8", "backslashreplace").decode()
        return neutral_cell(cell)
    return cell


def write_trials(path: Path, study: Study) -> None:
    """trials.csv: in the order of the plan, one row a trial."""
    names = sorted({name for trial in study.trials for name in trial.params})
    columns = [
        "number", "configuration", "bracket", "round", "epochs", "status", "score", "seconds",
        *(f"param_{name}" for name in names), "reason",
    ]  # fmt: skip
    rows = [
        [
            number, trial.configuration, trial.bracket, trial.round, trial.epochs, trial.status,
            trial.score, trial.seconds, *(trial.params.get(name) for name in names), trial.reason,
        ]
        for number, trial in enumerate(study.trials, 1)
    ]  # fmt: skip
    write_table(path, columns, rows)


def write_probabilities(
    path: Path,
    images: Sequence[str],
    labels: Sequence[str],
    predicted: Sequence[str],
    probabilities: np.ndarray,
    classes: Sequence[str],
) -> None:
    """predictions.csv: image, label, predicted, probability_<class>…"""
    columns = ["image", "label", "predicted", *(f"probability_{name}" for name in classes)]
    rows = [
        [image, label, guess, *(f"{value:.9f}" for value in row)]
        for image, label, guess, row in zip(images, labels, predicted, probabilities, strict=True)
    ]
    write_table(path, columns, rows)
