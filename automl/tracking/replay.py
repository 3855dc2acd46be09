"""What MLflow should hold, worked out from the journal alone: no network, no MLflow.

A search is one parent run; a configuration is one child run, whose rungs follow one another
on one time axis. Every name, number and time comes from the journal, so that a copy made
during the search, after a crash, or a week later is the same copy.
"""

import hashlib
import json
import os
import re
import socket
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

PARENT = "search"
# Params that would make a run's name long; others keep their own names.
SHORT_NAMES = {
    "fine_tune_depth": "depth",
    "head_units": "head",
    "learning_rate": "lr",
    "head_learning_rate": "head_lr",
    "weight_decay": "decay",
    "label_smoothing": "smoothing",
}
# MLflow's own limits are 6,000 characters for a param and 8,000 for a tag.
TEXT_LIMIT = 5000
FAILURE_NOTE = "Failed"


@dataclass(frozen=True)
class Point:
    """One value of a metric; ``timestamp`` in milliseconds since the epoch."""

    name: str
    value: float
    timestamp: int
    step: int


@dataclass(frozen=True)
class TrackedRun:
    """One MLflow run as it should be. ``key`` is PARENT or a configuration's number.

    ``status`` is RUNNING, FINISHED, FAILED or KILLED; times are milliseconds since the epoch.
    """

    key: str
    name: str
    status: str
    start_time: int
    end_time: int | None
    params: dict[str, str]
    tags: dict[str, str]
    points: tuple[Point, ...] = ()

    @property
    def digest(self) -> str:
        """16 hexadecimal digits over everything in the run: equal digests, nothing to send."""
        text = json.dumps(asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass
class _Configuration:
    """The trials of one configuration by round, each as its last attempt left it."""

    started: dict[str, dict[str, Any]] = field(default_factory=dict)
    ended: dict[str, dict[str, Any]] = field(default_factory=dict)
    first: float = 0.0


def replay(events: Iterable[Mapping[str, Any]], alive: bool | None = None) -> list[TrackedRun]:
    """The parent run and then its children by number; [] before ``search_started``.

    Args:
        events: the journal, oldest first.
        alive: whether the process of the last session still runs; None finds out.
    """
    events = list(events)
    start = next((event for event in events if event["event"] == "search_started"), None)
    if start is None:
        return []
    if alive is None:
        alive = session_alive(events)
    end = next((event for event in reversed(events) if event["event"] == "search_ended"), None)
    children = [
        _child(number, item, start, end, alive)
        for number, item in sorted(_configurations(events).items())
    ]
    return [_parent(events, start, end, alive), *children]


def session_alive(events: Iterable[Mapping[str, Any]]) -> bool:
    """Whether the last session has neither ended nor lost its process.

    A session of another host counts as ended: nothing here can tell, and a search that does
    run there says so again with its next copy.
    """
    session = None
    for event in events:
        if event["event"] == "session_started":
            session = event
        elif event["event"] == "session_ended":
            session = None
    if session is None or session.get("host") != socket.gethostname():
        return False
    return _process_runs(int(session["pid"]))


def _process_runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    try:
        # A killed process stays in the table as a zombie until its parent asks for it.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return True


def _configurations(events: Iterable[Mapping[str, Any]]) -> dict[int, _Configuration]:
    found: dict[int, _Configuration] = {}
    for event in events:
        if event["event"] == "trial_started":
            item = found.setdefault(event["configuration"], _Configuration(first=event["time"]))
            item.started[event["trial"]] = dict(event)
            item.ended.pop(event["trial"], None)
        elif event["event"] == "trial_ended":
            item = next(c for c in found.values() if event["trial"] in c.started)
            if event.get("attempt", 0) == item.started[event["trial"]].get("attempt", 0):
                item.ended[event["trial"]] = dict(event)
    return found


def _child(
    number: int,
    item: _Configuration,
    start: Mapping[str, Any],
    end: Mapping[str, Any] | None,
    alive: bool,
) -> TrackedRun:
    trials = sorted(item.started.values(), key=lambda trial: trial["round"])
    last = trials[-1]
    outcome = item.ended.get(last["trial"])
    tags = {
        "automl.run_id": start["run_id"],
        "automl.kind": "configuration",
        "automl.configuration": str(number),
        "automl.bracket": str(last["bracket"]),
        "automl.round": str(last["round"]),
        "automl.rungs": "epochs " + " > ".join(str(trial["epochs"]) for trial in trials),
    }
    if end is not None:
        tags["automl.best"] = str(end.get("best") in item.started).lower()
    if outcome is None:
        status = "RUNNING" if alive else "KILLED"
    elif outcome["status"] == "completed":
        status = "FINISHED"
    else:
        status = "FAILED"
        tags["automl.reason"] = str(outcome.get("reason") or "unknown")
        message = shorten(outcome.get("message") or "")
        tags["automl.message"] = message
        reason = f"({tags['automl.reason']}) in trial {last['trial']}."
        tags["mlflow.note.content"] = f"{FAILURE_NOTE} {reason}"
        if message:
            tags["mlflow.note.content"] += f"\n\n    {message.replace(chr(10), chr(10) + '    ')}"
    ended_at = outcome["time"] if outcome else _last_time(item, last)
    params = {name: shorten(value) for name, value in last["params"].items()}
    digits = len(str(max(start.get("plan", {}).get("configurations", 0), 10)))
    # What is the same in every run tells none apart.
    fixed = {item["name"] for item in start.get("space", []) if item.get("kind") == "fixed"}
    varied = {name: value for name, value in last["params"].items() if name not in fixed}
    return TrackedRun(
        key=str(number),
        name=configuration_name(number, varied, digits),
        status=status,
        start_time=milliseconds(item.first),
        end_time=None if status == "RUNNING" else milliseconds(ended_at),
        params=params,
        tags=tags,
        points=tuple(_child_points(trials, item.ended, settled=not alive)),
    )


def _last_time(item: _Configuration, last: Mapping[str, Any]) -> float:
    return max([last["time"], *(event["time"] for event in item.ended.values())])


def _child_points(
    trials: list[dict[str, Any]], ended: dict[str, dict[str, Any]], settled: bool
) -> Iterable[Point]:
    """Every epoch of every rung, with ``round`` and ``score`` beside the losses.

    MLflow never forgets a metric, and a failed attempt may be tried again while the search
    runs: its epochs are sent once it is ``settled``.
    """
    for trial in trials:
        outcome = ended.get(trial["trial"])
        if outcome is None or (outcome["status"] != "completed" and not settled):
            continue
        clock = outcome["time"]
        points: list[Point] = []
        for epoch in reversed(outcome.get("history") or []):
            at, step = milliseconds(clock), int(epoch["epoch"])
            points.append(Point("round", float(trial["round"]), at, step))
            points.extend(
                Point(metric_name(name), float(value), at, step)
                for name, value in epoch.items()
                if name != "epoch" and is_number(value)
            )
            clock -= epoch.get("seconds") or 0.0
        if is_number(outcome.get("score")):
            step = int(outcome.get("epoch_of_score") or trial["epochs"])
            at = milliseconds(outcome["time"])
            points.append(Point("score", float(outcome["score"]), at, step))
        yield from sorted(points, key=lambda point: (point.step, point.name))


def _parent(
    events: list[Mapping[str, Any]],
    start: Mapping[str, Any],
    end: Mapping[str, Any] | None,
    alive: bool,
) -> TrackedRun:
    sessions = [event for event in events if event["event"] == "session_started"]
    closed = next((e for e in reversed(events) if e["event"].startswith("session_")), None)
    reason = closed.get("reason") if closed and closed["event"] == "session_ended" else None
    if reason is None:
        # Until the first session is written, the search has only just begun.
        status = "RUNNING" if alive or not sessions else "KILLED"
    elif reason == "failed":
        status = "FAILED"
    else:
        status = "FINISHED" if end is not None or reason == "done" else "KILLED"
    plan = start.get("plan", {})
    params = {name: shorten(value) for name, value in start["config"].items() if value is not None}
    params |= {
        f"plan_{name}": str(plan[name])
        for name in ("trials", "configurations", "epochs")
        if name in plan
    }
    params |= {f"space_{item['name']}": _range(item) for item in start.get("space", [])}
    tags = {
        "automl.run_id": start["run_id"],
        "automl.kind": PARENT,
        "automl.created": str(start.get("created", "")),
        "automl.events": str(len(events)),
        "automl.sessions": str(len(sessions)),
        "mlflow.source.name": shorten(start.get("command", "automl search")),
        "mlflow.source.type": "LOCAL",
        "automl.data": str(start["dataset"].get("name", "")),
        "automl.synthetic": str(bool(start["dataset"].get("synthetic"))).lower(),
    }
    tags |= {f"automl.version.{name}": str(v) for name, v in start.get("versions", {}).items()}
    machine = {name: str(v) for name, v in start.get("machine", {}).items() if v is not None}
    if commit := machine.pop("git", None):
        tags["mlflow.source.git.commit"] = commit
    tags |= {f"automl.machine.{name}": v for name, v in machine.items()}
    if reason:
        tags["automl.reason"] = str(reason)
    ended = [event for event in events if event["event"] == "trial_ended"]
    planned = plan.get("trials") or len(ended)
    tags["automl.progress"] = f"{len({event['trial'] for event in ended})} of {planned} trials"
    if end is not None:
        tags |= _best_tags(events, end)
    tags["mlflow.note.content"] = _note(start, end, tags, events)
    return TrackedRun(
        key=PARENT,
        name=str(start["name"]),
        status=status,
        start_time=milliseconds(start["time"]),
        end_time=None if status == "RUNNING" else milliseconds(events[-1]["time"]),
        params=params,
        tags=tags,
        points=tuple(_parent_points(events, start)),
    )


def _best_tags(events: list[Mapping[str, Any]], end: Mapping[str, Any]) -> dict[str, str]:
    """The winner, as tags: a search that goes on may find another, and params cannot change."""
    best = end.get("best")
    trial = next(
        (e for e in reversed(events) if e["event"] == "trial_started" and e["trial"] == best), None
    )
    tags = {"automl.best_trial": str(best)}
    if trial is not None:
        tags |= {f"best.{name}": shorten(value) for name, value in trial["params"].items()}
    return tags


def _parent_points(events: list[Mapping[str, Any]], start: Mapping[str, Any]) -> Iterable[Point]:
    """Progress by trial ended, and the results of the search and of each evaluation."""
    lower_is_better = start["config"].get("objective") == "log_loss"
    best: float | None = None
    failed = ended = tests = 0
    for event in events:
        at = milliseconds(event["time"])
        if event["event"] == "trial_ended":
            ended += 1
            failed += event["status"] != "completed"
            score = event.get("score")
            if is_number(score):
                better = best is None or (score < best if lower_is_better else score > best)
                best = score if better else best
            yield Point("trials_ended", float(ended), at, ended)
            yield Point("trials_failed", float(failed), at, ended)
            if best is not None:
                yield Point("best_score", float(best), at, ended)
        elif event["event"] == "search_ended":
            if is_number(event.get("score")):
                yield Point("result/score", float(event["score"]), at, ended)
            if is_number(event.get("wall_seconds")):
                yield Point("result/wall_seconds", float(event["wall_seconds"]), at, ended)
            for name, seconds in (event.get("stages") or {}).items():
                if is_number(seconds):
                    yield Point(metric_name(f"seconds/{name}"), float(seconds), at, ended)
        elif event["event"] == "evaluated":
            tests += 1
            for name, interval in event["metrics"].items():
                for part, suffix in (("value", ""), ("low", "_low"), ("high", "_high")):
                    if is_number(interval.get(part)):
                        key = metric_name(f"{event['on']}/{name}{suffix}")
                        yield Point(key, float(interval[part]), at, tests)


def _note(
    start: Mapping[str, Any],
    end: Mapping[str, Any] | None,
    tags: Mapping[str, str],
    events: list[Mapping[str, Any]],
) -> str:
    """The description on the parent's page, in Markdown."""
    data, plan = start["dataset"], start.get("plan", {})
    classes = ", ".join(f"{name} {count}" for name, count in (data.get("classes") or {}).items())
    synthetic = "drawn, synthetic " if data.get("synthetic") else ""
    lines = [
        f"Hyperband search on {data.get('images', '?')} {synthetic}images of "
        f"**{data.get('name', '?')}** ({classes}), digest `{str(data.get('digest', ''))[:12]}`. "
        "For research use only.",
        "",
        f"Progress: {tags['automl.progress']}.",
    ]
    # The page shows a few lines and folds the rest: results first.
    if end is not None and is_number(end.get("score")):
        objective = start["config"].get("objective", "score")
        lines.append(f"Best: trial {end.get('best')}, validation {objective} {end['score']:.4f}.")
    for event in events:
        if event["event"] == "evaluated" and "roc_auc" in event["metrics"]:
            auc = event["metrics"]["roc_auc"]
            if all(is_number(auc.get(part)) for part in ("value", "low", "high")):
                lines.append(
                    f"On {event['on']} ({event.get('images', '?')} images): ROC AUC "
                    f"{auc['value']:.3f} [{auc['low']:.3f}, {auc['high']:.3f}]."
                )
    lines += [
        "",
        f"Plan: {plan.get('configurations', '?')} configurations, "
        f"{plan.get('trials', '?')} trials, {plan.get('epochs', '?')} epochs.",
        "",
        "| bracket | trials × epochs, rung by rung |",
        "|---|---|",
    ]
    for bracket in plan.get("brackets", []):
        rungs = " → ".join(f"{rung['size']} × {rung['epochs']}" for rung in bracket["rungs"])
        lines.append(f"| {bracket['bracket']} | {rungs} |")
    return shorten("\n".join(lines))


def configuration_name(number: int, params: Mapping[str, Any], digits: int = 2) -> str:
    """``07 depth=4 head=128 lr=1e-3``; one or two figures are enough to tell runs apart."""
    parts = [f"{SHORT_NAMES.get(name, name)}={_brief(value)}" for name, value in params.items()]
    return shorten(" ".join([f"{number:0{digits}d}", *parts]), 240)


def _brief(value: Any) -> str:
    if not isinstance(value, float):
        return str(value)
    if value != 0 and not 0.01 <= abs(value) < 1000:
        mantissa, exponent = f"{value:.1e}".split("e")
        return f"{mantissa.removesuffix('.0')}e{int(exponent)}"
    return f"{value:.3g}"


def _range(item: Mapping[str, Any]) -> str:
    if item.get("kind") == "choice":
        return shorten(", ".join(str(value) for value in item.get("values", [])))
    if item.get("kind") == "fixed":
        return shorten(item.get("default"))
    return f"{item.get('low')} to {item.get('high')} ({item.get('sampling', 'linear')})"


def redact(text: str) -> str:
    """Replace the user and password of every URI in ``text`` with ``***``."""
    text = re.sub(r"(?<=://)[^\s/@:]*:(?!\d+/)\S*@", "***@", text)
    text = re.sub(r"(?<=://)[^\s/@]+@", "***@", text)
    return re.sub(
        r"(?i)([?&](?:password|passwd|pwd|token|secret|api_?key)=)[^&\s'\"]+", r"\1***", text
    )


def shorten(value: Any, limit: int = TEXT_LIMIT) -> str:
    """``value`` as text without credentials, cut to what MLflow takes."""
    text = redact(value if isinstance(value, str) else _plain(value))
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _plain(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ",".join(str(part) for part in value)
    return json.dumps(value) if isinstance(value, dict) else str(value)


def metric_name(name: str) -> str:
    """MLflow takes letters, digits, ``_ - . /`` and spaces in a metric's name."""
    return re.sub(r"[^\w\-./ ]", "_", name, flags=re.ASCII).strip("/.")[:250] or "_"


def is_number(value: Any) -> bool:
    """Whether ``value`` is a finite number and not a bool."""
    return (
        isinstance(value, (int, float))
        and not isinstance(value, bool)
        and abs(value) < float("inf")
    )


def milliseconds(seconds: float) -> int:
    return round(seconds * 1000)
