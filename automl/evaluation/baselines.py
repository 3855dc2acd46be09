"""What can be had without a network: a model that does not beat these has learned nothing.

Each function returns probabilities, float64 (m, k), for the test images.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from automl.data.neighbours import class_similarities
from automl.data.shortcuts import file_properties, fit_predict, make_folds
from automl.evaluation.calibration import apply_calibration, fit_temperature
from automl.records import Scan, Split

# A correlation this much higher makes a class e times as likely; only the order matters.
SIMILARITY_SCALE = 0.05
# Strength of the L2 penalty's inverse: features are standardised and outnumber many data sets.
PENALTY_INVERSE = 0.01


def predict_majority(y_train: np.ndarray, n_test: int, n_classes: int) -> np.ndarray:
    """The training set's class shares for every image: the majority always wins."""
    share = np.bincount(y_train, minlength=n_classes) / len(y_train)
    return np.tile(share, (n_test, 1))


def predict_uniform(n_test: int, n_classes: int) -> np.ndarray:
    """1/k for every image and class."""
    return np.full((n_test, n_classes), 1 / n_classes)


def predict_one_nearest_neighbour(
    train_thumbnails: np.ndarray,
    y_train: np.ndarray,
    test_thumbnails: np.ndarray,
    n_classes: int,
) -> np.ndarray:
    """The label of the most similar 32×32 thumbnail.

    A softmax of the highest correlation with each class: the largest is the nearest
    neighbour's, and the difference ranks images for the ROC curve.

    Args:
        train_thumbnails: float32 (n, 32, 32) of unit norm; test_thumbnails (m, 32, 32).
        y_train: class indices, int64 (n,).
    """
    similarity = class_similarities(test_thumbnails, train_thumbnails, y_train, n_classes)
    logits = similarity.astype(np.float64) / SIMILARITY_SCALE
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    return weights / weights.sum(axis=1, keepdims=True)


def predict_shortcut(
    train_facts: Sequence[Mapping[str, Any]],
    y_train: np.ndarray,
    test_facts: Sequence[Mapping[str, Any]],
    n_classes: int,
) -> np.ndarray:
    """Shallow boosted trees on size, format, brightness, margins and the like.

    Without a property that varies it is :func:`predict_majority`.
    """
    # Encoded together so that a word has one code; no label takes part.
    properties = file_properties([*map(dict, train_facts), *map(dict, test_facts)])
    if not properties:
        return predict_majority(y_train, len(test_facts), n_classes)
    values = np.column_stack(list(properties.values()))
    n_train = len(train_facts)
    return fit_predict(values[:n_train], y_train, values[n_train:], n_classes)


def predict_logistic_features(
    train_features: np.ndarray,
    y_train: np.ndarray,
    test_features: np.ndarray,
    n_classes: int,
) -> np.ndarray:
    """Logistic regression on a frozen backbone's features, (n, d) and (m, d)."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), LogisticRegression(C=PENALTY_INVERSE, max_iter=2000))
    model.fit(np.asarray(train_features, dtype=np.float64), y_train)
    probabilities = np.zeros((len(test_features), n_classes))
    probabilities[:, model.classes_] = model.predict_proba(
        np.asarray(test_features, dtype=np.float64)
    )
    return probabilities


def predict_out_of_fold(
    scan: Scan, split: Split, features: np.ndarray, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Answers to every training and validation image by what has seen none of its group.

    Logistic regression on frozen features and the nearest thumbnail together, since they err on
    different images: fitted on four fifths of the groups at a time, each calibrated with one
    temperature, their probabilities multiplied and calibrated again.

    Args:
        features: (n, d) for all images in the scan's order.

    Returns:
        Rows int (m,), ascending, and probabilities (m, k); empty where a class has one group.
    """
    rows = np.flatnonzero(np.isin(split.part, ("train", "val")))
    targets, n_classes = scan.dataset.targets[rows], len(scan.dataset.classes)
    samples = [scan.dataset.samples[row] for row in rows]
    fold = make_folds(samples, targets, split.group[rows], n_classes, seed)
    if fold is None:
        return rows[:0], np.zeros((0, n_classes))
    answers = np.zeros((2, len(rows), n_classes))
    for number in np.unique(fold):
        out = fold == number
        train, held_out = rows[~out], rows[out]
        answers[0, out] = predict_logistic_features(
            features[train], targets[~out], features[held_out], n_classes
        )
        answers[1, out] = predict_one_nearest_neighbour(
            scan.thumbnails[train], targets[~out], scan.thumbnails[held_out], n_classes
        )
    logits = np.sum([np.log(calibrate(each, targets)) for each in answers], axis=0)
    return rows, apply_calibration(logits, fit_temperature(logits, targets))


def calibrate(probabilities: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Probabilities (m, k) with one temperature, none below a millionth."""
    logits = np.log(np.maximum(probabilities, 1e-6))
    return np.maximum(apply_calibration(logits, fit_temperature(logits, targets)), 1e-6)


def all_baselines(
    scan: Scan,
    split: Split,
    features: np.ndarray | None = None,
    rows: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    """Every baseline, fitted on the training part.

    Args:
        features: (n, d) for all images in the scan's order; without them there is no
            logistic_features.
        rows: images to predict, default the test part.

    Returns:
        majority, uniform, one_nearest_neighbour, shortcut and logistic_features →
        probabilities (m, k) in the order of ``rows``.
    """
    train = split.rows("train")
    test = split.rows("test") if rows is None else rows
    targets = scan.dataset.targets[train]
    k = len(scan.dataset.classes)
    result = {
        "majority": predict_majority(targets, len(test), k),
        "uniform": predict_uniform(len(test), k),
        "one_nearest_neighbour": predict_one_nearest_neighbour(
            scan.thumbnails[train], targets, scan.thumbnails[test], k
        ),
        "shortcut": predict_shortcut(
            [scan.facts[row] for row in train], targets, [scan.facts[row] for row in test], k
        ),
    }
    if features is not None:
        result["logistic_features"] = predict_logistic_features(
            features[train], targets, features[test], k
        )
    return result
