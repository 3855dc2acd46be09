"""From what the user points at to a Dataset: class folders, split folders, the sample, a CSV.

No image is opened here. What is wrong with the source but can be lived with becomes a Finding;
what cannot is an error that says what was expected.
"""

import os
from collections import Counter
from dataclasses import replace
from pathlib import Path

from automl.config import SearchConfig, flag
from automl.data.assign import MINIMUM
from automl.data.csv_source import choose_roles, read_csv
from automl.data.dataset import finish_dataset, list_finding
from automl.data.files import ImageFile, fold, list_images
from automl.data.matching import FileIndex
from automl.data.sample import draw_sample
from automl.data.tables import SPLIT_WORDS, Table, read_table
from automl.errors import DataError, UsageError
from automl.records import Dataset, Sample

MIN_CLASS_IMAGES = 3
TABLE_EXTENSIONS = {".csv", ".tsv", ".txt"}


def load_dataset(config: SearchConfig) -> Dataset:
    """Read the source that ``config.data`` names, for a search.

    Raises:
        UsageError: see ``read_source``.
        DataError: what was found cannot support an evaluation (one class, too few images).
    """
    dataset = read_source(config)
    counts = Counter(sample.label for sample in dataset.samples)
    listed = ", ".join(f"{label!r} ({counts[label]})" for label in dataset.classes)
    # The column may be the wrong one.
    columns = next((f.detail for f in dataset.findings if f.check == "columns"), {})
    where = f"{config.data}, {columns['label']!r}," if columns else config.data
    if len(dataset.classes) < 2:
        raise DataError(
            f"{where} holds one class only: {listed or 'none'}. A classifier needs at least two, "
            "such as tumour and healthy."
        )
    few = [label for label in dataset.classes if counts[label] < MIN_CLASS_IMAGES]
    if few:
        raise DataError(
            f"{where} holds too few images of {', '.join(map(repr, few))}: {listed}. Training, "
            f"validation and test need at least {MINIMUM} each, so {3 * MINIMUM} of each class."
        )
    return dataset


def read_source(config: SearchConfig) -> Dataset:
    """Read the source that ``config.data`` names, however many images and classes it has.

    ``sample`` draws heads, ``kaggle:OWNER/NAME`` downloads, a file is a CSV with images anywhere
    below its folder, a folder holds one folder per class, or train/val/test folders of them, or
    one CSV with its images.

    Raises:
        UsageError: the path, the file or its columns are not what is expected.
    """
    if config.data == "sample":
        return draw_sample(cache_folder(config), seed=config.seed)
    if config.data.startswith("kaggle:"):
        from automl.data.kaggle import download_dataset

        path = download_dataset(config.data)
        name = config.data.removeprefix("kaggle:").split("/")[1]
        dataset = read_folder(path.resolve(), config)
        # The folder is called after its version.
        return dataset if dataset.kind == "csv" else replace(dataset, name=name)
    else:
        path = Path(config.data).expanduser()
    if not config.data.strip() or not path.exists():
        raise UsageError(
            f"There is no file or folder {config.data!r}. Expected a folder with one folder per "
            "class, a CSV file with its images below the same folder, or the word sample."
        )
    if path.is_dir():
        return read_folder(path.resolve(), config)
    if path.suffix.lower() not in TABLE_EXTENSIONS or not path.is_file():
        raise UsageError(
            f"{path} is not a CSV file (*.csv, *.tsv) and not a folder. Name the folder that holds "
            "the images, or save the table as CSV."
        )
    files, findings = list_images(path.resolve().parent)
    return read_csv(read_table(path.resolve()), files, findings, config)


def cache_folder(config: SearchConfig) -> Path:
    """Where pixels, activations and the sample are kept: ``--cache-dir``, else ~/.cache/automl."""
    if config.cache_dir is not None:
        return Path(config.cache_dir).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "automl"


def read_folder(root: Path, config: SearchConfig) -> Dataset:
    """A folder: the one CSV in it that fits, or split folders, or class folders."""
    files, findings = list_images(root)
    if not files:
        more = "".join(f" {finding.title} {finding.remedy}" for finding in findings)
        raise UsageError(
            f"No images under {root}. Expected one folder per class, such as "
            f"{root.name}/tumour/p01_1.png, or a CSV file with its images.{more}"
        )
    tables = find_tables(root, files, config)
    if len(tables) == 1:
        return read_csv(tables[0], files, findings, config)
    if not tables and list_column_options(config):
        # The user speaks of a table: say what is wrong with it, rather than read folders.
        paths = sorted(path for path in root.glob("*.[ct]sv") if not path.name.startswith("."))
        if len(paths) == 1:
            return read_csv(read_table(paths[0]), files, findings, config)
        raise UsageError(
            f"{list_column_options(config)} is about a CSV file, and {root} holds {len(paths)} of "
            "them, none of which fits. Name the file: --data FILE.csv"
        )
    depth, split_folders = find_layout(files)
    if len({file.parts[depth] for file in files if len(file.parts) > depth + 1}) == 0:
        if tables:
            names = ", ".join(table.path.name for table in tables)
            raise UsageError(
                f"{root} holds several CSV files that fit its images: {names}. Name the one to "
                f"use: --data {tables[0].path}"
            )
        raise UsageError(
            f"{root} holds {len(files)} images but no folders. Expected one folder per class, such "
            f"as {root.name}/tumour/{files[0].parts[-1]}, or a CSV file with image and label."
        )
    samples, loose = [], []
    for file in files:
        folders = file.parts[depth:-1]
        split = SPLIT_WORDS.get(fold(folders[0])) if split_folders and folders else None
        folders = folders[1:] if split_folders else folders
        if not folders or (split_folders and split is None):
            loose.append(file.name)
        else:
            samples.append(Sample(file.name, file.path, folders[0], split=split))
    if loose:
        findings.append(
            list_finding(
                "unlisted",
                "warning",
                f"{len(loose):,} images lie outside the class folders; not used.",
                loose,
                "Move them into their class's folder if they belong to the data.",
            )
        )
    kind = "split_folders" if split_folders else "folders"
    return finish_dataset(root.name, root, kind, samples, findings, config, str(root))


def find_layout(files: list[ImageFile]) -> tuple[int, bool]:
    """How deep the class or split folders lie, and whether they are split folders.

    Downloads often wrap everything in one or two folders of their own; those are passed.
    """
    depth = 0
    while True:
        tops = {file.parts[depth] for file in files if len(file.parts) > depth + 1}
        loose = any(len(file.parts) == depth + 1 for file in files)
        inner = {
            name
            for name in tops
            if any(f.parts[depth] == name and len(f.parts) > depth + 2 for f in files)
        }
        splits = {name for name in inner if fold(name) in SPLIT_WORDS}
        others = {name for name in tops if fold(name) not in SPLIT_WORDS}
        if splits and (not others or len(splits) >= 2):
            return depth, True
        if len(tops) == 1 and not loose and inner:
            depth += 1
            continue
        return depth, False


def find_tables(root: Path, files: list[ImageFile], config: SearchConfig) -> list[Table]:
    """CSV files directly in ``root`` that have both columns and name images that are there."""
    index = FileIndex(files)
    found = []
    for path in sorted(root.iterdir()):
        if path.suffix.lower() not in {".csv", ".tsv"} or path.name.startswith("."):
            continue
        try:
            table = read_table(path)
            roles = choose_roles(table, config)
        except UsageError:
            continue
        some = table.rows[:50]
        if sum(bool(index.find(row.get(roles.image, ""))) for row in some) >= len(some) / 2:
            found.append(table)
    return found


def list_column_options(config: SearchConfig) -> str:
    """The column options that the user gave, or ""."""
    options = ("image_column", "label_column", "group_column", "split_column")
    return " ".join(flag(name) for name in options if getattr(config, name) is not None)
