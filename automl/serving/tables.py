"""Predictions as files, and another data set's labels in the model's words."""

import csv
import json
import shlex
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from automl.data.labels import guess_class, label_key
from automl.data.split_file import neutral_cell
from automl.errors import UsageError
from automl.records import Dataset, Prediction
from automl.serving.predictor import Predictor
from automl.writing import replace_file


def write_predictions(
    predictions: Iterable[Prediction], classes: Sequence[str], out: Path | None
) -> int:
    """Write predictions as they come, CSV or JSON by the ending of ``out``.

    CSV columns: image, label, probability, probability_CLASS…, set_90 and flags (both joined
    by semicolons), message. JSON: a list of objects with the fields of Prediction.

    Args:
        out: a ``.csv`` or ``.json`` file, replaced once complete; None: CSV on stdout.

    Returns:
        The number of rows.

    Raises:
        UsageError: another ending.
        StorageError: the file cannot be written.
    """
    if out is None:
        return write_csv(predictions, classes, sys.stdout)
    writers = {".csv": write_csv, ".json": write_json_list}
    if out.suffix.lower() not in writers:
        raise UsageError(f"--out {out} must end in .csv or .json.")
    with replace_file(out) as file:
        return writers[out.suffix.lower()](predictions, classes, file)


def write_csv(predictions: Iterable[Prediction], classes: Sequence[str], file: TextIO) -> int:
    """``write_predictions`` as CSV; text that a spreadsheet would run is made harmless."""
    writer = csv.writer(file, lineterminator="\n")
    columns = ["image", "label", "probability", *(f"probability_{name}" for name in classes)]
    writer.writerow([*columns, "set_90", "flags", "message"])
    count = 0
    for row in predictions:
        count += 1
        writer.writerow(
            [
                neutral_cell(row.image),
                neutral_cell(row.label or ""),
                format_probability(row.probability),
                *(format_probability(row.probabilities.get(name)) for name in classes),
                neutral_cell(";".join(row.set_90 or ())),
                ";".join(row.flags),
                neutral_cell(row.message),
            ]
        )
    return count


def write_json_list(predictions: Iterable[Prediction], classes: Sequence[str], file: TextIO) -> int:
    """``write_predictions`` as a JSON list, one object a line."""
    count = 0
    file.write("[")
    for row in predictions:
        file.write(",\n" if count else "\n")
        count += 1
        json.dump(asdict(row), file, ensure_ascii=False, allow_nan=False)
    file.write("\n]\n")
    return count


def format_probability(value: float | None) -> str:
    """Eight digits, enough for the float32 it was; empty for None."""
    return "" if value is None else f"{value:.8g}"


def map_classes(
    labels: Iterable[str],
    classes: Sequence[str],
    text: str | None = None,
    names: Mapping[str, str] | None = None,
) -> dict[str, int | None]:
    """What another data set's labels mean to the model.

    Args:
        labels: those of the other data set.
        classes: the model's.
        text: such as "glioma=tumour,notumor=healthy"; "artefact=" leaves a label out. Labels
            that it does not name are matched by name, whatever their case, blanks and hyphens.
        names: what else the model's classes are called.

    Returns:
        For each label a class index, or None where its images are left out.

    Raises:
        UsageError: a label without a match, or a match that is no class.
    """
    names = names or {}
    called = [f"{name} ({names[name]})" if names.get(name) else name for name in classes]
    known = {label_key(names.get(name, name)): index for index, name in enumerate(classes)}
    known |= {label_key(name): index for index, name in enumerate(classes)}
    labels = sorted(set(labels))
    mapping: dict[str, int | None] = {}
    for part in (text or "").split(","):
        if not part.strip():
            continue
        label, equals, name = (piece.strip() for piece in part.partition("="))
        if not equals or (name and label_key(name) not in known):
            raise UsageError(
                f"--map {part.strip()!r} cannot be read. Write LABEL=CLASS with one of the "
                f"classes {', '.join(called)}, or LABEL= to leave its images out."
            )
        if label not in labels:
            raise UsageError(f"--map names {label!r}, but the labels are {', '.join(labels)}.")
        mapping[label] = known[label_key(name)] if name else None
    missing = [label for label in labels if label not in mapping and label_key(label) not in known]
    if missing:
        guesses = {label: guess_class(label, tuple(classes)) for label in missing}
        given = [text.strip(" ,")] if text and text.strip(" ,") else []
        example = ",".join([*given, *(f"{label}={guesses[label] or '?'}" for label in missing)])
        guessed = " (check what is guessed here from the words)" if any(guesses.values()) else ""
        raise UsageError(
            f"The model does not know {', '.join(missing)}; its classes are {', '.join(called)}. "
            "Say what each means with a class after its =, or leave its images out with nothing "
            f"there{guessed}: --map {shlex.quote(example)}"
        )
    return {label: mapping.get(label, known.get(label_key(label))) for label in labels}


@dataclass(frozen=True)
class External:
    """A finished model's answers to another data set; row i is ``rows[i]`` of its samples.

    ``y_true`` (n,) and ``probabilities`` (n, classes) are those of readable images whose
    label is mapped; ``predictions`` are of all mapped images, in order.
    """

    rows: np.ndarray
    y_true: np.ndarray
    probabilities: np.ndarray
    predictions: tuple[Prediction, ...]


def predict_dataset(
    predictor: Predictor,
    dataset: Dataset,
    text: str | None = None,
    progress: Callable[[str, int, int], Any] | None = None,
    names: Mapping[str, str] | None = None,
) -> External:
    """Predict every image of ``dataset`` whose label the model knows or ``text`` maps.

    ``text`` and ``names`` are those of ``map_classes``.

    Raises:
        UsageError: see ``map_classes``.
    """
    mapping = map_classes(dataset.classes, predictor.info.classes, text, names)
    wanted = [i for i, sample in enumerate(dataset.samples) if mapping[sample.label] is not None]
    paths = [dataset.samples[i].path for i in wanted]
    predictions = []
    for prediction in predictor.iterate(paths):
        predictions.append(prediction)
        if progress is not None:
            progress("predicting", len(predictions), len(paths))
    kept = [(i, p) for i, p in zip(wanted, predictions, strict=True) if p.label is not None]
    return External(
        rows=np.array([i for i, _ in kept], np.int64),
        y_true=np.array([mapping[dataset.samples[i].label] for i, _ in kept], np.int64),
        probabilities=np.array(
            [[p.probabilities[name] for name in predictor.info.classes] for _, p in kept],
            np.float64,
        ).reshape(-1, len(predictor.info.classes)),
        predictions=tuple(predictions),
    )
