"""The twelve metrics, for one data set or for thousands of weighted copies of it at once.

A bootstrap replicate is the data set with a whole number of copies of each image, so every
metric here takes weights of shape (b, n) and answers for all b replicates in one go: counts
are matrix products, curves are cumulative sums over images sorted once by score.

Binary metrics are about the positive class at a threshold. With three or more classes the
predicted class is the most probable one; precision, recall, specificity, F1, ROC AUC and
average precision are one-versus-rest means over the classes that occur in ``y_true`` (macro),
MCC is Gorodkin's R_K, Brier is the squared distance summed over classes (0–2; the binary one
is that of the positive class, 0–1), and ECE is that of the most probable class.

An answer that does not exist is NaN: anything that needs positives and negatives where one of
them is absent. Precision without a positive prediction is 0, and MCC of a constant prediction
is 0, as in scikit-learn.
"""

import numpy as np

METRICS = (
    "accuracy",
    "balanced_accuracy",
    "precision",
    "recall",
    "specificity",
    "f1",
    "mcc",
    "roc_auc",
    "average_precision",
    "brier",
    "log_loss",
    "ece",
)
LOWER_IS_BETTER = ("brier", "log_loss", "ece")
ECE_BINS = 10
# Probabilities are float32: what is closer to 0 than its resolution is not known to be 0.
SMALLEST_PROBABILITY = 1e-7


def compute_metrics(
    y_true: np.ndarray,
    probabilities: np.ndarray,
    threshold: float | None = 0.5,
    positive_index: int = 1,
) -> dict[str, float]:
    """The metrics of one data set; see the head of this file for definitions.

    Args:
        y_true: class indices, int (n,).
        probabilities: float (n, k), rows sum to 1; k = 2 is binary.
        threshold: binary only: positive where its probability is at least this, in [0, 1].
        positive_index: binary only: the column of the positive class.
    """
    ones = np.ones((1, len(y_true)))
    values = weighted_metrics(y_true, probabilities, ones, threshold, positive_index)
    return {name: float(value[0]) for name, value in values.items()}


def predict_classes(
    probabilities: np.ndarray, threshold: float | None = 0.5, positive_index: int = 1
) -> np.ndarray:
    """Predicted class indices, int64 (n,): by threshold for two classes, else the largest."""
    if probabilities.shape[1] != 2 or threshold is None:
        return probabilities.argmax(axis=1)
    positive = probabilities[:, positive_index] >= threshold
    return np.where(positive, positive_index, 1 - positive_index)


def weighted_metrics(
    y_true: np.ndarray,
    probabilities: np.ndarray,
    weights: np.ndarray,
    threshold: float | None = 0.5,
    positive_index: int = 1,
) -> dict[str, np.ndarray]:
    """Every metric for each row of ``weights`` (b, n) ≥ 0; arrays (b,) by name."""
    y_true = np.asarray(y_true)
    probabilities = np.asarray(probabilities, dtype=np.float64)
    n_classes = probabilities.shape[1]
    predicted = predict_classes(probabilities, threshold, positive_index)
    total = weights.sum(axis=1)
    confusion = weighted_confusion(y_true, predicted, weights, n_classes)
    binary = n_classes == 2
    classes = [positive_index] if binary else list(range(n_classes))
    ranked = [rank_metrics(y_true == index, probabilities[:, index], weights) for index in classes]
    rates = [rates_of_class(confusion, index) for index in classes]
    recalls = np.stack([rates_of_class(confusion, index)["recall"] for index in range(n_classes)])

    values = {name: _mean_of_classes([rate[name] for rate in rates]) for name in rates[0]}
    values["accuracy"] = _ratio(np.trace(confusion, axis1=1, axis2=2), total)
    # Both classes are needed for the binary answer; the macro one takes those that occur.
    values["balanced_accuracy"] = (
        recalls.mean(axis=0) if binary else _mean_of_classes(list(recalls))
    )
    values["mcc"] = matthews(confusion)
    values["roc_auc"] = _mean_of_classes([auc for auc, _ in ranked])
    values["average_precision"] = _mean_of_classes([precision for _, precision in ranked])
    for name, loss in image_losses(y_true, probabilities, positive_index).items():
        values[name] = _ratio(weights @ loss, total)
    values["ece"] = weighted_ece(
        *confidence_and_outcome(y_true, probabilities, positive_index), weights
    )
    return {name: values[name] for name in METRICS}


def weighted_confusion(
    y_true: np.ndarray, predicted: np.ndarray, weights: np.ndarray, n_classes: int
) -> np.ndarray:
    """Confusion matrices (b, k, k); rows are the true class, columns the predicted one."""
    cells = np.zeros((len(y_true), n_classes * n_classes))
    cells[np.arange(len(y_true)), y_true * n_classes + predicted] = 1.0
    return (weights @ cells).reshape(-1, n_classes, n_classes)


def rates_of_class(confusion: np.ndarray, index: int) -> dict[str, np.ndarray]:
    """Precision, recall, specificity and F1 of one class against the rest, each (b,)."""
    hits = confusion[:, index, index]
    positives = confusion[:, index, :].sum(axis=1)
    claimed = confusion[:, :, index].sum(axis=1)
    total = confusion.sum(axis=(1, 2))
    absent = positives == 0
    return {
        "precision": np.where(absent, np.nan, _ratio(hits, claimed, empty=0.0)),
        "recall": _ratio(hits, positives),
        "specificity": _ratio(total - positives - claimed + hits, total - positives),
        "f1": _ratio(2 * hits, np.where(absent, 0.0, positives + claimed)),
    }


def matthews(confusion: np.ndarray) -> np.ndarray:
    """Matthews' correlation, (b,); Gorodkin 2004 (doi 10.1016/j.compbiolchem.2004.09.006)."""
    true, predicted = confusion.sum(axis=2), confusion.sum(axis=1)
    total = true.sum(axis=1)
    hits = np.trace(confusion, axis1=1, axis2=2)
    covariance = hits * total - (true * predicted).sum(axis=1)
    spread_true = total**2 - (true**2).sum(axis=1)
    spread_predicted = total**2 - (predicted**2).sum(axis=1)
    value = _ratio(covariance, np.sqrt(spread_true * spread_predicted), empty=0.0)
    return np.where(spread_true == 0, np.nan, value)


def rank_metrics(
    positive: np.ndarray, scores: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """ROC AUC (ties count half) and average precision (step-wise, as scikit-learn), each (b,).

    ``positive`` is bool (n,), ``scores`` (n,), higher meaning more positive.
    """
    order = np.argsort(-scores, kind="stable")
    sorted_scores = scores[order]
    starts = np.flatnonzero(np.r_[True, sorted_scores[1:] != sorted_scores[:-1]])
    ordered = weights[:, order]
    positives = np.add.reduceat(ordered * positive[order], starts, axis=1)
    everyone = np.add.reduceat(ordered, starts, axis=1)
    negatives = everyone - positives
    hits, seen = positives.cumsum(axis=1), everyone.cumsum(axis=1)
    n_positive, n_negative = hits[:, -1], seen[:, -1] - hits[:, -1]
    # Each negative counts the positives above it, and half of those level with it.
    above = (negatives * (hits - 0.5 * positives)).sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        precision = np.where(seen > 0, hits / seen, 0.0)
    return (
        _ratio(above, n_positive * n_negative),
        _ratio((positives * precision).sum(axis=1), n_positive),
    )


def image_losses(
    y_true: np.ndarray, probabilities: np.ndarray, positive_index: int = 1
) -> dict[str, np.ndarray]:
    """Each image's contribution to Brier and log loss (natural logarithm), (n,) by name."""
    probabilities = np.asarray(probabilities, dtype=np.float64)
    n_classes = probabilities.shape[1]
    squared = (probabilities - np.eye(n_classes)[y_true]) ** 2
    brier = squared[:, positive_index] if n_classes == 2 else squared.sum(axis=1)
    clipped = np.clip(probabilities, SMALLEST_PROBABILITY, 1 - SMALLEST_PROBABILITY)
    clipped = clipped / clipped.sum(axis=1, keepdims=True)
    return {"brier": brier, "log_loss": -np.log(clipped[np.arange(len(y_true)), y_true])}


def confidence_and_outcome(
    y_true: np.ndarray, probabilities: np.ndarray, positive_index: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """What was promised, in [0, 1], and what came, 0 or 1; both float64 (n,).

    Two classes: the positive class' probability and whether the image is positive. More: the
    largest probability and whether that class is right (Guo et al. 2017, arXiv 1706.04599).
    """
    probabilities = np.asarray(probabilities, dtype=np.float64)
    if probabilities.shape[1] == 2:
        return probabilities[:, positive_index], (y_true == positive_index).astype(np.float64)
    right = probabilities.argmax(axis=1) == y_true
    return probabilities.max(axis=1), right.astype(np.float64)


def bin_index(confidence: np.ndarray, bins: int = ECE_BINS) -> np.ndarray:
    """The equal-width bin of each value in [0, 1], int (n,); 1.0 belongs to the last."""
    return np.minimum((confidence * bins).astype(np.int64), bins - 1)


def weighted_ece(
    confidence: np.ndarray, outcome: np.ndarray, weights: np.ndarray, bins: int = ECE_BINS
) -> np.ndarray:
    """Expected calibration error, (b,): mean over images of their bin's |observed - promised|."""
    members = np.eye(bins)[bin_index(confidence, bins)]
    gaps = weights @ (members * (outcome - confidence)[:, None])
    return _ratio(np.abs(gaps).sum(axis=1), weights.sum(axis=1))


def _ratio(top: np.ndarray, bottom: np.ndarray, empty: float = np.nan) -> np.ndarray:
    """``top / bottom``, and ``empty`` where ``bottom`` is 0."""
    known = bottom > 0
    return np.where(known, top / np.where(known, bottom, 1.0), empty)


def _mean_of_classes(values: list[np.ndarray]) -> np.ndarray:
    """Mean over the classes whose value exists; NaN where none does."""
    stacked = np.stack(values)
    known = ~np.isnan(stacked)
    return _ratio(np.where(known, stacked, 0.0).sum(axis=0), known.sum(axis=0))
