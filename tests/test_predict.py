"""``automl predict`` as a person runs it: whatever comes in, every image has its row."""

import csv
import io
import os
import shutil
import sys
import warnings

import hostile_corpus as corpus
import numpy as np
import pytest
from PIL import Image

from automl.cli import run_command

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:__array__ implementation")]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    from serving_model import prepare_run

    return prepare_run(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    from serving_model import draw_images

    folder = tmp_path_factory.mktemp("scans")
    for number, image in enumerate(draw_images(4, 120, seed=9)):
        Image.fromarray(image).save(folder / f"{number}.png")
    return folder


def predict(run, *arguments):
    return run_command(["predict", str(run), "-q", *map(str, arguments)])


def read_rows(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_every_hostile_file_has_its_row(run, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        corpus.write_all(tmp_path)
    names = [*corpus.REFUSED, *corpus.READ]
    assert predict(run, *(tmp_path / name for name in names), "--out", tmp_path / "a.csv") == 0
    rows = read_rows(tmp_path / "a.csv")
    assert [row["image"] for row in rows] == [str(tmp_path / name) for name in names]
    for name, row in zip(names, rows, strict=True):
        assert (row["flags"] == "unreadable") == (name in corpus.REFUSED), row
        assert bool(row["label"]) == (name in corpus.READ) and bool(row["message"] or row["label"])
    blank = {row["image"]: row["flags"] for row in rows}
    assert "unlike-training" in blank[str(tmp_path / "black.png")]


def test_names_that_break_things_are_only_names(run, tmp_path):
    for name in corpus.NAMES:
        Image.fromarray(corpus.GREY).save(os.fsdecode(os.fsencode(tmp_path / "in") + b".png"))
        (tmp_path / "names").mkdir(exist_ok=True)
        target = os.path.join(os.fsencode(tmp_path / "names"), name)
        os.replace(tmp_path / "in.png", target)
    page = tmp_path / "a.html"
    assert predict(run, tmp_path / "names", "--out", tmp_path / "a.csv", "--html", page) == 0
    rows = read_rows(tmp_path / "a.csv")
    assert len({row["image"] for row in rows}) == len(corpus.NAMES)
    assert all(row["label"] for row in rows)
    assert "<script>alert" not in page.read_text("utf-8")
    assert predict(run, tmp_path / "names", "--out", tmp_path / "a.json") == 0


def test_lists_tables_and_dicom_lead_to_the_same_answers(run, scans, tmp_path, monkeypatch):
    folder = shutil.copytree(scans, tmp_path / "scans")
    assert predict(run, folder, "--out", tmp_path / "folder.csv") == 0
    expected = [row["probability_tumour"] for row in read_rows(tmp_path / "folder.csv")]
    files = sorted(folder.iterdir())
    given = "\n".join([*map(str, files), "", "gone.png"]).encode()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(given)))
    assert predict(run, "-", "--out", tmp_path / "list.csv") == 0
    rows = read_rows(tmp_path / "list.csv")
    assert [row["probability_tumour"] for row in rows] == [*expected, ""]
    assert rows[-1]["flags"] == "unreadable" and "does not exist" in rows[-1]["message"]

    (folder / "table.csv").write_text("scan,age\n2,40\n0.png,50\n9,60\n")
    assert predict(run, folder / "table.csv", "--out", tmp_path / "table.csv") == 0
    rows = read_rows(tmp_path / "table.csv")
    assert [row["probability_tumour"] for row in rows] == [expected[2], expected[0], ""]

    pytest.importorskip("pydicom")
    from test_dicom import make_dicom

    grey = np.asarray(Image.open(files[1]).convert("L"))
    (tmp_path / "dicom").mkdir()
    (tmp_path / "dicom" / "slice").write_bytes(make_dicom(grey, WindowCenter=128, WindowWidth=256))
    assert predict(run, tmp_path / "dicom", "--out", tmp_path / "dicom.csv") == 0
    (row,) = read_rows(tmp_path / "dicom.csv")
    assert float(row["probability_tumour"]) == pytest.approx(float(expected[1]), abs=0.05)


def test_an_empty_list_is_wrong_usage(run, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\n")))
    assert predict(run, "-") == 2
    assert "standard input holds no path" in capsys.readouterr().err


def test_what_labels_rest_on_is_painted_by_the_model_that_gave_them(run, scans, tmp_path, capsys):
    folder = shutil.copytree(scans, tmp_path / "scans")
    (folder / "bad.png").write_bytes(b"")
    painted, page = tmp_path / "painted", tmp_path / "page.html"
    arguments = (folder, "--out", tmp_path / "a.csv", "--saliency", painted, "--html", page)
    assert predict(run, *arguments) == 0
    names = [f"{row + 1:05d}_{row}.png" for row in range(4)]
    assert sorted(path.name for path in painted.iterdir()) == names
    picture = np.asarray(Image.open(painted / names[0]).convert("RGB")).astype(int)
    assert picture.shape == (96, 96, 3)
    assert np.ptp(picture, axis=2).max() > 30, "a grey scan was painted with no colour"
    assert page.read_text("utf-8").count("data:image/jpeg") == 4

    assert predict(run / "model", *arguments) == 0  # model.keras lies beside model/
    alone = shutil.copytree(run / "model", tmp_path / "alone")
    assert predict(alone, *arguments) == 2
    assert "Name the run folder" in capsys.readouterr().err
    from serving_model import make_model

    other = shutil.copytree(run, tmp_path / "other")
    make_model(temperature=0.3).save(other / "model.keras")
    assert predict(other, *arguments) == 1
    assert "is not the model that gave the predictions" in capsys.readouterr().err


def test_an_altered_model_is_refused_unless_trusted(run, scans, tmp_path, capsys):
    copy = shutil.copytree(run, tmp_path / "copy")
    with open(copy / "model" / "fingerprint.pb", "ab") as file:
        file.write(b"\x00")
    assert predict(copy, scans, "--out", tmp_path / "a.csv") == 1
    shown = capsys.readouterr().err
    assert "fingerprint.pb was altered" in shown and "--trust" in shown
    assert not (tmp_path / "a.csv").exists()
    assert predict(copy, scans, "--out", tmp_path / "a.csv", "--trust") == 0
    assert len(read_rows(tmp_path / "a.csv")) == 4
