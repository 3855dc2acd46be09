"""Figures of the data section: classes, near-copies, shortcuts."""

from typing import Any

from automl.reporting.figure import Figure, Panel, Series
from automl.reporting.formats import number, words

PARTS = {"train": "Train", "val": "Validation", "test": "Test"}


def class_figure(report: dict[str, Any]) -> Figure | None:
    """Images of each class in each part of the split."""
    counts = report["split"]["classes"]
    if not counts:
        return None
    names = tuple(report["dataset"]["classes"])
    parts = [part for part in PARTS if part in counts]
    series = tuple(
        Series(PARTS[part], [counts[part].get(name, 0) for name in names], [], colour=index)
        for index, part in enumerate(parts)
    )
    rows = tuple((name, *(number(counts[part].get(name, 0)) for part in parts)) for name in names)
    said = "; ".join(f"{name}: {', '.join(row[1:])}" for name, row in zip(names, rows, strict=True))
    return Figure(
        "classes",
        "Images of each class",
        f"Bar chart of images in {', '.join(parts)}. {said}.",
        (Panel("bars", x_label="images", labels=names, series=series),),
        ("Class", *(PARTS[part] for part in parts)),
        rows,
        height=90 + 34 * len(names) * len(parts) // 2,
    )


def twin_figure(report: dict[str, Any]) -> Figure | None:
    """How many groups of near-copies there are of each size."""
    twins = report["audit"]["twins"]
    if not twins or not twins["histogram"]:
        return None
    sizes = sorted(twins["histogram"].items(), key=lambda item: int(item[0]))
    return Figure(
        "twins",
        "Groups of near-copies by size",
        f"Bar chart: {twins['groups']} groups hold {twins['images']} images; the largest has "
        f"{twins['largest']}.",
        (
            Panel(
                "bars",
                x_label="groups",
                y_label="images in a group",
                labels=tuple(size for size, _ in sizes),
                series=(Series("groups", [count for _, count in sizes], []),),
            ),
        ),
        ("Images in a group", "Groups"),
        tuple((size, number(count)) for size, count in sizes),
        height=90 + 22 * len(sizes),
    )


def shortcut_figure(report: dict[str, Any]) -> Figure | None:
    """How well single file properties tell the classes apart."""
    found = report["audit"]["shortcuts"]
    if not found or found["auc"] is None or not found["properties"]:
        return None
    items = [item for item in found["properties"] if item["auc"] is not None]
    items.sort(key=lambda item: -item["auc"])
    labels = ("all together", *(words(item["name"]) for item in items))
    values = [found["auc"], *(item["auc"] for item in items)]
    low = [found["low"] if found["low"] is not None else found["auc"], *values[1:]]
    high = [found["high"] if found["high"] is not None else found["auc"], *values[1:]]
    rows = tuple(zip(labels, map(number, values), strict=True))
    return Figure(
        "shortcuts",
        "Can the class be told without looking?",
        "Dot plot of the AUC of file properties, 0.5 being chance: "
        + ", ".join(f"{label} {value}" for label, value in rows)
        + ".",
        (
            Panel(
                "intervals",
                x_label="AUC of the property alone",
                labels=labels,
                reference=0.5,
                first_is_ours=True,
                series=(Series("AUC", values, [], low, high),),
            ),
        ),
        ("Property", "AUC"),
        rows,
        caption="The dashed line is chance. A property far to the right is a shortcut that a "
        "model may learn in place of the disease.",
        height=80 + 24 * len(labels),
    )
