"""The page of predictions: one file, nothing to load, the doubtful first."""

import html
import re
from datetime import UTC, datetime

import numpy as np
import pytest
from PIL import Image

from automl.records import ModelInfo, Prediction
from automl.reporting import answers
from automl.reporting.answers import write_answers_page

INFO = ModelInfo("first", ("healthy", "tumour"), "tumour", 0.4, 1.3, 96)


def make_row(name, *flags, message=""):
    return Prediction(
        *(name, "tumour", 0.75, {"healthy": 0.25, "tumour": 0.75}, flags, message), ("tumour",)
    )


def write(rows, tmp_path, **options):
    path = write_answers_page(
        INFO, rows, tmp_path / "page.html", now=datetime(2026, 1, 1, tzinfo=UTC), **options
    )
    return path.read_text("utf-8")


@pytest.fixture
def scan(tmp_path):
    Image.fromarray(np.arange(4096, dtype=np.uint8).reshape(64, 64)).save(tmp_path / "a.png")
    return tmp_path / "a.png"


def test_rows_with_the_most_serious_flag_come_first(tmp_path, scan):
    bad = Prediction("bad.png", None, None, {}, ("unreadable",), "bad.png is empty")
    rows = [
        (scan, make_row("plain.png")),
        (scan, make_row("seen.png", "seen-in-training")),
        (scan, make_row("cat.png", "unlike-training", "uncertain")),
        (None, bad),
    ]
    page = write(rows, tmp_path)
    assert re.findall(r'<th scope="row">(.*?)</th>', page) == [
        *("bad.png", "cat.png", "seen.png", "plain.png")
    ]
    assert "bad.png is empty" in page and "75.0" in page
    assert page.count('src="data:image/jpeg;base64,') == 3


def test_the_page_needs_nothing_and_runs_nothing(tmp_path, scan):
    evil = make_row("<script>alert(1)</script>.png", "uncertain", message='"><img src=x onerror=x>')
    page = write([(scan, evil)], tmp_path)
    assert "default-src 'none'; img-src data:" in html.unescape(page)
    assert "<script>alert" not in page and "<img src=x" not in page
    assert not re.search(r"(?:src|href)=\"?(?:https?:)?//", page)


def test_a_long_list_is_cut_and_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(answers, "MAX_ROWS", 3)
    page = write([(None, make_row(f"{i}.png")) for i in range(10)], tmp_path)
    assert page.count('<th scope="row">') == 3
    assert "7 more rows" in page and "<strong>10</strong>" in page


def test_a_file_that_is_gone_leaves_its_row(tmp_path):
    page = write([(tmp_path / "gone.png", make_row("gone.png"))], tmp_path)
    assert "gone.png" in page and "data:image" not in page
