"""The evaluation as a whole: what goes in comes out consistent, complete and JSON."""

import json
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix, roc_auc_score

from automl.evaluation.cases import example_rows, label_suspects, worst_mistakes
from automl.evaluation.curves import GRID, curve_bands
from automl.evaluation.evaluate import (
    by_group,
    errors_by_confidence,
    evaluate_model,
    subgroup_values,
    suspect_cases,
)
from automl.evaluation.metrics import METRICS, compute_metrics
from automl.evaluation.plain import to_json
from automl.evaluation.thresholds import choose_threshold
from automl.reporting.page import check_report


def draw(n: int, k: int = 2, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    y_true = np.r_[np.arange(k), generator.integers(0, k, n - k)]
    odds = np.exp(generator.normal(size=(n, k)) + 2.5 * np.eye(k)[y_true])
    return y_true, odds / odds.sum(axis=1, keepdims=True)


def inputs(n: int = 160, k: int = 2, **changes: Any) -> dict[str, Any]:
    (y_val, p_val), (y_test, p_test) = draw(n, k, 1), draw(n, k, 2)
    names = ("glioma", "meningioma", "none", "pituitary")[:k]
    given: dict[str, Any] = {
        "classes": ("healthy", "tumour") if k == 2 else names,
        "positive": "tumour" if k == 2 else None,
        "y_val": y_val,
        "p_val": p_val,
        "y_test": y_test,
        "p_test": p_test,
        "images_test": [f"scan{i:03d}.png" for i in range(n)],
        "threshold": 0.4 if k == 2 else None,
        "groups_test": np.arange(n) // 2,
        "p_test_before": p_test,
    }
    return {**given, **changes}


@pytest.fixture(scope="module")
def binary() -> tuple[dict[str, Any], dict[str, Any]]:
    generator = np.random.default_rng(5)
    given = inputs(
        group_kind="patients",
        patients_test=np.arange(160) // 2,
        without_twins=np.arange(160) % 2 == 0,
        attributes={"sex": list(generator.choice(["f", "m"], 160)), "site": ["A"] * 160},
        baselines={
            "majority": np.tile([0.6, 0.4], (160, 1)),
            "one_nearest_neighbour": np.eye(2)[draw(160, 2, 9)[0]],
        },
    )
    return given, evaluate_model(**given)


def test_the_result_is_plain_json_and_has_every_part(binary):
    evaluation = binary[1]["evaluation"]
    assert json.loads(json.dumps(binary[1], allow_nan=False)) == binary[1]
    assert set(evaluation) == {
        *("test", "thresholds", "natural", "ppv_by_prevalence", "decision_curve", "mistakes"),
        *("examples", "label_suspects", "subgroups", "robustness", "external", "confidence"),
    }
    assert tuple(evaluation["test"]["metrics"]) == METRICS


def test_the_report_schema_takes_the_result_as_it_is(binary):
    problems = check_report({"schema_version": 1, **binary[1]})
    assert not [text for text in problems if text.startswith(("$.evaluation", "$.baselines"))]


@pytest.mark.parametrize("seed", range(6))
def test_tiny_and_odd_test_sets_are_evaluated(seed):
    generator = np.random.default_rng(seed)
    n, k = int(generator.integers(1, 9)), 2 + seed % 2
    y_test = generator.integers(0, k, n)
    p_test = generator.dirichlet(np.full(k, 0.2), n)
    given = inputs(k=k, images_test=[f"{i}.png" for i in range(n)], y_test=y_test, p_test=p_test)
    changes = {"p_test_before": p_test, "groups_test": generator.integers(0, 4, n)}
    result = evaluate_model(**{**given, **changes}, group_kind="patients")
    for interval in result["evaluation"]["test"]["metrics"].values():
        if interval["low"] is not None:
            assert interval["low"] <= interval["value"] + 1e-6
            assert interval["value"] <= interval["high"] + 1e-6


def test_metrics_and_confusion_are_those_of_the_test_set(binary):
    given, result = binary
    test = result["evaluation"]["test"]
    direct = compute_metrics(given["y_test"], given["p_test"], 0.4)
    for name in METRICS:
        interval = test["metrics"][name]
        assert interval["value"] == pytest.approx(direct[name], abs=1e-6)
        assert interval["low"] <= interval["value"] <= interval["high"]
    predicted = (given["p_test"][:, 1] >= 0.4).astype(int)
    assert test["confusion"] == confusion_matrix(given["y_test"], predicted).tolist()
    assert test["groups"] == 80 and test["images"] == 160
    assert test["per_class"]["tumour"]["recall"]["value"] == test["metrics"]["recall"]["value"]
    assert test["per_class"]["healthy"]["recall"] == test["metrics"]["specificity"]


def test_natural_frequencies_are_sensitivity_and_false_alarms_of_100(binary):
    evaluation = binary[1]["evaluation"]
    metrics, natural = evaluation["test"]["metrics"], evaluation["natural"]
    assert natural["sensitivity_of_100"]["low"] == pytest.approx(
        100 * metrics["recall"]["low"], abs=1e-3
    )
    alarms = natural["false_alarms_of_100"]
    assert alarms["high"] == pytest.approx(100 - 100 * metrics["specificity"]["low"], abs=1e-3)
    assert alarms["low"] <= alarms["value"] <= alarms["high"]


def test_wrong_answers_are_counted_by_the_probability_of_the_class_that_was_named(binary):
    given, parts = binary
    rows = parts["evaluation"]["confidence"]
    positive = given["p_test"][:, 1] >= 0.4
    named = np.where(positive, given["p_test"][:, 1], given["p_test"][:, 0])
    wrong = positive != (given["y_test"] == 1)
    assert rows[0]["low"] == 0.0 and (named < 0.5).sum() == rows[0]["images"] > 0
    assert sum(row["images"] for row in rows) == 160
    assert sum(row["errors"] for row in rows) == wrong.sum()
    for row in rows:
        inside = (named >= row["low"]) & (named < row["high"])
        assert row["rate"]["value"] == pytest.approx(wrong[inside].mean(), abs=1e-5)
        assert row["rate"]["low"] <= row["rate"]["value"] <= row["rate"]["high"]
        assert row["expected"] == pytest.approx(1 - named[inside].mean(), abs=1e-5)


def test_certain_answers_fall_into_the_last_bin():
    sure = np.tile([0.0, 1.0], (30, 1))
    rows = errors_by_confidence(np.ones(30, int), np.ones(30, int), sure, None, 0)
    assert [(row["low"], row["images"], row["errors"]) for row in rows] == [(0.99, 30, 0)]


def test_policies_are_chosen_on_validation_and_judged_on_test(binary):
    given, result = binary
    table = {row["policy"]: row for row in result["evaluation"]["thresholds"]}
    row = table["sensitivity:0.95"]
    for policy, found in table.items():
        chosen = choose_threshold(given["y_val"] == 1, given["p_val"][:, 1], policy)
        assert found["threshold"] == pytest.approx(chosen, abs=1e-6), policy
    called, positive = given["p_test"][:, 1] >= row["threshold"], given["y_test"] == 1
    assert row["sensitivity"]["value"] == pytest.approx(called[positive].mean(), abs=1e-6)
    assert row["npv"]["value"] == pytest.approx((~positive)[~called].mean(), abs=1e-6)


def test_baselines_stand_beside_with_the_difference_to_the_nearest_neighbour(binary):
    result = binary[1]
    baselines = result["baselines"]
    assert baselines["majority"]["recall"]["value"] == 0
    assert baselines["majority"]["roc_auc"]["value"] == 0.5
    difference = baselines["difference_to_1nn"]["accuracy"]
    ours = result["evaluation"]["test"]["metrics"]["accuracy"]["value"]
    theirs = baselines["one_nearest_neighbour"]["accuracy"]["value"]
    assert difference["value"] == pytest.approx(ours - theirs, abs=2e-6)
    assert difference["low"] > 0


def test_twins_patients_and_subgroups_are_evaluated_apart(binary):
    evaluation = binary[1]["evaluation"]
    assert evaluation["test"]["without_twins"]["images"] == 80
    assert evaluation["test"]["group_level"]["groups"] == 80
    rows = evaluation["subgroups"]
    assert [(row["attribute"], row["value"]) for row in rows] == [("sex", "f"), ("sex", "m")]
    assert sum(row["images"] for row in rows) == 160


def test_equal_seeds_give_equal_results(binary):
    assert evaluate_model(**binary[0]) == binary[1]


def test_many_classes_have_no_threshold_and_all_the_rest():
    evaluation = evaluate_model(**inputs(k=4))["evaluation"]
    assert evaluation["test"]["threshold"] is None
    assert np.shape(evaluation["test"]["confusion"]) == (4, 4)
    assert list(evaluation["test"]["per_class"]) == ["glioma", "meningioma", "none", "pituitary"]
    assert evaluation["natural"] is None and evaluation["thresholds"] == []
    assert evaluation["examples"]["false_alarm"] == []
    assert evaluation["mistakes"]


def test_a_test_set_of_one_class_gives_null_and_no_crash():
    given = inputs()
    given["y_test"] = np.zeros_like(given["y_test"])
    result = evaluate_model(**given)
    json.dumps(result, allow_nan=False)
    test = result["evaluation"]["test"]
    assert test["metrics"]["roc_auc"] == {"value": None, "low": None, "high": None}
    assert test["curves"]["roc"] is None
    assert test["metrics"]["specificity"]["value"] is not None


def test_the_positive_class_may_come_first():
    given = inputs()
    mirrored = {
        **given,
        "classes": ("tumour", "healthy"),
        **{name: 1 - given[name] for name in ("y_val", "y_test")},
        **{name: given[name][:, ::-1] for name in ("p_val", "p_test", "p_test_before")},
    }
    first, second = evaluate_model(**given), evaluate_model(**mirrored)
    assert second["evaluation"]["natural"] == first["evaluation"]["natural"]
    assert second["evaluation"]["thresholds"] == first["evaluation"]["thresholds"]


def test_mistakes_are_the_most_certain_first():
    y_true = np.array([0, 0, 1, 1, 1])
    score = np.array([0.9, 0.6, 0.01, 0.99, 0.3])
    probabilities = np.stack([1 - score, score], axis=1)
    rows = worst_mistakes(y_true, (score >= 0.5).astype(int), probabilities)
    assert rows.tolist() == [2, 0, 4, 1]


def test_examples_are_of_the_kind_they_are_named_after():
    y_true, probabilities = draw(600, 2, 2)
    predicted = probabilities.argmax(axis=1)
    found = example_rows(y_true, predicted, probabilities, 1)
    assert all(len(rows) == 3 for rows in found.values())
    assert (y_true[found["missed"]] == 1).all() and (predicted[found["missed"]] == 0).all()
    assert (y_true[found["false_alarm"]] == 0).all()
    assert (predicted[found["right"]] == 1).all() and (y_true[found["right"]] == 1).all()


def test_swapped_labels_are_suspected():
    y_true, probabilities = draw(600, 3, 4)
    wrong = np.random.default_rng(0).choice(600, 12, replace=False)
    given = y_true.copy()
    given[wrong] = (given[wrong] + 1) % 3
    found, margins = label_suspects(given, probabilities)
    assert (np.diff(margins) <= 0).all() and margins.min() >= 0.5
    assert np.isin(wrong, found).mean() >= 0.5
    assert np.isin(found, wrong).mean() >= 0.75
    clean, _ = label_suspects(np.array([0, 0, 1, 1]), np.eye(2)[[0, 0, 1, 1]])
    assert len(clean) == 0


def test_suspects_of_several_sources_are_judged_by_their_own_and_listed_together():
    y_true = np.tile([0, 1], 30)
    sure = np.where(y_true[:, None] == [0, 1], 0.95, 0.05)
    doubtful = np.where(y_true[:, None] == [0, 1], 0.75, 0.25)
    given = y_true.copy()
    given[7] = 1 - given[7]
    sources = [
        ([f"{n}{i}" for i in range(60)], given, p) for n, p in (("d", doubtful), ("s", sure))
    ]
    cases = suspect_cases(["healthy", "tumour"], *sources)
    assert [(case["image"], case["label"], case["predicted"]) for case in cases] == [
        ("s7", "healthy", "tumour"),
        ("d7", "healthy", "tumour"),
    ]


def test_curves_enclose_the_known_areas():
    y_true, probabilities = draw(400, 2, 6)
    curves = curve_bands(y_true, probabilities)
    roc, pr = curves["roc"], curves["pr"]
    area = np.trapezoid(roc["tpr"], GRID)
    assert area == pytest.approx(roc_auc_score(y_true, probabilities[:, 1]), abs=0.01)
    direct = compute_metrics(y_true, probabilities)["average_precision"]
    assert np.trapezoid(pr["precision"], GRID) == pytest.approx(direct, abs=0.01)
    assert (np.diff(roc["tpr"]) >= 0).all()
    for curve, name in ((roc, "tpr"), (pr, "precision")):
        assert (curve["low"] <= curve[name] + 1e-12).all()
        assert (curve["high"] >= curve[name] - 1e-12).all()
    assert pr["precision"][-1] <= y_true.mean() + 0.35 and roc["tpr"][-1] == 1


def test_a_perfect_model_has_a_perfect_curve_with_a_band():
    y_true = np.repeat([0, 1], 50)
    curve = curve_bands(y_true, np.eye(2)[y_true])["roc"]
    assert (curve["tpr"] == 1).all() and (curve["low"] < 0.96).all()


def test_patients_are_positive_if_any_image_is():
    labels, means = by_group(
        np.array([0, 1, 0, 0]),
        np.array([[0.8, 0.2], [0.2, 0.8], [0.9, 0.1], [0.7, 0.3]]),
        np.array([7, 7, 3, 3]),
        1,
    )
    assert labels.tolist() == [0, 1]
    assert means == pytest.approx(np.array([[0.8, 0.2], [0.5, 0.5]]))


def test_numbers_become_thirds_and_words_stay():
    ages = [str(age) for age in range(20, 80)] + [""]
    thirds = subgroup_values(ages)
    assert thirds[-1] is None and len(set(thirds[:-1])) == 3
    assert subgroup_values(["A", "B", None]) == ["A", "B", None]


def test_what_is_undefined_becomes_null():
    given = {
        "a": np.float32(0.12345678),
        "b": [np.nan, np.inf],
        "c": np.int64(3),
        "d": np.str_("x"),
    }
    assert to_json(given) == {"a": 0.123457, "b": [None, None], "c": 3, "d": "x"}
