"""Figures of rates with their intervals: baselines, confidence, subgroups, robustness."""

from typing import Any

from automl.reporting.figure import Figure, Panel, Series, limits
from automl.reporting.formats import brief, interval, number, percent, percent_interval, words

# What the strength of each disturbance is measured in; see evaluation/robustness.py.
STRENGTHS = {
    "noise": "spread in grey levels of 255",
    "blur": "sigma in % of the side",
    "gamma": "exponent, or one over it",
    "rotation": "degrees",
    "jpeg": "quality, of 100",
    "shift": "% of the side",
}


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
    items: dict[str, dict[str, Any]],
    reference: float | None = None,
    percents: bool = False,
) -> Panel:
    values = list(items.values())
    series = Series(label, [item["value"] for item in values], [], *limits(values))
    return Panel(
        "intervals",
        x_label=label,
        labels=tuple(items),
        series=(series,),
        reference=reference,
        x_percent=percents,
        first_is_ours=reference is not None,
    )


def confidence_figure(report: dict[str, Any]) -> Figure | None:
    """How often answers of each confidence were wrong, beside how often they should be."""
    items = [i for i in report["evaluation"]["confidence"] if i["rate"]["value"] is not None]
    if len(items) < 2:
        return None
    places = [float(place) for place in range(len(items))]
    rates = [item["rate"] for item in items]
    low, high = limits(rates)
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
    lows, _ = limits([item["metric"] for items in kinds.values() for item in items])
    clean = report["evaluation"]["test"]["metrics"].get("accuracy")
    panels = []
    for name, items in kinds.items():
        metrics = [item["metric"] for item in items]
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
                y_range=(max(min(lows) - 0.03, 0.0), 1.01),
                series=(
                    Series(
                        "",
                        places,
                        [metric["value"] for metric in metrics],
                        *limits(metrics),
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
