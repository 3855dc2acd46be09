"""Warnings: what is unlike the training data, what was in it, what cannot be decided."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, ImageDraw

from automl.data.arrays import describe_pixels, drop_colour
from automl.errors import ModelError
from automl.serving.guards import find_flags, fit_conformal, fit_guards, load_guards
from automl.serving.novelty import fit_novelty, measure_pixels, score_novelty

SIZE = 96


def draw_heads(count, seed):
    """Bright ellipses on black with soft texture, uint8 (count, 96, 96, 3)."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:SIZE, 0:SIZE] / SIZE
    images = np.empty((count, SIZE, SIZE, 3), np.uint8)
    for i in range(count):
        cx, cy, a, b, level = rng.uniform(
            [0.46, 0.46, 0.3, 0.36, 100], [0.54, 0.54, 0.36, 0.44, 180]
        )
        inside = ((x - cx) / a) ** 2 + ((y - cy) / b) ** 2 < 1
        waves = 12 * np.sin(rng.uniform(10, 30) * x + rng.uniform(10, 30) * y)
        grey = inside * (level + waves) + np.abs(rng.normal(0, 3, (SIZE, SIZE)))
        images[i] = np.clip(grey, 0, 255)[..., None].astype(np.uint8)
    return images


def draw_foreign(seed=0):
    """Noise, text, inverted and shuffled heads, a colour gradient, empty frames."""
    rng = np.random.default_rng(seed)
    images = [rng.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8) for _ in range(5)]
    for background, ink in (("white", "black"), ("black", "white")):
        picture = Image.new("RGB", (SIZE, SIZE), background)
        for top in range(0, SIZE, 12):
            ImageDraw.Draw(picture).text((2, top), "the quick brown fox", fill=ink)
        images.append(np.asarray(picture))
    heads = draw_heads(10, 99)
    images += list(255 - heads[:5])
    for head in heads[5:]:
        cells = head.reshape(4, SIZE // 4, 4, SIZE // 4, 3).transpose(0, 2, 1, 3, 4)
        mixed = rng.permutation(cells.reshape(16, SIZE // 4, SIZE // 4, 3))
        images.append(
            mixed.reshape(4, 4, SIZE // 4, SIZE // 4, 3)
            .transpose(0, 2, 1, 3, 4)
            .reshape(head.shape)
        )
    ramp = np.linspace(0, 255, SIZE).astype(np.uint8)
    images.append(
        np.stack([np.tile(ramp, (SIZE, 1)), np.tile(ramp, (SIZE, 1)).T, heads[0, ..., 0]], 2)
    )
    images += [np.full((SIZE, SIZE, 3), level, np.uint8) for level in (0, 128, 255)]
    return np.stack(images)


def describe(images):
    """Features that a small fixed random projection makes, statistics and thumbnails."""
    project = np.random.default_rng(5).normal(size=(144, 40)).astype(np.float32)
    small = images[:, ::8, ::8, 0].reshape(len(images), -1).astype(np.float32) / 255
    return np.maximum(small @ project, 0), *measure_pixels(images)


@pytest.fixture(scope="module")
def guards():
    features, statistics, thumbnails = describe(draw_heads(300, 1))
    rng = np.random.default_rng(0)
    positive = rng.random(200)
    return fit_guards(
        features,
        statistics,
        thumbnails,
        [f"{i:064x}" for i in range(300)],
        np.stack([1 - positive, positive], axis=1),
        (rng.random(200) < positive).astype(int),
    )


def flags_of(guards, images, probabilities=None, sha256=None):
    if probabilities is None:
        probabilities = np.tile([[0.02, 0.98]], (len(images), 1))
    features, statistics, thumbnails = describe(images)
    sha256 = sha256 or [None] * len(images)
    return find_flags(guards, probabilities, features, statistics, thumbnails, sha256)


def test_foreign_images_are_flagged_and_new_heads_are_not(guards):
    foreign = ["unlike-training" in flags for flags in flags_of(guards, draw_foreign())]
    familiar = ["unlike-training" in flags for flags in flags_of(guards, draw_heads(300, 2))]
    assert np.mean(foreign) >= 0.95
    assert np.mean(familiar) <= 0.03


def test_a_frame_with_nothing_in_it_is_flagged_whatever_the_distances_say(guards):
    wide = replace(guards, novelty=guards.novelty | {"limit": np.float64(1e9)})
    rng = np.random.default_rng(0)
    frames = np.clip(rng.normal([[0], [0], [128]], 1, (3, SIZE * SIZE)), 0, 255)
    frames = np.repeat(frames.reshape(3, SIZE, SIZE, 1), 3, axis=3).astype(np.uint8)
    assert all("unlike-training" in flags for flags in flags_of(wide, frames))
    heads = flags_of(wide, draw_heads(20, 2))
    assert not any("unlike-training" in flags for flags in heads)


def test_folds_keep_near_copies_together():
    heads = draw_heads(60, 1)
    copies = np.repeat(heads, 5, axis=0)
    rng = np.random.default_rng(0)
    copies = np.clip(copies + rng.normal(0, 1, copies.shape), 0, 255).astype(np.uint8)
    parts = describe(copies)
    grouped = fit_novelty(*parts, groups=np.repeat(np.arange(60), 5))
    alone = fit_novelty(*parts)
    features, statistics, thumbnails = describe(draw_heads(200, 2))
    flat = parts[2].reshape(300, -1)
    correlation = (thumbnails.reshape(200, -1) @ flat.T).max(axis=1)
    flagged = [
        (score_novelty(arrays, features, statistics, correlation) > 1).mean()
        for arrays in (grouped, alone)
    ]
    assert flagged[0] < flagged[1]


def test_a_training_image_is_recognised_brighter_and_by_its_hash(guards):
    heads = draw_heads(300, 1)[:5]
    brighter = np.clip(heads * 1.1 + 5, 0, 255).astype(np.uint8)
    assert all("seen-in-training" in flags for flags in flags_of(guards, brighter))
    new = draw_foreign()[:5]
    assert not any("seen-in-training" in flags for flags in flags_of(guards, new))
    hashes = [f"{7:064x}", None, f"{7000:064x}", None, None]
    found = ["seen-in-training" in flags for flags in flags_of(guards, new, sha256=hashes)]
    assert found == [True, False, False, False, False]


def test_uncertain_is_a_conformal_set_without_exactly_one_class(guards):
    sure = np.array([[0.01, 0.99], [0.5, 0.5], [0.99, 0.01]])
    found = ["uncertain" in flags for flags in flags_of(guards, draw_heads(3, 2), sure)]
    assert found == [False, True, False]


def test_conformal_sets_hold_the_true_class_nine_times_in_ten():
    rng = np.random.default_rng(0)
    covered = []
    for _ in range(200):
        positive = rng.beta(0.5, 0.5, 400)
        probabilities = np.stack([1 - positive, positive], axis=1)
        y_true = (rng.random(400) < positive).astype(int)
        least = fit_conformal(probabilities[:200], y_true[:200])
        covered.append((probabilities[200:][np.arange(200), y_true[200:]] >= least).mean())
    assert 0.895 < np.mean(covered) < 0.915


def test_too_few_validation_images_put_every_class_into_the_set():
    assert fit_conformal(np.array([[0.1, 0.9]] * 5), np.ones(5, int)) == 0.0


def test_guards_come_back_from_disk_with_the_same_flags(guards, tmp_path):
    guards.save(tmp_path / "guards.npz")
    images = np.concatenate([draw_heads(20, 2), draw_foreign()])
    hashes = [f"{i:064x}" for i in range(290, 290 + len(images))]
    first = flags_of(guards, images, sha256=hashes)
    again = flags_of(load_guards(tmp_path / "guards.npz"), images, sha256=hashes)
    assert first == again


def test_the_most_similar_training_image_is_found_by_a_few_coordinates(guards):
    assert guards.basis is None, "300 images are few"
    heads = np.concatenate([draw_heads(300, seed) for seed in (1, 2)])
    features, statistics, thumbnails = describe(heads)
    many = fit_guards(
        features, statistics, thumbnails, [], np.full((50, 2), 0.5), np.zeros(50, np.int64)
    )
    assert many.basis is not None and many.short.shape[1] < thumbnails[0].size / 8
    new = describe(np.concatenate([draw_foreign(), heads[:9], draw_heads(9, 3)]))[2]
    plain = (new.reshape(len(new), -1) @ many.thumbnails.T).max(axis=1)
    assert np.allclose(many.correlate(new), plain, atol=1e-5)


def test_a_pickle_is_not_taken_for_guards(tmp_path):
    np.savez(tmp_path / "guards.npz", thumbnails=np.array([{"a": 1}], dtype=object))
    with pytest.raises(ModelError, match="cannot be read"):
        load_guards(tmp_path / "guards.npz")
    (tmp_path / "guards.npz").write_bytes(b"not a zip")
    with pytest.raises(ModelError, match="cannot be read"):
        load_guards(tmp_path / "guards.npz")


def measure_plainly(image):
    """The 90 statistics of one image, one after the other as their names say them."""
    grey = np.asarray(Image.fromarray(image).convert("L"))
    ordered = np.sort(grey, axis=None)
    ranks = [max(0, int(np.ceil(q / 100 * grey.size)) - 1) for q in (1, 10, 25, 50, 75, 90, 99)]
    values = grey.astype(np.float64) / 255
    cell = len(values) // 8
    layout = values[: 8 * cell, : 8 * cell].reshape(8, cell, 8, cell).mean(axis=(1, 3))
    slopes, scaled = [], values
    for _ in range(3):
        for steps in (np.diff(scaled, axis=0), np.diff(scaled, axis=1)):
            slopes += [np.abs(steps).mean(), np.sqrt((steps**2).mean())]
        half = len(scaled) // 2
        scaled = scaled[: 2 * half, : 2 * half].reshape(half, 2, half, 2).mean(axis=(1, 3))
    border = np.concatenate([grey[0], grey[-1], grey[:, 0], grey[:, -1]]).astype(int)
    near = np.abs(grey.astype(int) - int(np.median(border))) <= 12
    centred = layout - layout.mean()
    symmetry = (centred * centred[:, ::-1]).sum() / ((centred**2).sum() + 1e-6)
    red, green, blue = np.moveaxis(image[::3, ::3].astype(int), 2, 0)
    colour = [np.abs(red - green).mean() / 255, np.abs(green - blue).mean() / 255]
    plain = [border.mean() / 255, border.std() / 255, near.mean(), symmetry, values.std()]
    return np.concatenate(
        [
            layout.ravel(),
            ordered[ranks] / 255,
            np.log(np.array(slopes) + 1e-3),
            plain,
            np.sqrt(colour),
        ]
    )


def test_statistics_are_what_they_are_called_whatever_else_is_measured():
    images = np.concatenate([draw_heads(6, 3), draw_foreign()])
    expected = np.stack([measure_plainly(image) for image in images])
    found, thumbnails = measure_pixels(images)
    assert np.array_equal(thumbnails, [describe_pixels(image)[0] for image in images])
    assert np.allclose(found, expected, rtol=1e-4, atol=2e-6)
    lean = [drop_colour(image) for image in images]
    assert {image.shape[2] for image in lean} == {1, 3}
    for order in (range(len(images)), reversed(range(len(images)))):
        rows = list(order)
        assert np.array_equal(measure_pixels([lean[row] for row in rows])[0], found[rows])
    assert [part.shape for part in measure_pixels([])] == [(0, 90), (0, 32, 32)]


def test_blank_images_have_finite_statistics():
    for level in (0, 255):
        for side in (32, 97, 160):
            blank = np.full((1, side, side, 3), level, np.uint8)
            statistics, thumbnails = measure_pixels(blank)
            assert statistics.shape == (1, 90) and np.isfinite(statistics).all()
            assert not thumbnails.any()
