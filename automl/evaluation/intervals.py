"""95 % intervals that resample groups, chosen by how often they hold the truth.

Images of one patient, or near-copies of one another, are not independent. The bootstrap here
therefore draws whole groups with replacement (Field & Welsh 2007, doi
10.1111/j.1467-9868.2007.00593.x): a replicate is a number of copies of each group.

The usual percentiles of the replicates cover too seldom where models are good: in simulation
with 300 images, ROC AUC .996, they held the truth 87 times in 100 (with accuracy .97 in
clusters, precision 84), and where not one image is wrong they shrink to a point. So the
replicates give the standard error only, and the shape comes from what is known of a number
between two bounds:

- what lies between two bounds: on the logit scale, ± t · SE. For proportions that is the Wilson
  interval for clustered data but for terms of higher order (Kott 2017, Survey Methodology 43-2).
  ROC AUC and average precision take Satterthwaite's degrees of freedom, because a few badly
  ranked images carry most of their variance.
- log loss: bootstrap-t on the log scale, for its long tail (Efron & Tibshirani 1993, ch. 12).
- ECE: a plug-in ECE is too high, since noise counts as error. The interval holds the multiples of
  the observed gaps that would give such an ECE with that noise (a test, inverted); its lower
  limit is 0 where noise alone may do it.
- a perfect or hopeless value: Wilson's limit for as many independent images as Kish's effective
  sample size counts, every group taken as one (Kish 1965).

In simulation (600 data sets each; accuracy .97 and ROC AUC .99 with 300 images, 80 images, 150
patients with 1–5 images) coverage was 93–97 % for every metric but ECE, whose 97–99 % errs on the
safe side, and 92 % for accuracy .97 in patients, where the mistakes are worth four independent
ones. Brier and log loss of a model that has hardly been wrong yet are too hopeful: no resampling
shows a mistake that was not seen. With one group there is no interval (NaN).
"""

from collections.abc import Iterator

import numpy as np
from scipy.stats import norm
from scipy.stats import t as student

from automl.evaluation.metrics import (
    METRICS,
    bin_index,
    confidence_and_outcome,
    image_losses,
    rank_metrics,
    weighted_metrics,
)

RESAMPLES = 2000
LEVEL = 0.95
RANK_METRICS = ("roc_auc", "average_precision")
# Weights held at once: 2 million float64 are 16 MB, and a few such arrays are alive together.
CHUNK = 2_000_000
# A bootstrap-t quantile beyond this comes from replicates without the rare large losses.
LARGEST_QUANTILE = 6.0

Interval = dict[str, float]


def bootstrap_metrics(
    y_true: np.ndarray,
    probabilities: np.ndarray,
    threshold: float | None = 0.5,
    groups: np.ndarray | None = None,
    seed: int = 0,
    positive_index: int = 1,
    resamples: int = RESAMPLES,
) -> dict[str, Interval]:
    """Every metric with its 95 % interval, ``{name: {value, low, high}}``; NaN is undefined.

    Args:
        y_true, probabilities, threshold, positive_index: as `compute_metrics` takes them.
        groups: int (n,), equal numbers are resampled together; None: every image by itself.
        seed: equal seeds give equal intervals.
    """
    codes = group_codes(groups, len(y_true))
    return _bootstrap(y_true, probabilities, threshold, codes, seed, positive_index, resamples)[0]


def bootstrap_difference(
    y_true: np.ndarray,
    first: np.ndarray,
    second: np.ndarray,
    thresholds: tuple[float | None, float | None] = (0.5, 0.5),
    groups: np.ndarray | None = None,
    seed: int = 0,
    positive_index: int = 1,
    resamples: int = RESAMPLES,
) -> dict[str, Interval]:
    """First minus second in every metric on the same images, with paired 95 % intervals.

    ``first`` and ``second`` are probabilities (n, k). Both are judged on the same replicates,
    and their own intervals are joined by squaring and adding, with the replicates' correlation
    (Newcombe 1998, Statist. Med. 17:2635, method 10; Zou & Donner 2008, doi 10.1002/sim.3095).
    """
    codes = group_codes(groups, len(y_true))
    (ours, our_draws), (theirs, their_draws) = (
        _bootstrap(y_true, probabilities, threshold, codes, seed, positive_index, resamples)
        for probabilities, threshold in zip((first, second), thresholds, strict=True)
    )
    result = {}
    for name in METRICS:
        a, b = ours[name], theirs[name]
        value = a["value"] - b["value"]
        if np.array_equal(our_draws[name], their_draws[name], equal_nan=True):
            # No replicate tells them apart: there is nothing to be uncertain about.
            result[name] = _interval(value, value, value, codes)
            continue
        correlation = _correlation(our_draws[name], their_draws[name])
        down = _joined(a["value"] - a["low"], b["high"] - b["value"], correlation)
        up = _joined(a["high"] - a["value"], b["value"] - b["low"], correlation)
        result[name] = _interval(value, value - down, value + up, codes)
    return result


def _bootstrap(
    y_true: np.ndarray,
    probabilities: np.ndarray,
    threshold: float | None,
    codes: np.ndarray,
    seed: int,
    positive_index: int,
    resamples: int,
) -> tuple[dict[str, Interval], dict[str, np.ndarray]]:
    """Intervals, and the replicates they came from, (resamples,) by name."""
    probabilities = np.asarray(probabilities, dtype=np.float64)
    once = np.ones((1, len(codes)))
    arguments = (threshold, positive_index)
    values = weighted_metrics(y_true, probabilities, once, *arguments)
    parts: dict[str, list[np.ndarray]] = {name: [] for name in METRICS}
    tail, noise = [], []
    losses = image_losses(y_true, probabilities, positive_index)["log_loss"]
    promised = confidence_and_outcome(y_true, probabilities, positive_index)
    for copies in draw_copies(codes, resamples, seed):
        weights = copies[:, codes]
        for name, value in weighted_metrics(y_true, probabilities, weights, *arguments).items():
            parts[name].append(value)
        tail.append(_mean_and_error(losses, codes, copies))
        noise.append(_gaps(*promised, weights))
    replicates = {name: np.concatenate(part) for name, part in parts.items()}
    sizes = class_sizes(y_true, codes, probabilities.shape[1])
    overall = effective_size(codes)
    result = {}
    for name in METRICS:
        value = float(values[name][0])
        if name == "log_loss":
            low, high = _long_tailed(losses, codes, np.concatenate(tail, axis=1))
        elif name == "ece":
            low, high = _inverted(_gaps(*promised, once)[0], np.concatenate(noise))
        else:
            freedom = float(codes.max())
            if name in RANK_METRICS:
                freedom = _freedom(y_true, probabilities, codes, name, positive_index)
            size = boundary_size(name, sizes, overall, positive_index)
            lowest = -1.0 if name == "mcc" else 0.0
            highest = 2.0 if name == "brier" and len(sizes) > 2 else 1.0
            low, high = bounded_interval(value, replicates[name], freedom, size, lowest, highest)
        result[name] = _interval(value, low, high, codes)
    return result, replicates


def bootstrap_ratio(
    top: np.ndarray,
    bottom: np.ndarray,
    groups: np.ndarray | None = None,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Interval:
    """Σ top / Σ bottom in [0, 1] with its 95 % interval: any rate of a confusion matrix.

    Args:
        top, bottom: what each image adds to the two sums, (n,) ≥ 0; for sensitivity, whether it
            is a hit and whether it is positive.
    """
    codes = group_codes(groups, len(top))
    tops, bottoms = np.bincount(codes, top), np.bincount(codes, bottom)
    if len(codes) == 0 or bottoms.sum() == 0:
        return {"value": float("nan"), "low": float("nan"), "high": float("nan")}
    drawn = []
    for copies in draw_copies(codes, resamples, seed):
        totals = copies @ bottoms
        drawn.append(np.where(totals > 0, copies @ tops / np.where(totals > 0, totals, 1), np.nan))
    value = float(tops.sum() / bottoms.sum())
    boundary = effective_size(codes[np.asarray(bottom) > 0])
    low, high = bounded_interval(value, np.concatenate(drawn), float(codes.max()), boundary)
    return _interval(value, low, high, codes)


def wilson_interval(proportion: float, size: float) -> tuple[float, float]:
    """Wilson 1927 (doi 10.1080/01621459.1927.10502953) for ``size`` independent images."""
    if not size > 0 or np.isnan(proportion):
        return float("nan"), float("nan")
    quantile = norm.ppf(0.5 + LEVEL / 2)
    share = quantile**2 / size
    middle = proportion + share / 2
    half = np.sqrt(share * (proportion * (1 - proportion) + share / 4))
    low, high = (middle - half) / (1 + share), (middle + half) / (1 + share)
    # At 0 and 1 the limit is exact; rounding must not leave it a hair inside.
    return (
        0.0 if proportion == 0 else float(max(low, 0.0)),
        1.0 if proportion == 1 else float(min(high, 1.0)),
    )


def bounded_interval(
    value: float,
    replicates: np.ndarray,
    freedom: float,
    boundary: float,
    lowest: float = 0.0,
    highest: float = 1.0,
) -> tuple[float, float]:
    """An interval for a metric in [lowest, highest] whose bootstrap replicates are given.

    ``freedom`` are the degrees of freedom of its standard error, ``boundary`` the independent
    images that a value without any spread stands for.
    """
    if np.isnan(value) or freedom < 1:
        return float("nan"), float("nan")
    width = highest - lowest
    share = (value - lowest) / width
    error = standard_error(replicates) / width
    quantile = float(student.ppf(0.5 + LEVEL / 2, freedom))
    if not error > 1e-12 or not 1e-12 < share < 1 - 1e-12:
        low, high = wilson_interval(float(np.clip(np.round(share, 12), 0, 1)), boundary)
    else:
        centre, half = np.log(share / (1 - share)), quantile * error / (share * (1 - share))
        low, high = (float(1 / (1 + np.exp(-(centre + sign * half)))) for sign in (-1, 1))
    return lowest + width * low, lowest + width * high


def standard_error(replicates: np.ndarray) -> float:
    """Standard deviation of the replicates that exist; NaN if fewer than two do."""
    known = replicates[~np.isnan(replicates)]
    return float(known.std(ddof=1)) if len(known) > 1 else float("nan")


def group_codes(groups: np.ndarray | None, n_images: int) -> np.ndarray:
    """Groups as 0 … G-1, int (n,)."""
    if groups is None:
        return np.arange(n_images)
    return np.unique(np.asarray(groups), return_inverse=True)[1].reshape(-1)


def draw_copies(codes: np.ndarray, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """How often each group is drawn, float64 (b, G), in chunks that sum to ``resamples`` rows."""
    n_groups = int(codes.max()) + 1
    generator = np.random.default_rng(seed)
    size = max(1, min(resamples, CHUNK // len(codes)))
    for start in range(0, resamples, size):
        rows = min(size, resamples - start)
        drawn = generator.multinomial(n_groups, np.full(n_groups, 1 / n_groups), size=rows)
        yield drawn.astype(np.float64)


def effective_size(groups: np.ndarray) -> float:
    """Kish's (Σm)² / Σm²: images as independent as these, each group counted as one; 0 if none."""
    sizes = np.unique(groups, return_counts=True)[1].astype(np.float64)
    return float(sizes.sum() ** 2 / (sizes**2).sum()) if len(sizes) else 0.0


def class_sizes(y_true: np.ndarray, codes: np.ndarray, n_classes: int) -> np.ndarray:
    """`effective_size` of each class, float64 (k,)."""
    return np.array([effective_size(codes[y_true == index]) for index in range(n_classes)])


def boundary_size(name: str, sizes: np.ndarray, overall: float, positive_index: int = 1) -> float:
    """What n to use when the metric is perfect: Σd / Σd², d the loss if one group were wrong.

    For a mean over k classes that is k² / Σ 1/n_class; ROC AUC and MCC have the same answer.
    """
    if name in ("accuracy", "brier"):
        return overall
    if len(sizes) == 2 and name in ("recall", "precision", "f1", "average_precision"):
        return float(sizes[positive_index])
    if len(sizes) == 2 and name == "specificity":
        return float(sizes[1 - positive_index])
    present = sizes[sizes > 0]
    return float(len(present) ** 2 / (1 / present).sum()) if len(present) else 0.0


def _freedom(
    y_true: np.ndarray, probabilities: np.ndarray, codes: np.ndarray, name: str, positive_index: int
) -> float:
    """Satterthwaite's degrees of freedom from leaving out each group once, 2 … G-1."""
    n_groups = int(codes.max()) + 1
    if not 3 < n_groups <= RESAMPLES:
        return n_groups - 1.0
    classes = [positive_index] if probabilities.shape[1] == 2 else range(probabilities.shape[1])
    column = RANK_METRICS.index(name)
    size = max(1, CHUNK // len(codes))
    left_out = []
    for start in range(0, n_groups, size):
        dropped = np.arange(start, min(start + size, n_groups))[:, None] == codes
        weights = 1.0 - dropped
        by_class = [
            rank_metrics(y_true == index, probabilities[:, index], weights)[column]
            for index in classes
        ]
        left_out.append(np.mean(by_class, axis=0))
    values = np.concatenate(left_out)
    if np.isnan(values).any():
        return 2.0
    squares = (values - values.mean()) ** 2
    spread = (squares**2).sum() - squares.sum() ** 2 / n_groups
    freedom = 2 * squares.sum() ** 2 / spread if spread > 0 else np.inf
    return float(np.clip(freedom, 2.0, n_groups - 1.0))


def _mean_and_error(losses: np.ndarray, codes: np.ndarray, copies: np.ndarray) -> np.ndarray:
    """Mean loss and its linearised standard error for each row of ``copies``, (2, b)."""
    sums = np.bincount(codes, losses)
    counts = np.bincount(codes).astype(np.float64)
    total = copies @ counts
    mean = (copies @ sums) / total
    squares = (
        copies @ sums**2 - 2 * mean * (copies @ (sums * counts)) + mean**2 * (copies @ counts**2)
    )
    return np.stack([mean, np.sqrt(np.maximum(squares, 0.0)) / total])


def _long_tailed(losses: np.ndarray, codes: np.ndarray, tail: np.ndarray) -> tuple[float, float]:
    """Bootstrap-t for the logarithm of a mean loss."""
    mean, error = _mean_and_error(losses, codes, np.ones((1, int(codes.max()) + 1)))[:, 0]
    means, errors = tail
    known = (errors > 0) & (means > 0)
    if not (error > 0 and known.any()):
        return float(mean), float(mean)
    statistics = (np.log(means[known]) - np.log(mean)) / (errors[known] / means[known])
    high, low = np.clip(
        np.quantile(statistics, [0.5 - LEVEL / 2, 0.5 + LEVEL / 2]),
        -LARGEST_QUANTILE,
        LARGEST_QUANTILE,
    )
    return float(mean * np.exp(-low * error / mean)), float(mean * np.exp(-high * error / mean))


def _gaps(confidence: np.ndarray, outcome: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Each bin's part of the ECE with its sign, (b, bins)."""
    bins = bin_index(confidence)
    members = np.eye(int(bins.max()) + 1)[bins]
    return (
        weights @ (members * (outcome - confidence)[:, None]) / weights.sum(axis=1, keepdims=True)
    )


def _inverted(gaps: np.ndarray, replicates: np.ndarray) -> tuple[float, float]:
    """Limits of the ECE: multiples of ``gaps`` under which the observed ECE is no surprise."""
    observed = np.abs(gaps).sum()
    noise = replicates - gaps
    multiples = np.linspace(0.0, 3.0, 121)
    # Under each multiple, how often would an ECE at least, or at most, as large be seen?
    simulated = np.stack([np.abs(m * gaps + noise).sum(axis=1) for m in multiples])
    tail = 0.5 - LEVEL / 2
    above = (simulated >= observed - 1e-12).mean(axis=1) > tail
    below = (simulated <= observed + 1e-12).mean(axis=1) > tail
    kept = multiples[above & below]
    if len(kept) == 0:
        return float(observed), float(observed)
    return float(kept.min() * observed), float(min(max(kept.max(), 1.0) * observed, 1.0))


def _interval(value: float, low: float, high: float, codes: np.ndarray) -> Interval:
    if codes.max() < 1 or np.isnan(value):
        return {"value": value, "low": float("nan"), "high": float("nan")}
    return {"value": value, "low": float(low), "high": float(high)}


def independent_difference(first: Interval, second: Interval) -> Interval:
    """First minus second, measured on different images (Newcombe 1998, method 10).

    NaN or None in either part leaves the difference, or its interval, undefined.
    """
    parts = [
        float("nan") if item[key] is None else float(item[key])
        for item in (first, second)
        for key in ("value", "low", "high")
    ]
    value = parts[0] - parts[3]
    down = _joined(parts[0] - parts[1], parts[5] - parts[3], 0.0)
    up = _joined(parts[2] - parts[0], parts[3] - parts[4], 0.0)
    return {"value": value, "low": value - down, "high": value + up}


def _joined(first: float, second: float, correlation: float) -> float:
    """The side of a difference's interval from the sides of its two parts."""
    return float(np.sqrt(max(first**2 + second**2 - 2 * correlation * first * second, 0.0)))


def _correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Pearson's, over the replicates in which both exist; 0 where either does not vary."""
    known = ~(np.isnan(first) | np.isnan(second))
    if known.sum() < 2 or np.ptp(first[known]) == 0 or np.ptp(second[known]) == 0:
        return 0.0
    return float(np.corrcoef(first[known], second[known])[0, 1])
