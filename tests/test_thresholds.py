"""Operating points and decision curves against scikit-learn, brute force and closed forms."""

import numpy as np
import pytest
from sklearn.metrics import roc_curve

from automl.errors import UsageError
from automl.evaluation.thresholds import (
    PREVALENCES,
    choose_threshold,
    decision_curve,
    predictive_values,
    values_by_prevalence,
)


def scored(n: int = 300, seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    positive = generator.random(n) < 0.4
    score = 1 / (1 + np.exp(-(1.6 * positive - 0.8 + generator.normal(size=n))))
    return positive, np.round(score, 2)


def rates(positive: np.ndarray, score: np.ndarray, threshold: float) -> tuple[float, float]:
    called = score >= threshold
    return called[positive].mean(), (~called)[~positive].mean()


def test_youden_finds_the_crossing_better_than_the_highest_sum_does():
    # Two normal densities of one width cross halfway between their means, at a score of 0.5.
    fitted, raw = [], []
    for seed in range(20):
        positive, score = scored(seed=seed)
        fitted.append(choose_threshold(positive, score) - 0.5)
        false_positive, true_positive, cuts = roc_curve(positive, score)
        raw.append(cuts[np.argmax(true_positive - false_positive)] - 0.5)
    assert np.abs(np.mean(fitted)) < 0.01
    assert np.std(fitted) < 0.4 * np.std(raw)


def test_youden_does_not_depend_on_how_common_each_class_is():
    positive, score = scored()
    rarer = np.r_[np.arange(len(score)), np.tile(np.flatnonzero(~positive), 9)]
    chosen = choose_threshold(positive, score)
    assert choose_threshold(positive[rarer], score[rarer]) == pytest.approx(chosen, abs=0.003)


@pytest.mark.parametrize("target", [0.5, 0.9, 0.95, 1.0])
def test_fixed_sensitivity_is_met_with_the_most_specificity(target):
    positive, score = scored()
    sensitivity, specificity = rates(
        positive, score, choose_threshold(positive, score, f"sensitivity:{target}")
    )
    possible = [rates(positive, score, cut) for cut in np.linspace(0, 1.01, 1011)]
    assert sensitivity >= target
    assert specificity == pytest.approx(max(b for a, b in possible if a >= target))


@pytest.mark.parametrize("target", [0.5, 0.95, 1.0])
def test_fixed_specificity_is_met_with_the_most_sensitivity(target):
    positive, score = scored(seed=2)
    sensitivity, specificity = rates(
        positive, score, choose_threshold(positive, score, f"specificity:{target}")
    )
    possible = [rates(positive, score, cut) for cut in np.linspace(0, 1.01, 1011)]
    assert specificity >= target
    assert sensitivity == pytest.approx(max(a for a, b in possible if b >= target))


@pytest.mark.parametrize(("policy", "miss", "alarm"), [("cost:5/1", 5, 1), ("cost:1/4", 1, 4)])
def test_cost_is_the_least_of_all_thresholds(policy, miss, alarm):
    positive, score = scored(seed=3)

    def cost(cut: float) -> float:
        called = score >= cut
        return miss * (~called & positive).sum() + alarm * (called & ~positive).sum()

    least = min(cost(cut) for cut in np.linspace(0, 1.01, 1011))
    assert cost(choose_threshold(positive, score, policy)) == least


@pytest.mark.parametrize("policy", ["youden", "cost:1/1"])
def test_a_clean_gap_is_cut_in_its_middle(policy):
    positive = np.array([False, False, True, True])
    chosen = choose_threshold(positive, np.array([0.1, 0.2, 0.8, 0.9]), policy)
    assert chosen == pytest.approx(0.5)


def test_of_equally_good_thresholds_the_one_in_the_widest_gap_is_taken():
    positive, policy = np.array([False, True, False, True]), "cost:1/1"
    wide_below, wide_above = np.array([0.1, 0.4, 0.5, 0.6]), np.array([0.1, 0.2, 0.5, 0.9])
    assert choose_threshold(positive, wide_below, policy) == pytest.approx(0.25)
    assert choose_threshold(positive, wide_above, policy) == pytest.approx(0.7)


def test_a_threshold_exists_even_if_scores_are_worthless():
    positive = np.array([True, False] * 10)
    for policy in ("youden", "sensitivity:0.95", "specificity:0.95", "cost:5/1"):
        assert 0 <= choose_threshold(positive, np.full(20, 0.5), policy) <= 1
    backwards = np.where(positive, 0.1, 0.9)
    assert choose_threshold(positive, backwards) == 0.5
    assert choose_threshold(np.ones(4, bool), np.full(4, 0.9)) == 0.5
    assert choose_threshold(positive, np.full(20, 0.5), "fixed:0.37") == 0.37


@pytest.mark.parametrize(
    "policy", ["best", "sensitivity", "sensitivity:1.5", "cost:0/1", "cost:1/0", "youden:1", ""]
)
def test_unknown_policies_are_refused_with_what_is_allowed(policy):
    with pytest.raises(UsageError, match="youden, sensitivity:S"):
        choose_threshold(np.array([True, False]), np.array([0.9, 0.1]), policy)


def test_net_benefit_has_its_closed_form():
    positive, score = scored(500)
    curve = decision_curve(positive, score)
    prevalence = positive.mean()
    row = curve[19]
    called = score >= 0.2
    expected = (called & positive).mean() - (called & ~positive).mean() * 0.25
    assert row["threshold"] == 0.2
    assert row["model"] == pytest.approx(expected)
    assert row["all"] == pytest.approx(prevalence - (1 - prevalence) * 0.25)
    assert row["none"] == 0.0


def test_treating_all_is_worth_nothing_where_threshold_and_prevalence_meet():
    positive = np.arange(100) < 30
    assert decision_curve(positive, np.full(100, 0.5))[29]["all"] == pytest.approx(0)


def test_predictive_values_follow_bayes():
    assert predictive_values(0.9, 0.95, 0.01) == pytest.approx((0.1538461, 0.9989378), abs=1e-6)
    assert predictive_values(0.9, 1.0, 0.0) == (None, 1.0)


def test_the_table_spans_screening_and_clinic():
    table = values_by_prevalence(0.94, 0.94)
    assert [row["prevalence"] for row in table] == sorted(set(PREVALENCES))
    assert table[0]["prevalence"] <= 0.001 and table[-1]["prevalence"] >= 0.9
    half = next(row for row in table if row["prevalence"] == 0.5)
    assert half["ppv"] == pytest.approx(0.94) and half["npv"] == pytest.approx(0.94)
