"""split.csv: written so that it can be read again, by us, by a spreadsheet and by others."""

import csv
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from automl.data.files import fold
from automl.data.tables import SPLIT_WORDS, list_columns, read_table
from automl.errors import UsageError
from automl.records import Dataset, Finding, Split
from automl.writing import replace_file

COLUMNS = ("image", "label", "group", "split")
# A spreadsheet runs a cell that starts with one of these as a formula.
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "'")
# The part of an image that a split file does not list.
LEFT_OUT = ""


def write_split(split: Split, dataset: Dataset, path: Path) -> None:
    """Write image, label, group and split of every image that has a part, as CSV.

    Cells that a spreadsheet would take for a formula get a leading apostrophe.

    Raises:
        StorageError: the file cannot be written.
    """
    with replace_file(path, errors="surrogateescape") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for sample, group, part in zip(dataset.samples, split.group, split.part, strict=True):
            if part != LEFT_OUT:
                cells = (sample.image, sample.label, str(group), part)
                writer.writerow([neutral_cell(cell) for cell in cells])


def read_parts(path: Path, dataset: Dataset) -> tuple[np.ndarray, list[Finding]]:
    """Match the rows of a split file to the data set's images.

    An image is named by its relative path, or by a file name (with or without its ending)
    that is unique. Images that are not listed have the part "".

    Returns:
        str (n,), and findings about images left out.

    Raises:
        UsageError: no such file, no columns image and split, a word other than train, val and
            test, an image that is unknown or listed twice with different parts.
    """
    rows = read_rows(path)
    lookup = name_lookup(dataset)
    part = np.full(len(dataset.samples), LEFT_OUT, dtype=object)
    unknown, unreadable = [], []
    for number, image, word in rows:
        name = SPLIT_WORDS.get(fold(word))
        if name is None:
            raise UsageError(
                f"{path}, line {number}: the split of {image!r} is {word!r}. "
                "Use train, val or test."
            )
        index = find_row(lookup, image)
        if index is None:
            known = os.path.isfile(dataset.root / plain_cell(image))
            (unreadable if known else unknown).append(image)
        elif part[index] not in (LEFT_OUT, name):
            raise UsageError(f"{path}, line {number}: {image!r} is in {part[index]} and in {name}.")
        else:
            part[index] = name
    if unknown:
        raise UsageError(
            f"{path} lists {len(unknown):,} images that are not in the data, such as "
            f"{', '.join(repr(image) for image in unknown[:3])}. Give paths relative to "
            f"{dataset.root}, or file names that are unique there."
        )
    return part, left_out_findings(path, dataset, part, unreadable)


def read_rows(path: Path) -> list[tuple[int, str, str]]:
    """Line number, image and split of each row that is not empty."""
    table = read_table(path)
    columns = {column.lower(): column for column in table.columns}
    missing = [name for name in ("image", "split") if name not in columns]
    if missing:
        raise UsageError(
            f"{path} has no column {' and no column '.join(missing)}. It needs image and split; "
            f"it has: {list_columns(table)}."
        )
    if table.malformed:
        raise UsageError(f"{path}, line {table.malformed[0]}, has more fields than the first line.")
    return [
        (line, row.get(columns["image"], ""), row.get(columns["split"], ""))
        for line, row in zip(table.lines, table.rows, strict=True)
    ]


def name_lookup(dataset: Dataset) -> dict[str, int | None]:
    """Row of each path, and of each unique file name and stem; None where ambiguous."""
    lookup: dict[str, int | None] = {}
    paths = [sample.image for sample in dataset.samples]
    names = [image.rsplit("/", 1)[-1] for image in paths]
    stems = [name.rsplit(".", 1)[0] for name in names]
    # Cells are read without the spaces around them.
    for keys in (paths, [path.strip() for path in paths], names, stems):
        counts = Counter(keys)
        for index, key in enumerate(keys):
            lookup.setdefault(key, index if counts[key] == 1 else None)
    return lookup


def find_row(lookup: dict[str, int | None], image: str) -> int | None:
    """The row that a cell names, as our own files write it or as it stands."""
    for name in (plain_cell(image), image, image.replace("\\", "/").removeprefix("./")):
        if lookup.get(name) is not None:
            return lookup[name]
    return None


def left_out_findings(
    path: Path, dataset: Dataset, part: np.ndarray, unreadable: Sequence[str]
) -> list[Finding]:
    """Images that the split file does not list, and listed ones that could not be read."""
    findings = []
    left = [s.image for s, name in zip(dataset.samples, part, strict=True) if name == LEFT_OUT]
    if left:
        findings.append(
            Finding(
                "split_unlisted",
                "warning",
                f"{len(left):,} of {len(part):,} images are not in {path.name} and left out.",
                count=len(left),
                examples=tuple(left[:12]),
                remedy="List them with train, val or test if they belong to the data.",
            )
        )
    if unreadable:
        findings.append(
            Finding(
                "split_unreadable",
                "warning",
                f"{len(unreadable):,} images of {path.name} cannot be read and are left out.",
                count=len(unreadable),
                examples=tuple(unreadable[:12]),
                remedy="Restore the files; their own findings say what is wrong with them.",
            )
        )
    return findings


def neutral_cell(text: str) -> str:
    """``text`` with an apostrophe in front where a spreadsheet would take it for a formula."""
    return "'" + text if text.startswith(FORMULA_STARTS) else text


def plain_cell(text: str) -> str:
    """What :func:`neutral_cell` was given."""
    return text.removeprefix("'")
