"""Trials on a cluster: who runs what.

``ClusterPool`` is a ``concurrent.futures.Executor``, as ``WorkerPool`` is. The link carries
calls and answers, and knows which workers are alive. Which worker runs which trial is decided
here: one trial a worker at a time, and a trial whose worker, scheduler or network was lost goes
to another worker. A trial gives the same numbers wherever it runs, so the first answer counts
and a second one is not read.

One thread owns all state; everything else sends it events.
"""

import contextlib
import os
import statistics
import threading
import time
import uuid
from collections import defaultdict, deque
from collections.abc import Callable
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

from automl.errors import AutomlError, ClusterError
from automl.search.dask_link import Cancelled, DaskLink, answer_of, describe
from automl.search.host import Mark, Parcel, Question, Reply
from automl.search.spec import PixelSource, TrialTask
from automl.search.worker import WorkerError

# How long the search waits for a scheduler to come back, or for a worker.
PATIENCE_SECONDS = 600.0
POLL_SECONDS = 1.0
# A scheduler that takes longer to name its workers is given up.
SCHEDULER_SECONDS = 60.0
# How often a call may be lost with its worker before the call itself counts as failed.
MAX_LOSSES = 5
# A trial is given to a second, idle worker when it has run so many times the median trial, and
# so many seconds: the backup tasks of Dean & Ghemawat, "MapReduce", OSDI 2004, section 3.6.
BACKUP_FACTOR = 3.0
BACKUP_SECONDS = 30.0
# Workers whose speed is measured, of those that there are.
MAX_MEASURED = 4


@dataclass
class Seat:
    """A worker that was examined and may get trials."""

    address: str
    name: str
    shares_cache: bool
    shares_run: bool
    attempt: "Attempt | None" = None


@dataclass
class Job:
    """One call that somebody waits for."""

    function: str
    arguments: tuple[Any, ...]
    future: Future[Any]
    attempts: list["Attempt"] = field(default_factory=list)
    losses: int = 0


@dataclass
class Attempt:
    """A job on a seat."""

    job: Job
    seat: Seat
    started: float
    task: Any = None
    dead: bool = False


class ClusterPool(Executor):
    """Workers of a Dask cluster behind ``submit``; they may come and go.

    Args:
        address: ``tcp://HOST:8786``, or a scheduler file (``….json``).
        pixels: of the study; workers that do not see the file are sent it.
        cache: the driver's cache folder.
        run: a file in the run's folder, or None if no trial will be run.
        say: takes a line for the person who waits.
        listener: called with the arguments of ``notify``.
        timeout: seconds that one call may take, or None.
        threads: processor threads of each trial; None for the smallest worker's.

    Raises:
        ClusterError: no scheduler answers, it has no worker, or none that fits.
    """

    remote = True
    lead = None

    def __init__(
        self,
        address: str,
        pixels: PixelSource,
        cache: Path,
        run: Path | None,
        *,
        say: Callable[[str], None],
        listener: Callable[..., None] | None = None,
        timeout: float | None = None,
        threads: int | None = None,
    ) -> None:
        self.address, self.timeout, self.say, self.listener = address, timeout, say, listener
        self.question = Question(
            pixels,
            Mark.of(pixels.path),
            cache.absolute(),
            None if run is None else Mark.of(run.absolute()),
        )
        self.threads = threads
        self.machine = address
        self._events: SimpleQueue[tuple[Any, ...]] = SimpleQueue()
        self._pending: deque[Job] = deque()
        self._seats: dict[str, Seat] = {}
        self._asked: set[str] = set()
        self._unfit: dict[str, str] = {}
        self._seconds: dict[str, list[float]] = defaultdict(list)
        # Events of a connection that was lost are not for the next one.
        self._generation = 0
        self._poll_at = 0.0
        self._polling_since: float | None = None
        self._known = False
        self._alone_since: float | None = None
        self._lost_since: float | None = None
        self._closed = False
        self._link: DaskLink | None = None
        try:
            self._link = self._connect()
        except Exception as error:
            raise ClusterError(
                f"No Dask scheduler answers at {address}: {describe(error)}. Start one with "
                "'dask scheduler' and workers with 'dask worker ADDRESS', or check --scheduler."
            ) from error
        self._ready: Future[None] = Future()
        self._thread = threading.Thread(target=self._live, name="cluster", daemon=True)
        self._thread.start()
        try:
            self._ready.result()
        except BaseException:
            self.shutdown()
            raise

    @property
    def size(self) -> int:
        """Trials that can run at the same time, just now."""
        return max(1, len(self._seats))

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        assert not kwargs
        job = Job(f"{fn.__module__}:{fn.__qualname__}", absolute(args), Future())
        self._events.put(("submit", job))
        return job.future

    def everywhere(self, fn: Callable[..., Any], /, *args: Any) -> list[Any]:
        """Run ``fn(*args)`` in a few workers, side by side; their answers."""
        calls = [self.submit(fn, *args) for _ in range(min(self.size, MAX_MEASURED))]
        return [call.result() for call in calls]

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Cancel what runs; the workers stay, their trial processes end."""
        self._closed = True
        self._events.put(("wake",))
        # Never for ever: the cluster may be what is broken.
        self._thread.join(15)

    # The one thread.

    def _live(self) -> None:
        try:
            while not self._closed:
                self._look()
                with contextlib.suppress(Empty):
                    event = self._events.get(timeout=POLL_SECONDS / 2)
                    while True:
                        self._take(*event)
                        event = self._events.get_nowait()
                self._place()
        except BaseException as error:
            self._fail(error)
            raise
        finally:
            self._fail(WorkerError("cancelled", "The search was stopped."))
            self._leave()

    def _take(self, kind: str, *rest: Any) -> None:
        if kind == "submit":
            self._pending.append(rest[0])
        elif kind == "connected":
            self._take_connection(*rest)
        elif kind != "wake":
            generation, *rest_ = rest
            if generation == self._generation:
                getattr(self, f"_take_{kind}")(*rest_)

    def _look(self) -> None:
        """See to the connection and the list of workers; give up when nothing is left."""
        now = time.monotonic()
        if self._link is None:
            assert self._lost_since is not None
            if now > self._lost_since + PATIENCE_SECONDS:
                self._fail(
                    ClusterError(
                        f"The Dask scheduler at {self.address} did not come back within "
                        f"{PATIENCE_SECONDS / 60:.0f} minutes. What has ended is kept: start the "
                        "scheduler and go on with --resume."
                    )
                )
            return
        if not self._link.is_open:
            self._lose_connection()
            return
        if self._polling_since is not None:
            if now > self._polling_since + SCHEDULER_SECONDS:
                self._lose_connection()
                return
        elif now >= self._poll_at:
            self._polling_since = now
            self._call(self._link.workers, "workers")
        if not self._known:
            return
        if self._seats or self._asked:
            self._alone_since = None
        elif self._alone_since is None:
            self._alone_since = now
            if not self._unfit:
                self.say(
                    f"The Dask cluster at {self.address} has no workers; waiting up to "
                    f"{PATIENCE_SECONDS / 60:.0f} minutes for one."
                )
        elif now > self._alone_since + PATIENCE_SECONDS or (self._unfit and not self._ready.done()):
            self._fail(ClusterError(self._describe_alone()))

    def _take_workers(self, workers: Any) -> None:
        if isinstance(workers, Exception):
            self._lose_connection()
            return
        assert self._link is not None
        self._known, self._polling_since = True, None
        self._poll_at = time.monotonic() + POLL_SECONDS
        if self.threads is None and workers:
            # Their number is part of the arithmetic, so it is one for all.
            self.threads = max(1, min(workers.values()))
        for address in [address for address in self._seats if address not in workers]:
            self._lose_seat(self._seats.pop(address))
        self._asked &= set(workers)
        self._unfit = {a: reason for a, reason in self._unfit.items() if a in workers}
        for address in workers:
            if not any(address in known for known in (self._seats, self._asked, self._unfit)):
                self._asked.add(address)
                examine = partial(self._link.examine, address, self.question)
                self._call(examine, "examined", address)

    def _take_examined(self, address: str, found: Any) -> None:
        if address not in self._asked:
            return
        self._asked.discard(address)
        if isinstance(found, dict):
            name = f"{address} ({found['host']})"
            seat = Seat(address, name, found["shares_cache"], found["shares_run"])
            self._seats[address] = seat
            if not self._ready.done():
                self._ready.set_result(None)
        elif isinstance(found, AutomlError | ImportError):
            self._reject(address, describe(found))
        # Anything else is the network's: the next look at the workers asks again.

    def _take_ended(self, attempt: "Attempt", reply: Any) -> None:
        """A task's answer, or the exception in place of one."""
        if attempt.dead:
            return
        job, seat = attempt.job, attempt.seat
        self._drop(attempt, cancel=False)
        if not isinstance(reply, Reply):
            if self._link is None or not self._link.is_open:
                self._retry(job, describe(reply))
                if self._link is not None:
                    self._lose_connection()
                return
            job.losses += not isinstance(reply, Cancelled)
            self._retry(job, f"{describe(reply)} on {seat.name}")
            return
        error = reply.error
        if isinstance(error, WorkerError) and error.reason == "cancelled":
            self._retry(job, f"cancelled on {seat.name}")
            return
        if isinstance(error, OSError | AutomlError):
            # This machine's fault, not the trial's: its weights, its disk.
            self._seats.pop(seat.address, None)
            self._reject(seat.address, describe(error))
            if self._seats or self._asked:
                self._retry(job, describe(error))
                return
            error = ClusterError(self._describe_alone())
        self._seconds[job.function].append(time.monotonic() - attempt.started)
        for other in list(job.attempts):
            self._drop(other)
        if job.future.done():
            return
        if error is not None:
            job.future.set_exception(error)
            return
        try:
            if reply.checkpoint is not None:
                task = next(part for part in job.arguments if isinstance(part, TrialTask))
                write_file(task.checkpoint, reply.checkpoint)
        except OSError as problem:
            job.future.set_exception(problem)
        else:
            job.future.set_result(reply.value)

    def _take_connection(self, link: DaskLink | Exception) -> None:
        if isinstance(link, DaskLink):
            self.say(f"The Dask scheduler at {self.address} is back.")
            self._link = link
            self._lost_since = self._polling_since = None
            self._poll_at, self._known = 0.0, False
        else:
            time.sleep(POLL_SECONDS)
            self._reconnect()

    # Seats and jobs.

    def _place(self) -> None:
        """Give waiting jobs, and then trials that take long, to idle workers."""
        free = [seat for seat in self._seats.values() if seat.attempt is None]
        while self._link is not None and self._pending and free:
            job = self._pending.popleft()
            if not job.future.done():
                self._start(job, free.pop(0))
        if self._link is None or self._pending or not free:
            return
        now = time.monotonic()
        running = [seat.attempt for seat in self._seats.values() if seat.attempt is not None]
        for attempt in sorted(running, key=lambda attempt: attempt.started):
            usual = statistics.median(self._seconds[attempt.job.function] or [0])
            limit = max(BACKUP_SECONDS, BACKUP_FACTOR * usual)
            if usual and now - attempt.started > limit and len(attempt.job.attempts) == 1:
                self._start(attempt.job, free.pop(0))
                return

    def _start(self, job: Job, seat: Seat) -> None:
        assert self._link is not None
        spec, *arguments = job.arguments
        task = next((part for part in arguments if isinstance(part, TrialTask)), None)
        parent = None
        if task is not None and task.parent is not None and not seat.shares_run:
            with contextlib.suppress(FileNotFoundError):
                parent = task.parent.read_bytes()
        parcel = Parcel(
            job.function, spec, tuple(arguments), self.threads or 1, self.timeout,
            seat.shares_cache, seat.shares_run, parent,
        )  # fmt: skip
        attempt = Attempt(job, seat, time.monotonic())
        seat.attempt = attempt
        job.attempts.append(attempt)
        generation = self._generation
        attempt.task = self._link.submit(parcel, seat.address, task.trial if task else "call")

        def fetch(task: Any) -> None:
            if not attempt.dead:
                self._events.put(("ended", generation, attempt, answer_of(task)))

        attempt.task.add_done_callback(lambda task: spawn(lambda: fetch(task)))

    def _drop(self, attempt: Attempt, cancel: bool = True) -> None:
        """Free the seat; with ``cancel``, tell Dask that the task is not wanted any more."""
        attempt.dead = True
        attempt.job.attempts.remove(attempt)
        attempt.seat.attempt = None
        task, attempt.task = attempt.task, None

        def forget() -> None:
            with contextlib.suppress(Exception):
                task.cancel()

        if cancel:
            spawn(forget)

    def _retry(self, job: Job, reason: str) -> None:
        """Run the job elsewhere, unless another attempt still runs."""
        if job.attempts or job.future.done():
            return
        if job.losses > MAX_LOSSES:
            job.future.set_exception(
                WorkerError("crash", f"It was lost {job.losses} times; the last time: {reason}")
            )
        else:
            self._pending.appendleft(job)

    def _lose_seat(self, seat: Seat) -> None:
        attempt = seat.attempt
        if attempt is not None:
            self._drop(attempt)
            attempt.job.losses += 1
            self._retry(attempt.job, f"the worker {seat.name} is gone")

    def _reject(self, address: str, reason: str) -> None:
        self._unfit[address] = reason
        self.say(f"The worker {address} gets no trials. {reason}")

    def _lose_connection(self) -> None:
        """Everything on the cluster is lost; what was running waits again."""
        assert self._link is not None
        link, self._link = self._link, None
        self._generation += 1
        for attempt in [seat.attempt for seat in self._seats.values() if seat.attempt is not None]:
            self._drop(attempt, cancel=False)
            self._retry(attempt.job, "the scheduler is gone")
        self._seats, self._asked, self._unfit = {}, set(), {}
        self._lost_since = time.monotonic()
        self.say(
            f"The Dask scheduler at {self.address} is gone; waiting up to "
            f"{PATIENCE_SECONDS / 60:.0f} minutes for it. What has ended is kept."
        )
        spawn(link.close)
        self._reconnect()

    def _reconnect(self) -> None:
        def connect() -> None:
            link: DaskLink | Exception
            try:
                link = self._connect()
            except Exception as error:
                link = error
            self._events.put(("connected", link))

        if not self._closed:
            spawn(connect)

    def _connect(self) -> DaskLink:
        return DaskLink(self.address, self.listener)

    def _fail(self, error: BaseException) -> None:
        """Whoever waits is told."""
        while True:
            try:
                event = self._events.get_nowait()
            except Empty:
                break
            if event[0] == "submit":
                self._pending.append(event[1])
        running = [seat.attempt for seat in self._seats.values() if seat.attempt is not None]
        jobs = [*self._pending, *(attempt.job for attempt in running)]
        for attempt in running:
            self._drop(attempt)
        self._pending.clear()
        for job in jobs:
            if not job.future.done():
                job.future.set_exception(error)
        if not self._ready.done():
            self._ready.set_exception(error)

    def _leave(self) -> None:
        link, addresses = self._link, list(self._seats)
        if link is None:
            return

        def leave() -> None:
            link.dismiss(addresses)
            link.close()

        spawn(leave).join(10)

    def _describe_alone(self) -> str:
        if not self._unfit:
            return (
                f"The Dask cluster at {self.address} had no worker for "
                f"{PATIENCE_SECONDS / 60:.0f} minutes. Start some with 'dask worker ADDRESS', and "
                "go on with --resume."
            )
        reasons = [f"{address}: {reason}" for address, reason in self._unfit.items()]
        more = f" (and {len(reasons) - 3} more)" if len(reasons) > 3 else ""
        return f"No worker of {self.address} can run trials. " + " ".join(reasons[:3]) + more

    def _call(self, function: Callable[[], Any], kind: str, *rest: Any) -> None:
        """Send what ``function`` returns or raises as an event; it may take its time."""
        generation = self._generation

        def call() -> None:
            result: Any
            try:
                result = function()
            except Exception as error:
                result = error
            self._events.put((kind, generation, *rest, result))

        spawn(call)


def spawn(function: Callable[[], None]) -> threading.Thread:
    """Run it in a thread of its own, which keeps nobody from ending."""
    thread = threading.Thread(target=function, daemon=True)
    thread.start()
    return thread


def absolute(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """A study's and a task's paths, for processes that start elsewhere."""
    spec, *rest = arguments
    spec = replace(
        spec,
        pixels=replace(spec.pixels, path=spec.pixels.path.absolute()),
        cache_folder=spec.cache_folder and spec.cache_folder.absolute(),
    )
    rest = [
        replace(
            part,
            parent=part.parent and part.parent.absolute(),
            checkpoint=part.checkpoint.absolute(),
        )
        if isinstance(part, TrialTask)
        else part
        for part in rest
    ]
    return spec, *rest


def write_file(path: Path, data: bytes) -> None:
    """Whole or not at all, and durable."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(f".{uuid.uuid4().hex}.part")
    try:
        with open(part, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
