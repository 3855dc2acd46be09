"""Where to draw the line: operating points, what they cost, and what they are worth.

A threshold is chosen on the validation set and only judged on the test set. An image is
positive when its probability is at least the threshold. All scores here are the positive
class' probabilities, float (n,) in [0, 1]; ``positive`` is bool (n,).
"""

import numpy as np
from scipy.special import expit, logit

from automl.errors import UsageError
from automl.evaluation.metrics import SMALLEST_PROBABILITY

POLICIES = ("youden", "sensitivity:0.95", "specificity:0.95", "cost:5/1")
# As many rows as fit on one page of plain words; closest where the values change fastest.
PREVALENCES = (0.001, 0.005, 0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.7, 0.9)


def choose_threshold(positive: np.ndarray, scores: np.ndarray, policy: str = "youden") -> float:
    """The threshold that ``policy`` picks on a validation set, in [0, 1].

    Of equally good thresholds the middle of the widest gap between scores is taken: there it is
    the least likely that an image a hair different falls on the other side.

    Args:
        policy: ``youden`` (most sensitivity + specificity, by `balanced_boundary`),
            ``sensitivity:0.95`` (the most specificity with at least that sensitivity),
            ``specificity:0.95`` (the reverse), ``cost:5/1`` (least cost, a missed case : a false
            alarm), ``fixed:0.5``.

    Raises:
        UsageError: the policy is not one of these, or its number is out of range.
    """
    name, number = parse_policy(policy)
    positive, scores = np.asarray(positive, dtype=bool), np.asarray(scores, dtype=np.float64)
    if name == "fixed":
        return number
    if positive.all() or not positive.any():
        return 0.5
    if name == "youden":
        return balanced_boundary(positive, scores)
    cuts, gaps, hits, rejections = operating_points(positive, scores)
    sensitivity, specificity = hits / positive.sum(), rejections / (~positive).sum()
    if name == "sensitivity":
        # A target that n images cannot hit exactly is met from above.
        merit = np.where(sensitivity >= number - 1e-12, 1 + specificity, sensitivity)
    elif name == "specificity":
        merit = np.where(specificity >= number - 1e-12, 1 + sensitivity, specificity)
    else:
        merit = -(number * (positive.sum() - hits) + ((~positive).sum() - rejections))
    best = np.flatnonzero(merit >= merit.max() - 1e-12)
    return float(cuts[best[np.argmax(gaps[best])]])


def balanced_boundary(positive: np.ndarray, scores: np.ndarray) -> float:
    """Where a positive and a negative image are equally likely to have the score, in [0, 1].

    There sensitivity + specificity is at its maximum (Youden 1950). The score at which the sum
    is highest on the images at hand is a noisy estimate of it: with an accuracy of .98 it hangs
    on the two or three images nearest to it. So a logistic curve of the scores' logits is fitted
    to all of them, each class with half of the weight, and crosses one half there.

    Both classes must be present. Where scores rank no better than chance there is no such place:
    0.5 then.
    """
    from sklearn.linear_model import LogisticRegression

    logits = logit(np.clip(scores, SMALLEST_PROBABILITY, 1 - SMALLEST_PROBABILITY))
    curve = LogisticRegression(class_weight="balanced").fit(logits[:, None], positive)
    slope, intercept = float(curve.coef_[0, 0]), float(curve.intercept_[0])
    return float(expit(-intercept / slope)) if slope > 0 else 0.5


def parse_policy(policy: str) -> tuple[str, float]:
    """``"cost:5/1"`` → ("cost", 5.0); ``"youden"`` → ("youden", nan)."""
    name, _, text = policy.partition(":")
    try:
        if name == "youden" and not text:
            return name, float("nan")
        if name in ("sensitivity", "specificity", "fixed") and 0 <= float(text) <= 1:
            return name, float(text)
        if name == "cost":
            miss, _, alarm = text.partition("/")
            ratio = float(miss) / float(alarm or 1)
            if 0 < ratio < np.inf:
                return name, ratio
    except (ValueError, ZeroDivisionError):
        pass
    raise UsageError(
        f"Threshold policy {policy!r} is not known. Allowed: youden, sensitivity:S and "
        "specificity:S with S from 0 to 1, cost:MISS/ALARM such as cost:5/1, fixed:T."
    )


def operating_points(
    positive: np.ndarray, scores: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Every way to divide the scores in two, thresholds ascending.

    Returns:
        thresholds halfway between neighbouring scores (m,), the width of the gap each lies in,
        positives at or above it, and negatives below it.
    """
    values = np.unique(scores)
    edges = np.r_[min(0.0, values[0]), values, max(1.0, values[-1])]
    cuts, gaps = (edges[:-1] + edges[1:]) / 2, np.diff(edges)
    # A threshold at the lowest possible score calls everything positive.
    cuts[0] = edges[0]
    hits = positive.sum() - np.searchsorted(np.sort(scores[positive]), cuts)
    rejections = np.searchsorted(np.sort(scores[~positive]), cuts)
    return cuts, gaps, hits, rejections


def net_benefit(positive: np.ndarray, scores: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """Vickers & Elkin 2006 (doi 10.1177/0272989X06295361): TP/n - FP/n · t/(1-t), (m,).

    ``thresholds`` in (0, 1) are probabilities at which one would act.
    """
    called = scores[None, :] >= thresholds[:, None]
    hits = (called & positive).mean(axis=1)
    alarms = (called & ~positive).mean(axis=1)
    return hits - alarms * thresholds / (1 - thresholds)


def decision_curve(positive: np.ndarray, scores: np.ndarray) -> list[dict[str, float]]:
    """Net benefit of the model, of treating all and of treating none at 0.01 … 0.99."""
    thresholds = np.arange(1, 100) / 100
    model = net_benefit(positive, scores, thresholds)
    everyone = net_benefit(positive, np.ones_like(scores), thresholds)
    return [
        {"threshold": float(cut), "model": float(ours), "all": float(all_), "none": 0.0}
        for cut, ours, all_ in zip(thresholds, model, everyone, strict=True)
    ]


def predictive_values(
    sensitivity: float, specificity: float, prevalence: float
) -> tuple[float | None, float | None]:
    """PPV and NPV at another prevalence, by Bayes' rule; None where no one is called so."""
    hits, misses = sensitivity * prevalence, (1 - sensitivity) * prevalence
    alarms, rejections = (1 - specificity) * (1 - prevalence), specificity * (1 - prevalence)
    ppv = hits / (hits + alarms) if hits + alarms > 0 else None
    npv = rejections / (rejections + misses) if rejections + misses > 0 else None
    return ppv, npv


def values_by_prevalence(sensitivity: float, specificity: float) -> list[dict[str, float | None]]:
    """PPV and NPV at each of PREVALENCES (0.1 % to 90 %)."""
    rows = []
    for prevalence in PREVALENCES:
        ppv, npv = predictive_values(sensitivity, specificity, prevalence)
        rows.append({"prevalence": prevalence, "ppv": ppv, "npv": npv})
    return rows
