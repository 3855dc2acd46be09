"""Files that are there whole or not at all, also when the power goes or the disk is full."""

import json
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from automl.errors import StorageError


@contextmanager
def replace_file(path: Path, mode: str = "w", **options: Any) -> Iterator[IO]:
    """A temporary file beside ``path`` that takes its place, durably, if nothing goes wrong.

    Folders on the way are made. Text is UTF-8 with the line ends that are written; ``options``
    are those of ``open``.

    Raises:
        StorageError: the disk is full, or the folder cannot be written.
    """
    if "b" not in mode:
        options = {"encoding": "utf-8", "newline": "", **options}
    # Processes of several machines may share the folder, and threads a process.
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(part, mode, **options) as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise StorageError(
            f"Cannot write {path}: {error.strerror or error}. Free some space, or choose a folder "
            "that can be written."
        ) from error


def write_text(path: Path, text: str) -> Path:
    """``text`` as the whole of ``path``, which is returned; see ``replace_file``."""
    with replace_file(path) as file:
        file.write(text)
    return path


def write_json(path: Path, document: Any) -> Path:
    """``document`` as JSON in ASCII, without NaN; see ``replace_file``."""
    return write_text(path, json.dumps(document, indent=1, allow_nan=False) + "\n")


def delete_parts(folder: Path) -> None:
    """What a process that was killed, or found the disk full, left behind half written."""
    for torn in folder.glob("*.part"):
        torn.unlink()
