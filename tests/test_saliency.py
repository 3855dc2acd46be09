"""Grad-CAM on models whose reasons are known, and the measures of a heat map."""

import os
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import pytest
from PIL import Image
from serving_model import make_model
from sklearn.linear_model import LogisticRegression

from automl.data import sample
from automl.data.pictures import write_picture
from automl.evaluation.heatmaps import (
    centre_of_mass,
    colour,
    head_mask,
    outside_share,
    overlay,
    rank_correlation,
)
from automl.evaluation.metrics import compute_metrics
from automl.evaluation.saliency import check_saliency, grad_cam, randomised_copy

SIZE = 64


def make_detector(classes: int = 2, mirror: bool = False) -> keras.Model:
    """A finished model in small: the logit grows with red squares; blue ones speak against it."""
    pixels = keras.Input((SIZE, SIZE, 3), name="pixels")
    seen = keras.ops.concatenate([pixels, keras.ops.flip(pixels, 2)]) if mirror else pixels
    scaled = keras.layers.Rescaling(1 / 127.5, offset=-1.0, name="preprocess")(seen)
    values = keras.layers.AveragePooling2D(8, name="pool")(scaled)
    values = keras.layers.Conv2D(3, 1, name="Conv_1")(values)
    feature_map = keras.layers.ReLU(max_value=6.0, name="out_relu")(values)
    features = keras.layers.GlobalAveragePooling2D(name="features")(feature_map)
    if mirror:
        features = keras.ops.mean(keras.ops.reshape(features, (2, -1, 3)), axis=0)
    standardise = keras.layers.Normalization(name="standardise")
    standardise.build((None, 3))
    values = keras.layers.Dropout(0.2, name="dropout")(standardise(features))
    logits = keras.layers.Dense(1 if classes == 2 else classes, name="logits")(values)
    values = keras.layers.Rescaling(1 / 1.5, name="temperature")(logits)
    if classes == 2:
        positive = keras.layers.Activation("sigmoid", name="positive")(values)
        negative = keras.layers.Rescaling(-1.0, offset=1.0, name="negative")(positive)
        output = keras.layers.Concatenate(name="probabilities")([negative, positive])
    else:
        output = keras.layers.Activation("softmax", name="probabilities")(values)
    model = keras.Model(pixels, output)
    # ReLU(x + 1) maps black to 0 and white to 2: the feature map is the picture itself.
    model.get_layer("Conv_1").set_weights([np.eye(3)[None, None], np.ones(3)])
    standardise.set_weights([np.full(3, 0.3), np.full(3, 0.2), np.array(1)])
    standardise.finalize_state()
    kernel = np.array([[2.0], [0.0], [-2.0]])
    if classes > 2:
        kernel = np.array([[2.0, -1.0, -1.0], [-1.0, 2.0, -1.0], [-1.0, -1.0, 2.0]])
    model.get_layer("logits").set_weights([kernel, np.zeros(kernel.shape[1])])
    return model


def draw_squares(n: int = 20) -> tuple[np.ndarray, np.ndarray]:
    """A red, a green and a blue square in each picture; the centres of the red ones (n, 2)."""
    generator = np.random.default_rng(0)
    pixels = np.full((n, SIZE, SIZE, 3), 30, np.uint8)
    centres = np.zeros((n, 2))
    for image, centre in zip(pixels, centres, strict=True):
        cells = generator.choice(9, 3, replace=False)
        for channel, cell in enumerate(cells):
            row, column = 4 + 20 * (cell // 3), 4 + 20 * (cell % 3)
            image[row : row + 16, column : column + 16, channel] = 250
            if channel == 0:
                centre[:] = row + 7.5, column + 7.5
    return pixels, centres


def test_the_heat_is_on_what_the_model_looks_for():
    pixels, centres = draw_squares()
    heat = grad_cam(make_detector(), pixels)
    assert heat.shape == (20, SIZE, SIZE) and heat.dtype == np.float32
    assert heat.min() >= 0 and heat.max() <= 1
    distances = np.linalg.norm(centre_of_mass(heat) - centres, axis=1)
    assert distances.max() < 6


def test_the_negative_class_has_its_own_reasons():
    pixels, centres = draw_squares()
    model = make_detector()
    against = centre_of_mass(grad_cam(model, pixels, class_index=0))
    assert np.linalg.norm(against - centres, axis=1).min() > 10


def test_each_of_many_classes_has_its_own_heat():
    pixels, _ = draw_squares()
    model = make_detector(3)
    for index in range(3):
        heat = grad_cam(model, pixels, class_index=index)
        square = pixels[..., index] > 200
        assert np.median(1 - outside_share(heat, square)) > 0.5
    mixed = grad_cam(model, pixels[:3], class_index=np.array([2, 0, 1]))
    for row, index in enumerate((2, 0, 1)):
        alone = grad_cam(model, pixels[row : row + 1], class_index=index)
        assert mixed[row] == pytest.approx(alone[0], abs=1e-5)


def test_batches_do_not_change_the_heat():
    pixels, _ = draw_squares(7)
    model = make_detector()
    together, apart = grad_cam(model, pixels), grad_cam(model, pixels, batch_size=3)
    assert together == pytest.approx(apart, abs=1e-5)
    assert grad_cam(model, pixels[:0]).shape == (0, SIZE, SIZE)


def test_a_copy_with_its_own_weights_predicts_the_same_and_a_shuffled_one_does_not():
    pixels, _ = draw_squares(8)
    model = make_detector(3)
    before = model(pixels.astype(np.float32), training=False).numpy()
    shuffled = randomised_copy(model, seed=1)
    after = shuffled(pixels.astype(np.float32), training=False).numpy()
    assert np.abs(after - before).max() > 0.01
    assert model(pixels.astype(np.float32), training=False).numpy() == pytest.approx(before)
    for old, new in zip(model.get_weights(), shuffled.get_weights(), strict=True):
        assert np.sort(new.ravel()) == pytest.approx(np.sort(old.ravel()))
    same = keras.ops.convert_to_numpy(shuffled.get_layer("standardise").mean)
    assert same == pytest.approx(np.full((1, 3), 0.3))


def test_shuffled_weights_lose_the_heat():
    pixels, centres = draw_squares()
    model = make_detector(3)
    distances = [
        np.linalg.norm(centre_of_mass(grad_cam(m, pixels, 0)) - centres, axis=1).mean()
        for m in (model, *(randomised_copy(model, seed) for seed in range(3)))
    ]
    assert distances[0] < 0.6 * np.mean(distances[1:])
    checked = check_saliency(model, pixels)
    assert checked["images"] == 20
    assert -1 <= checked["sanity"]["correlation_randomised"] < 0.9


def test_maps_are_compared_by_rank():
    first = np.random.default_rng(0).random((3, 8, 8))
    assert rank_correlation(first, first**3) == pytest.approx(np.ones(3))
    assert rank_correlation(first, -first) == pytest.approx(-np.ones(3))
    assert rank_correlation(first, np.zeros_like(first)) == pytest.approx(np.zeros(3))


def test_the_share_outside_is_counted():
    heat, mask = np.ones((2, 10, 10)), np.zeros((2, 10, 10), bool)
    mask[:, :4] = True
    heat[1] = 0
    assert outside_share(heat, mask)[0] == pytest.approx(0.6)
    assert np.isnan(outside_share(heat, mask)[1])


def test_the_head_is_found_with_its_dark_ventricles():
    y, x = np.mgrid[:80, :80] - 39.5
    grey = np.where(x**2 + y**2 < 30**2, 140, 3) * np.where(x**2 + y**2 < 8**2, 0.1, 1)
    grey[2:5, 2:5] = 255
    pixels = np.repeat(grey.astype(np.uint8)[None, ..., None], 3, axis=3)
    truth = x**2 + y**2 < 30**2
    assert (head_mask(pixels)[0] == truth).mean() > 0.98
    assert head_mask(np.full((1, 9, 9, 3), 7, np.uint8)).all()


def test_an_overlay_keeps_the_image_where_it_is_cold():
    pixels = np.random.default_rng(0).integers(0, 255, (2, 8, 8, 3)).astype(np.uint8)
    heat = np.zeros((2, 8, 8))
    heat[:, 0, 0] = 1
    painted = overlay(pixels, heat)
    assert painted.dtype == np.uint8
    assert (painted[:, 1:] == pixels[:, 1:]).all()
    assert (painted[0, 0, 0] != pixels[0, 0, 0]).any()


def test_colours_grow_lighter_with_the_heat():
    lightness = colour(np.linspace(0, 1, 50)) @ np.array([0.2126, 0.7152, 0.0722])
    assert (np.diff(lightness) > 0).all()


@pytest.mark.parametrize("name", ["a.jpg", "deep/er/b.png"])
def test_pictures_are_small_and_the_same_each_time(tmp_path, name):
    pixels = np.random.default_rng(0).integers(0, 255, (300, 200, 3)).astype(np.uint8)
    path = write_picture(pixels, tmp_path / name, size=96)
    first = path.read_bytes()
    with Image.open(path) as picture:
        assert picture.size == (64, 96)
    assert write_picture(pixels, tmp_path / name, size=96).read_bytes() == first
    with Image.open(write_picture(pixels[..., 0], tmp_path / "grey.png")) as picture:
        assert picture.size == (200, 300) and picture.mode == "L"


def draw_lesions(
    monkeypatch: pytest.MonkeyPatch, patients: int, size: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Heads of the sample: pixels, labels, and masks of where a lesion is or would be.

    The sample keeps no masks; they are overheard where it draws them.
    """
    masks, lesions = [], []
    choose_lesion, soften = sample.choose_lesion, sample.soften

    def remember_lesion(*arguments: Any) -> np.ndarray:
        lesions.append(choose_lesion(*arguments))
        return lesions[-1]

    def remember_mask(row: np.ndarray, *arguments: Any, **options: Any) -> np.ndarray:
        mask = soften(row, *arguments, **options)
        if lesions and row is lesions[-1]:
            masks.append(mask > 0.5)
        return mask

    monkeypatch.setattr(sample, "choose_lesion", remember_lesion)
    monkeypatch.setattr(sample, "soften", remember_mask)
    pixels = sample.draw_heads(3, patients, 2, size)[..., None].repeat(3, axis=3)
    y_true = np.repeat(sample.choose_patients(3, patients).astype(int), 2)
    return pixels, y_true, np.concatenate(masks)


def train_detector(pixels: np.ndarray, y_true: np.ndarray, weights: str) -> keras.Model:
    """A finished model: a linear head on frozen features first, then all of it for a little."""
    model = make_model(2, pixels.shape[1], 0.35, weights)
    inputs = pixels.astype(np.float32)
    features = keras.Model(model.input, model.get_layer("features").output)
    found = features.predict(inputs, verbose=0)
    standardise = model.get_layer("standardise")
    # Some of so few channels never fire: without a floor their variance divides by nearly 0.
    mean, variance = found.mean(axis=0), found.var(axis=0) + 0.01
    standardise.mean = keras.ops.convert_to_tensor(mean[None])
    standardise.variance = keras.ops.convert_to_tensor(variance[None])
    head = LogisticRegression(C=0.01).fit((found - mean) / np.sqrt(variance), y_true)
    model.get_layer("logits").set_weights([head.coef_.T, head.intercept_])
    for number, layer in enumerate(model.layers):
        frozen = isinstance(layer, keras.layers.BatchNormalization) or number < 20
        layer.trainable = not frozen
    inner = keras.Model(model.input, model.get_layer("logits").output)
    loss = keras.losses.BinaryCrossentropy(from_logits=True)
    inner.compile(keras.optimizers.Adam(2e-4), loss, jit_compile=False)
    inner.fit(inputs, y_true[:, None], epochs=4, batch_size=16, verbose=0)
    return model


@pytest.mark.slow
def test_the_heat_falls_on_a_planted_lesion_and_without_what_was_learned_it_does_not(monkeypatch):
    shared = Path(__file__).parents[2] / "shared" / "keras" / "models"
    weights = sorted(shared.glob("mobilenet_v2_*_0.35_128_no_top.h5"))
    if not weights:
        pytest.skip("the backbone's weights are not in ../shared")
    keras.utils.set_random_seed(1)
    pixels, y_true, masks = draw_lesions(monkeypatch, 200, 128)
    model = train_detector(pixels[:320], y_true[:320], str(weights[0]))
    probabilities = model.predict(pixels[320:].astype(np.float32), verbose=0)
    assert compute_metrics(y_true[320:], probabilities)["roc_auc"] > 0.95

    ill = 320 + np.flatnonzero(y_true[320:] == 1)
    lesions = centre_of_mass(masks[ill].astype(float))
    elsewhere = np.random.default_rng(0).permuted(np.tile(np.arange(len(ill)), (50, 1)), axis=1)

    def judge(judged: keras.Model) -> tuple[float, float, float]:
        """How often maps are centred on the lesion, on another patient's, and how far from it.

        The distance is a share of that to other patients' lesions: 1 is chance.
        """
        centres = centre_of_mass(grad_cam(judged, pixels[ill]))
        rows, columns = np.round(centres).astype(int).T
        distance = np.linalg.norm(centres - lesions, axis=1).mean()
        chance = np.linalg.norm(centres - lesions[elsewhere], axis=2).mean()
        others = masks[ill][elsewhere, rows, columns].mean()
        return masks[ill, rows, columns].mean(), others, distance / chance

    hits, by_chance, distance = judge(model)
    assert hits > 0.25 and hits > 2.5 * by_chance
    assert distance < 0.6
    copies = np.array([judge(randomised_copy(model, seed)) for seed in range(2)])
    random_hits, random_chance, random_distance = copies.mean(axis=0)
    assert random_hits < 0.5 * hits and random_hits < random_chance + 0.1
    assert random_distance > 0.85


def test_a_mirrored_model_has_the_heat_of_both_sides():
    images, _ = draw_squares(6)
    alone, both = grad_cam(make_detector(), images), grad_cam(make_detector(mirror=True), images)
    assert both == pytest.approx(alone, abs=1e-4)
