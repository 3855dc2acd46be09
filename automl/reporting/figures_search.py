"""Figures of the search and of its winner."""

import math
from itertools import accumulate, pairwise
from typing import Any

from automl.reporting.figure import Figure, Panel, Series, limits
from automl.reporting.formats import brief, duration, number, percent, words


def better(objective: str | None) -> Any:
    return min if objective == "log_loss" else max


def finished(report: dict[str, Any]) -> list[dict[str, Any]]:
    return [row for row in report["search"]["rows"] if row["score"] is not None]


def last_rungs(report: dict[str, Any]) -> list[dict[str, Any]]:
    """Each configuration's furthest completed trial, worst first, the winner last."""
    last: dict[Any, dict[str, Any]] = {}
    for row in finished(report):
        held = last.get(row["configuration"])
        if held is None or (row["epochs"] or 0) >= (held["epochs"] or 0):
            last[row["configuration"]] = row
    sign = -1 if better(report["search"]["objective"]) is min else 1
    winner = report["search"]["best"]["number"]
    return sorted(last.values(), key=lambda row: (row["number"] == winner, sign * row["score"]))


def progress_figure(report: dict[str, Any]) -> Figure | None:
    """Best score so far against the time since the search began."""
    rows = [row for row in finished(report) if row["elapsed"] is not None]
    rows.sort(key=lambda row: row["elapsed"])
    if len(rows) < 2:
        return None
    objective = words(report["search"]["objective"])
    seconds = [row["elapsed"] for row in rows]
    best = list(accumulate((row["score"] for row in rows), better(report["search"]["objective"])))
    table = tuple(
        (str(row["number"]), duration(row["elapsed"]), number(row["score"], 4), number(top, 4))
        for row, top in zip(rows, best, strict=True)
    )
    return Figure(
        "progress",
        "Best so far against time",
        f"Step line of the best validation {objective}: {number(best[0], 4)} after "
        f"{duration(seconds[0])}, {number(best[-1], 4)} after {duration(seconds[-1])}.",
        (
            Panel(
                "lines",
                x_label="seconds since the start",
                y_label=f"validation {objective}",
                series=(
                    Series(
                        "each trial",
                        seconds,
                        [row["score"] for row in rows],
                        style="points",
                        colour=5,
                    ),
                    Series("best so far", seconds, best, style="step"),
                ),
            ),
        ),
        ("Trial", "After", "Score", "Best so far"),
        table,
    )


def survival_figure(report: dict[str, Any]) -> Figure | None:
    """Every configuration's score at each rung it reached."""
    chains: dict[Any, list[dict[str, Any]]] = {}
    for row in finished(report):
        chains.setdefault(row["configuration"], []).append(row)
    if len(chains) < 2:
        return None
    winner = report["search"]["best"]["number"]
    series, table = [], []
    for configuration, rows in chains.items():
        rows.sort(key=lambda row: row["epochs"] or 0)
        wins = any(row["number"] == winner for row in rows)
        bracket = rows[0]["bracket"] or 0
        series.append(
            Series(
                "winner" if wins else "",
                [row["epochs"] for row in rows],
                [row["score"] for row in rows],
                style="line" if wins else "faint",
                colour=1 if wins else 0,
            )
        )
        table.append(
            (
                str(configuration),
                str(bracket),
                " → ".join(f"{number(row['score'], 4)} at {row['epochs']}" for row in rows),
            )
        )
    series.sort(key=lambda item: item.label)
    reached = sorted({row["epochs"] for row in finished(report)})
    return Figure(
        "survival",
        "Who survived which rung",
        f"Scores of {len(chains)} configurations at {', '.join(map(str, reached))} epochs; lines "
        "join the rungs of one configuration, and the winner is marked.",
        (
            Panel(
                "lines",
                x_label="epochs trained",
                series=tuple(series),
                x_log=len(reached) > 2,
                y_label=f"validation {words(report['search']['objective'])}",
                ticks=(tuple((epochs, str(epochs)) for epochs in reached),),
            ),
        ),
        ("Configuration", "Bracket", "Score at epoch"),
        tuple(table),
    )


def axis_position(parameter: dict[str, Any], value: Any) -> float | None:
    """Where a value lies on its axis, from 0 to 1; None if it is not on it."""
    if parameter["values"]:
        values = parameter["values"]
        return values.index(value) / max(len(values) - 1, 1) if value in values else None
    low, high = parameter["low"], parameter["high"]
    if not isinstance(value, (int, float)) or low is None or high is None or low == high:
        return None
    if parameter["sampling"] == "log":
        low, high, value = math.log(low), math.log(high), math.log(max(value, 1e-30))
    return (value - low) / (high - low)


def axis_ticks(parameter: dict[str, Any]) -> tuple[tuple[float, str], ...]:
    values = parameter["values"] or [parameter["low"], parameter["high"]]
    placed = ((axis_position(parameter, value), brief(value)) for value in values)
    return tuple((place, text) for place, text in placed if place is not None)


def searched(report: dict[str, Any]) -> list[dict[str, Any]]:
    """The parameters with more than one value, in the order of the space."""
    return [item for item in report["search"]["space"] if len(axis_ticks(item)) > 1]


def parameter_rows(report: dict[str, Any]) -> tuple[tuple[str, ...], ...]:
    names = [item["name"] for item in searched(report)]
    return tuple(
        (
            str(row["configuration"]),
            *(brief(row["params"].get(name)) for name in names),
            str(row["epochs"]),
            number(row["score"], 4),
        )
        for row in reversed(last_rungs(report))
    )


def parallel_figure(report: dict[str, Any]) -> Figure | None:
    """Every configuration as a path through its hyperparameters to its score."""
    space, rows = searched(report), last_rungs(report)
    if not space or len(rows) < 3:
        return None
    scores = [row["score"] for row in rows]
    low, high = min(scores), max(scores)
    series = []
    for row in rows:
        places = [axis_position(item, row["params"].get(item["name"])) for item in space]
        if None not in places:
            score = (row["score"] - low) / (high - low or 1.0)
            series.append(Series("", list(range(len(places) + 1)), [*places, score]))
    objective = words(report["search"]["objective"])
    ends = ((0.0, number(low, 3)), (1.0, number(high, 3)))
    return Figure(
        "parallel",
        "Every configuration, from settings to score",
        f"Parallel coordinates of {len(series)} configurations over "
        f"{', '.join(words(item['name']) for item in space)} and {objective}. "
        "The winner is strong.",
        (
            Panel(
                "parallel",
                labels=(*(words(item["name"]) for item in space), objective),
                ticks=(*map(axis_ticks, space), ends),
                series=tuple(series),
            ),
        ),
        ("Configuration", *(words(item["name"]) for item in space), "Epochs", "Score"),
        parameter_rows(report),
        wide=True,
        height=300,
        caption="Darker paths scored better. Scores are those of the last rung each reached.",
    )


def parameter_figure(report: dict[str, Any]) -> Figure | None:
    """Each hyperparameter against the score, one panel each."""
    space, rows = searched(report), last_rungs(report)
    if not space or len(rows) < 3:
        return None
    panels = []
    for item in space[:6]:
        points = [
            (axis_position(item, row["params"].get(item["name"])), row["score"]) for row in rows
        ]
        points = [point for point in points if point[0] is not None]
        if points:
            x, y = map(list, zip(*points, strict=True))
            panels.append(
                Panel(
                    "lines",
                    title=words(item["name"]),
                    ticks=(axis_ticks(item),),
                    x_range=(-0.08, 1.08),
                    series=(
                        Series("", x, y, style="points"),
                        Series("", x[-1:], y[-1:], style="points", colour=1),
                    ),
                    y_label="" if panels else f"validation {words(report['search']['objective'])}",
                )
            )
    if not panels:
        return None
    return Figure(
        "parameters",
        "Each hyperparameter against the score",
        "Scatter plots of the score against "
        f"{', '.join(words(item['name']) for item in space[:6])}.",
        tuple(panels),
        ("Configuration", *(words(item["name"]) for item in space), "Epochs", "Score"),
        parameter_rows(report),
        wide=True,
        height=230,
        caption="The orange square is the winner; each point is a configuration at its last rung.",
    )


def importance_figure(report: dict[str, Any]) -> Figure | None:
    """Share of the score's variation that each hyperparameter explains."""
    items = [item for item in report["search"]["importance"] if item["value"] is not None]
    if not items:
        return None
    items.sort(key=lambda item: -item["value"])
    values = [item["value"] for item in items]
    low, high = limits(items)
    labels = tuple(words(item["name"]) for item in items)
    rows = tuple(
        (label, percent(value, 0), f"{percent(a, 0)} to {percent(b, 0)}")
        for label, value, a, b in zip(labels, values, low, high, strict=True)
    )
    return Figure(
        "importance",
        "What mattered",
        "Dot plot of hyperparameter importance: "
        + "; ".join(f"{r[0]} {r[1]} ({r[2]})" for r in rows)
        + ".",
        (
            Panel(
                "intervals",
                x_label="share of the score's variation",
                labels=labels,
                x_percent=True,
                series=(Series("importance", values, [], low, high),),
            ),
        ),
        ("Hyperparameter", "Importance", "95\u202f% interval"),
        rows,
        height=80 + 30 * len(labels),
        caption="Wide bars mean that so few trials cannot tell.",
    )


def time_figure(report: dict[str, Any]) -> Figure | None:
    """Seconds spent in each stage."""
    stages = (report["cost"] or {}).get("stages") or report["search"]["stages"]
    if not stages:
        return None
    labels = tuple(words(name) for name in stages)
    rows = tuple(
        (label, duration(value)) for label, value in zip(labels, stages.values(), strict=True)
    )
    return Figure(
        "time",
        "Where the time went",
        "Bar chart of seconds by stage: " + "; ".join(" ".join(row) for row in rows) + ".",
        (
            Panel(
                "bars",
                x_label="seconds",
                labels=labels,
                series=(Series("seconds", list(stages.values()), []),),
            ),
        ),
        ("Stage", "Time"),
        rows,
        height=80 + 26 * len(labels),
    )


def learning_figure(report: dict[str, Any]) -> Figure | None:
    """The winner's loss and score at each epoch, with the ends of its rungs."""
    curves = report["search"]["curves"]
    if not curves:
        return None
    names = [name for name in curves[0] if name not in ("epoch", "round")]
    losses = [name for name in ("loss", "val_loss") if name in names]
    others = ("val_loss", "val_loss_error")
    scores = [name for name in names if name.startswith("val_") and name not in others]
    refinement = report["search"].get("refinement")
    refined = bool(refinement and refinement["used"])
    began = curves[-1]["epoch"] - refinement["epochs"] if refined else None
    marks = tuple(
        (float(now["epoch"]), "refined" if now["epoch"] == began else "promoted")
        for now, after in pairwise(curves)
        if now.get("round") is not None and now.get("round") != after.get("round")
    )
    panels = tuple(
        Panel(
            "lines",
            x_label="epoch",
            y_label=label,
            marks=marks,
            series=tuple(curve(name, curves, colour) for colour, name in enumerate(chosen)),
        )
        for label, chosen in (("loss", losses), ("validation score", scores))
        if chosen
    )
    rows = tuple(
        (str(row["epoch"]), *(number(row.get(name), 4) for name in names)) for row in curves
    )
    if not panels:
        return None
    last = "; ".join(
        f"{curve_name(name)} {number(curves[-1].get(name), 4)}" for name in losses + scores
    )
    return Figure(
        "learning",
        "Learning curves of the winner",
        f"Lines over {len(curves)} epochs. At the last one: {last}.",
        panels,
        ("Epoch", *map(curve_name, names)),
        rows,
        wide=True,
        caption="Dotted lines mark where Hyperband promoted this configuration"
        f"{', and where its refinement began' if refined else ''}."
        if marks
        else "",
    )


def curve(name: str, curves: list[dict[str, Any]], colour: int) -> Series:
    points = [(row["epoch"], row[name]) for row in curves if row.get(name) is not None]
    return Series(curve_name(name), [x for x, _ in points], [y for _, y in points], colour=colour)


def curve_name(name: str) -> str:
    if name.startswith("val_"):
        metric = words(name[4:])
        return f"validation {metric if metric[1:2].isupper() else metric.lower()}"
    return "training loss" if name == "loss" else words(name)
