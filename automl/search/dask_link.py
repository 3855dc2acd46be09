"""One connection to a Dask scheduler: the only place where Dask is known.

Dask carries calls and answers, and knows which workers are alive; what runs where is decided in
``cluster.py``.
"""

import contextlib
import hashlib
import json
import logging
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask
from distributed import Client, get_worker

from automl.errors import ClusterError
from automl.search import host
from automl.search.host import Parcel, Question, Reply

CONNECT_SECONDS = 20.0
# An answer that takes longer to fetch is given up.
FETCH_SECONDS = 60.0
# Workers that are examined at the same time.
MAX_EXAMINED = 16
# The pixels travel in pieces of this size.
PIECE_BYTES = 8 * 2**20


class Cancelled(Exception):
    """In place of an answer: Dask does not know the task any more."""


class DaskLink:
    """Connected when it is made; never again once it is lost.

    Args:
        address: ``tcp://HOST:8786``, or a scheduler file (``….json``).
        listener: called with the arguments of ``notify``, from threads of Dask's.

    Raises:
        OSError: or whatever else the connection meets.
    """

    def __init__(self, address: str, listener: Callable[..., None] | None) -> None:
        hush_dask()
        dask.config.set({"distributed.admin.large-graph-warning-threshold": "1GiB"})
        self._listener = listener
        self._topic = f"automl-{uuid.uuid4().hex}"
        self._examining = threading.Semaphore(MAX_EXAMINED)
        self._sending: dict[str, threading.Lock] = {}
        if address.endswith(".json"):
            address = json.loads(Path(address).expanduser().read_text(encoding="utf-8"))["address"]
        self._client = Client(address, timeout=CONNECT_SECONDS, set_as_default=False, name="automl")
        if listener is not None:
            self._client.subscribe_topic(self._topic, lambda event: listener(*event[1]))

    @property
    def is_open(self) -> bool:
        return self._client.status == "running"

    def workers(self) -> dict[str, int]:
        """Processor threads by the address of each worker that is alive."""
        return self._client.nthreads()

    def submit(self, parcel: Parcel, address: str, name: str) -> Any:
        """Run a call on this worker and no other; Dask's future, for ``answer_of``."""
        return self._client.submit(
            run_on_worker,
            parcel,
            self._topic,
            key=f"automl-{name}-{uuid.uuid4().hex}",
            workers=[address],
            allow_other_workers=False,
            pure=False,
        )

    def examine(self, address: str, question: Question) -> dict[str, Any]:
        """What a worker has (``host.examine``), after it was sent the pixels if it lacked them.

        Raises:
            ClusterError: it cannot run trials of this search.
        """
        with self._examining:
            try:
                report = self._ask(address, host.examine, question)
            except (AttributeError, TypeError, KeyError) as error:
                raise ClusterError(
                    f"It has another automl ({describe(error)}). Install the same as on this "
                    "machine."
                ) from error
            host.check_versions(report["versions"])
            if not report["has_pixels"]:
                # Workers of one machine have one folder: the first one fetches for all.
                with self._sending.setdefault(report["folder"], threading.Lock()):
                    if not self._ask(address, host.examine, question)["has_pixels"]:
                        self._send_pixels(address, question)
            return report

    def dismiss(self, addresses: list[str]) -> None:
        """Have these workers give the memory of their trial processes back."""
        with contextlib.suppress(Exception):
            self._client.run(dismiss, workers=addresses, on_error="ignore")

    def close(self) -> None:
        with contextlib.suppress(Exception):
            self._client.close(timeout=5)

    def _ask(self, address: str, function: Callable[..., Any], *args: Any) -> Any:
        return self._client.run(function, *args, workers=[address])[address]

    def _send_pixels(self, address: str, question: Question) -> None:
        pixels, upload = question.pixels, uuid.uuid4().hex
        digest = hashlib.sha256()
        done, total = 0, question.pixels_mark.size
        with open(pixels.path, "rb") as file:
            while piece := file.read(PIECE_BYTES):
                digest.update(piece)
                self._ask(address, host.receive_pixels, pixels, upload, done, piece)
                done += len(piece)
                if self._listener is not None:
                    self._listener("progress", "sending pixels", done, total)
        self._ask(address, host.accept_pixels, pixels, upload, digest.hexdigest())


def answer_of(future: Any) -> Reply | Exception:
    """The answer of a task that has ended, or the exception in place of one.

    It may be megabytes, or its worker just lost: call it where there is time.
    """
    if future.status == "cancelled":
        return Cancelled("Dask forgot the task")
    try:
        return future.result(timeout=FETCH_SECONDS)
    except Exception as error:
        return error


def run_on_worker(parcel: Parcel, topic: str) -> Reply:
    """The task that Dask runs: hands the call to the worker's own trial process."""
    worker = get_worker()
    key = worker.get_current_task()
    told = 0.0

    def is_wanted() -> bool:
        # A task that was cancelled, or whose driver is gone, has another state or none.
        task = worker.state.tasks.get(key)
        running = worker.status.name in ("running", "paused", "closing_gracefully")
        return running and task is not None and task.state in ("executing", "long-running")

    def listen(kind: str, what: str, done: int, total: int) -> None:
        nonlocal told
        if done < total and time.monotonic() - told < 1:
            return
        told = time.monotonic()
        worker.log_event(topic, [kind, what, int(done), int(total)])

    return host.run_parcel(parcel, Path(worker.local_directory), is_wanted, listen)


def dismiss() -> None:
    """On a worker: give the trial process's memory back."""
    host.DESK.close()


def hush_dask() -> None:
    """Dask logs every lost connection with a traceback; what matters is said by the pool."""
    for name in list(logging.root.manager.loggerDict):
        if name.partition(".")[0] in ("distributed", "tornado"):
            logging.getLogger(name).setLevel(logging.CRITICAL)


def describe(error: BaseException) -> str:
    """An error in one line; a missing package with what to do."""
    if isinstance(error, ModuleNotFoundError):
        return (
            f"{error.name or error} is not installed there: pip install 'automl[distributed]' in "
            "the worker's environment."
        )
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:500]
