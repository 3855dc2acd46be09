"""Folders, disks and users as they are elsewhere: closed, read-only, vanishing, oddly named."""

import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import write_pictures

from automl.cli import run_command
from automl.config import SearchConfig
from automl.data.pixels import scan_images
from automl.data.sources import load_dataset
from automl.data.split import make_split
from automl.data.twins import find_twins
from automl.errors import StorageError
from automl.records import SPLITS, Scan, Split

NOBODY = 65534


@contextmanager
def unprivileged() -> Iterator[None]:
    """As a user whom permissions bind, also where the tests run as root.

    What is used inside must have been imported before: that user may not read Python itself.
    """
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder that every user may enter; pytest's own is closed."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o777)
        yield Path(folder)


def split_folder(root: Path, cache: Path, **options: object) -> tuple[Scan, Split]:
    config = SearchConfig(data=str(root), **options)
    scan = scan_images(load_dataset(config), None, cache)
    return scan, make_split(scan, find_twins(scan), config)


def test_what_one_may_not_read_is_left_out_and_named(place: Path) -> None:
    root = write_pictures(place / "scans")
    (root / "tumour" / "t03.png").chmod(0)
    shutil.copytree(root / "healthy", root / "healthy" / "more")
    (root / "healthy" / "more").chmod(0)
    with unprivileged():
        dataset = load_dataset(SearchConfig(data=str(root)))
        scan = scan_images(dataset, None, place / "cache")
    (root / "healthy" / "more").chmod(0o755)
    found = {f.check: (f.count, f.examples) for f in (*dataset.findings, *scan.findings)}
    assert found == {
        "closed_folders": (1, ("healthy/more",)),
        "unreadable": (1, ("tumour/t03.png",)),
    }
    assert len(scan.dataset.samples) == len(scan.facts) == 23


def test_a_read_only_data_folder_is_enough_and_stays_as_it_is(place: Path) -> None:
    root = write_pictures(place / "scans")
    for path in (*root.rglob("*"), root):
        path.chmod(0o555 if path.is_dir() else 0o444)
    before = {path: path.stat().st_mtime_ns for path in (root, *root.rglob("*"))}
    with unprivileged():
        dataset = load_dataset(SearchConfig(data=str(root)))
        scan = scan_images(dataset, None, place / "cache")
    assert len(scan.dataset.samples) == 24 and scan.findings == ()
    assert {path: path.stat().st_mtime_ns for path in (root, *root.rglob("*"))} == before


def test_a_cache_that_cannot_be_written_is_named_with_a_way_out(place: Path) -> None:
    root = write_pictures(place / "scans")
    (place / "cache").mkdir(mode=0o555)
    dataset = load_dataset(SearchConfig(data=str(root)))
    with unprivileged(), pytest.raises(StorageError, match=r"(?s)Permission denied.*--cache-dir"):
        scan_images(dataset, None, place / "cache")


def test_a_file_that_vanishes_before_it_is_read_is_left_out_and_named(tmp_path: Path) -> None:
    root = write_pictures(tmp_path / "scans")
    dataset = load_dataset(SearchConfig(data=str(root)))
    (root / "healthy" / "h05.png").unlink()
    scan = scan_images(dataset, 32, tmp_path / "cache")
    assert [(f.check, f.examples) for f in scan.findings] == [("missing", ("healthy/h05.png",))]
    assert len(scan.dataset.samples) == len(scan.facts) == len(scan.pixels) == 23
    # Once read, images are not opened again: what vanishes later does no harm.
    (root / "healthy" / "h06.png").unlink()
    split = make_split(scan, find_twins(scan), SearchConfig())
    assert {len(split.rows(name)) for name in SPLITS} == {15, 4}


def test_blanks_and_any_script_in_paths_are_only_names(tmp_path: Path) -> None:
    root = write_pictures(tmp_path / "Bilder für Ärzte" / "脳 腫瘍 (1)")
    scan, _ = split_folder(root, tmp_path / "Zwischen speicher")
    assert len(scan.dataset.samples) == 24 and scan.findings == ()


@pytest.mark.parametrize("n_classes", [3, 5])
def test_three_and_five_classes_are_split_alike(n_classes: int, tmp_path: Path) -> None:
    root = tmp_path / "scans"
    for number in range(n_classes):
        part = write_pictures(tmp_path / f"{number}", 8)
        shutil.copytree(part / ("tumour" if number % 2 else "healthy"), root / f"class {number}")
        for path in (root / f"class {number}").iterdir():
            path.rename(path.with_stem(f"{number}{path.stem}"))
    scan, split = split_folder(root, tmp_path / "cache", split="random")
    assert scan.dataset.positive is None and len(scan.dataset.classes) == n_classes
    for name in SPLITS:
        counts = Counter(scan.dataset.samples[row].label for row in split.rows(name))
        assert len(counts) == n_classes and len(set(counts.values())) == 1


@pytest.mark.parametrize("given", [("train",), ("train", "val"), ("train", "test")])
def test_parts_without_a_folder_are_carved_from_train(
    given: tuple[str, ...], class_folders: Path, tmp_path: Path
) -> None:
    for label in ("healthy", "tumour"):
        for i, path in enumerate(sorted((class_folders / label).iterdir())):
            part = given[i < 3] if len(given) == 2 else given[0]
            (tmp_path / "scans" / part / label).mkdir(parents=True, exist_ok=True)
            shutil.copy(path, tmp_path / "scans" / part / label)
    scan, split = split_folder(tmp_path / "scans", tmp_path / "cache")
    assert split.kind == ("official" if len(given) == 2 else "grouped")
    assert all(len(split.rows(name)) >= 4 for name in SPLITS)
    kept = [scan.dataset.samples[row].split for row in split.rows(given[-1])]
    assert len(given) == 1 or kept == [given[1]] * 6


@pytest.mark.parametrize("images", [1, 2, 4, 5])
def test_a_class_of_fewer_than_six_images_ends_with_code_3_and_the_number(
    images: int, class_folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(class_folders / "healthy", tmp_path / "scans" / "healthy")
    (tmp_path / "scans" / "rare").mkdir()
    for path in sorted((class_folders / "tumour").iterdir())[:images]:
        shutil.copy(path, tmp_path / "scans" / "rare")
    cache = str(tmp_path / "cache")
    assert run_command(["audit", str(tmp_path / "scans"), "--cache-dir", cache, "-q"]) == 3
    message = capsys.readouterr().err
    assert "'rare'" in message and "6" in message and "Traceback" not in message
