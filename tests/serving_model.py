"""A model of the shape that the search hands over, for the tests of serving."""

import shutil
from pathlib import Path

import keras
import numpy as np

from automl.records import ModelInfo
from automl.search.trial import VARIANCE_FLOOR
from automl.serving.export import export_saved_model
from automl.serving.guards import add_guards, fit_guards
from automl.serving.predictor import load


def make_model(
    classes: int = 2,
    image_size: int = 96,
    width: float = 0.35,
    weights: str | None = None,
    temperature: float = 1.3,
) -> keras.Model:
    """Flat MobileNetV2 with preprocessing and temperature inside; outputs that vary.

    Keras' own random start lets the signal die out on its way; He's keeps it alive, and the
    standardisation is set from drawn images, so that the probabilities are worth comparing.
    """
    keras.utils.set_random_seed(7)
    pixels = keras.Input((image_size, image_size, 3), name="pixels")
    scaled = keras.layers.Rescaling(1 / 127.5, offset=-1.0, name="preprocess")(pixels)
    backbone = keras.applications.MobileNetV2(
        input_shape=(image_size, image_size, 3),
        input_tensor=scaled,
        alpha=width,
        include_top=False,
        weights=weights,
    )
    if weights is None:
        rng = np.random.default_rng(3)
        for layer in backbone.layers:
            if "Conv2D" in type(layer).__name__:
                shape = layer.kernel.shape
                fan_in = (
                    shape[0] * shape[1] * (1 if "Depthwise" in type(layer).__name__ else shape[2])
                )
                layer.kernel.assign(rng.normal(0, np.sqrt(2 / fan_in), shape))
    features = keras.layers.GlobalAveragePooling2D(name="features")(backbone.output)
    embed = keras.Model(pixels, features)
    seen = embed(draw_images(16, image_size).astype(np.float32), training=False).numpy()
    # With the search's floor: a dead feature must not turn rounding into an answer.
    variance = np.maximum(seen.var(axis=0), VARIANCE_FLOOR * seen.var(axis=0).mean())
    standardise = keras.layers.Normalization(
        mean=seen.mean(axis=0), variance=variance, name="standardise"
    )
    values = keras.layers.Dropout(0.2, name="dropout")(standardise(features))
    values = keras.layers.Dense(
        1 if classes == 2 else classes,
        kernel_initializer=keras.initializers.RandomNormal(stddev=0.05, seed=1),
        name="logits",
    )(values)
    values = keras.layers.Rescaling(1 / temperature, name="temperature")(values)
    if classes == 2:
        positive = keras.layers.Activation("sigmoid", name="positive")(values)
        negative = keras.layers.Rescaling(-1.0, offset=1.0, name="negative")(positive)
        output = keras.layers.Concatenate(name="probabilities")([negative, positive])
    else:
        output = keras.layers.Activation("softmax", name="probabilities")(values)
    return keras.Model(pixels, output)


def make_info(
    classes: tuple[str, ...] = ("healthy", "tumour"), image_size: int = 96, threshold: float = 0.4
) -> ModelInfo:
    """A description that fits ``make_model``."""
    positive = classes[1] if len(classes) == 2 else None
    return ModelInfo("test", classes, positive, threshold, 1.3, image_size)


def draw_images(count: int, size: int, seed: int = 0) -> np.ndarray:
    """Smooth blobs with different brightness and texture, uint8 (count, size, size, 3)."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:size, 0:size] / size
    images = np.empty((count, size, size, 3), np.uint8)
    for i in range(count):
        cx, cy, radius, level = rng.uniform([0.4, 0.4, 0.25, 90], [0.6, 0.6, 0.4, 200])
        head = level / (1 + np.exp(((x - cx) ** 2 + (y - cy) ** 2 - radius**2) * 150))
        waves = 20 * np.sin(rng.uniform(10, 60) * x + rng.uniform(10, 60) * y)
        grey = head * (1 + waves / 100) + rng.normal(0, 4, (size, size))
        images[i] = np.clip(grey, 0, 255)[..., None].astype(np.uint8)
    return images


def prepare_run(base: Path) -> Path:
    """A run folder with model.keras, model/ and guards; made once below ``base``."""
    run = base / "serving-run"
    if not run.exists():
        made = base / "serving-run-unfinished"
        shutil.rmtree(made, ignore_errors=True)
        made.mkdir()
        model = make_model()
        model.save(made / "model.keras")
        export_saved_model(model, make_info(), made / "model")
        add_training_guards(made / "model")
        made.rename(run)
    return run


def add_training_guards(folder: Path) -> None:
    """Guards of 200 drawn images."""
    images = draw_images(200, 96, seed=1)
    seen = load(folder).describe(images)
    guards = fit_guards(
        seen.features,
        seen.statistics,
        seen.thumbnails,
        ["00" * 32] * len(images),
        seen.probabilities,
        seen.probabilities.argmax(axis=1),
    )
    add_guards(folder, guards)
