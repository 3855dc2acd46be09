"""Can the number be trusted? Conditions on a report, each a sentence with its number.

A condition fails where the headline result means nothing or something else than it says,
and calls for caution where a reader must know something before using it. The limits are
conventions, set here and printed with every sentence.
"""

from collections.abc import Callable
from typing import Any

from automl.reporting.formats import (
    brief,
    interval,
    number,
    plural,
    points,
    scientific,
    words,
)

LEVELS = ("pass", "caution", "fail")
# Wider than this and the second digit of a percentage is unknown.
WIDE_INTERVAL = 0.10
USELESS_INTERVAL = 0.30
CALIBRATED = 0.05
UNCALIBRATED = 0.20
NOTABLE_SHORTCUT = 0.70
MANY_FAILURES = 0.10
EXPORT_TOLERANCE = 1e-3
MOST_REASONS = 3
# What is wrong where a check did not pass, short enough for the top of the page.
REASONS = {
    "leaks": "near-copies of test images were used for training",
    "beats_copying": "it is not clearly better than copying the most similar training image",
    "better_than_chance": "it is not shown to be better than chance",
    "shortcuts": "simple image properties alone tell the classes apart",
    "precise_enough": "too few test images to know the result exactly",
    "calibrated": "its probabilities cannot be taken at their word",
    "tested_once": "the test set was used more than once",
    "patients_known": "it is not known which images belong to one patient",
    "inside_the_space": "the search ended at the edge of its range",
    "trials_completed": "many trials of the search failed",
    "pretrained": "it started from random weights, as a demonstration",
    "real_images": "the images are drawn, not real",
    "data_sound": "the audit found errors in the data",
    "export_equal": "the exported model is not the one that was tested",
}

Condition = dict[str, str]


def judge(report: dict[str, Any]) -> dict[str, Any]:
    """The verdict of a complete report (see ``page.complete``): level, sentence, conditions.

    Conditions come worst first; those that do not apply to the run are left out.
    """
    conditions = []
    for check in CHECKS:
        answer = check(report)
        if answer:
            level, text, anchor = answer
            conditions.append(
                {"check": check.__name__, "level": level, "text": text, "anchor": anchor}
            )
    conditions.sort(key=lambda condition: -LEVELS.index(condition["level"]))
    level = conditions[0]["level"]
    return {"level": level, "sentence": summarise(conditions), "conditions": conditions}


def summarise(conditions: list[Condition]) -> str:
    """Two sentences for the top of the page: what to do with the result, and why."""
    total = plural(len(conditions), "check")
    worst = conditions[0]["level"]
    if worst == "pass":
        return f"All {total} passed: as trustworthy as one test set can make a result."
    reasons = [REASONS[item["check"]] for item in conditions if item["level"] == worst]
    why = "; ".join(reasons[:MOST_REASONS])
    if len(reasons) > MOST_REASONS:
        why += f"; and {len(reasons) - MOST_REASONS} more"
    if worst == "fail":
        return f"Do not rely on this result: {why}. {len(reasons)} of {total} failed."
    return f"Read this result with care: {why}. {len(reasons)} of {total} ask for caution."


Answer = tuple[str, str, str] | None


def leaks(report: dict[str, Any]) -> Answer:
    pairs = report["split"]["leaking_pairs"]
    if not pairs:
        text = "No test image has a known near-copy in the training or validation images (0 pairs)."
        return "pass", text, "split"
    text = (
        f"{plural(pairs, 'pair')} of near-copies lie across train, validation and test: the model "
        "has seen images that it is tested on."
    )
    clean = report["evaluation"]["test"]["without_twins"]
    if clean and clean["metrics"].get("accuracy"):
        accuracy = interval(clean["metrics"]["accuracy"])
        text += f" Without them the accuracy is {accuracy}."
    return "fail", text, "split"


def better_than_chance(report: dict[str, Any]) -> Answer:
    auc = report["evaluation"]["test"]["metrics"].get("roc_auc")
    if not auc or auc["value"] is None:
        return "caution", "The ROC AUC could not be computed on this test set.", "test"
    if auc["low"] is not None and auc["low"] > 0.5:
        return "pass", f"Better than chance: ROC AUC {interval(auc)} against 0.5.", "test"
    return "fail", f"No better than chance: ROC AUC {interval(auc)} includes 0.5.", "test"


def beats_copying(report: dict[str, Any]) -> Answer:
    difference = (report["baselines"].get("difference_to_1nn") or {}).get("accuracy")
    if not difference or difference["value"] is None:
        text = "Not compared with copying the label of the most similar training image."
        return "caution", text, "baselines"
    value, low, high = (number(100 * difference[key], 1) for key in ("value", "low", "high"))
    points = f"{value} percentage points (95\u202f% interval {low} to {high})"
    if difference["low"] > 0:
        text = f"Beats copying the most similar training image by {points} of accuracy."
        return "pass", text, "baselines"
    text = "Not clearly better than copying the most similar training image: accuracy differs by "
    text += f"{points}."
    return ("caution" if difference["value"] > 0 else "fail"), text, "baselines"


def shortcuts(report: dict[str, Any]) -> Answer:
    found = report["audit"]["shortcuts"]
    if not found or found["auc"] is None:
        return None
    auc = interval({"value": found["auc"], "low": found["low"], "high": found["high"]})
    model = report["evaluation"]["test"]["metrics"].get("roc_auc") or {}
    if model.get("low") is not None and (found["high"] or found["auc"]) >= model["low"]:
        text = f"Simple image properties alone reach AUC {auc}, as much as the model: it may read "
        return "fail", text + "those.", "shortcuts"
    if found["auc"] >= NOTABLE_SHORTCUT:
        text = f"Simple image properties alone tell the classes apart with AUC {auc} (notable from "
        return (
            "caution",
            text + f"{NOTABLE_SHORTCUT:.2f}): the classes may differ in origin.",
            "shortcuts",
        )
    text = f"Simple image properties alone do not tell the classes apart well: AUC {auc}, below "
    return "pass", text + f"{NOTABLE_SHORTCUT:.2f}.", "shortcuts"


def precise_enough(report: dict[str, Any]) -> Answer:
    found = report["evaluation"]["test"]["metrics"]
    widths = {
        name: found[name]["high"] - found[name]["low"]
        for name in ("recall", "specificity", "roc_auc")
        if found.get(name) and None not in (found[name]["low"], found[name]["high"])
    }
    if not widths:
        return "caution", "No intervals: how precise the result is remains unknown.", "test"
    name = max(widths, key=widths.__getitem__)
    label = {"recall": "sensitivity", "roc_auc": "ROC AUC"}.get(name, name)
    text = f"The widest of the headline intervals ({label}) spans {points(widths[name])}"
    limit = f"{100 * WIDE_INTERVAL:.0f}"
    if widths[name] <= WIDE_INTERVAL:
        return "pass", f"{text}, within {limit}.", "test"
    level = "fail" if widths[name] > USELESS_INTERVAL else "caution"
    return level, f"{text}, more than {limit}: more test images are needed.", "test"


def calibrated(report: dict[str, Any]) -> Answer:
    error = report["evaluation"]["test"]["metrics"].get("ece")
    if not error or error["value"] is None:
        return None
    value = points(error["value"])
    if error["value"] <= CALIBRATED:
        text = f"Probabilities can be taken at their word: off by {value} on average (ECE)."
        return "pass", text, "calibration"
    level = "fail" if error["value"] > UNCALIBRATED else "caution"
    text = f"Probabilities are off by {value} on average (ECE, limit {100 * CALIBRATED:.0f})"
    if error["low"] is not None and error["low"] <= CALIBRATED:
        low, high = (number(100 * error[side], 1) for side in ("low", "high"))
        text += f", perhaps by chance: the 95\u202f% interval is {low} to {high}"
    text += "."
    return level, text, "calibration"


def tested_once(report: dict[str, Any]) -> Answer:
    count = report["evaluation"]["test"]["test_evaluations"]
    if count == 1:
        return (
            "pass",
            "The test set was used once, after everything was chosen.",
            "test",
        )
    text = f"The test set was evaluated {count} times: the result may be a little too good."
    return "caution", text, "test"


def inside_the_space(report: dict[str, Any]) -> Answer:
    edges = report["search"]["edges"]
    if not edges:
        return "pass", "The winner lies inside the search space (0 values at an edge).", "winner"
    names = ", ".join(
        f"{words(edge['name'])} = {brief(edge['value'])} ({edge['edge']}est)" for edge in edges
    )
    names = names.replace("(lowest)", "(the lowest)").replace("(highest)", "(the highest)")
    text = (
        f"The winner lies at the edge of the search space: {names}. A wider space may hold better."
    )
    return "caution", text, "winner"


def trials_completed(report: dict[str, Any]) -> Answer:
    failed, trials = report["search"]["failed"], max(report["search"]["trials"], 1)
    text = f"{failed} of {plural(trials, 'trial')} failed."
    if failed <= MANY_FAILURES * trials:
        return "pass", text, "failures"
    return "caution", f"{text} The search saw only part of its space.", "failures"


def pretrained(report: dict[str, Any]) -> Answer:
    weights = report["run"]["weights"]
    if weights != "none":
        return "pass", f"The backbone starts from trained weights ({weights}).", "reproduce"
    text = "The backbone starts from random weights: a demonstration, far below what it can do."
    return "caution", text, "reproduce"


def real_images(report: dict[str, Any]) -> Answer:
    if not (report["run"]["synthetic"] or report["dataset"]["synthetic"]):
        return None
    text = f"All {report['dataset']['images']:,} images are drawn: nothing follows for patients."
    return "caution", text, "data"


def patients_known(report: dict[str, Any]) -> Answer:
    kind, groups = report["dataset"]["group_kind"], report["dataset"]["groups"]
    if not kind or groups is None or kind == "images":
        text = "Patients are not known, so images of one patient may be in train and test."
        return "caution", text, "split"
    if kind == "patients":
        return "pass", f"Each of {plural(groups, 'patient')} is on one side of the split.", "split"
    if "patient" in kind:
        text = f"Every patient is on one side of the split: {groups:,} patients, those with "
        return "pass", f"{text}near-copies of each other counted as one.", "split"
    text = (
        f"Patients are not known; {groups:,} groups of near-copies were kept whole "
        "instead. If one patient has several scans, the intervals are too narrow."
    )
    return "caution", text, "split"


def data_sound(report: dict[str, Any]) -> Answer:
    errors = [item for item in report["audit"]["findings"] if item["severity"] == "error"]
    if not errors:
        return "pass", "The data audit found 0 errors.", "data"
    return (
        "caution",
        f"The data audit found {plural(len(errors), 'error')}: {errors[0]['title']}",
        "data",
    )


def export_equal(report: dict[str, Any]) -> Answer:
    # A rounded format is another model on purpose: its own line in the table says how far.
    checked = [
        item
        for item in report["cost"]["exports"] or []
        if item["parity"] and item["format"] not in ("tflite_float16", "tflite_int8")
    ]
    gaps = [item["parity"]["max_difference"] for item in checked]
    gaps = [gap for gap in gaps if gap is not None]
    if not gaps:
        return None
    text = (
        "Exported models differ from the evaluated one by at most "
        f"{scientific(max(gaps))} in probability"
    )
    if max(gaps) <= EXPORT_TOLERANCE:
        return "pass", f"{text} (limit {EXPORT_TOLERANCE:g}).", "cost"
    return (
        "fail",
        f"{text}, more than {EXPORT_TOLERANCE:g}: what is deployed was not tested.",
        "cost",
    )


CHECKS: tuple[Callable[[dict[str, Any]], Answer], ...] = (
    leaks,
    beats_copying,
    better_than_chance,
    shortcuts,
    precise_enough,
    calibrated,
    tested_once,
    patients_known,
    inside_the_space,
    trials_completed,
    pretrained,
    real_images,
    data_sound,
    export_equal,
)
