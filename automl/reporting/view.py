"""What the page says beyond printing report.json as it is: small derived numbers and lists.

Everything here is rounding, counting or picking from the report; no statistic is made.
"""

from typing import Any

from automl.reporting import figures_curves, figures_data, figures_intervals, figures_search
from automl.reporting.figure import Figure
from automl.reporting.formats import (
    DASH,
    LOWER_IS_BETTER,
    METRIC_NAMES,
    brief,
    number,
    span,
    words,
)

FIGURES = (
    figures_data.class_figure,
    figures_data.twin_figure,
    figures_data.shortcut_figure,
    figures_search.progress_figure,
    figures_search.survival_figure,
    figures_search.parallel_figure,
    figures_search.parameter_figure,
    figures_search.importance_figure,
    figures_search.time_figure,
    figures_search.learning_figure,
    figures_intervals.baseline_figure,
    figures_curves.roc_figure,
    figures_curves.pr_figure,
    figures_curves.calibration_figure,
    figures_curves.prevalence_figure,
    figures_curves.decision_figure,
    figures_intervals.confidence_figure,
    figures_intervals.subgroup_figure,
    figures_intervals.robustness_figure,
)
# In a refinement these are the same for all configurations.
UNTIL_REFINED = ("fine_tune_depth", "learning_rate")
# Of fewer images a share says nothing: its interval spans two thirds of all that is possible.
LEAST_SHARE_IMAGES = 5
SECTIONS = (
    ("verdict", "Verdict"),
    ("clinic", "In plain words"),
    ("study", "Study"),
    ("data", "Data and audit"),
    ("split", "Split"),
    ("search", "Search"),
    ("winner", "Winner"),
    ("test", "Test results"),
    ("calibration", "Calibration"),
    ("thresholds", "Thresholds"),
    ("mistakes", "Mistakes"),
    ("subgroups", "Subgroups"),
    ("saliency", "Saliency"),
    ("robustness", "Robustness"),
    ("external", "External tests"),
    ("cost", "Cost"),
    ("reproduce", "Reproduce"),
    ("checklist", "Checklists"),
)
HEADLINES = {
    True: ("roc_auc", "recall", "specificity", "balanced_accuracy"),
    False: ("roc_auc", "balanced_accuracy", "f1", "accuracy"),
}
SHORT_NAMES = {
    "recall": "Sensitivity",
    "roc_auc": "ROC AUC",
    "balanced_accuracy": "Balanced accuracy",
}


def name_classes(report: dict[str, Any]) -> dict[str, Any]:
    """The (complete) report with the authors' class names in place of the files' labels."""
    names = (report["study"] or {}).get("class_names") or {}
    if not names:
        return report

    def keys(counts: dict[str, Any]) -> dict[str, Any]:
        return {names.get(name, name): value for name, value in counts.items()}

    def case(item: dict[str, Any]) -> dict[str, Any]:
        called = {key: names.get(item[key], item[key]) for key in ("label", "predicted")}
        return {**item, **called}

    def pair(item: dict[str, Any]) -> dict[str, Any]:
        return {**item, **{key: names.get(item[key], item[key]) for key in ("label_a", "label_b")}}

    dataset, split, evaluation = report["dataset"], report["split"], report["evaluation"]
    audit = report["audit"]
    balance, test, examples = split["balance"], evaluation["test"], evaluation["examples"]
    return {
        **report,
        "dataset": {
            **dataset,
            "classes": keys(dataset["classes"]),
            "grid": keys(dataset["grid"]),
            "positive": names.get(dataset["positive"], dataset["positive"]),
        },
        "audit": {
            **audit,
            "twins": audit["twins"]
            and {**audit["twins"], "pairs": [pair(item) for item in pairs_of(audit)]},
        },
        "split": {
            **split,
            "classes": {part: keys(counts) for part, counts in split["classes"].items()},
            "balance": balance
            and {**balance, "before": keys(balance["before"]), "after": keys(balance["after"])},
        },
        "evaluation": {
            **evaluation,
            "test": {**test, "per_class": keys(test["per_class"])},
            "mistakes": [case(item) for item in evaluation["mistakes"]],
            "label_suspects": [case(item) for item in evaluation["label_suspects"]],
            "external": [
                {**item, "lacking": [names.get(name, name) for name in item["lacking"]]}
                for item in evaluation["external"]
            ],
            "examples": examples
            and {kind: [case(item) for item in items] for kind, items in examples.items()},
        },
    }


def common_folder(report: dict[str, Any]) -> str:
    """The folder that all images named on the page lie in, ending in "/"; "" if there is none."""
    evaluation = report["evaluation"]
    cases = [*evaluation["mistakes"], *evaluation["label_suspects"]]
    cases += [case for items in (evaluation["examples"] or {}).values() for case in items]
    names = [case["image"] for case in cases]
    names += [pair[end] for pair in pairs_of(report["audit"]) for end in ("a", "b")]
    return folder_of(names)


def folder_of(names: list[str]) -> str:
    folders = {name.rpartition("/")[0] for name in names}
    return f"{folders.pop()}/" if len(folders) == 1 and folders != {""} else ""


def pairs_of(audit: dict[str, Any]) -> list[dict[str, Any]]:
    """Near-copies shown side by side."""
    return (audit["twins"] or {}).get("pairs") or []


def make_figures(report: dict[str, Any]) -> dict[str, Figure]:
    """Every figure that the (complete) report has numbers for, by name."""
    figures = (make(report) for make in FIGURES)
    return {figure.name: figure for figure in figures if figure}


def headlines(report: dict[str, Any]) -> list[dict[str, str | None]]:
    """Four numbers for the top of the page, each with the best cheap baseline beside it."""
    metrics = report["evaluation"]["test"]["metrics"]
    rival = report["baselines"].get("one_nearest_neighbour") or {}
    tiles = []
    for name in HEADLINES[bool(report["dataset"]["positive"])]:
        item = metrics.get(name)
        if item and item["value"] is not None:
            other = rival.get(name)
            tiles.append(
                {
                    "metric": name,
                    "name": SHORT_NAMES.get(name, words(name)),
                    "value": item["value"],
                    "low": item["low"],
                    "high": item["high"],
                    "rival": other["value"] if other else None,
                }
            )
    return tiles


def winner_values(search: dict[str, Any]) -> dict[str, str]:
    """The winner's hyperparameters by name, and which of them its refinement did not keep to."""
    refined = search["refinement"] and search["refinement"]["used"]
    return {
        name: brief(value) + (", until the refinement" if refined and name in UNTIL_REFINED else "")
        for name, value in search["best"]["params"].items()
    }


def natural_groups(report: dict[str, Any]) -> list[dict[str, Any]]:
    """Of 100 with the finding and of 100 without: how many the model called positive."""
    natural, positive = report["evaluation"]["natural"], report["dataset"]["positive"]
    if not natural or positive is None:
        return []
    found, alarms = natural["sensitivity_of_100"], natural["false_alarms_of_100"]
    groups = []
    for kind, item in (("found", found), ("alarm", alarms)):
        if item["value"] is None:
            return []
        called = round(item["value"])
        dots = [kind] * called + ["missed" if kind == "found" else "clear"] * (100 - called)
        groups.append(
            {
                "kind": kind,
                "count": called,
                "rest": 100 - called,
                "dots": dots,
                "low": whole(item["low"]),
                "high": whole(item["high"]),
            }
        )
    return groups


def whole(value: float | None) -> int | None:
    return None if value is None else round(value)


def class_recalls(report: dict[str, Any]) -> list[dict[str, Any]]:
    """Many classes: of 100 scans of each class, how many were called so."""
    rows = []
    for name, row in report["evaluation"]["test"]["per_class"].items():
        recall = row["recall"]
        if recall and recall["value"] is not None:
            rows.append(
                {
                    "name": name,
                    "count": round(100 * recall["value"]),
                    "low": whole(recall["low"] and 100 * recall["low"]),
                    "high": whole(recall["high"] and 100 * recall["high"]),
                }
            )
    return rows


def eighty_percent(report: dict[str, Any]) -> dict[str, Any] | None:
    """The reliability bin that holds 80 %, to say in words what such an answer meant.

    ``enough``: whether it has images enough for that.
    """
    curves = report["evaluation"]["test"]["curves"]
    after = curves and curves["reliability"] and curves["reliability"]["after"]
    for item in after["bins"] if after else []:
        if item["low"] is not None and item["low"] <= 0.8 + 1e-9 < item["high"] and item["count"]:
            return item | {"enough": item["count"] >= LEAST_SHARE_IMAGES}
    return None


def confusion_rows(report: dict[str, Any]) -> list[dict[str, Any]]:
    """True classes as rows: counts, shares of the row, and a shade from 0 to 4."""
    rows = []
    names = list(report["dataset"]["classes"])
    for i, (name, counts) in enumerate(
        zip(names, report["evaluation"]["test"]["confusion"], strict=False)
    ):
        total = sum(counts)
        cells = [
            {
                "count": count,
                "share": count / total if total else None,
                "right": i == j,
                "shade": round(4 * (count / total if total else 0)),
            }
            for j, count in enumerate(counts)
        ]
        rows.append({"name": name, "cells": cells, "total": total})
    return rows


def metric_table(report: dict[str, Any]) -> dict[str, Any]:
    """Metrics as rows; the model and every baseline as columns; the best of a row marked."""
    test = report["evaluation"]["test"]
    columns = {"This model": test["metrics"]}
    columns |= {words(k): v for k, v in report["baselines"].items() if k != "difference_to_1nn"}
    if test["without_twins"]:
        columns[f"Without near-copies ({test['without_twins']['images']} images)"] = (
            test["without_twins"]["metrics"] or {}
        )
    if test["group_level"]:
        patients = number(test["group_level"]["groups"])
        columns[f"One vote for each patient ({patients} patients)"] = (
            test["group_level"]["metrics"] or {}
        )
    rows = []
    for name in METRIC_NAMES:
        items = [values.get(name) for values in columns.values()]
        if any(items):
            rows.append(
                {
                    "name": words(name),
                    "lower": name in LOWER_IS_BETTER,
                    "metric": name,
                    "cells": [
                        {"value": number(item["value"]) if item else DASH, "span": span(item)}
                        for item in items
                    ],
                }
            )
    return {"columns": list(columns), "rows": rows}


def importance_of_picture(report: dict[str, Any]) -> list[str]:
    """Picture names, those that must not be missing first, each once."""
    evaluation, audit = report["evaluation"], report["audit"]
    cases = [
        case
        for kind in ("right", "missed", "false_alarm")
        for case in (evaluation["examples"] or {}).get(kind) or []
    ]
    cases += evaluation["mistakes"] + evaluation["label_suspects"]
    names = [case[key] for case in cases for key in ("picture", "saliency")]
    names += [pair[key] for pair in pairs_of(audit) for key in ("picture_a", "picture_b")]
    # Grid pictures in turns, so that a tight budget leaves some of every class.
    rows = list(report["dataset"]["grid"].values())
    names += [row[i] for i in range(max(map(len, rows), default=0)) for row in rows if i < len(row)]
    return list(dict.fromkeys(name for name in names if name))
