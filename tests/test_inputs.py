"""What ``automl predict`` is given: folders, tables and lists, with a row for every name."""

import os
from pathlib import Path

import pytest

from automl.errors import UsageError
from automl.records import Prediction
from automl.serving.inputs import find_images, read_list


@pytest.fixture
def folder(tmp_path):
    """Files that look like images by name; nothing here opens them."""
    for name in ("a/one.png", "a/same.png", "b/same.png", "b/two.JPG", "notes.txt", ".hidden.png"):
        path = tmp_path / "scans" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    (tmp_path / "scans" / "slice").write_bytes(bytes(128) + b"DICM")
    return tmp_path / "scans"


def names(found, folder):
    return [path.relative_to(folder).as_posix() for path in found]


def test_folders_are_walked_in_order_and_dicom_needs_no_ending(folder):
    found = list(find_images(folder))
    assert names(found, folder) == ["a/one.png", "a/same.png", "b/same.png", "b/two.JPG", "slice"]


def test_a_link_out_of_the_folder_is_not_followed_but_named(folder, tmp_path):
    (tmp_path / "outside.png").write_bytes(b"x")
    (folder / "link.png").symlink_to(tmp_path / "outside.png")
    told = []
    assert "link.png" not in names(find_images(folder, warn=told.append), folder)
    assert len(told) == 1 and "1 symbolic link" in told[0]


def test_files_are_handed_on_whatever_they_are(folder):
    given = [folder / "missing.png", folder / "notes.txt", folder / "b"]
    assert names(find_images(given), folder) == [
        *("missing.png", "notes.txt", "b/same.png", "b/two.JPG")
    ]


def test_a_table_has_an_answer_for_every_row_and_leads_nowhere_else(folder):
    table = folder / "list.csv"
    table.write_text(
        "patient;scan\n1;one\n2;b/two.jpg\n3;same\n4;gone.png\n5;../outside.png\n6;\n7;/etc/passwd\n"
    )
    found = list(find_images(table))
    assert names(found[:2], folder) == ["a/one.png", "b/two.JPG"]
    assert all(isinstance(row, Prediction) and row.flags == ("unreadable",) for row in found[2:])
    messages = [row.message for row in found[2:]]
    assert "same fits several files: a/same.png or b/same.png" in messages[0]
    assert "gone.png is not below" in messages[1]
    assert "../outside.png leads out of the folder of list.csv" in messages[2]
    assert messages[3] == "list.csv line 7 names no image"
    assert "/etc/passwd leads out" in messages[4]


def test_the_column_of_images_is_found_or_named(folder):
    (folder / "odd.csv").write_text("first,second\none.png,two.jpg\n")
    assert names(find_images(folder / "odd.csv"), folder) == ["a/one.png"]
    assert names(find_images(folder / "odd.csv", "second"), folder) == ["b/two.JPG"]
    with pytest.raises(UsageError, match="--image-column 'third' is not a column"):
        list(find_images(folder / "odd.csv", "third"))


def test_a_folder_without_images_says_what_was_expected(tmp_path):
    with pytest.raises(UsageError, match="No images under"):
        list(find_images(tmp_path))


def test_a_list_keeps_names_in_any_bytes():
    data = b"plain.png\r\n\n \nwith blank .png\n\xff\xfe.png"
    found = read_list(data)
    assert [os.fsencode(name) for name in found] == [
        *(b"plain.png", b"with blank .png", b"\xff\xfe.png")
    ]
    assert [Path(name).suffix for name in found] == [".png"] * 3
