"""CSV files as people have them: any delimiter, encoding and column names, with their mistakes."""

import csv
import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from automl.data.files import fold
from automl.data.images import ALL_EXTENSIONS
from automl.errors import UsageError

MAX_BYTES = 500 * 2**20
IMAGE_COLUMNS = (
    *("image", "images", "image_path", "image_file", "image_name", "image_filename", "img"),
    *("img_path", "img_name", "filename", "file_name", "file", "filepath", "file_path", "path"),
    *("slice_path", "image_id", "img_id", "id", "name", "slice", "scan"),
)
LABEL_COLUMNS = (
    *("class", "label", "labels", "class_name", "class_label", "target", "diagnosis", "tumor"),
    *("tumour", "has_tumor", "category", "outcome", "disease", "condition", "finding", "y"),
    *("malignant", "malignancy", "abnormal", "result", "status", "type"),
)
GROUP_COLUMNS = (
    *("patient", "patient_id", "patientid", "patient_name", "patient_number", "subject"),
    *("subject_id", "subjectid", "participant", "participant_id", "case_id", "pid", "group"),
)
SPLIT_COLUMNS = ("split", "subset", "partition", "set", "fold", "usage")
SPLIT_WORDS = {
    **dict.fromkeys(("train", "training", "tr", "trn"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "validate", "dev"), "val"),
    **dict.fromkeys(("test", "testing", "tst", "holdout", "hold out"), "test"),
}


@dataclass(frozen=True)
class Table:
    """A CSV file's columns in order and its rows; ``lines`` are the rows' line numbers.

    ``empty`` counts blank rows, ``malformed`` lists lines with more fields than the header.
    """

    path: Path
    columns: tuple[str, ...]
    rows: tuple[dict[str, str], ...]
    lines: tuple[int, ...]
    empty: int
    malformed: tuple[int, ...]


@dataclass(frozen=True)
class Roles:
    """Which column plays which part."""

    image: str
    label: str
    group: str | None
    split: str | None

    @property
    def used(self) -> set[str | None]:
        return {self.image, self.label, self.group, self.split}


def read_table(path: Path) -> Table:
    """Read a CSV: comma, semicolon, tab or bar; UTF-8 or 16 with BOM, UTF-8, or Windows-1252.

    Raises:
        UsageError: it cannot be read, is empty, is not text, or is not a table.
    """
    text = read_text(path)
    first, _, rest = text.partition("\n")
    delimiter = None
    if re.fullmatch(r"sep=.\s*", first.lower()):
        # Excel's own way to name the delimiter.
        delimiter, text, first = first[4], rest, rest.partition("\n")[0]
    delimiter = delimiter or guess_delimiter(first)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    columns: tuple[str, ...] = ()
    rows, lines, malformed, empty = [], [], [], 0
    try:
        for fields in reader:
            if not any(field.strip() for field in fields):
                empty += bool(columns)
            elif not columns:
                columns = name_columns(fields)
            elif len(fields) > len(columns) and any(f.strip() for f in fields[len(columns) :]):
                malformed.append(reader.line_num)
            else:
                values = [field.strip() for field in fields]
                rows.append(dict(zip(columns, values, strict=False)))
                lines.append(reader.line_num)
    except csv.Error as error:
        raise UsageError(
            f"{path}, near line {reader.line_num}, is not a valid CSV row ({error}). "
            "Look for a quotation mark that is not closed."
        ) from None
    if not columns:
        raise UsageError(f"{path} is empty. Expected a line of column names, then a row per image.")
    if not rows:
        raise UsageError(
            f"{path} has columns ({', '.join(columns)}) but no usable row. Expected one per image."
        )
    return Table(path, columns, tuple(rows), tuple(lines), empty, tuple(malformed))


def read_text(path: Path) -> str:
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise UsageError(f"{path} has {size / 1e6:,.0f} MB, too much for a list of images.")
        data = path.read_bytes()
    except OSError as error:
        raise UsageError(f"Cannot read {path}: {error.strerror}.") from None
    if data.startswith((b"PK\x03\x04", b"\xd0\xcf\x11\xe0")):
        raise UsageError(f"{path} is an Excel or ZIP file. Save the table as CSV.")
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        text = data.decode("utf-16", "replace")
    else:
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError:
            text = data.decode("cp1252", "replace")
    if "\0" in text:
        raise UsageError(f"{path} is not a text file. Expected a CSV with one row per image.")
    # Old Macintosh line ends included; the csv module keeps line breaks inside quotes.
    return text if "\n" in text else text.replace("\r", "\n")


def guess_delimiter(line: str) -> str:
    """The delimiter that the header line holds most of, outside quotation marks."""
    bare = re.sub(r'"[^"]*"', "", line)
    return max(",;\t|", key=bare.count)


def name_columns(fields: list[str]) -> tuple[str, ...]:
    """Header fields as unique names."""
    names: list[str] = []
    for i, field in enumerate(fields):
        name = " ".join(field.split()) or f"column {i + 1}"
        while name in names:
            name += " (again)"
        names.append(name)
    return tuple(names)


def find_roles(
    table: Table,
    image: str | None = None,
    label: str | None = None,
    group: str | None = None,
    split: str | None = None,
) -> Roles:
    """Named columns, or those with a usual name.

    Raises:
        UsageError: a column is not there, or none is recognised; names those it has.
    """
    image = find_image_column(table, image)
    label = pick(table, label, "--label-column", LABEL_COLUMNS, lambda name: name != image)
    if label is None:
        raise UsageError(missing_column(table, "labels", "--label-column"))
    taken = {image, label}
    group = pick(table, group, "--group-column", GROUP_COLUMNS, lambda name: name not in taken)
    taken.add(group)
    # A column of that name is only a split if it speaks of train, val and test.
    split = pick(
        table,
        split,
        "--split-column",
        SPLIT_COLUMNS,
        lambda name: name not in taken and all(w in SPLIT_WORDS for w in words(table, name)),
    )
    if split is not None:
        unknown = sorted(word for word in words(table, split) if word not in SPLIT_WORDS)
        if unknown:
            raise UsageError(
                f"Column {split!r} of {table.path} holds {', '.join(map(repr, unknown[:6]))}. "
                "Expected train, val or test in --split-column."
            )
    roles = [image, label, group, split]
    chosen = [role for role in roles if role is not None]
    if len(set(chosen)) < len(chosen):
        raise UsageError(f"One column of {table.path} cannot play two parts: {', '.join(chosen)}.")
    return Roles(image, label, group, split)


def find_image_column(table: Table, wanted: str | None = None) -> str:
    """The column ``wanted``, else one with a usual name, else one of image files' names.

    Raises:
        UsageError: there is none.
    """
    name = pick(table, wanted, "--image-column", IMAGE_COLUMNS) or find_by_values(table)
    if name is None:
        raise UsageError(missing_column(table, "image names", "--image-column"))
    return name


def pick(
    table: Table,
    wanted: str | None,
    flag: str,
    usual: tuple[str, ...],
    allowed: Callable[[str], bool] = lambda name: True,
) -> str | None:
    """The column named ``wanted``, else the first with a usual name that is ``allowed``."""
    if wanted is not None:
        exact = [name for name in table.columns if name == wanted]
        close = [name for name in table.columns if column_key(name) == column_key(wanted)]
        for name in exact + close:
            return name
        raise UsageError(
            f"{flag} {wanted!r} is not a column of {table.path}. It has: {list_columns(table)}."
        )
    keys = {column_key(name): name for name in reversed(table.columns)}
    for key in usual:
        if key in keys and allowed(keys[key]):
            return keys[key]
    return None


def find_by_values(table: Table) -> str | None:
    """A column most of whose values end like an image's file name."""
    for name in table.columns:
        values = [row.get(name, "") for row in table.rows[:200]]
        images = sum(Path(value).suffix.lower() in ALL_EXTENSIONS for value in values)
        if images > 0.8 * len(values):
            return name
    return None


def missing_column(table: Table, what: str, flag: str) -> str:
    text = f"{table.path} has no column that looks like {what}. It has: {list_columns(table)}."
    if any(Path(name).suffix.lower() in ALL_EXTENSIONS for name in table.columns):
        return text + " Its first line must name the columns, such as image,label."
    return f"{text} Name it with {flag} NAME."


def list_columns(table: Table) -> str:
    shown = ", ".join(table.columns[:30])
    return shown + (f" and {len(table.columns) - 30} more" if len(table.columns) > 30 else "")


def words(table: Table, column: str) -> set[str]:
    """Different non-empty values of a column, folded."""
    return {fold(row.get(column, "")) for row in table.rows} - {""}


def column_key(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", fold(name)).strip("_")


def find_attributes(table: Table, roles: Roles) -> list[str]:
    """Columns that may serve as subgroups: 2 to 20 different words or whole numbers."""
    found = []
    for name in table.columns:
        values = {row.get(name, "") for row in table.rows} - {""}
        usable = 2 <= len(values) <= 20 and len(values) <= max(2, len(table.rows) // 2)
        decimals = any(re.fullmatch(r"[+-]?\d*[.,]\d+([eE][+-]?\d+)?", value) for value in values)
        long = any(len(value) > 60 for value in values)
        if name not in roles.used and usable and not decimals and not long:
            found.append(name)
    return found
