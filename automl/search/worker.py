"""Worker processes that may die without taking the search along.

A worker is a fresh Python process that imports the framework once and runs one function
after another. When it crashes, hangs or grows, it is replaced, and the caller gets a
``WorkerError`` that says why. ``WorkerPool`` is a ``concurrent.futures.Executor``.
"""

import contextlib
import importlib
import os
import pickle
import platform
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from queue import PriorityQueue, SimpleQueue
from typing import Any

from automl.console import FRAMEWORK_ENVIRONMENT

# A worker is replaced when it has grown by so much over its size after the first task.
MAX_GROWTH_BYTES = 2 * 2**30
# By default no more than these, with more threads each: Hyperband's last rungs are narrow.
MAX_WORKERS = 4
# More threads than these hardly help with the small layers of a suffix.
MAX_LEAD_THREADS = 4
# Memory that has to be free for each, twice what one takes.
WORKER_BYTES = 3 * 2**30

_to_driver: Callable[[Any], None] | None = None


class WorkerError(Exception):
    """A worker did not answer; ``reason`` is crash, oom, timeout or cancelled."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(reason, message)
        self.reason = reason
        self.message = message


def notify(*message: Any) -> None:
    """From inside a task: send ``message`` to the pool's listener, if there is one."""
    if _to_driver is not None:
        _to_driver(message)


class Worker:
    """One process; ``call`` runs a function in it and waits for the answer."""

    def __init__(
        self,
        log: Path,
        listener: Callable[..., None] | None,
        threads: int,
        framework: bool = True,
    ) -> None:
        self.log = log
        self.listener = listener
        self.first_rss: int | None = None
        self.grown = self.cancelled = False
        mine, theirs = socket.socketpair()
        environment = {
            **FRAMEWORK_ENVIRONMENT,
            **os.environ,
            "OMP_NUM_THREADS": str(threads),
        }
        root = str(Path(__file__).parents[2])
        paths = [root, environment.get("PYTHONPATH", "")]
        environment["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
        given = [str(theirs.fileno()), str(threads if framework else 0)]
        with open(log, "ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "automl.search.worker", *given],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=environment,
            )
        theirs.close()
        self.connection = Connection(mine.detach())

    def call(self, function: Callable[..., Any], *args: Any, timeout: float | None = None) -> Any:
        """Run ``function(*args)`` in the worker.

        Raises:
            WorkerError: the process died, or ``timeout`` seconds went by.
            Exception: whatever the function raised.
        """
        oom_kills = count_oom_kills()
        try:
            self.connection.send((function, args))
            deadline = None if timeout is None else time.monotonic() + timeout
            while True:
                left = None if deadline is None else max(0.0, deadline - time.monotonic())
                if not self.connection.poll(left):
                    self.kill()
                    raise WorkerError("timeout", f"It took longer than {timeout:.0f} s.")
                kind, value, rss = self.connection.recv()
                if kind == "note":
                    if self.listener is not None:
                        self.listener(*value)
                    continue
                self.first_rss = self.first_rss or rss
                self.grown = rss > self.first_rss + MAX_GROWTH_BYTES
                if kind == "raised":
                    raise value
                return value
        except (EOFError, ConnectionError, BrokenPipeError) as error:
            code = self.process.wait()
            if self.cancelled:
                raise WorkerError("cancelled", "The search was stopped.") from None
            if count_oom_kills() > oom_kills:
                raise WorkerError("oom", "The system ran out of memory and ended it.") from error
            raise WorkerError(
                "crash", f"The worker process ended with {describe_exit(code)}."
            ) from error

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self.connection.close()

    @property
    def alive(self) -> bool:
        return self.process.poll() is None and not self.connection.closed


class WorkerPool(Executor):
    """Worker processes behind ``submit``; replaced when they die.

    One starts at once and the others with the first call: what they would import beside the
    first and the driver would hold up both. A call goes to the worker that has had the most,
    whose networks are built.

    Args:
        n: how many; None for what this machine can feed, see ``count_workers``.
        log: file that takes what the workers print.
        listener: called with the arguments of ``notify``, from the pool's threads.
        timeout: seconds that one call may take, or None.
        threads: processor threads of each worker; None shares out the machine's.
        framework: whether what they will run needs TensorFlow, which is then loaded first.
        lead: whether to have, beside them, a worker with all threads for what runs alone.
        at_once: whether to start one now, or all with the first call.
    """

    # All of them are here, with the driver's files.
    remote = False
    machine = platform.node()

    def __init__(
        self,
        n: int | None,
        log: Path,
        listener: Callable[..., None] | None = None,
        timeout: float | None = None,
        threads: int | None = None,
        framework: bool = True,
        lead: bool = False,
        at_once: bool = True,
    ) -> None:
        self.log, self.listener, self.timeout = log, listener, timeout
        self.framework = framework
        cores = os.cpu_count() or 1
        # Results depend on a worker's threads, so they must not depend on the free memory.
        self.threads = threads or max(1, cores // (n or min(cores, MAX_WORKERS)))
        self.size = n = n or count_workers()
        # Calls so far, negative, then the worker's number, so that no two entries are equal.
        self._idle: PriorityQueue[tuple[int, int, Worker]] = PriorityQueue()
        self._workers: set[Worker] = set()
        self._lock = threading.Lock()
        self._closed = False
        self._missing = list(range(n))
        self._start_missing(1 if at_once else 0)
        self._callers = ThreadPoolExecutor(n)
        # With threads that were asked for, every trial has those.
        alone = min(cores, MAX_LEAD_THREADS)
        wanted = lead and threads is None and self.threads < alone and not has_gpu()
        # It would hold up the start of the others, who have the first trial.
        self.lead = WorkerPool(1, log, listener, timeout, alone, at_once=False) if wanted else None

    def _start(self) -> Worker:
        with self._lock:
            if self._closed:
                raise WorkerError("cancelled", "The search was stopped.")
            worker = Worker(self.log, self.listener, self.threads, self.framework)
            self._workers.add(worker)
            return worker

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        assert not kwargs
        return self._callers.submit(self._call, fn, args)

    def everywhere(self, fn: Callable[..., Any], /, *args: Any) -> list[Any]:
        """Run ``fn(*args)`` once in every worker, side by side; their answers."""
        self._start_missing(self.size)
        taken = [self._idle.get() for _ in range(self.size)]
        return [
            future.result()
            for future in [self._callers.submit(self._use, *entry, fn, args) for entry in taken]
        ]

    def _start_missing(self, most: int) -> None:
        for _ in range(most):
            with self._lock:
                number = self._missing.pop(0) if self._missing else None
            if number is not None:
                self._idle.put((0, number, self._start()))

    def _call(self, function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        self._start_missing(self.size)
        return self._use(*self._idle.get(), function, args)

    def _use(
        self,
        calls: int,
        number: int,
        worker: Worker,
        function: Callable[..., Any],
        args: tuple[Any, ...],
    ) -> Any:
        try:
            if not worker.alive:
                self._workers.discard(worker)
                calls, worker = 0, self._start()
            return worker.call(function, *args, timeout=self.timeout)
        finally:
            if worker.grown and worker.alive:
                worker.kill()
            self._idle.put((calls - 1, number, worker))

    def pause(self) -> None:
        """End the idle workers' processes; the next call starts new ones."""
        with self._lock:
            for worker in self._workers:
                worker.kill()

    def pids(self) -> list[int]:
        return [worker.process.pid for worker in tuple(self._workers) if worker.alive]

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the workers at once; what they were doing is lost."""
        if self.lead is not None:
            self.lead.shutdown(wait, cancel_futures=True)
        with self._lock:
            self._closed = True
            for worker in self._workers:
                worker.cancelled = True
                with contextlib.suppress(ProcessLookupError):
                    worker.process.kill()
        self._callers.shutdown(wait=wait, cancel_futures=True)
        for worker in tuple(self._workers):
            worker.process.wait()


class InProcess(Executor):
    """Runs everything in this process: for debugging, and where processes are not wanted."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


def count_workers() -> int:
    """Workers that this machine can feed: processors, memory, and at most ``MAX_WORKERS``.

    Two workers of one thread train a third faster than one of two threads: the layers of a
    short suffix are too small to be shared out. A GPU is for one.
    """
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
        room = free * 1024 // WORKER_BYTES
    except (OSError, StopIteration):
        room = 1
    return 1 if has_gpu() else max(1, min(os.cpu_count() or 1, room, MAX_WORKERS))


def has_gpu() -> bool:
    """Whether there is a driver for one, asked without a framework."""
    return Path("/proc/driver/nvidia").exists() or Path("/dev/kfd").exists()


def call_named(name: str, *args: Any) -> Any:
    """Call the function "module:name": whoever sends the call need not import the module."""
    module, _, function = name.partition(":")
    return getattr(importlib.import_module(module), function)(*args)


def describe_exit(code: int) -> str:
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def count_oom_kills() -> int:
    """How often the kernel has killed a process for memory since it booted; 0 if unknown."""
    try:
        lines = Path("/proc/vmstat").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)


def resident_bytes() -> int:
    """Resident memory of this process; 0 where /proc is not there."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def serve(connection: Connection, threads: int) -> None:
    """The worker's life: run what arrives until the driver is gone.

    ``threads`` are TensorFlow's; 0 leaves it out.
    """
    global _to_driver
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    tasks: SimpleQueue[Any] = SimpleQueue()

    def receive() -> None:
        # Unpickling a task imports the framework; and the end of the line ends the process,
        # also in the middle of a task, when the driver was killed.
        while True:
            try:
                tasks.put(pickle.loads(connection.recv_bytes()))
            except (EOFError, OSError):
                os._exit(0)

    send_lock = threading.Lock()

    def send(kind: str, value: Any) -> None:
        with send_lock, contextlib.suppress(BrokenPipeError, ConnectionError):
            connection.send((kind, value, resident_bytes()))

    _to_driver = lambda message: send("note", message)  # noqa: E731
    if threads:
        prepare_framework(threads)
    threading.Thread(target=receive, daemon=True).start()
    while True:
        function, args = tasks.get()
        try:
            send("result", function(*args))
        except Exception as error:
            try:
                pickle.loads(pickle.dumps(error))
            except Exception:
                error = RuntimeError(f"{type(error).__name__}: {error}")
            send("raised", error)


def prepare_framework(threads: int) -> None:
    """Quiet TensorFlow, fixed threads (results depend on their number), GPU memory on demand."""
    # Keras would load it, for galleries that no worker draws: a tenth of its start.
    sys.modules.setdefault("matplotlib", None)  # type: ignore[arg-type]
    import tensorflow as tf

    tf.get_logger().setLevel("ERROR")
    tf.config.threading.set_intra_op_parallelism_threads(threads)
    # A layer's two gradients side by side are a fifth faster than one after the other.
    tf.config.threading.set_inter_op_parallelism_threads(min(2, threads))
    for gpu in tf.config.list_physical_devices("GPU"):
        tf.config.experimental.set_memory_growth(gpu, True)


if __name__ == "__main__":
    # Tasks name functions of the package's own module, not of this script's copy.
    from automl.search import worker

    worker.serve(Connection(int(sys.argv[1])), int(sys.argv[2]))
