"""Make an MLflow store hold what a run's journal tells, once, in the caller's process.

Importing this module loads no MLflow; only a copy does.
"""

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from automl.errors import AutomlError, UsageError
from automl.tracking.journal import FILE_NAME, locked, read_journal
from automl.tracking.lookout import check_uri, probe
from automl.tracking.replay import PARENT, redact, replay, session_alive

LINK_FILE = "mlflow.json"
SQLITE = "sqlite:///"
# Seconds that one call may take.
TIMEOUT = 60
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


def choose_uri(given: str | None, out: Path) -> str:
    """The store asked for, by ``given`` or by MLFLOW_TRACKING_URI; else the default of ``out``.

    Raises:
        UsageError: it cannot be a store.
    """
    uri = check_uri(given or os.environ.get("MLFLOW_TRACKING_URI") or default_uri(out))
    if not uri.startswith(SQLITE):
        return uri
    # What is relative here would mean another place to the next command.
    return f"{SQLITE}{Path(uri.removeprefix(SQLITE)).resolve()}"


def own_address(config: dict[str, Any]) -> str | None:
    """The search's own store, with the password if MLFLOW_TRACKING_URI still holds it."""
    address, given = config.get("tracking_uri"), os.environ.get("MLFLOW_TRACKING_URI", "")
    return given if address == redact(given) else address


def default_uri(out: Path) -> str:
    """The store of all runs below ``out``: an absolute SQLite URI, ``out/mlflow.db``."""
    return f"{SQLITE}{out.resolve() / 'mlflow.db'}"


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
    config = read_search(folder)[1]["config"]
    uri = choose_uri(tracking_uri or own_address(config), folder.parent)
    experiment = experiment or config.get("experiment") or "automl"
    register = register or config.get("register")
    promote = promote or bool(config.get("promote"))
    deadline = time.monotonic() + patience
    pause = 0.5
    while True:
        problem = probe(uri)
        if not problem:
            try:
                with one_copy_at_a_time(folder):
                    return _copy(folder, uri, experiment, register, promote, progress, difference)
            except AutomlError:
                raise
            except Exception as error:
                problem = _excuse(error, uri, folder)
        if time.monotonic() + pause > deadline:
            raise AutomlError(unreachable(uri, folder, problem))
        time.sleep(pause)
        pause = min(2 * pause, 5.0)


def _excuse(error: Exception, uri: str, folder: Path) -> str:
    """Why a copy broke off, if the next attempt may succeed.

    Raises:
        AutomlError: it cannot; a programming mistake must show itself.
    """
    from automl.tracking.mlflow_store import explain, may_pass

    if may_pass(error):
        return explain(error)
    raise AutomlError(
        f"MLflow at {redact(uri)} refused the copy of {folder}: {explain(error)}"
    ) from None


def unreachable(uri: str, folder: Path, problem: str) -> str:
    return (
        f"MLflow at {redact(uri)} does not have the whole run: {problem} The run folder holds "
        f"everything: start the server, then send it with `automl sync {folder}`."
    )


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
    from automl.tracking import mlflow_store

    with mlflow_store.mlflow_environment(uri, TIMEOUT) as clean:
        # MLflow warns of its own code when this is loaded.
        from automl.tracking import mlflow_registry

        events, start = read_search(folder)
        mirror = mlflow_store.open_mirror(clean, experiment, start["run_id"])
        outcomes = copy_runs(mirror, events, progress)
        mlflow_store.log_dataset(mirror, start)
        artifacts = mlflow_registry.log_artifacts(mirror, folder)
        run_id = mirror.parent.info.run_id
        version, note = None, ""
        # The pipeline writes the model last but one; before that there is nothing to log.
        model = mlflow_registry.log_model(mirror, folder) if search_is_over(events) else None
        if model is not None and register:
            version, note = mlflow_registry.register_model(
                mirror, folder, model[0], register, promote, difference
            )
        result = SyncResult(
            tracking_uri=redact(clean),
            experiment=experiment,
            run_id=run_id,
            created=outcomes.count("created"),
            updated=outcomes.count("updated"),
            artifacts=tuple(artifacts),
            model_id=model[0] if model else None,
            model_logged=bool(model and model[1]),
            version=version,
            notes=(note,) if note else (),
            ui_hint=ui_hint(clean, mirror.experiment_id, run_id),
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


def read_search(folder: Path) -> tuple[list[Any], Any]:
    """The journal's events, and the one with which the search began.

    Raises:
        UsageError: there is none.
    """
    events = read_journal(folder / FILE_NAME)
    for event in events:
        if event["event"] == "search_started":
            return events, event
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


@contextlib.contextmanager
def one_copy_at_a_time(folder: Path) -> Iterator[bool]:
    """Two copies of one run at once would both find the same run missing.

    Yields whether this process was also the last to copy: then what it knows still holds.
    """
    with locked(folder / ".mlflow.lock") as lock:
        lock.seek(0)
        ours = str(os.getpid())
        same = lock.read() == ours
        lock.truncate(0)
        lock.write(ours)
        lock.flush()
        yield same


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
