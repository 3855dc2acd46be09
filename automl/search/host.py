"""A cluster's worker, seen from the inside: what it has, the pixels it keeps, its trials.

Trials run in a process of their own (``automl.search.worker``), as they do on one machine: the
engine's worker never loads TensorFlow, goes on with its heartbeats while a trial computes, and
can end a trial that nobody wants any more.
"""

import contextlib
import hashlib
import os
import platform
import tempfile
import threading
import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from importlib import metadata
from pathlib import Path
from typing import Any

from automl.errors import AutomlError, ClusterError, StorageError
from automl.search.spec import PixelSource, StudySpec, TrialError, TrialTask
from automl.search.worker import Worker, WorkerError, call_named

# Set it for a worker that shall keep pixels and activations in a folder of its own.
CACHE_VARIABLE = "AUTOML_WORKER_CACHE"
# Whatever may change a score's last bits; each must be the driver's.
DISTRIBUTIONS = ("tensorflow", "keras", "numpy", "ai-edge-litert")
# How often a running trial looks whether anybody still wants it.
LOOK_SECONDS = 0.5
# An idle trial process gives its memory back after this time.
IDLE_SECONDS = 300.0


@dataclass(frozen=True)
class Mark:
    """A file of the driver's, by which a worker knows that it sees the same folder."""

    path: Path
    size: int
    modified: int

    @classmethod
    def of(cls, path: Path) -> "Mark":
        stat = path.stat()
        return cls(path, stat.st_size, stat.st_mtime_ns)

    def is_seen(self, folder: Path) -> bool:
        """Whether this machine has the very file, and may write into ``folder``."""
        try:
            return Mark.of(self.path) == self and os.access(folder, os.W_OK)
        except OSError:
            return False


@dataclass(frozen=True)
class Question:
    """What the driver asks of a worker before it gives it trials.

    ``run`` marks the run's folder, or is None where nothing will be written there.
    """

    pixels: PixelSource
    pixels_mark: Mark
    cache: Path
    run: Mark | None


@dataclass(frozen=True)
class Parcel:
    """One call: a function's name, its arguments, and a checkpoint where folders are not shared."""

    function: str
    spec: StudySpec
    arguments: tuple[Any, ...]
    threads: int
    timeout: float | None
    shares_cache: bool
    shares_run: bool
    parent: bytes | None


@dataclass(frozen=True)
class Reply:
    """What the call returned or raised, and the bytes of the checkpoint that it wrote."""

    value: Any = None
    error: Exception | None = None
    checkpoint: bytes | None = None


@cache
def versions() -> dict[str, str | None]:
    """Name → version, None where it is not installed; ``code`` is a digest of this package."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    found: dict[str, str | None] = {"python": ".".join(platform.python_version_tuple()[:2])}
    for name in DISTRIBUTIONS:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    from automl import __version__

    return found | {"automl": __version__, "code": digest.hexdigest()[:12]}


def check_versions(theirs: dict[str, str | None]) -> None:
    """Refuse a worker whose numbers might differ from the driver's.

    Raises:
        ClusterError: with every difference, and what to do.
    """
    ours = versions()
    if theirs.get("tensorflow") is None:
        raise ClusterError("TensorFlow is not installed there: install automl as on this machine.")
    differences = [
        f"{name} {theirs.get(name) or 'is missing'} (here {version or 'missing'})"
        for name, version in ours.items()
        if theirs.get(name) != version
    ]
    if differences:
        raise ClusterError(
            f"It has {', '.join(differences)}. Install the same versions as on this machine: "
            "other versions may give other scores."
        )


def own_cache() -> Path:
    """Where this worker keeps what it makes itself."""
    if os.environ.get(CACHE_VARIABLE):
        return Path(os.environ[CACHE_VARIABLE]).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "automl"


def examine(question: Question) -> dict[str, Any]:
    """This worker's versions, what it shares with the driver, and what it lacks.

    Raises:
        StorageError: its own cache folder is needed and cannot be written.
    """
    shares_cache = not os.environ.get(CACHE_VARIABLE) and question.pixels_mark.is_seen(
        question.cache
    )
    report = {
        "versions": versions(),
        "host": platform.node(),
        "shares_cache": shares_cache,
        "shares_run": question.run is not None and question.run.is_seen(question.run.path.parent),
        "has_pixels": shares_cache,
        "folder": None,
    }
    if not shares_cache:
        path = pixels_path(question.pixels)
        report["folder"] = identify_folder(own_cache())
        with contextlib.suppress(OSError):
            report["has_pixels"] = path.stat().st_size == question.pixels_mark.size
            # What was used longest ago goes first when the cache is full.
            os.utime(path.parent)
    return report


def identify_folder(folder: Path) -> str:
    """A lasting id of ``folder``, so that workers of one machine get the pixels once."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            part = folder / f"{uuid.uuid4().hex}.id"
            part.write_text(uuid.uuid4().hex)
            try:
                # Unlike a file that is opened and then written, a link appears whole.
                os.link(part, folder / "id")
            finally:
                part.unlink()
        return (folder / "id").read_text()
    except OSError as error:
        raise unwritable(folder, error) from error


def pixels_path(pixels: PixelSource) -> Path:
    """Among the worker's own scans, so that they count to the cache's limit."""
    return own_cache() / "scans" / f"{pixels.digest[:32]}-{pixels.shape[1]}" / "pixels.npy"


def receive_pixels(pixels: PixelSource, upload: str, offset: int, data: bytes) -> None:
    """Write one piece of the driver's file beside its place.

    Raises:
        StorageError: there is no room for it.
    """
    path = pixels_path(pixels)
    part = path.with_suffix(f".{upload}.part")
    try:
        if not offset:
            path.parent.mkdir(parents=True, exist_ok=True)
            for torn in path.parent.glob(f"{path.stem}.*.part"):
                torn.unlink()
        with open(part, "r+b" if offset else "wb") as file:
            file.seek(offset)
            file.write(data)
    except OSError as error:
        raise unwritable(part, error) from error


def accept_pixels(pixels: PixelSource, upload: str, sha256: str) -> None:
    """Check what was received, make it durable and give it its name.

    Raises:
        StorageError: it is not what was sent.
    """
    path = pixels_path(pixels)
    part = path.with_suffix(f".{upload}.part")
    try:
        with open(part, "rb+") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != sha256:
                raise StorageError(f"{part} was not received as it was sent. Check the network.")
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as error:
        raise unwritable(part, error) from error


def unwritable(path: Path, error: OSError) -> StorageError:
    return StorageError(
        f"{path} cannot be written on the worker's machine {platform.node()}: {error.strerror}. "
        f"Free some space there, or set {CACHE_VARIABLE} for the worker to another folder."
    )


class Desk:
    """The one process in which this worker runs trials, one after the other."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: Worker | None = None
        self._threads = 0
        self._timer: threading.Timer | None = None
        self._dismissed = False

    def call(
        self,
        function: str,
        arguments: tuple[Any, ...],
        *,
        threads: int,
        log: Path,
        timeout: float | None,
        is_wanted: Callable[[], bool],
        listener: Callable[..., None],
    ) -> Any:
        """Run a function by its name; ends when ``is_wanted`` says no.

        Raises:
            WorkerError: the process died, hung, or nobody wants the answer.
            Exception: whatever the function raised.
        """
        while not self._lock.acquire(timeout=LOOK_SECONDS):
            if not is_wanted():
                raise WorkerError("cancelled", "The trial was not wanted any more.")
        try:
            process = self._open(threads, log)
            process.listener = listener
            done = threading.Event()
            watch = threading.Thread(
                target=self._watch, args=(process, done, is_wanted), daemon=True
            )
            watch.start()
            try:
                return process.call(call_named, function, *arguments, timeout=timeout)
            finally:
                done.set()
                watch.join()
        finally:
            self._timer = threading.Timer(IDLE_SECONDS, self.close)
            self._timer.daemon = True
            self._timer.start()
            self._lock.release()
            if self._dismissed:
                self.close()

    def close(self) -> None:
        """End the process: now, or as soon as what it works at has ended."""
        self._dismissed = True
        if self._lock.acquire(blocking=False):
            try:
                self._dismissed = False
                if self._process is not None and self._process.alive:
                    self._process.kill()
                self._process = None
            finally:
                self._lock.release()

    def _open(self, threads: int, log: Path) -> Worker:
        if self._timer is not None:
            self._timer.cancel()
        process = self._process
        if process is not None and (threads != self._threads or process.grown):
            if process.alive:
                process.kill()
            process = None
        if process is None or not process.alive:
            process = Worker(log, None, threads)
        self._process, self._threads = process, threads
        return process

    def _watch(self, process: Worker, done: threading.Event, is_wanted: Callable[[], bool]) -> None:
        while not done.wait(LOOK_SECONDS):
            if not is_wanted():
                process.cancelled = True
                with contextlib.suppress(ProcessLookupError):
                    process.process.kill()
                return


DESK = Desk()


def run_parcel(
    parcel: Parcel, folder: Path, is_wanted: Callable[[], bool], listener: Callable[..., None]
) -> Reply:
    """Run one call here.

    Args:
        folder: for this worker's own small files.
        is_wanted: False ends the call.
        listener: takes what the function says with ``notify``.
    """
    spec, arguments = parcel.spec, parcel.arguments
    if not parcel.shares_cache:
        spec = replace(
            spec,
            pixels=replace(spec.pixels, path=pixels_path(spec.pixels)),
            cache_folder=None if spec.cache_folder is None else own_cache() / "activations",
        )
    task = next((part for part in arguments if isinstance(part, TrialTask)), None)
    with tempfile.TemporaryDirectory(prefix="automl-", dir=folder) as scratch:
        written = None
        try:
            if task is not None and not parcel.shares_run:
                written = Path(scratch) / task.checkpoint.name
                parent = None
                if parcel.parent is not None:
                    parent = Path(scratch) / "parent.npz"
                    parent.write_bytes(parcel.parent)
                arguments = (replace(task, parent=parent, checkpoint=written),)
            call = partial(
                DESK.call,
                threads=parcel.threads,
                log=folder / "automl-worker.log",
                is_wanted=is_wanted,
                listener=listener,
            )
            if task is not None:
                # A worker's first trial may find activations to be made, which is not its time.
                width = float(task.params["width"])
                call("automl.search.trial:prepare_trainer", (spec, width), timeout=None)
            value = call(parcel.function, (spec, *arguments), timeout=parcel.timeout)
            return Reply(value, checkpoint=None if written is None else written.read_bytes())
        except (AutomlError, TrialError, WorkerError, OSError) as error:
            return Reply(error=error)
        except Exception as error:
            return Reply(error=TrialError("error", f"{type(error).__name__}: {error}"[:500]))
