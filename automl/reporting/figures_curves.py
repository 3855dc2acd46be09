"""Figures of the test's curves: ROC, precision, calibration, prevalence, net benefit."""

from typing import Any

from automl.reporting.figure import Figure, Panel, Series
from automl.reporting.formats import interval, number, percent, words

MAX_TABLE_ROWS = 60


def roc_figure(report: dict[str, Any]) -> Figure | None:
    """Sensitivity against false alarms at every threshold."""
    return band_figure(
        report, "roc", "fpr", "tpr", "ROC curve", "roc_auc",
        "false alarms (1 \u2212 specificity)", "found (sensitivity)", diagonal=True,
    )  # fmt: skip


def pr_figure(report: dict[str, Any]) -> Figure | None:
    """Precision against recall at every threshold."""
    return band_figure(
        report, "pr", "recall", "precision", "Precision and recall", "average_precision",
        "found (recall)", "right when positive (precision)",
    )  # fmt: skip


def calibration_figure(report: dict[str, Any]) -> Figure | None:
    """How often the model is right when it says 80 %, before and after temperature scaling."""
    found = test_curve(report, "reliability")
    if not found:
        return None
    panels, rows, said = [], [], []
    for colour, (key, label) in enumerate(
        (("after", "as delivered"), ("before", "before scaling"))
    ):
        part = found[key]
        bins = (
            [item for item in part["bins"] if item["count"] and item["observed"] is not None]
            if part
            else []
        )
        if not bins:
            continue
        low, high = (
            [item[k] if item[k] is not None else item["observed"] for item in bins]
            for k in ("ci_low", "ci_high")
        )
        panels.append(
            Panel(
                "lines",
                title=f"{label}: ECE {percent(part['ece'])}",
                x_label="probability it gave",
                y_label="share that was so",
                x_range=(0, 1),
                y_range=(0, 1.02),
                diagonal=True,
                series=(
                    Series(
                        "",
                        [b["mean"] for b in bins],
                        [b["observed"] for b in bins],
                        low,
                        high,
                        style="points",
                        colour=colour,
                    ),
                ),
            )
        )
        said.append(f"{label}, calibration error {percent(part['ece'])}")
        rows += [
            (
                label,
                percent(b["mean"]),
                percent(b["observed"]),
                f"{percent(a, 0)} to {percent(c, 0)}",
                number(b["count"]),
            )
            for b, a, c in zip(bins, low, high, strict=True)
        ]
    if not panels:
        return None
    return Figure(
        "calibration",
        "Do the probabilities mean what they say?",
        f"Reliability diagrams: {'; '.join(said)}. On the diagonal, 80 % means 80 of 100.",
        tuple(panels),
        ("When", "Probability it gave", "Share that was so", "95\u202f% interval", "Images"),
        tuple(rows),
        wide=len(panels) > 1,
        height=330,
    )


def prevalence_figure(report: dict[str, Any]) -> Figure | None:
    """Predictive values against prevalence at the chosen threshold."""
    items = [i for i in report["evaluation"]["ppv_by_prevalence"] if i["prevalence"] > 0]
    if len(items) < 2:
        return None
    x = [item["prevalence"] for item in items]
    rows = tuple((percent(i["prevalence"]), percent(i["ppv"]), percent(i["npv"])) for i in items)
    series = tuple(
        Series(
            label,
            x,
            [item[key] if item[key] is not None else float("nan") for item in items],
            colour=colour,
        )
        for colour, (key, label) in enumerate(
            (("ppv", "a positive is right"), ("npv", "a negative is right"))
        )
    )
    return Figure(
        "prevalence",
        "The rarer the finding, the more positives are false",
        f"Lines of predictive values: at {rows[0][0]} prevalence {rows[0][1]} of positives are "
        f"right, at {rows[-1][0]} {rows[-1][1]}.",
        (
            Panel(
                "lines",
                x_label="share of scans with the finding",
                y_label="share of answers that are right",
                series=series,
                x_log=True,
                x_percent=True,
                y_percent=True,
                y_range=(0, 1.02),
            ),
        ),
        ("Prevalence", "Positives that are right", "Negatives that are right"),
        rows,
    )


def decision_figure(report: dict[str, Any]) -> Figure | None:
    """Net benefit of following the model, everybody or nobody."""
    items = report["evaluation"]["decision_curve"]
    if len(items) < 2:
        return None
    x = [item["threshold"] for item in items]
    names = (
        ("model", "follow the model", "line"),
        ("all", "treat all as positive", "dashed"),
        ("none", "treat none", "dashed"),
    )
    series = tuple(
        Series(
            label,
            x,
            [item[key] if item[key] is not None else float("nan") for item in items],
            style=style,
            colour=colour,
        )
        for colour, (key, label, style) in enumerate(names)
    )
    top = max(value for value in series[0].y if value == value)
    return Figure(
        "decision",
        "Decision curve",
        f"Net benefit against threshold probability; the model reaches {number(top)} at best.",
        (
            Panel(
                "lines",
                x_label="probability at which one would act",
                y_label="net benefit",
                y_range=(-0.05, 1.1 * max(top, 0.05)),
                x_range=(0, 1),
                series=series,
            ),
        ),
        ("Threshold", "Model", "All", "None"),
        table_of(
            x,
            *([i[k] if i[k] is not None else 0.0 for i in items] for k in ("model", "all", "none")),
        ),
        caption="Where the model's line is the highest, following it does more good than harm.",
        height=300,
    )


def test_curve(report: dict[str, Any], name: str) -> dict[str, Any] | None:
    curves = report["evaluation"]["test"]["curves"]
    return curves[name] if curves else None


def band_figure(
    report: dict[str, Any],
    name: str,
    x: str,
    y: str,
    title: str,
    metric: str,
    x_label: str,
    y_label: str,
    diagonal: bool = False,
) -> Figure | None:
    """The test's curve ``name`` with its band, from the report's keys ``x`` and ``y``."""
    curve = test_curve(report, name)
    if not curve:
        return None
    who = report["dataset"]["positive"] or "macro average over classes"
    area = interval(report["evaluation"]["test"]["metrics"].get(metric))
    low, high = curve["low"] or None, curve["high"] or None
    columns = [curve[x], curve[y], *([low, high] if low and high else [])]
    return Figure(
        name,
        f"{title} ({who})",
        f"{title} of {who} on the test set; area {area}.",
        (
            Panel(
                "lines",
                x_label=x_label,
                y_label=y_label,
                x_range=(0, 1),
                y_range=(0, 1.02),
                diagonal=diagonal,
                series=(Series("", curve[x], curve[y], low, high),),
            ),
        ),
        (x_label, y_label, "low", "high")[: len(columns)],
        table_of(*columns),
        caption=f"{words(metric)} {area}; the band is the 95\u202f% interval.",
        height=330,
    )


def table_of(*columns: list[float]) -> tuple[tuple[str, ...], ...]:
    """At most MAX_TABLE_ROWS rows, evenly spaced, with the first and last."""
    count = len(columns[0])
    step = max(count - 1, 1) / (min(count, MAX_TABLE_ROWS) - 1 or 1)
    chosen = sorted({round(i * step) for i in range(min(count, MAX_TABLE_ROWS))})
    return tuple(tuple(number(column[i]) for column in columns) for i in chosen)
