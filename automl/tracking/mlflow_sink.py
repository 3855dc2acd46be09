"""Send a run's journal to MLflow beside the search that writes it.

``MlflowSink`` starts this module as a process of its own, which follows the journal. A
process, not a thread, because importing MLflow costs 1.7 s and 100 MB, and because a call that
hangs can then never hold the search. Beside the trials it copies at the lowest priority, while
that takes less than a hundredth of their time; beside the evaluation, when a processor is often
free, it brings the copy up to date, so that little is left to the last one, for which somebody
waits. Nothing is copied while the server does not answer. The search itself never loads MLflow.
"""

import argparse
import contextlib
import importlib
import json
import math
import os
import subprocess
import sys
import threading
import time
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from automl.errors import AutomlError
from automl.tracking.journal import FILE_NAME, read_journal
from automl.tracking.lookout import Lookout
from automl.tracking.mlflow_sync import (
    SyncResult,
    choose_uri,
    copy_runs,
    default_uri,
    one_copy_at_a_time,
    read_search,
    sync_run,
    ui_hint,
    unreachable,
    write_link,
)
from automl.tracking.replay import redact, session_alive

# Seconds that one call may take beside the search.
TIMEOUT = 5
# Seconds between two copies, and after a failure until the next attempt.
INTERVAL, BACK_OFF, LONGEST_BACK_OFF = 5.0, 5.0, 300.0
# The processor time of the process, as a share of the time of the search beside it.
SHARE = 0.01
# What copies give way to: beside the trials to everything, beside the evaluation to most.
NICE, NICE_AFTER = 19, 10
# Seconds of processor time: of the first copy, nearly all of it MLflow's import, and of the next.
LOADING, NEXT = 2.5, 0.3
# Seconds for which the last copy tries again: with somebody waiting, and with nobody left.
PATIENCE, PATIENCE_OF_AN_ORPHAN = 5.0, 60.0


class MlflowSink:
    """A process that copies a run to MLflow while the search writes its journal.

    Nothing here raises into the search, and no call waits for a server except ``stop``.
    A context manager: left without ``stop``, or if the search dies, the process notices,
    marks what was running KILLED or FAILED and ends, and nobody waits for it.
    """

    def __init__(
        self,
        folder: Path,
        tracking_uri: str | None = None,
        experiment: str | None = None,
        register: str | None = None,
        promote: bool = False,
        difference: str | None = None,
    ) -> None:
        """``difference`` is "module:function", see ``sync_run``; the rest as there.

        Raises:
            UsageError: the URI cannot be one of a store.
        """
        self.folder = folder
        self.uri = choose_uri(tracking_uri, folder.parent)
        # What may be written down, so that `sync` finds the store; None for the default one.
        self.address = None if self.uri == default_uri(folder.parent) else redact(self.uri)
        options = {"--experiment": experiment, "--register": register, "--difference": difference}
        self._options = [part for k, v in options.items() if v for part in (k, v)]
        self._options += ["--promote"] if promote else []
        self._options += ["--share", str(SHARE)]
        self._process: subprocess.Popen[str] | None = None
        self._error = "The MLflow process was never started."

    def start(self) -> None:
        """Start to follow the journal; it need not exist yet."""
        package = Path(__file__).parents[2]
        path = os.pathsep.join(filter(None, [str(package), os.environ.get("PYTHONPATH")]))
        command = [sys.executable, "-m", "automl.tracking.mlflow_sink", str(self.folder)]
        try:
            self._process = subprocess.Popen(
                [*command, *self._options],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": path},
                text=True,
                # Ctrl-C is for the search, which then stops this in order.
                start_new_session=True,
            )
            # The URI may hold a password, and `ps` shows arguments and environments.
            self._process.stdin.write(f"{self.uri}\n")
            self._process.stdin.flush()
        except OSError as error:
            self._error = f"The MLflow process did not start: {error}."

    def stop(self, timeout: float = 60.0) -> SyncResult:
        """Let the last copy be made, for at most ``timeout`` seconds; call after session_ended."""
        result = None
        if self._process is not None:
            self._error = "The MLflow process ended early."
            try:
                output, _ = self._process.communicate("stop\n", timeout=timeout)
                result = _parse_result(output)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.communicate()
                self._error = f"The last copy took longer than {timeout:g} s."
            except OSError as error:
                self._error = f"{error}."
            self._process = None
        if result is not None:
            return result
        return SyncResult(redact(self.uri), "", error=self._error)

    def __enter__(self) -> "MlflowSink":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        for pipe in (process.stdin, process.stdout):
            with contextlib.suppress(OSError):
                pipe.close()
        # It ends by itself: waiting for it would hold up whoever interrupted the search.
        threading.Thread(target=process.wait, daemon=True).start()


def _parse_result(output: str) -> SyncResult | None:
    try:
        values = json.loads(output.strip().split("\n")[-1])
    except ValueError:
        return None
    return SyncResult(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})


def follow(
    folder: Path,
    uri: str,
    experiment: str | None,
    register: str | None,
    promote: bool,
    difference: str | None,
    share: float,
    commands: IO[str],
) -> SyncResult:
    """Copy whenever the journal has grown, until ``commands`` ends; then once more, in full."""
    orders: list[str] = []
    stopped = threading.Event()

    def listen() -> None:
        orders.extend(commands.read().split())
        stopped.set()

    threading.Thread(target=listen, daemon=True).start()
    lookout, watch = Lookout(uri), _Watch(folder / FILE_NAME)
    lookout.start()
    common = (folder, uri, experiment, watch, lookout, stopped)
    # Two threads, because none may take back what it gave way.
    for nice, limit in ((NICE, share), (NICE_AFTER, math.inf)):
        copier = threading.Thread(target=_copy_while_it_runs, args=(*common, nice, limit))
        copier.start()
        copier.join()
        # Soon the last word is asked for.
        lookout.hurry()
    compute = _load_function(difference) if difference else None
    if orders:
        problem = lookout.last_word(seconds=0.5)
        if problem:
            raise AutomlError(unreachable(uri, folder, problem))
        patience = PATIENCE
    else:
        _wait_for_death(folder)
        patience = PATIENCE_OF_AN_ORPHAN
    return sync_run(
        folder, uri, experiment, register, promote, difference=compute, patience=patience
    )


def _copy_while_it_runs(
    folder: Path,
    uri: str,
    experiment: str | None,
    watch: "_Watch",
    lookout: Lookout,
    stopped: threading.Event,
    nice: int,
    share: float,
) -> None:
    """Copy whenever the journal has grown, the server answers, and the time spent allows it.

    With a limit to its ``share`` it ends with the last trial; ``inf`` is for what comes after.
    """
    # On Linux of this thread alone: the last copy, for which somebody waits, is not held back.
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), nice)
    began = time.monotonic()
    mirror, expected = None, None
    copied, cost, back_off, due = 0, LOADING, BACK_OFF, began
    while not stopped.wait(0.2 if due == began else 0.5):
        size = watch.look()
        if watch.over and share < math.inf:
            return
        if size == copied or lookout.problem != "" or time.monotonic() < due:
            continue
        if expected is None:
            expected = _expected_seconds(read_journal(watch.path))
        spent = time.process_time()
        if spent + cost > share * max(expected, time.monotonic() - began):
            continue
        try:
            with one_copy_at_a_time(folder) as same:
                mirror = _copy_live(folder, uri, experiment, mirror if same else None)
            copied, back_off, due = size, BACK_OFF, time.monotonic() + INTERVAL
            if watch.over:
                # The larger half of what the last copy would load.
                from automl.tracking import mlflow_registry  # noqa: F401
        except Exception:
            # Whatever it was, the last copy meets it again and reports it.
            mirror = None
            due, back_off = time.monotonic() + back_off, min(2 * back_off, LONGEST_BACK_OFF)
        cost = NEXT if cost == LOADING else time.process_time() - spent


class _Watch:
    """Follows the journal by what is added to it: the whole can be long."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size = 0
        # Whether the present session has ended its last trial.
        self.over = False

    def look(self) -> int:
        """The journal's size in bytes, 0 as long as there is none."""
        with contextlib.suppress(FileNotFoundError), open(self.path, "rb") as file:
            file.seek(self.size)
            added = file.read()
            self.size += len(added)
            ended, begun = (
                added.rfind(f'"event":"{kind}"'.encode())
                for kind in ("search_ended", "session_started")
            )
            if ended != begun:
                self.over = ended > begun
        return self.size


def _expected_seconds(events: list[Any]) -> float:
    """What is left of the search by its plan, halved because plans are guesses; 0 if unknown."""
    start = next((event for event in events if event["event"] == "search_started"), {})
    done = max((event.get("elapsed") or 0.0 for event in events), default=0.0)
    return max(0.0, float(start.get("plan", {}).get("seconds") or 0.0) - done) / 2


def _copy_live(folder: Path, uri: str, experiment: str | None, mirror: Any) -> Any:
    """The runs alone; files and the model come with the last copy."""
    from automl.tracking import mlflow_store

    with mlflow_store.mlflow_environment(uri, TIMEOUT) as clean:
        events, start = read_search(folder)
        if mirror is not None:
            copy_runs(mirror, events)
            return mirror
        name = experiment or start["config"].get("experiment") or "automl"
        mirror = mlflow_store.open_mirror(clean, name, start["run_id"])
        copy_runs(mirror, events)
        mlflow_store.log_dataset(mirror, start)
        run_id = mirror.parent.info.run_id
        hint = ui_hint(clean, mirror.experiment_id, run_id)
        write_link(folder, SyncResult(redact(clean), name, run_id, ui_hint=hint))
        return mirror


def _wait_for_death(folder: Path) -> None:
    """A search that was killed closes its pipe a moment before it is gone."""
    for _ in range(50):
        if not session_alive(read_journal(folder / FILE_NAME)):
            return
        time.sleep(0.1)


def _load_function(name: str) -> Any:
    module, _, function = name.partition(":")
    return getattr(importlib.import_module(module), function)


def main() -> int:
    """The sink's own process: the URI, then orders, on stdin; the result on stdout."""
    parser = argparse.ArgumentParser(prog="python -m automl.tracking.mlflow_sink")
    parser.add_argument("folder", type=Path)
    for option in ("--experiment", "--register", "--difference"):
        parser.add_argument(option)
    parser.add_argument("--promote", action="store_true")
    parser.add_argument("--share", type=float, required=True)
    options = vars(parser.parse_args())
    uri = sys.stdin.readline().strip()
    try:
        result = follow(uri=uri, commands=sys.stdin, **options)
    except Exception as error:
        # The one place that must answer whatever happens: the search waits for this line.
        text = redact(str(error)) or type(error).__name__
        result = SyncResult(redact(uri), options["experiment"] or "", error=text)
    print(json.dumps(asdict(result)), flush=True)
    return 0 if not result.error else 1


if __name__ == "__main__":
    sys.exit(main())
