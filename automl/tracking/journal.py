"""The journal: one JSON object a line, appended and fsynced. It is the truth about a run.

Everything else (the oracle's state, trials.csv, MLflow, the report) is made from it by
replaying it. A line that was torn by a crash is the last one, and is cut off when the
journal is opened for writing again. Times are seconds since the epoch and only labels:
durations are measured with a monotonic clock and written as such.
"""

import fcntl
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from automl.errors import StorageError, UsageError

SCHEMA_VERSION = 1
FILE_NAME = "journal.jsonl"


def read_journal(path: Path) -> list[dict[str, Any]]:
    """All whole events of the journal at ``path``, oldest first; [] if there is none.

    Raises:
        StorageError: a line other than the last is not JSON, or a newer schema wrote it.
    """
    if not path.exists():
        return []
    return list(iter_events(path.read_bytes(), path))


def iter_events(data: bytes, path: Path) -> Iterator[dict[str, Any]]:
    """Decode complete lines; what follows the last newline was torn and is ignored."""
    lines = data.split(b"\n")[:-1]
    for number, line in enumerate(lines, 1):
        try:
            event = json.loads(line)
            schema = event.get("schema", SCHEMA_VERSION)
        except (ValueError, AttributeError):
            # A crash can leave a last line whose newline reached the disk before its text.
            if number == len(lines):
                return
            raise StorageError(
                f"{path}, line {number}, is not a journal entry. The file was altered or the disk "
                "damaged it. Restore it from a backup, or start again with --overwrite."
            ) from None
        if schema > SCHEMA_VERSION:
            raise StorageError(
                f"{path} was written by a newer automl (schema {schema}; this one reads "
                f"{SCHEMA_VERSION}). Update automl to go on with this run."
            )
        yield event


class Journal:
    """The single writer of a run's journal; a context manager that holds a lock.

    Raises:
        UsageError: another process writes to this run.
        StorageError: the file cannot be opened or written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.events: list[dict[str, Any]] = []

    def __enter__(self) -> "Journal":
        try:
            self._file = open(self.path, "ab", buffering=0)
        except OSError as error:
            raise StorageError(f"Cannot write {self.path}: {error.strerror}.") from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._file.close()
            raise UsageError(
                f"Another process is writing to {self.path.parent}. Wait for it to end, stop it, or "
                "choose another --name."
            ) from None
        try:
            self.events = read_journal(self.path)
            # Cut a torn tail, so that the next line starts on a line of its own.
            whole = sum(len(line) + 1 for line in _whole_lines(self.path, len(self.events)))
            os.ftruncate(self._file.fileno(), whole)
            os.fsync(self._file.fileno())
        except BaseException:
            self._file.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

    def append(self, event: str, **values: Any) -> dict[str, Any]:
        """Write one event so that it survives a crash from here on; returns it.

        Values must be JSON; NaN and infinities are refused (write None).

        Raises:
            StorageError: the disk is full or went away; nothing of the event remains.
        """
        entry = {"event": event, "time": round(time.time(), 3), **values}
        line = (json.dumps(entry, allow_nan=False, separators=(",", ":")) + "\n").encode()
        end = os.fstat(self._file.fileno()).st_size
        try:
            written = self._file.write(line)
            if written != len(line):
                raise OSError(28, "No space left on device")
            os.fsync(self._file.fileno())
        except OSError as error:
            os.ftruncate(self._file.fileno(), end)
            raise StorageError(
                f"Cannot write {self.path}: {error.strerror}. Free some space and go on with --resume."
            ) from error
        self.events.append(entry)
        return entry


def _whole_lines(path: Path, count: int) -> list[bytes]:
    return path.read_bytes().split(b"\n")[:count]
