"""Corruptions: what they do to pixels, and that the loss they cause is seen."""

import numpy as np
import pytest

from automl.evaluation.robustness import (
    LEVELS,
    apply_corruption,
    evaluate_robustness,
    sample_images,
)


def draw_discs(n: int = 60, size: int = 48) -> tuple[np.ndarray, np.ndarray]:
    """Grey heads with fine stripes; in the positive ones the stripes are stronger."""
    generator = np.random.default_rng(0)
    y, x = np.mgrid[:size, :size] / size - 0.5
    head = (x**2 + y**2 < 0.16)[None]
    y_true = np.arange(n) % 2
    stripes = np.sin(x * size * 1.5)[None] * (10 + 20 * y_true)[:, None, None]
    grey = head * (110 + stripes + generator.normal(0, 2, (n, size, size)))
    return np.repeat(np.clip(grey, 0, 255).astype(np.uint8)[..., None], 3, axis=-1), y_true


def contrast(pixels: np.ndarray) -> np.ndarray:
    """A detector of the stripes: probabilities (n, 2)."""
    inner = pixels[:, 16:32, 16:32, 0].astype(float)
    score = 1 / (1 + np.exp(-(np.abs(np.diff(inner, axis=2)).mean(axis=(1, 2)) - 14) / 2))
    return np.stack([1 - score, score], axis=1)


@pytest.mark.parametrize("name", LEVELS)
def test_a_higher_level_changes_more_and_keeps_shape_and_type(name):
    y, x = np.mgrid[:64, :64] / 64 - 0.5
    smooth = (x**2 + 2 * y**2 < 0.16) * (120 + 160 * x + 60 * y)
    pixels = np.repeat(smooth.astype(np.uint8)[None, ..., None], 8, axis=0).repeat(3, axis=3)
    distances = []
    for level in (0, 1, 2, 3):
        worse = apply_corruption(pixels, name, level, seed=1)
        assert worse.shape == pixels.shape and worse.dtype == np.uint8
        distances.append(np.abs(worse.astype(float) - pixels).mean())
    assert distances[0] == 0
    assert distances == sorted(distances) and len(set(distances)) == 4


@pytest.mark.parametrize("name", LEVELS)
def test_equal_seeds_give_equal_pixels(name):
    pixels, _ = draw_discs(4)
    first, second = (apply_corruption(pixels, name, 2, seed=3) for _ in range(2))
    assert (first == second).all()


@pytest.mark.parametrize("name", ["blur", "rotation", "shift", "gamma"])
def test_a_grey_image_is_worsened_as_each_channel_of_a_coloured_one(name):
    colour = np.random.default_rng(0).integers(0, 256, (3, 40, 40, 3)).astype(np.uint8)
    worse = apply_corruption(colour, name, 3, seed=1)
    for channel in range(3):
        grey = np.repeat(colour[..., channel : channel + 1], 3, axis=-1)
        expected = np.repeat(worse[..., channel : channel + 1], 3, axis=-1)
        np.testing.assert_array_equal(apply_corruption(grey, name, 3, seed=1), expected)


def test_noise_has_its_standard_deviation_and_no_colour():
    worse = apply_corruption(np.full((4, 64, 64, 3), 128, np.uint8), "noise", 2)
    assert worse.std() == pytest.approx(LEVELS["noise"][1], rel=0.05)
    assert (worse[..., 0] == worse[..., 2]).all()


def test_a_shift_moves_by_its_share_of_the_side():
    pixels = np.zeros((1, 100, 100, 3), np.uint8)
    pixels[0, 50, 50] = 255
    place = np.argwhere(apply_corruption(pixels, "shift", 3)[0, ..., 0])[0]
    assert np.abs(place - 50).tolist() == [12, 12]


def test_a_rotation_turns_about_the_centre():
    pixels = np.zeros((1, 101, 101, 3), np.uint8)
    pixels[0, 48:53, 88:93] = 255
    turned = apply_corruption(pixels, "rotation", 3)[0, ..., 0].astype(float)
    row, column = (
        (turned * grid).sum() / turned.sum() - 50 for grid in np.mgrid[:101, :101].astype(float)
    )
    assert np.hypot(row, column) == pytest.approx(40, abs=0.5)
    assert abs(np.degrees(np.arctan2(row, column))) == pytest.approx(20, abs=1)


def test_blur_destroys_what_the_stripes_told_and_shift_does_not():
    pixels, y_true = draw_discs()
    rows = evaluate_robustness(contrast, pixels, y_true, 0.5, np.arange(60), seed=0)
    table = {(row["name"], row["level"]): row for row in rows}
    assert len(table) == 18
    blurred = table["blur", LEVELS["blur"][2]]
    assert blurred["metric"]["value"] < 0.7
    assert blurred["difference"]["high"] < 0
    assert table["shift", LEVELS["shift"][0]]["metric"]["value"] == 1.0
    assert table["shift", LEVELS["shift"][0]]["metric"]["low"] < 1.0


def test_a_sample_keeps_the_shares_of_the_classes():
    y_true = np.repeat([0, 1, 2], [700, 250, 50])
    rows = sample_images(y_true, 200, seed=0)
    assert np.bincount(y_true[rows]).tolist() == pytest.approx([140, 50, 10], abs=1)
    assert (np.diff(rows) > 0).all()
    assert len(sample_images(y_true[:30], 200, seed=0)) == 30
