"""One finished model against one test set: everything the report says about it, as numbers."""

from collections import Counter
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from automl.evaluation.calibration import reliability
from automl.evaluation.cases import (
    MAX_SUSPECTS,
    example_rows,
    label_suspects,
    make_cases,
    worst_mistakes,
)
from automl.evaluation.curves import curve_bands
from automl.evaluation.intervals import (
    RESAMPLES,
    Interval,
    bootstrap_difference,
    bootstrap_metrics,
    bootstrap_ratio,
    group_codes,
)
from automl.evaluation.metrics import predict_classes, weighted_confusion
from automl.evaluation.plain import to_json
from automl.evaluation.thresholds import (
    POLICIES,
    choose_threshold,
    decision_curve,
    values_by_prevalence,
)

SUBGROUP_METRIC = "accuracy"
SMALLEST_SUBGROUP = 10
SUBGROUP_RESAMPLES = 500
MOST_VALUES, MOST_ATTRIBUTES = 8, 12
# Finer where a good model gives most of its answers.
CONFIDENCES = (0.0, 0.5, 0.7, 0.9, 0.95, 0.99, 1.0)

Metrics = dict[str, Interval]
# Names (n,), given labels int (n,), and probabilities (n, k) of images.
Answers = tuple[Sequence[str], np.ndarray, np.ndarray]


def evaluate_model(
    *,
    classes: Sequence[str],
    positive: str | None,
    y_val: np.ndarray,
    p_val: np.ndarray,
    y_test: np.ndarray,
    p_test: np.ndarray,
    images_test: Sequence[str],
    threshold: float | None,
    groups_test: np.ndarray | None = None,
    group_kind: str = "images",
    patients_test: np.ndarray | None = None,
    p_test_before: np.ndarray | None = None,
    temperature: float = 1.0,
    without_twins: np.ndarray | None = None,
    attributes: dict[str, Sequence[str | None]] | None = None,
    baselines: dict[str, np.ndarray] | None = None,
    policies: Sequence[str] = POLICIES,
    out_of_sample: Answers | None = None,
    test_evaluations: int = 1,
    seed: int = 0,
    progress: Callable[[str, int, int], None] | None = None,
) -> dict[str, Any]:
    """The "evaluation" and "baselines" parts of report.json, JSON-ready; undefined is None.

    Robustness, saliency and external sets are added by whoever has the model; pictures by
    whoever writes them.

    Args:
        classes: names by index; with two, ``positive`` names one of them, with more it is None.
        y_val, p_val: validation labels int (m,) and probabilities (m, k): thresholds come from
            here, after temperature scaling.
        y_test, p_test: test labels int (n,) and probabilities (n, k), after temperature scaling.
        images_test: the images' names, (n,).
        threshold: of the positive class, chosen on validation; None for more than two classes.
        groups_test: int (n,), what intervals resample; None: every image by itself.
        group_kind: images, near-duplicates, patients or both, as the page says it.
        patients_test: int (n,), to be evaluated by one vote each; None where they are unknown.
        p_test_before: test probabilities without temperature scaling (n, k), for the diagram.
        without_twins: bool (n,), True for the images to keep when near-copies are left out.
        attributes: columns for subgroups, each (n,).
        baselines: probabilities (n, k) of other ways to predict, by name.
        out_of_sample: images of the other parts with the answers of something that was not
            trained on them, to look for wrong labels there, too.
        test_evaluations: how often this test set has been used, this time included.
    """
    binary = len(classes) == 2
    assert binary == (positive is not None), "two classes have a positive one, more have none"
    positive_index = list(classes).index(positive) if binary else 1
    threshold = threshold if binary else None
    baselines = baselines or {}
    steps = 4 + len(baselines)

    def report(done: int) -> None:
        if progress is not None:
            progress("evaluating", done, steps)

    def measure(keep: np.ndarray | slice = slice(None), draws: int = RESAMPLES) -> Metrics:
        units = None if groups_test is None else groups_test[keep]
        given = (y_test[keep], p_test[keep], threshold, units, seed, positive_index)
        return bootstrap_metrics(*given, resamples=draws)

    report(0)
    predicted = predict_classes(p_test, threshold, positive_index)
    metrics = measure()
    once = np.ones((1, len(y_test)))
    test = {
        "images": len(y_test),
        "groups": len(np.unique(group_codes(groups_test, len(y_test)))),
        "group_kind": group_kind,
        "metrics": metrics,
        "threshold": threshold,
        "confusion": weighted_confusion(y_test, predicted, once, len(classes))[0].astype(int),
        "per_class": rates_by_class(classes, y_test, predicted, groups_test, seed),
        "curves": {
            **curve_bands(y_test, p_test, groups_test, seed, positive_index),
            "reliability": {
                "before": None
                if p_test_before is None
                else reliability(y_test, p_test_before, groups_test, positive_index),
                "after": reliability(y_test, p_test, groups_test, positive_index),
            },
        },
        "temperature": temperature,
        "test_evaluations": test_evaluations,
        "without_twins": None,
        "group_level": None,
    }
    report(1)
    if without_twins is not None and without_twins.any() and not without_twins.all():
        test["without_twins"] = {
            "images": int(without_twins.sum()),
            "metrics": measure(without_twins),
        }
    if patients_test is not None:
        of = positive_index if binary else None
        labels, means = by_group(y_test, p_test, patients_test, of)
        # What patients are resampled with: those whose images are near-copies go together.
        firsts = np.unique(patients_test, return_index=True)[1]
        units = None if groups_test is None else groups_test[firsts]
        test["group_level"] = {
            "groups": len(labels),
            "metrics": bootstrap_metrics(labels, means, threshold, units, seed, positive_index),
        }
    report(2)
    named = (images_test, classes, y_test, predicted, p_test)
    examples = example_rows(y_test, predicted, p_test, positive_index if binary else None)
    evaluation: dict[str, Any] = {
        "test": test,
        "thresholds": [],
        "natural": None,
        "ppv_by_prevalence": [],
        "decision_curve": [],
        "confidence": errors_by_confidence(y_test, predicted, p_test, groups_test, seed),
        "mistakes": make_cases(worst_mistakes(y_test, predicted, p_test), *named),
        "examples": {name: make_cases(rows, *named) for name, rows in examples.items()},
        "label_suspects": suspect_cases(
            classes, (images_test, y_test, p_test), *([out_of_sample] if out_of_sample else [])
        ),
        "subgroups": subgroup_rows(
            attributes or {}, lambda keep: measure(keep, SUBGROUP_RESAMPLES)
        ),
        "robustness": [],
        "external": [],
    }
    report(3)
    if binary:
        is_positive, scores = y_test == positive_index, p_test[:, positive_index]
        evaluation["thresholds"] = [
            {
                "policy": policy,
                **operating_point(
                    choose_threshold(y_val == positive_index, p_val[:, positive_index], policy),
                    is_positive,
                    scores,
                    groups_test,
                    seed,
                ),
            }
            for policy in policies
        ]
        sensitivity, specificity = metrics["recall"], metrics["specificity"]
        evaluation["natural"] = natural_frequencies(sensitivity, specificity)
        if not np.isnan(sensitivity["value"] + specificity["value"]):
            evaluation["ppv_by_prevalence"] = values_by_prevalence(
                sensitivity["value"], specificity["value"]
            )
        evaluation["decision_curve"] = decision_curve(is_positive, scores)
    others: dict[str, Any] = {}
    for done, (name, probabilities) in enumerate(baselines.items()):
        report(4 + done)
        others[name] = bootstrap_metrics(
            y_test, probabilities, 0.5 if binary else None, groups_test, seed, positive_index
        )
    if "one_nearest_neighbour" in baselines:
        others["difference_to_1nn"] = bootstrap_difference(
            y_test,
            p_test,
            baselines["one_nearest_neighbour"],
            (threshold, 0.5 if binary else None),
            groups_test,
            seed,
            positive_index,
        )
    report(steps)
    return to_json({"evaluation": evaluation, "baselines": others})


def operating_point(
    threshold: float,
    positive: np.ndarray,
    scores: np.ndarray,
    groups: np.ndarray | None,
    seed: int,
) -> dict[str, Any]:
    """Sensitivity, specificity, PPV and NPV at ``threshold``, with intervals."""
    called = scores >= threshold
    sides = {
        "sensitivity": (called & positive, positive),
        "specificity": (~called & ~positive, ~positive),
        "ppv": (called & positive, called),
        "npv": (~called & ~positive, ~called),
    }
    rates = {
        name: bootstrap_ratio(top, bottom, groups, seed) for name, (top, bottom) in sides.items()
    }
    return {"threshold": threshold, **rates}


def rates_by_class(
    classes: Sequence[str],
    y_true: np.ndarray,
    predicted: np.ndarray,
    groups: np.ndarray | None,
    seed: int,
) -> dict[str, dict[str, Any]]:
    """Each class against the rest: precision, recall, specificity, F1, and its image count."""
    table = {}
    for index, name in enumerate(classes):
        true, called = y_true == index, predicted == index
        hits = true & called
        table[name] = {
            "precision": bootstrap_ratio(hits, called, groups, seed),
            "recall": bootstrap_ratio(hits, true, groups, seed),
            "specificity": bootstrap_ratio(~true & ~called, ~true, groups, seed),
            "f1": bootstrap_ratio(2.0 * hits, true.astype(float) + called, groups, seed),
            "support": int(true.sum()),
        }
    return table


def errors_by_confidence(
    y_true: np.ndarray,
    predicted: np.ndarray,
    probabilities: np.ndarray,
    groups: np.ndarray | None,
    seed: int,
) -> list[dict[str, Any]]:
    """How often answers of each confidence are wrong, and how often they should be.

    An answer's confidence is the probability (n, k) of the class it names; with a threshold
    that may be below one half. ``expected`` is the mean of what the confidence leaves open.

    Returns:
        rows ``{low, high, images, errors, rate, expected}``, those without an image left out.
    """
    confidence = probabilities[np.arange(len(y_true)), predicted]
    wrong = predicted != y_true
    rows = []
    for low, high in pairwise(CONFIDENCES):
        inside = (confidence >= low) & ((confidence < high) | (high == 1.0))
        if inside.any():
            rows.append(
                {
                    "low": low,
                    "high": high,
                    "images": int(inside.sum()),
                    "errors": int((wrong & inside).sum()),
                    "rate": bootstrap_ratio(wrong & inside, inside, groups, seed),
                    "expected": float((1 - confidence[inside]).mean()),
                }
            )
    return rows


def natural_frequencies(sensitivity: Interval, specificity: Interval) -> dict[str, Interval]:
    """Of 100 positives, how many are found; of 100 negatives, how many raise a false alarm."""
    return {
        "sensitivity_of_100": {key: 100 * value for key, value in sensitivity.items()},
        "false_alarms_of_100": {
            "value": 100 * (1 - specificity["value"]),
            "low": 100 * (1 - specificity["high"]),
            "high": 100 * (1 - specificity["low"]),
        },
    }


def by_group(
    y_true: np.ndarray,
    probabilities: np.ndarray,
    groups: np.ndarray,
    positive_index: int | None,
) -> tuple[np.ndarray, np.ndarray]:
    """Labels int (G,) and mean probabilities (G, k), one row for each patient.

    A patient with any positive image is positive; with more than two classes the most frequent
    label counts, the first of equals.
    """
    codes = group_codes(groups, len(y_true))
    counts = np.zeros((codes.max() + 1, probabilities.shape[1]))
    np.add.at(counts, (codes, y_true), 1)
    means = np.zeros_like(counts)
    np.add.at(means, codes, probabilities)
    means /= counts.sum(axis=1, keepdims=True)
    labels = counts.argmax(axis=1)
    if positive_index is not None:
        labels = np.where(counts[:, positive_index] > 0, positive_index, 1 - positive_index)
    return labels, means


def suspect_cases(classes: Sequence[str], *sources: Answers) -> list[dict[str, Any]]:
    """Images whose label may be wrong, the most suspect of all ``sources`` first.

    Each source has its own idea of how sure is sure. ``predicted`` is what it takes them for.
    """
    found = []
    for images, y_true, probabilities in sources:
        rows, margins = label_suspects(y_true, probabilities)
        guesses = probabilities.argmax(axis=1)
        cases = make_cases(rows, images, classes, y_true, guesses, probabilities)
        found += zip(margins, cases, strict=True)
    found.sort(key=lambda pair: -pair[0])
    return [case for _, case in found[:MAX_SUSPECTS]]


def subgroup_rows(
    attributes: dict[str, Sequence[str | None]],
    measure: Callable[[np.ndarray], Metrics],
) -> list[dict[str, Any]]:
    """The metrics of each subgroup of at least ten images; see `subgroup_values`."""
    rows = []
    for attribute, column in list(attributes.items())[:MOST_ATTRIBUTES]:
        values = subgroup_values(column)
        counts = Counter(value for value in values if value is not None)
        names = sorted(name for name, _ in counts.most_common(MOST_VALUES))
        for name in names:
            keep = np.array([value == name for value in values])
            if keep.sum() < SMALLEST_SUBGROUP or len(names) < 2:
                continue
            metrics = measure(keep)
            rows.append(
                {
                    "attribute": attribute,
                    "value": name,
                    "images": int(keep.sum()),
                    "name": SUBGROUP_METRIC,
                    "metric": metrics[SUBGROUP_METRIC],
                    "metrics": metrics,
                }
            )
    return rows


def subgroup_values(column: Sequence[str | None]) -> list[str | None]:
    """The column as it is, or as thirds if it holds more than eight different numbers."""
    known = [value for value in column if value not in (None, "")]
    try:
        numbers = np.array([float(value) for value in known])
    except ValueError:
        numbers = np.array([])
    if len(set(known)) <= MOST_VALUES or len(numbers) == 0 or not np.isfinite(numbers).all():
        return [value if value not in (None, "") else None for value in column]
    low, high = np.quantile(numbers, [1 / 3, 2 / 3])
    names = (f"1: up to {low:.4g}", f"2: {low:.4g} to {high:.4g}", f"3: above {high:.4g}")
    return [
        None if value in (None, "") else names[int(float(value) > low) + int(float(value) > high)]
        for value in column
    ]
