"""Figures of the test results: curves with bands, baselines, thresholds, robustness."""

from typing import Any

from automl.reporting.figure import Figure, Panel, Series
from automl.reporting.formats import brief, interval, number, percent, percent_interval, words

MAX_TABLE_ROWS = 60
# What the strength of each disturbance is measured in; see evaluation/robustness.py.
STRENGTHS = {
    "noise": "spread in grey levels of 255",
    "blur": "sigma in % of the side",
    "gamma": "exponent, or one over it",
    "rotation": "degrees",
    "jpeg": "quality, of 100",
    "shift": "% of the side",
}


def roc_figure(report: dict[str, Any]) -> Figure | None:
    """Sensitivity against false alarms at every threshold."""
    curve = test_curve(report, "roc")
    if not curve:
        return None
    return band_figure(
        report,
        curve,
        "fpr",
        "tpr",
        "roc",
        "ROC curve",
        "roc_auc",
        True,
        "false alarms (1 \u2212 specificity)",
        "found (sensitivity)",
    )


def pr_figure(report: dict[str, Any]) -> Figure | None:
    """Precision against recall at every threshold."""
    curve = test_curve(report, "pr")
    if not curve:
        return None
    return band_figure(
        report,
        curve,
        "recall",
        "precision",
        "pr",
        "Precision and recall",
        "average_precision",
        False,
        "found (recall)",
        "right when positive (precision)",
    )


def test_curve(report: dict[str, Any], name: str) -> dict[str, Any] | None:
    curves = report["evaluation"]["test"]["curves"]
    return curves[name] if curves else None


def band_figure(
    report: dict[str, Any],
    curve: dict[str, Any],
    x: str,
    y: str,
    name: str,
    title: str,
    metric: str,
    diagonal: bool,
    x_label: str,
    y_label: str,
) -> Figure:
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


def baseline_figure(report: dict[str, Any]) -> Figure | None:
    """The model's accuracy and ROC AUC beside every baseline's."""
    entries = {"this model": report["evaluation"]["test"]["metrics"]}
    entries |= {words(k): v for k, v in report["baselines"].items() if k != "difference_to_1nn"}
    panels = []
    for metric in ("balanced_accuracy", "roc_auc"):
        kept = {
            k: v[metric]
            for k, v in entries.items()
            if v.get(metric) and v[metric]["value"] is not None
        }
        if len(kept) > 1:
            chance = 0.5 if metric == "roc_auc" else 1 / len(report["dataset"]["classes"])
            panels.append(interval_panel(words(metric), kept, reference=chance))
    if not panels:
        return None
    rows = tuple(
        (name, *(interval(values.get(metric)) for metric in ("balanced_accuracy", "roc_auc")))
        for name, values in entries.items()
    )
    return Figure(
        "baselines",
        "The model beside what is cheap",
        "Dot plots with intervals. "
        + " ".join(f"{r[0]}: balanced accuracy {r[1]}, ROC AUC {r[2]}." for r in rows),
        tuple(panels),
        ("Model", "Balanced accuracy", "ROC AUC"),
        rows,
        wide=True,
        height=80 + 28 * len(entries),
        caption="The dashed line is chance.",
    )


def interval_panel(
    label: str,
    items: dict[str, dict[str, float]],
    reference: float | None = None,
    percents: bool = False,
) -> Panel:
    values = list(items.values())
    series = Series(
        label,
        [item["value"] for item in values],
        [],
        [item["value"] if item["low"] is None else item["low"] for item in values],
        [item["value"] if item["high"] is None else item["high"] for item in values],
    )
    return Panel(
        "intervals",
        x_label=label,
        labels=tuple(items),
        series=(series,),
        reference=reference,
        x_percent=percents,
        first_is_ours=reference is not None,
    )


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


def confidence_figure(report: dict[str, Any]) -> Figure | None:
    """How often answers of each confidence were wrong, beside how often they should be."""
    items = [i for i in report["evaluation"]["confidence"] if i["rate"]["value"] is not None]
    if len(items) < 2:
        return None
    places = [float(place) for place in range(len(items))]
    rates = [item["rate"] for item in items]
    low, high = (
        [rate["value"] if rate[side] is None else rate[side] for rate in rates]
        for side in ("low", "high")
    )
    labels = [f"{percent(i['low'], 0)} to {percent(i['high'], 0)}" for i in items]
    rows = tuple(
        (
            label,
            number(item["images"]),
            number(item["errors"]),
            percent_interval(item["rate"]),
            percent(item["expected"]),
        )
        for label, item in zip(labels, items, strict=True)
    )
    ticks = tuple(
        (place, f"{100 * item['low']:.0f}–{100 * item['high']:.0f}")
        for place, item in zip(places, items, strict=True)
    )
    said = "; ".join(f"{row[0]} sure: {row[2]} of {row[1]} wrong" for row in rows)
    expected = [item["expected"] for item in items]
    return Figure(
        "confidence",
        "Wrong answers by confidence",
        f"Points with intervals. {said}.",
        (
            Panel(
                "lines",
                x_label="how sure it was of its answer, %",
                y_label="wrong answers",
                ticks=(ticks,),
                x_range=(-0.4, len(items) - 0.6),
                y_range=(-0.03, 1.03),
                y_percent=True,
                series=(
                    Series("wrong", places, [r["value"] for r in rates], low, high, "points"),
                    *(
                        [Series("expected", places, expected, style="points", colour=1)]
                        if None not in expected
                        else []
                    ),
                ),
            ),
        ),
        ("How sure", "Answers", "Wrong", "Share that was wrong", "Expected share"),
        rows,
        caption="Expected is what its own probabilities leave open. Where the points lie above "
        "that, the model is surer than it may be.",
        height=300,
    )


def subgroup_figure(report: dict[str, Any]) -> Figure | None:
    """The metric of each subgroup with its interval."""
    items = [
        item
        for item in report["evaluation"]["subgroups"]
        if item["metric"] and item["metric"]["value"] is not None
    ]
    if not items:
        return None
    named = {f"{i['attribute']}: {i['value']} ({i['images']})": i["metric"] for i in items}
    label = words(items[0]["name"] or "accuracy")
    rows = tuple((name, percent_interval(item)) for name, item in named.items())
    return Figure(
        "subgroups",
        f"{label} in each subgroup",
        f"Dot plot: {'; '.join(' '.join(r) for r in rows)}.",
        (interval_panel(label, named, percents=True),),
        ("Subgroup (images)", label),
        rows,
        height=80 + 28 * len(named),
    )


def robustness_figure(report: dict[str, Any]) -> Figure | None:
    """The metric against the strength of each disturbance, one panel each."""
    kinds: dict[str, list[dict[str, Any]]] = {}
    for item in report["evaluation"]["robustness"]:
        if item["metric"] and item["metric"]["value"] is not None:
            kinds.setdefault(item["name"], []).append(item)
    if not kinds:
        return None
    every = [item["metric"] for items in kinds.values() for item in items]
    bottom = min(m["value"] if m["low"] is None else m["low"] for m in every)
    clean = report["evaluation"]["test"]["metrics"].get("accuracy")
    panels = []
    for name, items in kinds.items():
        places = [float(i) for i in range(len(items))]
        panels.append(
            Panel(
                "lines",
                title=words(name),
                x_label=STRENGTHS.get(name, ""),
                y_percent=True,
                reference=clean["value"] if clean else None,
                ticks=(tuple((p, brief(i["level"])) for p, i in zip(places, items, strict=True)),),
                x_range=(-0.4, len(items) - 0.6),
                y_range=(max(bottom - 0.03, 0.0), 1.01),
                series=(
                    Series(
                        "",
                        places,
                        [i["metric"]["value"] for i in items],
                        [i["metric"]["low"] or i["metric"]["value"] for i in items],
                        [i["metric"]["high"] or i["metric"]["value"] for i in items],
                        style="points",
                    ),
                ),
            )
        )
    rows = tuple(
        (
            words(name),
            f"{brief(i['level'])} ({STRENGTHS[name]})" if name in STRENGTHS else brief(i["level"]),
            percent_interval(i["metric"]),
        )
        for name, items in kinds.items()
        for i in items
    )
    images = max((i["images"] or 0 for items in kinds.values() for i in items), default=0)
    return Figure(
        "robustness",
        "Accuracy when the image is disturbed",
        "Dot plots with intervals: " + "; ".join(f"{r[0]} {r[1]}: {r[2]}" for r in rows) + ".",
        tuple(panels),
        ("Disturbance", "Strength", "Accuracy"),
        rows,
        wide=True,
        height=230,
        caption=(f"Measured on {images:,} of the test images. " if images else "")
        + "The dashed line is the accuracy on the whole test set without disturbance; strength "
        "grows rightwards.",
    )
