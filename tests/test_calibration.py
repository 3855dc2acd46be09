"""Temperature, prior correction and reliability against known answers."""

import numpy as np
import pytest
from sklearn.calibration import calibration_curve

from automl.evaluation.calibration import (
    apply_calibration,
    class_mixture,
    fit_temperature,
    logits_of,
    prior_shift,
    reliability,
)
from automl.evaluation.intervals import wilson_interval
from automl.evaluation.metrics import compute_metrics


def labelled_logits(n: int = 4000, k: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Logits that are perfectly calibrated: the labels are drawn from their softmax."""
    generator = np.random.default_rng(1)
    logits = 2.0 * generator.normal(size=(n, k))
    probabilities = apply_calibration(logits, 1.0)
    y_true = (generator.random(n)[:, None] > probabilities.cumsum(axis=1)).sum(axis=1)
    return logits, y_true


@pytest.mark.parametrize("k", [2, 4])
@pytest.mark.parametrize("factor", [0.4, 1.0, 3.0])
def test_the_temperature_undoes_a_known_exaggeration(k, factor):
    logits, y_true = labelled_logits(k=k)
    assert fit_temperature(factor * logits, y_true) == pytest.approx(factor, rel=0.08)


def test_one_logit_is_that_of_the_positive_class():
    logits, y_true = labelled_logits()
    single = (logits[:, 1] - logits[:, 0])[:, None]
    assert fit_temperature(single, y_true) == pytest.approx(fit_temperature(logits, y_true))
    assert apply_calibration(single, 2.0) == pytest.approx(apply_calibration(logits, 2.0))


def test_the_temperature_has_the_least_log_loss():
    logits, y_true = labelled_logits(800)
    best = fit_temperature(3 * logits, y_true)

    def loss(temperature: float) -> float:
        return compute_metrics(y_true, apply_calibration(3 * logits, temperature))["log_loss"]

    assert loss(best) < min(loss(0.9 * best), loss(1.1 * best), loss(1.0))


def test_probabilities_serve_as_logits():
    logits, y_true = labelled_logits(600, 3)
    probabilities = apply_calibration(logits, 0.5)
    again = fit_temperature(logits_of(probabilities), y_true)
    assert again == pytest.approx(fit_temperature(2 * logits, y_true), rel=1e-3)


def test_a_faultless_validation_set_does_not_make_the_model_certain():
    y_true = np.repeat([0, 1], 100)
    temperature = fit_temperature(np.where(y_true == 1, 4.0, -4.0), y_true)
    assert 0.3 < temperature <= 1.0


def test_an_empty_or_useless_set_gives_a_usable_temperature():
    assert fit_temperature(np.zeros((0, 2)), np.zeros(0, int)) == 1.0
    assert fit_temperature(np.zeros((10, 2)), np.zeros(10, int)) == pytest.approx(1.0, abs=0.01)


def test_the_mixture_is_validations_once_it_has_enough_images():
    train = np.array([600, 400])
    assert class_mixture(train, np.array([60, 40])) == pytest.approx(np.array([72, 48]))
    other = class_mixture(train, np.array([120, 256]))
    assert other[1] / other.sum() == pytest.approx(256 / 376, abs=0.02)
    few = class_mixture(train, np.array([3, 0]))
    assert few[1] / few.sum() == pytest.approx(0.35, abs=0.01)
    assert (class_mixture(np.array([5, 5, 1]), np.array([2, 0, 0])) > 0).all()


def test_probabilities_are_calibrated_where_validation_has_another_mixture():
    draw = np.random.default_rng(0)
    y = (draw.random(4000) < 0.7).astype(int)
    # The logits of a model of balanced classes whose scores are normal in each.
    logits = 4 * (draw.normal(2 * y - 1, 1.0)) / 2
    trained, val = np.array([600, 400]), np.bincount(y)
    moved = prior_shift(class_mixture(trained, val), np.array([600, 600]))
    stayed = prior_shift(trained, np.array([600, 600]))
    losses = [
        -np.log(apply_calibration(logits, 1.0, shift)[np.arange(4000), y]).mean()
        for shift in (moved, stayed)
    ]
    assert losses[0] < losses[1] - 0.03


def test_prior_shift_restores_the_prevalence():
    generator = np.random.default_rng(3)
    y_true = (generator.random(60_000) < 0.1).astype(int)
    feature = generator.normal(size=60_000) + 2.0 * y_true
    # The true posterior for equal classes: what a model learns from an oversampled set.
    balanced = 2.0 * feature - 2.0
    shift = prior_shift(np.array([9000, 1000]), np.array([9000, 9000]))
    before = apply_calibration(balanced, 1.0)[:, 1].mean()
    after = apply_calibration(balanced, 1.0, shift)
    assert before > 0.2
    assert after[:, 1].mean() == pytest.approx(y_true.mean(), abs=0.004)
    assert compute_metrics(y_true, after)["ece"] < 0.01


def test_no_balancing_needs_no_shift():
    assert prior_shift(np.array([30, 70]), np.array([300, 700])) == pytest.approx([0, 0])


def test_reliability_agrees_with_scikit_learn():
    logits, y_true = labelled_logits(1000)
    probabilities = apply_calibration(logits, 0.6)
    ours = reliability(y_true, probabilities)
    observed, promised = calibration_curve(y_true, probabilities[:, 1], n_bins=10)
    assert [row["observed"] for row in ours["bins"]] == pytest.approx(list(observed))
    assert [row["mean"] for row in ours["bins"]] == pytest.approx(list(promised))
    assert sum(row["count"] for row in ours["bins"]) == 1000
    expected = sum(row["count"] * abs(row["observed"] - row["mean"]) for row in ours["bins"])
    assert ours["ece"] == pytest.approx(expected / 1000)
    assert ours["ece"] == pytest.approx(compute_metrics(y_true, probabilities)["ece"])


def test_reliability_intervals_are_wilsons_and_wider_for_groups():
    score = np.full(60, 0.85)
    y_true = np.r_[np.ones(48, int), np.zeros(12, int)]
    case = (y_true, np.stack([1 - score, score], axis=1))
    single, grouped = reliability(*case), reliability(*case, groups=np.arange(60) // 3)
    row = single["bins"][0]
    assert (row["low"], row["high"]) == (0.8, 0.9)
    assert (row["ci_low"], row["ci_high"]) == pytest.approx(wilson_interval(0.8, 60))
    row = grouped["bins"][0]
    assert (row["ci_low"], row["ci_high"]) == pytest.approx(wilson_interval(0.8, 20))
