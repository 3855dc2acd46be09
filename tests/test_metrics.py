"""The twelve metrics against scikit-learn, closed forms, and their degenerate cases."""

import time
import warnings

import numpy as np
import pytest
import sklearn.metrics as reference

from automl.evaluation.metrics import METRICS, compute_metrics, weighted_metrics

DRAW = np.random.default_rng(7)


def binary_case(n: int = 400) -> tuple[np.ndarray, np.ndarray]:
    """Scores rounded to two digits, so that there are ties."""
    y_true = DRAW.integers(0, 2, n)
    score = np.round(1 / (1 + np.exp(-(2 * y_true - 1 + DRAW.normal(size=n)))), 2)
    return y_true, np.stack([1 - score, score], axis=1)


def many_class_case(n: int = 400, k: int = 4) -> tuple[np.ndarray, np.ndarray]:
    y_true = np.r_[np.arange(k), DRAW.integers(0, k, n - k)]
    logits = DRAW.normal(size=(n, k)) + 1.5 * np.eye(k)[y_true]
    odds = np.exp(logits)
    return y_true, odds / odds.sum(axis=1, keepdims=True)


def scikit_learn(
    y_true: np.ndarray, probabilities: np.ndarray, threshold: float, weight: np.ndarray | None
) -> dict[str, float]:
    """The same names from scikit-learn; ECE is left out, it has none."""
    k = probabilities.shape[1]
    binary = k == 2
    average = "binary" if binary else "macro"
    predicted = (probabilities[:, 1] >= threshold).astype(int)
    predicted = predicted if binary else probabilities.argmax(axis=1)
    keyword = {"sample_weight": weight}
    scores = probabilities[:, 1] if binary else probabilities
    one_hot = y_true if binary else np.eye(k, dtype=int)[y_true]
    matrices = reference.multilabel_confusion_matrix(y_true, predicted, **keyword)
    specificities = [m[0, 0] / m[0].sum() for m in matrices]
    f_options = {"average": average, "zero_division": 0, **keyword}
    return {
        "accuracy": reference.accuracy_score(y_true, predicted, **keyword),
        "balanced_accuracy": reference.balanced_accuracy_score(y_true, predicted, **keyword),
        "precision": reference.precision_score(y_true, predicted, **f_options),
        "recall": reference.recall_score(y_true, predicted, **f_options),
        "specificity": specificities[1] if binary else np.mean(specificities),
        "f1": reference.f1_score(y_true, predicted, **f_options),
        "mcc": reference.matthews_corrcoef(y_true, predicted, **keyword),
        "roc_auc": reference.roc_auc_score(one_hot, scores, average="macro", **keyword),
        "average_precision": reference.average_precision_score(one_hot, scores, **keyword),
        "brier": reference.brier_score_loss(y_true, scores, **keyword),
        "log_loss": reference.log_loss(y_true, probabilities, **keyword),
    }


@pytest.mark.parametrize("case", [binary_case, many_class_case])
@pytest.mark.parametrize("threshold", [0.5, 0.31])
def test_metrics_agree_with_scikit_learn(case, threshold):
    y_true, probabilities = case()
    ours = compute_metrics(y_true, probabilities, threshold)
    assert tuple(ours) == METRICS
    for name, value in scikit_learn(y_true, probabilities, threshold, None).items():
        assert ours[name] == pytest.approx(value, abs=1e-6), name


@pytest.mark.parametrize("case", [binary_case, many_class_case])
def test_weights_mean_copies_of_images(case):
    y_true, probabilities = case(200)
    copies = DRAW.integers(0, 4, size=(3, 200)).astype(float)
    ours = weighted_metrics(y_true, probabilities, copies)
    for row, weight in enumerate(copies):
        repeated = np.repeat(np.arange(200), weight.astype(int))
        direct = compute_metrics(y_true[repeated], probabilities[repeated])
        for name in METRICS:
            assert ours[name][row] == pytest.approx(direct[name], abs=1e-12), name
        for name, value in scikit_learn(y_true, probabilities, 0.5, weight).items():
            assert ours[name][row] == pytest.approx(value, abs=1e-6), name


def test_the_other_column_can_be_the_positive_class():
    y_true, probabilities = binary_case()
    ours = compute_metrics(y_true, probabilities, 0.4, positive_index=0)
    mirrored = compute_metrics(1 - y_true, probabilities[:, ::-1], 0.4)
    assert ours == pytest.approx(mirrored)


def test_hand_counted_confusion():
    y_true = np.array([1, 1, 1, 1, 0, 0, 0, 0, 0, 0])
    score = np.array([0.9, 0.8, 0.7, 0.2, 0.6, 0.1, 0.1, 0.1, 0.1, 0.1])
    ours = compute_metrics(y_true, np.stack([1 - score, score], axis=1))
    assert ours["recall"] == pytest.approx(3 / 4)
    assert ours["specificity"] == pytest.approx(5 / 6)
    assert ours["precision"] == pytest.approx(3 / 4)
    assert ours["roc_auc"] == pytest.approx((6 * 3 + 5) / 24)
    assert ours["mcc"] == pytest.approx((3 * 5 - 1 * 1) / 24)


def test_calibration_error_of_a_known_bin():
    y_true = np.array([1, 1, 1, 0] * 25)
    score = np.full(100, 0.95)
    ours = compute_metrics(y_true, np.stack([1 - score, score], axis=1))
    assert ours["ece"] == pytest.approx(0.95 - 0.75)


def test_calibration_error_of_many_classes_is_that_of_the_top_class():
    y_true = np.array([0, 0, 0, 1, 2])
    probabilities = np.tile([0.9, 0.06, 0.04], (5, 1))
    assert compute_metrics(y_true, probabilities)["ece"] == pytest.approx(0.9 - 0.6)


def test_no_positive_prediction_gives_precision_zero():
    y_true = np.array([0, 1, 0, 1])
    probabilities = np.tile([0.9, 0.1], (4, 1))
    ours = compute_metrics(y_true, probabilities)
    assert (ours["precision"], ours["recall"], ours["f1"], ours["mcc"]) == (0, 0, 0, 0)
    assert ours["roc_auc"] == 0.5


def test_an_absent_class_leaves_undefined_what_needs_it():
    ours = compute_metrics(np.zeros(5, int), np.tile([0.9, 0.1], (5, 1)))
    undefined = {name for name, value in ours.items() if np.isnan(value)}
    assert undefined == {
        *("balanced_accuracy", "precision", "recall", "f1", "mcc", "roc_auc"),
        "average_precision",
    }
    assert ours["accuracy"] == 1 and ours["specificity"] == 1


def test_macro_means_are_over_the_classes_that_occur():
    y_true, probabilities = many_class_case(300, 3)
    keep = y_true != 2
    ours = compute_metrics(y_true[keep], probabilities[keep])
    predicted = probabilities[keep].argmax(axis=1)
    expected = reference.recall_score(
        y_true[keep], predicted, labels=[0, 1], average="macro", zero_division=0
    )
    assert ours["recall"] == pytest.approx(expected)
    assert np.isfinite(list(ours.values())).all()


def test_certain_mistakes_have_a_finite_log_loss():
    ours = compute_metrics(np.array([0, 1]), np.array([[0.0, 1.0], [1.0, 0.0]]))
    assert ours["log_loss"] == pytest.approx(-np.log(1e-7), rel=1e-6)


def test_two_thousand_replicates_of_six_hundred_images_take_seconds():
    y_true, probabilities = binary_case(600)
    copies = DRAW.multinomial(600, np.full(600, 1 / 600), size=2000).astype(float)
    start = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        weighted_metrics(y_true, probabilities, copies)
    assert time.perf_counter() - start < 3
