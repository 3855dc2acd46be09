"""ROC and precision-recall curves on a fixed grid, with pointwise 95 % bands."""

import numpy as np

from automl.evaluation.intervals import (
    draw_copies,
    effective_size,
    group_codes,
    standard_error,
    wilson_interval,
)

GRID = np.linspace(0.0, 1.0, 101)
# A band needs fewer replicates than an interval that is printed with three digits.
RESAMPLES = 500


def curve_bands(
    y_true: np.ndarray,
    probabilities: np.ndarray,
    groups: np.ndarray | None = None,
    seed: int = 0,
    positive_index: int = 1,
) -> dict[str, dict[str, np.ndarray] | None]:
    """Both curves at 101 places; None where no class has positives and negatives.

    ``roc``: the highest true-positive rate at no more than each false-positive rate. ``pr``: the
    precision at the highest threshold with at least each recall. Two classes: of the positive
    one; more: the mean over classes (macro, one versus rest).

    Returns:
        ``{"roc": {fpr, tpr, low, high}, "pr": {recall, precision, low, high}}``, arrays (101,).
    """
    codes = group_codes(groups, len(y_true))
    n_classes = probabilities.shape[1]
    classes = [positive_index] if n_classes == 2 else range(n_classes)
    members = [y_true == index for index in classes]
    usable = [
        (positive, probabilities[:, index])
        for index, positive in zip(classes, members, strict=True)
        if positive.any() and not positive.all()
    ]
    if not usable:
        return {"roc": None, "pr": None}
    once = np.ones((1, len(codes)))
    curves = _mean_curves(usable, once)[:, 0]
    drawn = np.concatenate(
        [_mean_curves(usable, copies[:, codes]) for copies in draw_copies(codes, RESAMPLES, seed)],
        axis=1,
    )
    smallest = min(effective_size(codes[positive]) for positive, _ in usable)
    (roc_low, roc_high), (pr_low, pr_high) = (
        np.array(
            [
                _limits(float(value), replicates[:, place], smallest)
                for place, value in enumerate(curve)
            ]
        ).T
        for curve, replicates in zip(curves, drawn, strict=True)
    )
    # The true curve rises, so what bounds it at one place bounds it further on.
    roc_low = np.maximum.accumulate(roc_low)
    roc_high = np.minimum.accumulate(roc_high[::-1])[::-1]
    return {
        "roc": {"fpr": GRID, "tpr": curves[0], "low": roc_low, "high": roc_high},
        "pr": {"recall": GRID, "precision": curves[1], "low": pr_low, "high": pr_high},
    }


def _limits(value: float, replicates: np.ndarray, size: float) -> tuple[float, float]:
    """Wilson's interval for the images that the replicates' spread stands for, at most ``size``.

    A step of the curve close to 1 has a wide spread for its height; on the logit scale, which
    `intervals` uses for single numbers, its band would reach down to nothing.
    """
    spread = standard_error(replicates) ** 2
    share = value * (1 - value)
    return wilson_interval(value, min(share / spread, size) if spread > 0 and share > 0 else size)


def _mean_curves(classes: list[tuple[np.ndarray, np.ndarray]], weights: np.ndarray) -> np.ndarray:
    """ROC and PR on the grid for each row of ``weights`` (b, n), (2, b, 101)."""
    return np.mean([_curves(positive, scores, weights) for positive, scores in classes], axis=0)


def _curves(positive: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
    order = np.argsort(-scores, kind="stable")
    ordered = weights[:, order]
    # Only the last image of those with the same score is a point of the curve.
    last = np.r_[np.diff(scores[order]) != 0, True]
    hits = np.cumsum(ordered * positive[order], axis=1)[:, last]
    seen = np.cumsum(ordered, axis=1)[:, last]
    result = np.full((2, len(weights), len(GRID)), np.nan)
    for row, (hit, all_) in enumerate(zip(hits, seen, strict=True)):
        n_positive, n_negative = hit[-1], all_[-1] - hit[-1]
        if n_positive == 0 or n_negative == 0:
            continue
        recall, false_positive = hit / n_positive, (all_ - hit) / n_negative
        place = np.searchsorted(false_positive, GRID + 1e-12, side="right") - 1
        result[0, row] = np.where(place >= 0, recall[np.maximum(place, 0)], 0.0)
        first = max(int(np.searchsorted(recall, 1e-12)), 0)
        place = np.maximum(np.searchsorted(recall, GRID - 1e-12), first)
        result[1, row] = (hit / np.where(all_ > 0, all_, 1.0))[np.minimum(place, len(hit) - 1)]
    return result
