"""What a person sees while a command runs.

Results go to standard output. Progress and warnings go to standard error, so that
``automl predict … > predictions.csv`` stays clean. A terminal that went away (a closed
pipe, a lost connection) never ends a search.
"""

import contextlib
import logging
import os
import sys
import threading
import time
import warnings
from collections.abc import Iterable, Iterator
from typing import TextIO, TypeVar

Item = TypeVar("Item")

# Seconds between two updates of a line on a terminal, and between two lines in a log file.
TERMINAL_PERIOD = 0.1
LOG_PERIOD = 15.0

# Set before the first import; what the user has set already stays.
FRAMEWORK_ENVIRONMENT = {
    # Not quieter but faster: TensorFlow leaves oneDNN off on processors without AVX-512.
    "TF_ENABLE_ONEDNN_OPTS": "1",
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "GRPC_VERBOSITY": "ERROR",
    "GLOG_minloglevel": "3",
    "GIT_PYTHON_REFRESH": "quiet",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}
CHATTY_LOGGERS = ("absl", "alembic", "h5py", "mlflow", "sqlalchemy", "tensorflow", "urllib3")


def quiet_frameworks() -> None:
    """Keep TensorFlow, MLflow and their companions from talking; call before their import."""
    for name, value in FRAMEWORK_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    for name in CHATTY_LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"(keras|keras_tuner|tensorflow|mlflow)(\.|$)")


_HUSHED = threading.RLock()


@contextlib.contextmanager
def hush() -> Iterator[None]:
    """Nothing reaches standard error inside, not even from C++; errors still rise.

    For imports: TensorFlow's libraries speak before they read any setting. One thread at a
    time, or the second would take the first one's silence for the original.
    """
    with _HUSHED:
        yield from _hush()


def _hush() -> Iterator[None]:
    sys.stderr.flush()
    try:
        before = os.dup(2)
    except OSError:  # there is no standard error
        yield
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(before, 2)
        os.close(before)
        os.close(nowhere)


def format_seconds(seconds: float) -> str:
    """``8 s``, ``2 min 05 s``, ``1 h 03 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


class Console:
    """Says things; works on a terminal, in a log file and with nobody listening.

    Args:
        quiet: no progress and no text, only warnings.
        verbose: also what ``detail`` is given.
        json: standard output is kept for one JSON document, all text goes to standard error.
    """

    def __init__(self, quiet: bool = False, verbose: bool = False, json: bool = False) -> None:
        self.quiet = quiet
        self.verbose = verbose
        self.json = json
        self._lock = threading.RLock()
        self._stage: str | None = None
        self._stage_start = (0.0, 0)
        self._last_update = 0.0
        self._open_line = False
        self.seconds: dict[str, float] = {}
        self._lap = time.monotonic()

    def start_laps(self) -> None:
        """Forget the seconds of an earlier command, and begin the first stage."""
        self.seconds.clear()
        self._lap = time.monotonic()

    def lap(self, stage: str) -> None:
        """The time since the last lap was ``stage``'s: ``seconds`` says where a run's time went."""
        now = time.monotonic()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + now - self._lap
        self._lap = now

    def say(self, text: str = "") -> None:
        """One or more lines for the person who waits."""
        if not self.quiet:
            self._write_line(text, sys.stderr if self.json else sys.stdout)

    def detail(self, text: str) -> None:
        """A line that only ``-v`` shows."""
        if self.verbose:
            self._write_line(text, sys.stderr)

    def warn(self, text: str) -> None:
        """A line that even ``-q`` shows."""
        self._write_line(paint("warning: ", "33", sys.stderr) + text, sys.stderr)

    def summary(self, lines: Iterable[str]) -> None:
        """The result in a few lines, set apart from what came before."""
        self.say("\n" + "\n".join(lines))

    def progress(self, what: str, done: int, total: int, note: str = "") -> None:
        """``done`` of ``total`` steps of ``what`` are finished; call it as often as you like.

        A terminal shows one line that is rewritten, a log file a line every 15 seconds.
        The time left assumes that the rest goes at the pace since ``what`` began. With a
        ``note``, that is shown instead of the numbers, which then are some unit of work.
        """
        if self.quiet:
            return
        with self._lock:
            now = time.monotonic()
            live = is_terminal(sys.stderr)
            if what != self._stage or done < self._stage_start[1]:
                self._stage = what
                self._stage_start = (now, done)
                # A log file need not hear of what takes only a moment until it is done.
                self._last_update = 0.0 if live else now
            finished = done >= total
            if not finished and now - self._last_update < (TERMINAL_PERIOD if live else LOG_PERIOD):
                return
            self._last_update = now
            text = progress_text(
                what, done, total, now - self._stage_start[0], self._stage_start[1], note
            )
            if finished:
                self._stage = None
            if live:
                self._open_line = not finished
                write(sys.stderr, f"\r\x1b[2K{text}" + ("\n" if finished else ""))
            else:
                write(sys.stderr, text + "\n")

    def count(self, items: Iterable[Item], what: str, total: int) -> Iterator[Item]:
        """Hand ``items`` on, with ``progress`` for each."""
        for done, item in enumerate(items, 1):
            yield item
            self.progress(what, done, total)

    def _write_line(self, text: str, stream: TextIO) -> None:
        with self._lock:
            if self._open_line:
                write(sys.stderr, "\r\x1b[2K")
                self._open_line = False
            write(stream, text + "\n")


def progress_text(
    what: str, done: int, total: int, elapsed: float, first: int = 0, note: str = ""
) -> str:
    """``reading images: 1,204 of 3,762 (32 %), 12 s left``.

    Args:
        what: the stage.
        done: steps finished, ``first`` of them before the clock was started.
        total: steps in all.
        elapsed: seconds on that clock.
        first: see ``done``.
    """
    share = f" ({100 * done // total} %)" if total else ""
    text = f"{what}: {note or f'{done:,} of {total:,}'}{share}"
    if done >= total:
        return text + (f", {format_seconds(elapsed)}" if elapsed >= 1 else "")
    # A guess from the first second would jump about.
    if done > first and elapsed >= 1:
        text += f", {format_seconds(elapsed / (done - first) * (total - done))} left"
    return text


def is_terminal(stream: TextIO) -> bool:
    """Whether lines can be rewritten on ``stream``."""
    try:
        return stream.isatty() and os.environ.get("TERM") != "dumb"
    except ValueError:  # closed
        return False


def paint(text: str, code: str, stream: TextIO) -> str:
    """``text`` in an ANSI colour on a terminal, unless NO_COLOR is set (no-color.org)."""
    if not is_terminal(stream) or os.environ.get("NO_COLOR"):
        return text
    return f"\x1b[{code}m{text}\x1b[0m"


def write(stream: TextIO, text: str) -> None:
    """Write to a stream that may have gone away; if it has, nobody is told again."""
    try:
        stream.write(text)
        stream.flush()
    except (OSError, ValueError):
        with contextlib.suppress(OSError, ValueError):
            silence(stream)


def silence(stream: TextIO) -> None:
    """Let what is still buffered, and all that follows, vanish without an error at exit."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)
