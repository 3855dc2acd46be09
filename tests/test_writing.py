"""Files are there whole or not at all."""

import pytest

from automl.errors import StorageError
from automl.writing import replace_file, write_json, write_text


def test_what_goes_wrong_half_way_leaves_the_old_file_and_nothing_else(tmp_path):
    path = write_text(tmp_path / "new" / "a.txt", "old\r\n")
    with pytest.raises(KeyboardInterrupt), replace_file(path) as file:
        file.write("half")
        file.flush()
        raise KeyboardInterrupt
    assert path.read_bytes() == b"old\r\n"
    assert list(path.parent.iterdir()) == [path]
    with replace_file(path, "wb") as file:
        file.write(b"new")
    assert path.read_bytes() == b"new"


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"Cannot write .*file/a\.json: File exists"):
        write_json(tmp_path / "file" / "a.json", {})


def test_json_is_ascii_and_holds_no_nan(tmp_path):
    assert write_json(tmp_path / "a.json", "ü").read_bytes() == b'"\\u00fc"\n'
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", float("nan"))
    assert (tmp_path / "a.json").read_bytes() == b'"\\u00fc"\n'
