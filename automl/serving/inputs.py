"""What ``automl predict`` was given, as image files: files, folders, tables of names."""

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from automl.data.files import list_images, printable_name
from automl.data.images import ALL_EXTENSIONS
from automl.data.matching import FileIndex, climbs_out
from automl.data.tables import find_image_column, read_table
from automl.errors import UsageError
from automl.records import Prediction

TABLES = {".csv", ".tsv"}


def find_images(
    paths: Iterable[str | Path] | str | Path,
    image_column: str | None = None,
    warn: Callable[[str], None] = lambda text: None,
) -> Iterator[Path | Prediction]:
    """Files as given, whatever they are; folders walked, tables read, both never left.

    Args:
        paths: files, folders, and CSV files with a column of image names; the images lie
            anywhere below a CSV's folder, as for a search.
        image_column: of the CSV files; None: a usual name.
        warn: told of links and folders that were not followed.

    Yields:
        A path, or for a name in a CSV that leads to no file the row that says so.

    Raises:
        UsageError: a folder holds no image, or a CSV no column of image names.
    """
    for given in [paths] if isinstance(paths, (str, Path)) else paths:
        path = Path(given)
        if path.is_dir():
            yield from walk_folder(path, warn)
        elif path.suffix.lower() in TABLES and path.is_file():
            yield from read_names(path, image_column)
        else:
            yield path


def walk_folder(folder: Path, warn: Callable[[str], None]) -> Iterator[Path]:
    """The images below ``folder``, sorted by name; DICOM files need no ending."""
    files, findings = list_images(folder)
    for finding in findings:
        if finding.severity != "info":
            warn(f"{folder}: {finding.title}")
    if not files:
        raise UsageError(
            f"No images under {folder}. Expected DICOM files, or files with one of the endings "
            f"{' '.join(sorted(ALL_EXTENSIONS))}."
        )
    for file in files:
        yield folder.joinpath(*file.parts)


def read_names(path: Path, image_column: str | None) -> Iterator[Path | Prediction]:
    """The images that a table names, in its order."""
    table = read_table(path)
    column = find_image_column(table, image_column)
    index = FileIndex(list_images(path.parent)[0])
    for row, line in zip(table.rows, table.lines, strict=True):
        name = row.get(column, "")
        found = [] if climbs_out(name) else index.find(name)
        if len(found) == 1:
            yield path.parent.joinpath(*found[0].parts)
        elif not name:
            yield refuse(f"{path.name} line {line}", "names no image")
        elif climbs_out(name):
            yield refuse(name, f"leads out of the folder of {path.name}; list it on stdin instead")
        elif found:
            where = " or ".join(file.name for file in found[:3])
            yield refuse(name, f"fits several files: {where}")
        else:
            yield refuse(name, f"is not below {path.parent}")
    for line in table.malformed:
        yield refuse(f"{path.name} line {line}", "has more fields than the table has columns")


def read_list(data: bytes) -> list[str]:
    """The paths on standard input, one a line, in whatever bytes the file system has."""
    return [os.fsdecode(line) for line in data.splitlines() if line.strip()]


def refuse(image: str, reason: str) -> Prediction:
    """The row of an image that cannot be read."""
    image = printable_name(image)
    return Prediction(image, None, None, {}, ("unreadable",), f"{image} {reason}")
