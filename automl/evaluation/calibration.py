"""Do the probabilities mean what they say? Temperature, prior correction, reliability bins.

Training on an oversampled set teaches the model the wrong prevalence. Two corrections follow,
in this order: add the known change of the log prior to the logits (`prior_shift` to the
`class_mixture` of validation; Saerens, Latinne & Decaestecker 2002, doi
10.1162/089976602753284446), then divide by one temperature fitted on the validation set
(`fit_temperature`; Guo et al. 2017, arXiv 1706.04599). For two classes neither changes the order
of the images, so ROC AUC stays as it was.
"""

from typing import Any

import numpy as np
from scipy.optimize import minimize_scalar

from automl.evaluation.intervals import effective_size, wilson_interval
from automl.evaluation.metrics import (
    ECE_BINS,
    SMALLEST_PROBABILITY,
    bin_index,
    confidence_and_outcome,
    weighted_ece,
)

# So many images must a validation set have before its own mixture of classes counts for more than
# training's: with fewer it is chance.
MIXTURE_IMAGES = 20
LOWEST_TEMPERATURE, HIGHEST_TEMPERATURE = 0.05, 20.0


def fit_temperature(logits: np.ndarray, y_true: np.ndarray) -> float:
    """The T > 0 for which softmax(logits / T) has the least log loss on ``y_true``.

    A validation set without a single mistake would ask for T → 0 and so for probabilities of
    0 and 1. A weak prior, log T ~ N(0, 1), weighs as much as a handful of images and keeps T
    finite there; with a few hundred images it moves T by less than a hundredth.

    Args:
        logits: (n, k), or (n,) or (n, 1) for the positive class of two (index 1).
        y_true: class indices, int (n,).

    Returns:
        T in [0.05, 20]; 1.0 for an empty set.
    """
    if len(y_true) == 0:
        return 1.0
    logits = full_logits(logits)

    def penalised_loss(log_temperature: float) -> float:
        scaled = logits / np.exp(log_temperature)
        loss = np.sum(_log_sum_exp(scaled) - scaled[np.arange(len(y_true)), y_true])
        return float(loss + 0.5 * log_temperature**2)

    # The log loss is convex in 1/T and so has one minimum; the prior does not add another
    # that a coarse grid would miss.
    grid = np.log(np.geomspace(LOWEST_TEMPERATURE, HIGHEST_TEMPERATURE, 61))
    best = int(np.argmin([penalised_loss(value) for value in grid]))
    low, high = grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)]
    found = minimize_scalar(
        penalised_loss, bounds=(low, high), method="bounded", options={"xatol": 1e-6}
    )
    return float(np.exp(found.x))


def prior_shift(counts_before: np.ndarray, counts_after: np.ndarray) -> np.ndarray:
    """What to add to the logits (k,) so that they speak of another mixture of classes.

    ``counts_before`` are images by class in the mixture that is meant, ``counts_after`` those
    (or total weights) that were trained on, after oversampling or weighting; all > 0. The
    largest shift is 0, and for a single logit of the positive class add ``shift[1] - shift[0]``.
    """
    before = np.asarray(counts_before, dtype=np.float64)
    after = np.asarray(counts_after, dtype=np.float64)
    shift = np.log(before / before.sum()) - np.log(after / after.sum())
    return shift - shift.max()


def class_mixture(train_counts: np.ndarray, val_counts: np.ndarray) -> np.ndarray:
    """Images by class (k,), as many as validation has and some drawn as training's are; all > 0.

    Probabilities are calibrated for the images that calibrate them. Where a split divides at
    random or by groups both mixtures are one. Where it follows time or site they are not, and
    validation is the nearer to what comes next.
    """
    train = np.asarray(train_counts, dtype=np.float64)
    return np.asarray(val_counts) + MIXTURE_IMAGES * train / train.sum()


def apply_calibration(
    logits: np.ndarray, temperature: float, shift: np.ndarray | None = None
) -> np.ndarray:
    """softmax((logits + shift) / temperature), float64 (n, k)."""
    scaled = full_logits(logits) + (0.0 if shift is None else shift)
    scaled = scaled / temperature
    return np.exp(scaled - _log_sum_exp(scaled)[:, None])


def full_logits(logits: np.ndarray) -> np.ndarray:
    """Logits as (n, k) float64; one logit for the positive class becomes [0, logit]."""
    logits = np.asarray(logits, dtype=np.float64)
    if logits.ndim == 2 and logits.shape[1] > 1:
        return logits
    flat = logits.reshape(len(logits))
    return np.stack([np.zeros_like(flat), flat], axis=1)


def logits_of(probabilities: np.ndarray) -> np.ndarray:
    """Logarithms of probabilities (n, k): logits but for a constant in each row."""
    probabilities = np.asarray(probabilities, dtype=np.float64)
    return np.log(np.clip(probabilities, SMALLEST_PROBABILITY, None))


def reliability(
    y_true: np.ndarray,
    probabilities: np.ndarray,
    groups: np.ndarray | None = None,
    positive_index: int = 1,
    bins: int = ECE_BINS,
) -> dict[str, Any]:
    """The reliability diagram as numbers: promised against observed in equal-width bins.

    Two classes: of the positive class; more: of the most probable class. Empty bins are left
    out. Each ``observed`` has a 95 % Wilson interval, for as many independent images as the
    bin's groups are worth.

    Returns:
        ``{"bins": [{low, high, mean, observed, count, ci_low, ci_high}], "ece": float}``.
    """
    confidence, outcome = confidence_and_outcome(y_true, probabilities, positive_index)
    index = bin_index(confidence, bins)
    rows = []
    for number in np.unique(index):
        inside = index == number
        count = int(inside.sum())
        observed = float(outcome[inside].mean())
        size = count if groups is None else effective_size(groups[inside])
        ci_low, ci_high = wilson_interval(observed, size)
        rows.append(
            {
                "low": number / bins,
                "high": (number + 1) / bins,
                "mean": float(confidence[inside].mean()),
                "observed": observed,
                "count": count,
                "ci_low": ci_low,
                "ci_high": ci_high,
            }
        )
    ece = weighted_ece(confidence, outcome, np.ones((1, len(outcome))), bins)
    return {"bins": rows, "ece": float(ece[0])}


def _log_sum_exp(logits: np.ndarray) -> np.ndarray:
    top = logits.max(axis=1)
    return top + np.log(np.exp(logits - top[:, None]).sum(axis=1))
