"""A table of images and labels: its rows matched to files, and what is wrong with them."""

from automl.config import SearchConfig
from automl.data.dataset import finish_dataset, list_finding
from automl.data.files import ImageFile, fold
from automl.data.labels import MISSING, merge_labels
from automl.data.matching import FileIndex, climbs_out
from automl.data.tables import SPLIT_WORDS, Roles, Table, find_attributes, find_roles
from automl.errors import UsageError
from automl.records import Dataset, Finding, Sample

PROBLEMS = {
    "missing": (
        "error",
        "{} images that the CSV names were not found; left out.",
        "Copy the files below the CSV's folder, or correct their names.",
    ),
    "refused_path": (
        "error",
        "{} image names in the CSV are absolute or lead out of its folder; refused.",
        "Write paths relative to the CSV's folder, and put the images below it.",
    ),
    "ambiguous": (
        "error",
        "{} image names in the CSV fit several files; left out.",
        "Write the folder before the file name, or remove the copies.",
    ),
    "conflicting_rows": (
        "error",
        "{} images stand in the CSV with different labels; left out.",
        "Decide on one label for each, and remove the other rows.",
    ),
    "empty_label": ("error", "{} rows of the CSV have no label; left out.", "Fill in the labels."),
    "empty_image": (
        "error",
        "{} rows of the CSV name no image; left out.",
        "Fill in the image names, or delete the rows.",
    ),
    "malformed_rows": (
        "error",
        "{} rows of the CSV have more fields than its header; left out.",
        "Put quotation marks around values that hold the delimiter.",
    ),
    "duplicate_rows": (
        "info",
        "{} images stand in the CSV more than once with the same label; used once.",
        "",
    ),
    "unlisted": (
        "warning",
        "{} images below the CSV's folder are not in the CSV; not used.",
        "Add rows for them if they belong to the data.",
    ),
}


def choose_roles(table: Table, config: SearchConfig) -> Roles:
    return find_roles(
        table, config.image_column, config.label_column, config.group_column, config.split_column
    )


def read_csv(
    table: Table, files: list[ImageFile], findings: list[Finding], config: SearchConfig
) -> Dataset:
    """Match each row to its file; rows that cannot be used become findings."""
    roles = choose_roles(table, config)
    attributes = find_attributes(table, roles)
    index = FileIndex(files)
    problems: dict[str, list[str]] = {}
    rows: dict[str, list[tuple[dict[str, str], ImageFile]]] = {}
    for row, line in zip(table.rows, table.lines, strict=True):
        value = row.get(roles.image, "")
        found = [] if climbs_out(value) else index.find(value)
        if fold(row.get(roles.label, "")) in MISSING:
            problems.setdefault("empty_label", []).append(value or f"line {line}")
        elif not value:
            problems.setdefault("empty_image", []).append(f"line {line}")
        elif climbs_out(value):
            problems.setdefault("refused_path", []).append(value)
        elif not found:
            problems.setdefault("missing", []).append(value)
        elif len(found) > 1:
            where = " or ".join(file.name for file in found[:3])
            problems.setdefault("ambiguous", []).append(f"{value}: {where}")
        else:
            rows.setdefault(found[0].name, []).append((row, found[0]))
    if table.malformed:
        problems["malformed_rows"] = [f"line {line}" for line in table.malformed]
    if not rows:
        raise UsageError(explain_nothing(table, roles, files, problems))
    names, merged = merge_labels(row[roles.label] for pairs in rows.values() for row, _ in pairs)
    samples = []
    for name, pairs in rows.items():
        row, file = pairs[0]
        labels = {names[row[roles.label]] for row, _ in pairs}
        if len(labels) > 1:
            problems.setdefault("conflicting_rows", []).append(
                f"{name}: {', '.join(sorted(labels))}"
            )
            continue
        if len(pairs) > 1:
            problems.setdefault("duplicate_rows", []).append(name)
        samples.append(
            Sample(
                name,
                file.path,
                labels.pop(),
                group=(row.get(roles.group, "") or None) if roles.group else None,
                split=SPLIT_WORDS.get(fold(row.get(roles.split, ""))) if roles.split else None,
                attributes={key: row[key] for key in attributes if row.get(key)},
            )
        )
    problems["unlisted"] = [file.name for file in files if file.name not in rows]
    chosen = {key: value for key, value in vars(roles).items() if value is not None}
    used = ", ".join(f"{key} from {value!r}" for key, value in chosen.items())
    findings = [
        *findings,
        *report_rows(problems),
        *merged,
        Finding("columns", "info", f"Columns of {table.path.name}: {used}.", detail=chosen),
    ]
    root = table.path.parent
    return finish_dataset(
        table.path.stem, root, "csv", samples, findings, config, f"{table.path}, {roles.label!r}"
    )


def report_rows(problems: dict[str, list[str]]) -> list[Finding]:
    return [
        list_finding(check, severity, title.format(f"{len(problems[check]):,}"), found, remedy)
        for check, (severity, title, remedy) in PROBLEMS.items()
        if (found := problems.get(check))
    ]


def explain_nothing(
    table: Table, roles: Roles, files: list[ImageFile], problems: dict[str, list[str]]
) -> str:
    """Why no row of a CSV led to an image."""
    what = " ".join(
        f"{finding.title} First: {', '.join(map(repr, finding.examples[:3]))}."
        for finding in report_rows(problems)
    )
    there = f"; there are {len(files)} others, such as {files[0].name!r}" if files else ""
    return (
        f"No row of {table.path} leads to an image (column {roles.image!r}). {what} Expected the "
        f"images anywhere below {table.path.parent}{there}. Move the CSV to its images, or name "
        "another column with --image-column."
    )
