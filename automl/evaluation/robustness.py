"""What happens to the result when the images are a little worse than those of the test set?

Each corruption is applied at three levels to a sample of the test images and the same metric
is taken again, beside what it lost on the same images.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.ndimage import affine_transform, gaussian_filter, shift

from automl.data.images import decode_bytes
from automl.data.pictures import encode_jpeg
from automl.evaluation.intervals import bootstrap_difference, bootstrap_metrics
from automl.evaluation.plain import to_json

# What each level means. Noise: standard deviation in grey levels of 255. Blur: sigma in percent
# of the side. Gamma: exponent on intensities in [0, 1]. Rotation: degrees. JPEG: quality.
# Shift: percent of the side. Level 1 is hard to see, level 3 is plain to see.
LEVELS: dict[str, tuple[float, float, float]] = {
    "noise": (5.0, 15.0, 30.0),
    "blur": (0.5, 1.0, 2.0),
    "gamma": (1.2, 1.5, 2.0),
    "rotation": (5.0, 10.0, 20.0),
    "jpeg": (50, 20, 8),
    "shift": (3.0, 6.0, 12.0),
}
MAX_IMAGES = 200
# 36 intervals for a figure: their last digit is not worth the waiting.
RESAMPLES = 500


def apply_corruption(pixels: np.ndarray, name: str, level: int, seed: int = 0) -> np.ndarray:
    """A corrupted copy of uint8 (n, S, S, 3), the same shape and type; level 0–3.

    Signs (turn left or right, lighter or darker, the way of the shift) are drawn for each
    image from ``seed``. What comes in from outside the image is black.
    """
    if level == 0:
        return pixels.copy()
    strength = LEVELS[name][level - 1]
    side = pixels.shape[1]
    generator = np.random.default_rng([seed, sorted(LEVELS).index(name), level])
    signs = generator.choice([-1.0, 1.0], size=(len(pixels), 2))
    if name == "noise":
        # One grey value for all three channels: a scanner's noise has no colour.
        noise = generator.normal(0.0, strength, size=(*pixels.shape[:3], 1))
        return _to_uint8(pixels + noise)
    if name == "gamma":
        exponents = (strength ** signs[:, 0])[:, None, None, None]
        return _to_uint8(255.0 * (pixels / 255.0) ** exponents)
    if name == "jpeg":
        files = [encode_jpeg(image, int(strength)) for image in pixels]
        return np.stack([decode_bytes(data)[0] for data in files])
    # Of grey images, as scans mostly are, one channel is moved for all three.
    channels = 1 if (pixels == pixels[..., :1]).all() else 3
    moved = [
        _to_uint8(_move(image.astype(np.float64), name, strength, sign, side))
        for image, sign in zip(pixels[..., :channels], signs, strict=True)
    ]
    return np.repeat(np.stack(moved), 3 // channels, axis=-1)


def _move(image: np.ndarray, name: str, strength: float, sign: np.ndarray, side: int) -> np.ndarray:
    """Blur, turn about the centre, or shift one image (S, S, 3)."""
    if name == "blur":
        sigma = strength / 100 * side
        return gaussian_filter(image, (sigma, sigma, 0), mode="nearest")
    if name == "rotation":
        angle = np.deg2rad(strength) * sign[0]
        turn = np.eye(3)
        turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
        centre = np.array([(side - 1) / 2, (side - 1) / 2, 0.0])
        return affine_transform(image, turn, offset=centre - turn @ centre, order=1)
    offset = np.round(strength / 100 * side * sign)
    return shift(image, (*offset, 0), order=0)


def evaluate_robustness(
    predict: Callable[[np.ndarray], np.ndarray],
    pixels: np.ndarray,
    y_true: np.ndarray,
    threshold: float | None,
    groups: np.ndarray,
    seed: int,
    positive_index: int = 1,
    metric: str = "accuracy",
    progress: Callable[[str, int, int], None] | None = None,
) -> list[dict[str, Any]]:
    """``metric`` under each corruption at each strength, and what it lost, with 95 % intervals.

    At most 200 images are used, drawn by ``seed`` with the classes' shares kept, so this takes
    19 forward passes over 200 images.

    Args:
        predict: uint8 (n, S, S, 3) → probabilities (n, k).
        pixels: uint8 (n, S, S, 3), may be a memory map.
        groups: int (n,), the units that intervals resample.

    Returns:
        rows ``{name, level, metric_name, images, metric, difference}``: ``level`` is the strength
        in LEVELS' unit, ``difference`` the metric minus that of the same images untouched,
        both ``{value, low, high}``.
    """
    rows = sample_images(y_true, MAX_IMAGES, seed)
    chosen, labels, units = np.asarray(pixels[rows]), y_true[rows], groups[rows]
    clean = predict(chosen)
    plan = [(name, level) for name in LEVELS for level in (1, 2, 3)]
    results = []
    for done, (name, level) in enumerate(plan):
        if progress is not None:
            progress("testing robustness", done, len(plan))
        worse = predict(apply_corruption(chosen, name, level, seed))
        options = {
            "groups": units,
            "seed": seed,
            "positive_index": positive_index,
            "resamples": RESAMPLES,
        }
        interval = bootstrap_metrics(labels, worse, threshold, **options)
        difference = bootstrap_difference(labels, worse, clean, (threshold, threshold), **options)
        results.append(
            {
                "name": name,
                "level": LEVELS[name][level - 1],
                "metric_name": metric,
                "images": len(rows),
                "metric": interval[metric],
                "difference": difference[metric],
            }
        )
    if progress is not None:
        progress("testing robustness", len(plan), len(plan))
    return to_json(results)


def sample_images(y_true: np.ndarray, limit: int, seed: int) -> np.ndarray:
    """Indices of at most ``limit`` images, ascending, each class in its share."""
    order = np.random.default_rng(seed).permutation(len(y_true))
    # An image's place within its class, from 0 to 1: the first places are in all classes alike.
    place = np.zeros(len(y_true))
    for index in np.unique(y_true):
        members = order[y_true[order] == index]
        place[members] = (np.arange(len(members)) + 0.5) / len(members)
    return np.sort(order[np.argsort(place[order], kind="stable")][:limit])


def _to_uint8(values: np.ndarray) -> np.ndarray:
    return np.clip(np.round(values), 0, 255).astype(np.uint8)
