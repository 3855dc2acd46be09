"""Every file of the hostile corpus has its expected end, soon and in little memory."""

import os
import resource
import subprocess
import sys
import time
import warnings
from collections import Counter
from pathlib import Path

import hostile_corpus as corpus
import matplotlib
import numpy as np
import pytest
from PIL import Image

import automl.errors
from automl.config import SearchConfig
from automl.data.images import ImageError, open_image
from automl.data.pixels import scan_images
from automl.data.sources import load_dataset
from automl.errors import AutomlError, DataError

LONGEST = 5.0


def make_file(folder: Path, name: str, make) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        (folder / name).write_bytes(make())
    return folder / name


@pytest.mark.parametrize("name", corpus.REFUSED)
@pytest.mark.filterwarnings("ignore")
def test_a_file_that_shows_nothing_is_refused_with_its_check(name, tmp_path):
    make, expected = corpus.REFUSED[name]
    path = make_file(tmp_path, name, make)
    start = time.perf_counter()
    with pytest.raises(ImageError) as caught:
        open_image(path)
    assert time.perf_counter() - start < LONGEST
    assert caught.value.check in expected.split("|")
    assert len(caught.value.message) < 200


@pytest.mark.parametrize("name", corpus.READ)
@pytest.mark.filterwarnings("ignore")
def test_an_odd_file_is_read_and_never_silently_black(name, tmp_path):
    make, note = corpus.READ[name]
    path = make_file(tmp_path, name, make)
    start = time.perf_counter()
    pixels, facts = open_image(path)
    assert time.perf_counter() - start < LONGEST
    assert pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3
    if note:
        assert note in facts["notes"]
    assert "blank" in facts["notes"] or pixels.std() > 20


@pytest.mark.parametrize("name", corpus.TABLES)
def test_an_odd_table_has_its_finding_or_error(name, tmp_path):
    data, (what, expected) = corpus.TABLES[name]
    pictures = tmp_path / "data" / "pictures"
    for place in (pictures, pictures / "one", pictures / "two"):
        place.mkdir(parents=True, exist_ok=True)
    (tmp_path / "outside.png").write_bytes(b"secret")
    files = [pictures / f"{letter}{i}.png" for letter in "ab" for i in range(6)]
    for file in (*files, pictures / "one" / "dup.png", pictures / "two" / "dup.png"):
        file.write_bytes(b"not opened yet")
    table = tmp_path / "data" / "table.csv"
    table.write_bytes(data)
    config = SearchConfig(data=str(table))
    start = time.perf_counter()
    if what.endswith("Error"):
        with pytest.raises(getattr(automl.errors, what), match=expected):
            load_dataset(config)
    else:
        dataset = load_dataset(config)
        counts = {finding.check: finding.count for finding in dataset.findings}
        if what == "ok":
            assert len(dataset.samples) == expected
            assert set(counts) <= {"columns", "unlisted"}
        else:
            assert counts[what] == expected
        assert dataset.classes in {("0", "1"), ("Healthy", "Tumor")}
        assert all(sample.path.is_relative_to(tmp_path / "data") for sample in dataset.samples)
    assert time.perf_counter() - start < LONGEST


@pytest.fixture
def named(tmp_path):
    """Class folders whose files have all the hostile names."""
    for number, label in enumerate(("healthy", "tumour")):
        (tmp_path / "data" / label).mkdir(parents=True)
        for i, name in enumerate(corpus.NAMES):
            path = os.path.join(os.fsencode(tmp_path / "data" / label), name)
            with open(path, "wb") as file:
                file.write(
                    corpus.save(Image.fromarray(np.roll(corpus.GREY, 3 * i + number)), "PNG")
                )
    return tmp_path / "data"


def test_hostile_names_are_read_unique_and_writable_as_text(named, tmp_path):
    dataset = load_dataset(SearchConfig(data=str(named)))
    scan = scan_images(dataset, 32, tmp_path / "cache")
    assert len(scan.dataset.samples) == 2 * len(corpus.NAMES)
    names = [sample.image for sample in scan.dataset.samples]
    assert len(set(names)) == len(names)
    assert all(name.encode("utf-8") for name in names)
    assert scan.findings == ()


def test_two_files_never_share_a_printable_name(named):
    broken = os.path.join(os.fsencode(named / "healthy"), b"a\xff.png")
    literal = os.path.join(os.fsencode(named / "healthy"), rb"a\xff.png")
    for path in (broken, literal):
        with open(path, "wb") as file:
            file.write(b"x")
    names = [s.image for s in load_dataset(SearchConfig(data=str(named))).samples]
    assert len(set(names)) == len(names) == 2 * len(corpus.NAMES) + 2


def test_links_that_lead_out_or_in_circles_are_refused(class_folders, tmp_path):
    (tmp_path / "secret.png").write_bytes((class_folders / "tumour" / "t00.png").read_bytes())
    root = tmp_path / "data"
    for label in ("healthy", "tumour"):
        (root / label).mkdir(parents=True)
        for path in (class_folders / label).iterdir():
            (root / label / path.name).write_bytes(path.read_bytes())
    (root / "tumour" / "out.png").symlink_to(tmp_path / "secret.png")
    (root / "tumour" / "circle.png").symlink_to(root / "tumour" / "circle.png")
    (root / "tumour" / "nowhere.png").symlink_to(root / "nowhere")
    (root / "healthy" / "up").symlink_to(root, target_is_directory=True)
    (root / "etc").symlink_to("/etc", target_is_directory=True)
    (root / "tumour" / "inside.png").symlink_to(root / "tumour" / "t01.png")
    dataset = load_dataset(SearchConfig(data=str(root)))
    assert len(dataset.samples) == 25
    assert {f.check: f.count for f in dataset.findings} == {"refused": 5}


def test_pipes_and_folders_named_like_images_do_not_hang(class_folders, tmp_path):
    root = tmp_path / "data"
    for label in ("healthy", "tumour"):
        (root / label / "folder.png").mkdir(parents=True)
        os.mkfifo(root / label / "pipe.png")
        for path in (class_folders / label).iterdir():
            (root / label / path.name).write_bytes(path.read_bytes())
    dataset = load_dataset(SearchConfig(data=str(root)))
    assert len(dataset.samples) == 24
    for odd in ("folder.png", "pipe.png"):
        with pytest.raises(ImageError) as caught:
            open_image(root / "healthy" / odd)
        assert caught.value.check == "not_a_file"


def test_a_file_over_the_limit_is_not_read(tmp_path):
    with open(tmp_path / "huge.png", "wb") as file:
        file.truncate(3 * 2**30)
    with pytest.raises(ImageError) as caught:
        open_image(tmp_path / "huge.png")
    assert caught.value.check == "too_large"


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda root: root / "nowhere", "UsageError", "no file or folder"),
        (lambda root: root, "UsageError", "No images under"),
        (lambda root: root / "only.png", "UsageError", "not a CSV"),
    ],
)
def test_a_wrong_path_says_what_was_expected(make, error, words, tmp_path):
    path = make(tmp_path)
    if path.suffix:
        path.write_bytes(b"x")
    with pytest.raises(getattr(automl.errors, error), match=words):
        load_dataset(SearchConfig(data=str(path)))


def test_a_folder_of_volumes_says_what_to_do_with_them(tmp_path):
    (tmp_path / "tumour").mkdir()
    (tmp_path / "tumour" / "head.nii.gz").write_bytes(b"\x1f\x8b\x08")
    with pytest.raises(AutomlError, match=r"No images.*1 files.*volumes \(NIfTI\), the slices"):
        load_dataset(SearchConfig(data=str(tmp_path)))


def test_a_folder_of_loose_images_says_that_class_folders_are_missing(tmp_path):
    make_file(tmp_path, "a.png", corpus.jpeg)
    with pytest.raises(AutomlError, match="no folders"):
        load_dataset(SearchConfig(data=str(tmp_path)))


def test_bad_files_among_good_ones_are_left_out_and_listed(class_folders, tmp_path):
    root = tmp_path / "data"
    for label in ("healthy", "tumour"):
        (root / label).mkdir(parents=True)
        for path in (class_folders / label).iterdir():
            (root / label / path.name).write_bytes(path.read_bytes())
    for name in ("empty.png", "half.png", "document.png", "one_pixel.png"):
        make_file(root / "tumour", name, corpus.REFUSED[name][0])
    make_file(root / "healthy", "jpeg.png", corpus.jpeg)
    scan = scan_images(load_dataset(SearchConfig(data=str(root))), 32, tmp_path / "cache")
    found = Counter({finding.check: finding.count for finding in scan.findings})
    assert found == {
        "zero_bytes": 1,
        "truncated": 1,
        "wrong_format": 1,
        "too_small": 1,
        "wrong_extension": 1,
    }
    assert len(scan.dataset.samples) == len(scan.facts) == len(scan.pixels) == 25
    assert scan.dataset.samples[-1].image == "tumour/t11.png"


def test_too_many_bad_files_stop_everything(class_folders, tmp_path):
    root = tmp_path / "data"
    for label in ("healthy", "tumour"):
        (root / label).mkdir(parents=True)
        for i, path in enumerate(sorted((class_folders / label).iterdir())):
            (root / label / path.name).write_bytes(path.read_bytes() if i > 3 else b"")
    with pytest.raises(DataError, match="8 of 24 images cannot be read") as caught:
        scan_images(load_dataset(SearchConfig(data=str(root))), None, tmp_path / "cache")
    assert caught.value.exit_code == 3 and "are empty" in str(caught.value)


AUDIT_SCRIPT = """
import sys
from pathlib import Path
from automl.cli import run_command
code = run_command(["audit", sys.argv[1], "--cache-dir", sys.argv[2], "--html", sys.argv[3], "-q"])
# The kernel's getrusage would count the process that this one was forked from.
lines = Path("/proc/self/status").read_text().splitlines()
print(code, next(line.split()[1] for line in lines if line.startswith("VmHWM")))
"""


def snapshot(root: Path) -> dict[Path, tuple[int, int]]:
    """Size and time of every file below a folder."""
    files = [path for path in root.rglob("*") if path.is_file() and not path.is_symlink()]
    return {path: (path.stat().st_size, path.stat().st_mtime_ns) for path in files}


@pytest.mark.slow
def test_an_audit_of_the_whole_corpus_stays_in_one_gibibyte_and_writes_nowhere_else(
    named, tmp_path
):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        corpus.write_all(named / "tumour")
    # 49 megapixels of 16 bits: the largest that is read.
    large = Image.fromarray(np.tile(corpus.DEEP, (109, 109)))
    large.save(named / "healthy" / "large.png", compress_level=1)
    for number in range(150):
        picture = Image.fromarray(np.roll(corpus.GREY, 7 * number))
        picture.save(named / "healthy" / f"good{number}.png")
    (tmp_path / "work").mkdir()
    before = snapshot(tmp_path)

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (2 * 2**30, 2 * 2**30))

    target = tmp_path / "out" / "audit.html"
    result = subprocess.run(
        [sys.executable, "-c", AUDIT_SCRIPT, str(named), str(tmp_path / "cache"), str(target)],
        check=True, preexec_fn=limit, cwd=tmp_path / "work", stdout=subprocess.PIPE, text=True,
        env={
            **os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "HOME": str(tmp_path),
            "TMPDIR": str(tmp_path / "work"), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1",
            # Its list of fonts, which it would write anew.
            "MPLCONFIGDIR": matplotlib.get_cachedir(),
        },
    )  # fmt: skip
    code, peak = map(int, result.stdout.split())
    assert code == 0
    assert 2**14 < peak < 2**20, f"{peak / 2**20:.2f} GiB"
    after = snapshot(tmp_path)
    written = {path for path in after if after[path] != before.get(path)}
    assert before.keys() <= after.keys()
    assert written and all(
        path == target or path.is_relative_to(tmp_path / "cache") for path in written
    )
    page = target.read_text(encoding="utf-8")
    # Names are shown, and none of them as markup.
    assert "alert(1)" not in page.replace("&lt;script&gt;alert(1)", "")


def test_the_corpus_has_more_than_sixty_kinds():
    assert len(corpus.REFUSED) + len(corpus.READ) > 60 and len(corpus.TABLES) > 50
