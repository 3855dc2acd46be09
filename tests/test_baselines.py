"""Baselines answer in the right shape, learn what is there, and see no test label."""

from dataclasses import replace

import numpy as np
import pytest
from scans import draw_picture, scan_and_twins

from automl.config import SearchConfig
from automl.data.split import make_split
from automl.evaluation.baselines import (
    all_baselines,
    predict_logistic_features,
    predict_majority,
    predict_one_nearest_neighbour,
    predict_out_of_fold,
    predict_shortcut,
    predict_uniform,
)
from automl.records import Scan, Split


@pytest.fixture(scope="module")
def data() -> tuple[Scan, Split]:
    """Three classes; each a family of pictures, slightly changed from image to image."""
    labels = ["c", "a", "b", "a"] * 30
    base = {label: draw_picture(1000 + i).astype(float) for i, label in enumerate("abc")}
    pictures = [
        np.clip(0.6 * base[label] + 0.4 * draw_picture(seed), 0, 255).astype(np.uint8)
        for seed, label in enumerate(labels)
    ]
    scan, twins = scan_and_twins(pictures, labels)
    return scan, make_split(scan, twins, SearchConfig())


def test_every_baseline_gives_probabilities_for_the_test(data: tuple[Scan, Split]) -> None:
    scan, split = data
    result = all_baselines(scan, split, scan.thumbnails.reshape(len(scan.facts), -1))
    assert list(result) == [
        "majority",
        "uniform",
        "one_nearest_neighbour",
        "shortcut",
        "logistic_features",
    ]
    for probabilities in result.values():
        assert probabilities.shape == (len(split.rows("test")), 3)
        assert (probabilities >= 0).all()
        np.testing.assert_allclose(probabilities.sum(axis=1), 1)
    truth = scan.dataset.targets[split.rows("test")]
    for name in ("one_nearest_neighbour", "logistic_features"):
        assert np.mean(result[name].argmax(axis=1) == truth) > 0.9
    assert set(result["majority"].argmax(axis=1)) == {0}
    assert "logistic_features" not in all_baselines(scan, split)
    rows = split.rows("val")
    assert len(all_baselines(scan, split, rows=rows)["shortcut"]) == len(rows)


def test_the_nearest_neighbour_is_the_one_with_the_highest_correlation(
    data: tuple[Scan, Split],
) -> None:
    scan, split = data
    train, test = split.rows("train"), split.rows("test")
    flat = scan.thumbnails.reshape(len(scan.thumbnails), -1)
    expected = scan.dataset.targets[train][(flat[test] @ flat[train].T).argmax(axis=1)]
    probabilities = predict_one_nearest_neighbour(
        scan.thumbnails[train], scan.dataset.targets[train], scan.thumbnails[test], 3
    )
    assert probabilities.argmax(axis=1).tolist() == expected.tolist()


def test_majority_and_uniform_look_at_no_image() -> None:
    assert predict_majority(np.array([0, 1, 1, 1]), 2, 3).tolist() == [[0.25, 0.75, 0.0]] * 2
    assert predict_uniform(1, 4).tolist() == [[0.25] * 4]


def test_the_shortcut_model_sees_words_that_only_the_test_has() -> None:
    y = np.array([0, 1] * 30)
    facts = [{"mode": "RGB" if label else "L", "sha256": i} for i, label in enumerate(y)]
    probabilities = predict_shortcut(facts, y, [{"mode": "L"}, {"mode": "RGB"}, {"mode": "P"}], 2)
    assert probabilities.argmax(axis=1)[:2].tolist() == [0, 1]


def test_without_a_property_that_varies_the_shortcut_is_the_majority() -> None:
    y = np.array([0, 1, 1])
    facts = [{"mode": "L"}] * 3
    assert np.allclose(predict_shortcut(facts, y, facts, 2), [[1 / 3, 2 / 3]])


def test_a_class_that_training_lacks_has_probability_zero() -> None:
    random = np.random.default_rng(0)
    y = np.array([0, 2] * 20)
    features = random.normal(size=(40, 5)) + y[:, None]
    probabilities = predict_logistic_features(features, y, features, 3)
    assert (probabilities[:, 1] == 0).all()
    assert np.mean(probabilities.argmax(axis=1) == y) > 0.9


def test_an_image_is_judged_by_what_has_seen_no_image_of_its_group(
    data: tuple[Scan, Split],
) -> None:
    scan, split = data
    rows, probabilities = predict_out_of_fold(
        scan, split, scan.thumbnails.reshape(len(scan.facts), -1), 0
    )
    assert rows.tolist() == np.flatnonzero(split.part != "test").tolist()
    assert (probabilities.argmax(axis=1) == scan.dataset.targets[rows]).mean() > 0.9
    # Features that name the group and nothing else tell nothing of another group.
    order = np.argsort(scan.dataset.targets[rows], kind="stable")
    group = np.empty(len(rows), dtype=int)
    group[order] = np.arange(len(rows)) // 3
    names = np.eye(group.max() + 1)[group]
    every = np.zeros((len(scan.facts), names.shape[1]))
    every[rows] = names
    whole = np.zeros(len(scan.facts), dtype=int)
    whole[rows] = group
    unseen = replace(scan, thumbnails=np.zeros_like(scan.thumbnails))
    _, blind = predict_out_of_fold(unseen, replace(split, group=whole), every, 0)
    assert np.ptp(blind, axis=0).max() < 0.2
