"""How well simple properties of the images, rather than what they show, predict the label.

If the tumours come from one scanner and the healthy from another, a model can score well by
recognising the scanner. A shallow model on size, brightness, margins and the like, validated
across groups, says how far that would carry.
"""

import re
from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np

from automl.data.assign import assign_units
from automl.records import Sample

# Facts that are read as one property; every other fact is a property of its own name.
PROPERTIES = {
    "image size": ("width", "height"),
    "colour mode": ("mode", "bits"),
    "file format": ("format", "extension"),
    "file size": ("bytes",),
    "EXIF": ("exif", "orientation"),
    "brightness": ("mean", "threshold"),
    "contrast": ("std",),
    "border": ("border",),
    "margin": ("margin_left", "margin_top", "margin_right", "margin_bottom"),
    "foreground": ("foreground",),
}
# Fingerprints of the content, and remarks about how it was read.
IGNORED = frozenset({"sha256", "pixel_sha256", "notes"})
N_FOLDS = 5
N_RESAMPLES = 200
# Rarer values of a categorical property are one value.
MAX_LEVELS = 20
MAX_DEPTH = 3


def measure_shortcuts(
    facts: Sequence[dict[str, Any]],
    samples: Sequence[Sample],
    targets: np.ndarray,
    group: np.ndarray,
    n_classes: int,
    seed: int = 0,
) -> dict[str, Any]:
    """Cross-validated ROC AUC (macro, one class against the rest) of properties.

    ``auc`` is that of a boosted tree model on all properties of the images, with a 95 %
    interval from resampling groups. Names, folders and other columns are reported among
    ``properties`` but kept out of it: no model sees them.

    Returns:
        auc, low, high (None if the groups are too few), and properties: [{name, auc, seen}],
        best first; seen is whether it leaves a trace in the image or its file.
    """
    seen = file_properties(facts)
    unseen = name_properties(samples)
    fold = make_folds(samples, targets, group, n_classes, seed)
    empty = {"auc": None, "low": None, "high": None, "properties": []}
    if fold is None:
        return empty
    rows = [
        {
            "name": name,
            "auc": round(auc(targets, predict_folds(values, targets, fold, n_classes)), 4),
            "seen": name in seen,
        }
        for name, values in {**unseen, **seen}.items()
    ]
    rows.sort(key=lambda row: (-row["auc"], row["name"]))
    if not seen:
        return {**empty, "properties": rows}
    scores = predict_folds(
        np.column_stack(list(seen.values())), targets, fold, n_classes, boosted=True
    )
    low, high = auc_interval(targets, scores, group, seed)
    overall = auc(targets, scores)
    return {
        "auc": round(overall, 4),
        "low": round(min(low, overall), 4),
        "high": round(max(high, overall), 4),
        "properties": rows,
    }


def file_properties(facts: Sequence[dict[str, Any]]) -> dict[str, np.ndarray]:
    """Columns of each property that varies: name → float64 (n, columns).

    Numbers and truth values as they are, words as codes from the most frequent (0) down.
    """
    keys = {key: None for fact in facts for key in fact if key not in IGNORED}
    named = {key for members in PROPERTIES.values() for key in members}
    properties = {**PROPERTIES, **{k.replace("_", " "): (k,) for k in keys if k not in named}}
    result = {}
    for name, members in properties.items():
        columns = [encode([fact.get(key) for fact in facts]) for key in members if key in keys]
        columns = [column for column in columns if column is not None]
        if columns:
            result[name] = np.column_stack(columns)
    return result


def name_properties(samples: Sequence[Sample]) -> dict[str, np.ndarray]:
    """Patterns of file names, folders and other columns, as :func:`file_properties`."""
    labels = {sample.label for sample in samples}
    # A class's own name in a path is how the label was given, not what gives it away. Short
    # labels such as 0 and 1 are in many names by chance.
    words = sorted((re.escape(label) for label in labels if len(label) > 2), key=len)[::-1]
    spoken = re.compile("|".join(words) or r"(?!)", re.IGNORECASE)
    patterns, numbers, folders = [], [], []
    for sample in samples:
        *parents, name = sample.image.split("/")
        stem = spoken.sub("*", name.rsplit(".", 1)[0])
        digits = re.findall(r"\d+", stem)
        patterns.append(re.sub(r"\d+", "#", stem))
        numbers.append(float(digits[-1][:15]) if digits else None)
        folders.append("/".join(part for part in parents if part not in labels))
    columns: dict[str, list[Any]] = {
        "file name": patterns,
        "number in the name": numbers,
        "folder": folders,
    }
    for key in sorted({key for sample in samples for key in sample.attributes}):
        values = [sample.attributes.get(key) for sample in samples]
        if len(set(values)) <= MAX_LEVELS:
            columns[f"column {key}"] = values
    encoded = {name: encode(values) for name, values in columns.items()}
    return {name: values[:, None] for name, values in encoded.items() if values is not None}


def encode(values: Sequence[Any]) -> np.ndarray | None:
    """One column as float64 (n,); None if it does not vary or holds anything but scalars."""
    if all(value is None or isinstance(value, (bool, int, float)) for value in values):
        column = np.array([np.nan if v is None else float(v) for v in values])
        column = np.where(np.isfinite(column), column, -1e9)
    elif all(value is None or isinstance(value, (str, bool, int, float)) for value in values):
        counts = Counter(str(value) for value in values)
        ranked = sorted(counts, key=lambda word: (-counts[word], word))
        code = {word: min(rank, MAX_LEVELS) for rank, word in enumerate(ranked)}
        column = np.array([code[str(value)] for value in values], dtype=np.float64)
    else:
        return None
    return column if len(column) and np.ptp(column) > 0 else None


def make_folds(
    samples: Sequence[Sample], targets: np.ndarray, group: np.ndarray, n_classes: int, seed: int
) -> np.ndarray | None:
    """Fold of each row, int64 (n,), groups whole; None if a class has fewer than two groups."""
    n_groups = min((len(np.unique(group[targets == k])) for k in range(n_classes)), default=0)
    n_folds = min(N_FOLDS, n_groups)
    if n_folds < 2:
        return None
    members: dict[int, list[int]] = {}
    for row, number in enumerate(group):
        members.setdefault(int(number), []).append(row)
    units = [(min(samples[row].image for row in rows), rows) for rows in members.values()]
    shares = {str(number): 1 / n_folds for number in range(n_folds)}
    fold = np.zeros(len(group), dtype=np.int64)
    for rows, number in assign_units(units, targets, n_classes, shares, {}, seed):
        fold[rows] = int(number)
    return fold


def predict_folds(
    values: np.ndarray,
    targets: np.ndarray,
    fold: np.ndarray,
    n_classes: int,
    boosted: bool = False,
) -> np.ndarray:
    """Out-of-fold probabilities, float64 (n, k), of a tree or of boosted trees."""
    scores = np.zeros((len(targets), n_classes))
    for number in np.unique(fold):
        train, test = fold != number, fold == number
        scores[test] = fit_predict(values[train], targets[train], values[test], n_classes, boosted)
    return scores


def fit_predict(
    train: np.ndarray, targets: np.ndarray, test: np.ndarray, n_classes: int, boosted: bool = True
) -> np.ndarray:
    """Probabilities (m, k) for ``test`` (m, d) of shallow trees fitted on ``train`` (n, d)."""
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.tree import DecisionTreeClassifier
    from threadpoolctl import threadpool_limits

    leaf = int(np.clip(len(train) // 50, 3, 20))
    if boosted:
        model = HistGradientBoostingClassifier(
            max_iter=50,
            max_depth=MAX_DEPTH,
            min_samples_leaf=leaf,
            early_stopping=False,
            random_state=0,
        )
    else:
        model = DecisionTreeClassifier(max_depth=MAX_DEPTH, min_samples_leaf=leaf, random_state=0)
    probabilities = np.zeros((len(test), n_classes))
    if len(np.unique(targets)) == 1:
        probabilities[:, targets[0]] = 1
        return probabilities
    # OpenMP threads wait for one another by spinning: where another process has the second
    # core, boosting on two takes a hundred times as long as on one.
    with threadpool_limits(1, user_api="openmp") if boosted else nullcontext():
        model.fit(train, targets)
        probabilities[:, model.classes_] = model.predict_proba(test)
    return probabilities


def auc(targets: np.ndarray, scores: np.ndarray, weights: np.ndarray | None = None) -> float:
    """Macro one-vs-rest ROC AUC with row weights; ties count half.

    Args:
        targets: int64 (n,); scores: (n, k); weights: (n,), default all 1.
    """
    weights = np.ones(len(targets)) if weights is None else weights
    values = []
    # The two columns of a binary problem mirror each other.
    for k in range(scores.shape[1]) if scores.shape[1] > 2 else (1,):
        order = np.argsort(scores[:, k], kind="stable")
        column, positive, weight = scores[order, k], targets[order] == k, weights[order]
        starts = np.flatnonzero(np.r_[True, np.diff(column) > 0])
        above = np.add.reduceat(weight * positive, starts)
        below = np.add.reduceat(weight * ~positive, starts)
        total = above.sum() * below.sum()
        if total > 0:
            values.append(float((above * (np.cumsum(below) - below / 2)).sum() / total))
    return float(np.mean(values)) if values else 0.5


def auc_interval(
    targets: np.ndarray, scores: np.ndarray, group: np.ndarray, seed: int
) -> tuple[float, float]:
    """2.5th and 97.5th percentile of the AUC over resampled groups."""
    random = np.random.default_rng(seed)
    _, index = np.unique(group, return_inverse=True)
    n_groups = index.max() + 1
    values = []
    for _ in range(N_RESAMPLES):
        drawn = np.bincount(random.integers(0, n_groups, n_groups), minlength=n_groups)
        values.append(auc(targets, scores, drawn[index].astype(np.float64)))
    low, high = np.percentile(values, (2.5, 97.5))
    return float(low), float(high)
