"""The journal: one JSON object a line, appended and fsynced. It is the truth about a run.

Everything else (the oracle's state, trials.csv, MLflow, the report) is made from it by
replaying it. A line that was torn by a crash is the last one, and is cut off when the
journal is opened for writing again. Times are seconds since the epoch and only labels:
durations are measured with a monotonic clock and written as such.
"""

import contextlib
import errno
import fcntl
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from automl.errors import StorageError, UsageError

SCHEMA_VERSION = 1
FILE_NAME = "journal.jsonl"


def read_journal(path: Path) -> list[dict[str, Any]]:
    """All whole events of the journal at ``path``, oldest first; [] if there is none.

    Raises:
        StorageError: a line other than the last is not JSON, or a newer schema wrote it.
    """
    return load_events(path)[0]


def load_events(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The whole events, and how many bytes of the file they take."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return [], 0
    except OSError as error:
        raise StorageError(f"Cannot read {path}: {error.strerror}.") from error
    events, size = [], 0
    # What follows the last newline was torn: `append` had not returned.
    lines = data.split(b"\n")[:-1]
    for number, line in enumerate(lines, 1):
        event = parse_event(line)
        if event is None:
            # A crash can leave a last line whose newline reached the disk before its text.
            if number == len(lines):
                break
            raise StorageError(
                f"{path}, line {number}, is not a journal entry. The file was altered or the disk "
                "damaged it. Restore it from a backup, or start again with --overwrite."
            )
        if event.get("schema", SCHEMA_VERSION) > SCHEMA_VERSION:
            raise StorageError(
                f"{path} was written by a newer automl (schema {event['schema']}; this one reads "
                f"{SCHEMA_VERSION}). Update automl to go on with this run."
            )
        events.append(event)
        size += len(line) + 1
    return events, size


def parse_event(line: bytes) -> dict[str, Any] | None:
    """One line, or None if it is not an event."""
    try:
        event = json.loads(line)
    except ValueError:
        return None
    if not isinstance(event, dict) or not isinstance(event.get("event"), str):
        return None
    return event if isinstance(event.get("schema", SCHEMA_VERSION), int) else None


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
            self._lock()
            self.events, size = load_events(self.path)
            # Cut a torn tail, so that the next entry starts on a line of its own.
            os.ftruncate(self._file.fileno(), size)
            os.fsync(self._file.fileno())
            sync_folder(self.path.parent)
        except OSError as error:
            self._file.close()
            raise StorageError(f"Cannot write {self.path}: {error.strerror}.") from error
        except BaseException:
            self._file.close()
            raise
        return self

    def _lock(self) -> None:
        """Taken before reading; the system lets go of it when this process ends, however."""
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(
                f"Another process is writing to {self.path.parent}. Wait for it to end, stop it, "
                "or choose another --name."
            ) from None

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
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(self._file.fileno())
        except OSError as error:
            with contextlib.suppress(OSError):
                os.ftruncate(self._file.fileno(), end)
            raise StorageError(
                f"Cannot write {self.path}: {error.strerror}. Free some space, then go on with "
                "--resume."
            ) from error
        self.events.append(entry)
        return entry


@contextlib.contextmanager
def locked(path: Path) -> Iterator[IO[str]]:
    """Wait for the lock on ``path`` and hold it; made if missing, yielded to read and append.

    The system lets go of it when this process ends, however.
    """
    with open(path, "a+", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield file


def sync_folder(folder: Path) -> None:
    """Make a new file's name survive a crash, not only its contents."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
