"""Send a run's journal to MLflow: beside a search that runs, or afterwards.

``MlflowSink`` starts this module as a process of its own, which follows the journal. A
process, not a thread, because importing MLflow costs 1.7 s and 100 MB, because a call that
hangs can then never hold the search, and because the lowest priority is had by a process
only. ``sync_run`` does the same work once, in the caller's process. Neither the search nor
``import automl.tracking.mlflow_sink`` loads MLflow.
"""

import argparse
import fcntl
import importlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import IO, Any

from automl.errors import AutomlError, UsageError
from automl.tracking.journal import FILE_NAME, read_journal
from automl.tracking.replay import PARENT, redact, replay, session_alive

LINK_FILE = "mlflow.json"
# A server that is there answers within a second; one that is not must not hold the last copy.
LIVE_TIMEOUT, FINAL_TIMEOUT = 5, 60
# Seconds between two copies, and after a failure until the next attempt.
INTERVAL, BACK_OFF, LONGEST_BACK_OFF = 5.0, 5.0, 300.0
# After a copy wait this many times the processor time it took. The process has the lowest
# priority, so that a fully used machine gives it less than the resulting twentieth.
DUTY = 20
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class SyncResult:
    """What a copy did. ``created`` and ``updated`` count runs; 0 and 0 is all was there.

    ``tracking_uri`` has no credentials; ``ui_hint`` is how to look at it; ``notes`` is what
    the registry decided; ``error`` is empty unless the copy is not complete.
    """

    tracking_uri: str
    experiment: str
    run_id: str = ""
    created: int = 0
    updated: int = 0
    artifacts: tuple[str, ...] = ()
    model_id: str | None = None
    model_logged: bool = False
    version: str | None = None
    notes: tuple[str, ...] = ()
    ui_hint: str = ""
    error: str = ""


def default_uri(out: Path) -> str:
    """The store of all runs below ``out``: an absolute SQLite URI, ``out/mlflow.db``."""
    return f"sqlite:///{out.resolve() / 'mlflow.db'}"


def sync_run(
    folder: Path,
    tracking_uri: str | None = None,
    experiment: str | None = None,
    register: str | None = None,
    promote: bool = False,
    progress: Progress | None = None,
    difference: Any = None,
    patience: float = 30.0,
) -> SyncResult:
    """Make MLflow hold what the journal of the run in ``folder`` tells; whatever is there stays.

    Args:
        folder: the run folder.
        tracking_uri: server or database; None takes the search's own, or the default.
        experiment: its name; None takes the search's own. So for ``register``, the name of the
            registered model, and ``promote``.
        difference: a function (champion's predictions.csv, challenger's, split.csv) →
            {value, low, high}, positive where the challenger is better; default ROC AUC.
        patience: seconds for which a server that fails is tried again.

    Raises:
        UsageError: there is no run, or the store cannot be used as asked.
        AutomlError: the store could not be reached; the copy goes on where it broke off.
    """
    from automl.tracking import mlflow_store

    start = _start_event(folder)
    config = start["config"]
    uri = tracking_uri or config.get("tracking_uri") or default_uri(folder.parent)
    experiment = experiment or config.get("experiment") or "automl"
    register = register or config.get("register")
    promote = promote or bool(config.get("promote"))
    deadline = time.monotonic() + patience
    pause = 0.5
    with _one_copy_at_a_time(folder), mlflow_store.mlflow_environment(uri, FINAL_TIMEOUT) as clean:
        while True:
            try:
                return _copy(folder, clean, experiment, register, promote, progress, difference)
            except AutomlError:
                raise
            except Exception as error:
                # A programming mistake must show itself; what a store or a network does may pass.
                if not mlflow_store.may_pass(error):
                    raise AutomlError(
                        f"MLflow at {redact(uri)} refused the copy of {folder}: {brief(error)}"
                    ) from None
                if time.monotonic() + pause > deadline:
                    raise AutomlError(
                        f"MLflow at {redact(uri)} cannot be reached: {brief(error)} The run folder "
                        "holds everything: start the server, then send it with "
                        f"`automl sync {folder}`."
                    ) from None
            time.sleep(pause)
            pause = min(2 * pause, 5.0)


def _copy(
    folder: Path,
    uri: str,
    experiment: str,
    register: str | None,
    promote: bool,
    progress: Progress | None,
    difference: Any,
) -> SyncResult:
    """One pass over everything; an exception leaves the rest to the next."""
    from automl.tracking import mlflow_registry, mlflow_store

    client = mlflow_store.open_store(uri)
    experiment_id = mlflow_store.open_experiment(client, uri, experiment)
    events = read_journal(folder / FILE_NAME)
    start = _start_event(folder)
    mirror = mlflow_store.Mirror(client, experiment_id, start["run_id"])
    outcomes = copy_runs(mirror, events, progress)
    mlflow_store.log_dataset(mirror, start)
    artifacts = mlflow_registry.log_artifacts(mirror, folder)
    run_id = mirror.parent.info.run_id
    notes: list[str] = []
    version = None
    # The pipeline writes the model last but one; before that there is nothing to log.
    model = mlflow_registry.log_model(mirror, folder) if search_is_over(events) else None
    if model is not None and register:
        version, _ = mlflow_registry.register_model(mirror, folder, model[0], register)
        if promote:
            notes.append(
                mlflow_registry.promote_model(mirror, folder, register, version, difference)
            )
    result = SyncResult(
        tracking_uri=redact(uri),
        experiment=experiment,
        run_id=run_id,
        created=outcomes.count("created"),
        updated=outcomes.count("updated"),
        artifacts=tuple(artifacts),
        model_id=model[0] if model else None,
        model_logged=bool(model and model[1]),
        version=version,
        notes=tuple(notes),
        ui_hint=ui_hint(uri, experiment_id, run_id),
    )
    write_link(folder, result)
    return result


def copy_runs(mirror: Any, events: list[Any], progress: Progress | None = None) -> list[str | None]:
    """Write the parent and its children; the parent's end is written after its children's.

    Raises:
        UsageError: the store holds a newer state of this search than the journal does.
    """
    runs = replay(events)
    known = mirror.known.get(PARENT)
    if known is not None and int(known.run.data.tags.get("automl.events", 0)) > len(events):
        raise UsageError(
            f"MLflow holds a newer state of this search ({known.run.data.tags['automl.events']} "
            f"events; this journal has {len(events)}). Send the newer copy of the run folder."
        )
    outcomes = []
    parent, children = runs[0], runs[1:]
    if known is None:
        mirror.create(parent)
    for number, run in enumerate([*children, parent]):
        outcomes.append(mirror.write(run))
        if progress is not None:
            progress("sending to MLflow", number + 1, len(runs))
    return ["created", *outcomes[:-1]] if known is None else outcomes


def search_is_over(events: list[Any]) -> bool:
    """Whether the winner is known and nothing trains any more."""
    return any(event["event"] == "search_ended" for event in events) and (
        not session_alive(events) or any(event["event"] == "exported" for event in events)
    )


def _start_event(folder: Path) -> Any:
    for event in read_journal(folder / FILE_NAME):
        if event["event"] == "search_started":
            return event
    raise UsageError(
        f"There is no search in {folder}: it has no {FILE_NAME} with a beginning. Name a run "
        "folder, such as reports/NAME."
    )


def ui_hint(uri: str, experiment_id: str, run_id: str) -> str:
    """How to look at the run: a link, or the command that serves a local database."""
    page = f"#/experiments/{experiment_id}/runs/{run_id}"
    if uri.startswith(("http://", "https://")):
        return f"{uri.rstrip('/')}/{page}"
    return f'mlflow ui --backend-store-uri "{redact(uri)}"  then open http://127.0.0.1:5000/{page}'


def brief(error: BaseException) -> str:
    """The first line of an error, without credentials and the layers below the request."""
    text = redact(str(error).strip().split("\n")[0]) or type(error).__name__
    text = text.split(" with exception")[0]
    return text[:600] + ("" if text.endswith(".") else ".")


def write_link(folder: Path, result: SyncResult) -> None:
    """Note in the run folder where its copy is, so that the report can name it."""
    path = folder / LINK_FILE
    temporary = path.with_name(f"{LINK_FILE}.{os.getpid()}")
    temporary.write_text(json.dumps(asdict(result), indent=2) + "\n", encoding="utf-8")
    os.replace(temporary, path)


def read_link(folder: Path) -> SyncResult | None:
    """Where the last copy of the run went; None before the first one."""
    try:
        values = json.loads((folder / LINK_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    known = {item.name for item in fields(SyncResult)}
    values = {name: value for name, value in values.items() if name in known}
    return SyncResult(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})


@contextmanager
def _one_copy_at_a_time(folder: Path) -> Iterator[bool]:
    """Two copies of one run at once would both find the same run missing.

    Yields whether this process was also the last to copy: then what it knows still holds.
    """
    with open(folder / ".mlflow.lock", "a+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.seek(0)
        ours = str(os.getpid())
        same = lock.read() == ours
        lock.truncate(0)
        lock.write(ours)
        lock.flush()
        yield same


class MlflowSink:
    """A process that copies a run to MLflow while the search writes its journal.

    Nothing here raises into the search, and no call waits for a server except ``stop``.
    If the search dies, the process notices, marks the run KILLED and ends.
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
        """``difference`` is "module:function", see ``sync_run``; the rest as there."""
        self.folder = folder
        self.uri = tracking_uri or default_uri(folder.parent)
        options = {"--experiment": experiment, "--register": register, "--difference": difference}
        self._options = [part for k, v in options.items() if v for part in (k, v)]
        self._options += ["--promote"] if promote else []
        self._process: subprocess.Popen[str] | None = None
        self._error = ""

    def start(self) -> None:
        """Start to follow the journal; it need not exist yet."""
        package = Path(__file__).parents[2]
        path = os.pathsep.join(filter(None, [str(package), os.environ.get("PYTHONPATH")]))
        # The URI may hold a password: others can read a command line, but not an environment.
        environment = {**os.environ, "MLFLOW_TRACKING_URI": self.uri, "PYTHONPATH": path}
        command = [sys.executable, "-m", "automl.tracking.mlflow_sink", str(self.folder)]
        try:
            self._process = subprocess.Popen(
                [*command, *self._options],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=environment,
                text=True,
                # Ctrl-C is for the search, which then stops this in order.
                start_new_session=True,
            )
        except OSError as error:
            self._error = f"The MLflow process did not start: {error}."

    def stop(self, timeout: float = 60.0) -> SyncResult:
        """Let the last copy be made, for at most ``timeout`` seconds; call after session_ended."""
        result = None
        if self._process is not None:
            try:
                output, _ = self._process.communicate(f"stop {timeout:g}\n", timeout=timeout)
                result = _parse_result(output)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.communicate()
                self._error = f"The last copy took longer than {timeout:g} s."
            except OSError as error:
                self._error = brief(error)
        if result is not None:
            return result
        error = self._error or "The MLflow process ended early."
        return SyncResult(redact(self.uri), "", error=error)


def describe(result: SyncResult, folder: Path) -> str:
    """One line for the user: where the copy is, or how to send what is missing."""
    if "automl sync" in result.error:
        return result.error
    if result.error:
        return (
            f"MLflow at {result.tracking_uri} does not have the whole run: {result.error} "
            f"Nothing is lost: `automl sync {folder}` will send it."
        )
    return " ".join([f"MLflow: {result.ui_hint}", *result.notes])


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
    commands: IO[str],
) -> SyncResult:
    """Copy whenever the journal has grown, until ``commands`` ends; then once more, in full."""
    from automl.tracking import mlflow_store

    orders: list[str] = []
    stopped = threading.Event()

    def listen() -> None:
        orders.extend(commands.read().split())
        stopped.set()

    threading.Thread(target=listen, daemon=True).start()
    journal = folder / FILE_NAME
    mirror = None
    copied, back_off, pause = -1, BACK_OFF, 0.2
    with mlflow_store.mlflow_environment(uri, LIVE_TIMEOUT) as clean:
        while not stopped.wait(pause):
            size = journal.stat().st_size if journal.exists() else 0
            if size in (0, copied):
                pause = 1.0
                continue
            began = time.process_time()
            try:
                with _one_copy_at_a_time(folder) as same:
                    mirror = _copy_live(folder, clean, experiment, mirror if same else None)
                copied, back_off = size, BACK_OFF
                pause = max(INTERVAL, DUTY * (time.process_time() - began))
            except Exception:
                # Whatever it was, the last copy meets it again and reports it.
                mirror = None
                pause, back_off = back_off, min(2 * back_off, LONGEST_BACK_OFF)
    died = not orders
    if died:
        _wait_for_death(folder)
    patience = float(orders[1]) / 2 if len(orders) > 1 else LIVE_TIMEOUT
    compute = _load_function(difference) if difference else None
    return sync_run(
        folder, uri, experiment, register, promote, difference=compute, patience=patience
    )


def _copy_live(folder: Path, uri: str, experiment: str | None, mirror: Any) -> Any:
    """The runs alone; files and the model come with the last copy."""
    from automl.tracking import mlflow_store

    events = read_journal(folder / FILE_NAME)
    start = _start_event(folder)
    if mirror is None:
        client = mlflow_store.open_store(uri)
        name = experiment or start["config"].get("experiment") or "automl"
        experiment_id = mlflow_store.open_experiment(client, uri, name)
        mirror = mlflow_store.Mirror(client, experiment_id, start["run_id"])
        copy_runs(mirror, events)
        mlflow_store.log_dataset(mirror, start)
        run_id = mirror.parent.info.run_id
        hint = ui_hint(uri, experiment_id, run_id)
        write_link(folder, SyncResult(redact(uri), name, run_id, ui_hint=hint))
    else:
        copy_runs(mirror, events)
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
    """The sink's own process: URI in MLFLOW_TRACKING_URI, orders on stdin, result on stdout."""
    parser = argparse.ArgumentParser(prog="python -m automl.tracking.mlflow_sink")
    parser.add_argument("folder", type=Path)
    for option in ("--experiment", "--register", "--difference"):
        parser.add_argument(option)
    parser.add_argument("--promote", action="store_true")
    options = vars(parser.parse_args())
    os.nice(19)
    uri = os.environ["MLFLOW_TRACKING_URI"]
    try:
        result = follow(uri=uri, commands=sys.stdin, **options)
    except Exception as error:
        # The one place that must answer whatever happens: the search waits for this line.
        result = SyncResult(redact(uri), options["experiment"] or "", error=brief(error))
    print(json.dumps(asdict(result)), flush=True)
    return 0 if not result.error else 1


if __name__ == "__main__":
    sys.exit(main())
