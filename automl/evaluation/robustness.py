"""What happens to the result when the images are a little worse than those of the test set?

Each corruption is applied at three levels to a sample of the test images and the same metric
is taken again. Level 0 is the images as they are, so that the loss can be read off.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.ndimage import affine_transform, gaussian_filter, shift

from automl.data.images import decode_bytes
from automl.data.pictures import encode_jpeg
from automl.evaluation.intervals import bootstrap_metrics

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
    return np.stack(
        [
            _to_uint8(_move(image.astype(np.float64), name, strength, sign, side))
            for image, sign in zip(pixels, signs, strict=True)
        ]
    )


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
    metric: str = "roc_auc",
    progress: Callable[[str, int, int], None] | None = None,
) -> list[dict[str, Any]]:
    """``metric`` with a 95 % interval under each corruption and level.

    At most 200 images are used, drawn by ``seed`` in equal parts from each class as far as
    there are enough, so this takes 19 forward passes over 200 images.

    Args:
        predict: uint8 (n, S, S, 3) → probabilities (n, k).
        pixels: uint8 (n, S, S, 3), may be a memory map.
        groups: int (n,), the units that intervals resample.

    Returns:
        rows ``{name, level, strength, images, metric: {value, low, high}, metric_name}``; the
        first is ``{"name": "none", "level": 0, …}``.
    """
    rows = sample_by_class(y_true, MAX_IMAGES, seed)
    chosen = np.asarray(pixels[rows])
    plan = [("none", 0), *((name, level) for name in LEVELS for level in (1, 2, 3))]
    results = []
    for done, (name, level) in enumerate(plan):
        if progress is not None:
            progress("testing robustness", done, len(plan))
        probabilities = predict(apply_corruption(chosen, name, level, seed))
        interval = bootstrap_metrics(
            y_true[rows], probabilities, threshold, groups[rows], seed, positive_index
        )[metric]
        strength = LEVELS[name][level - 1] if level else 0.0
        results.append(
            {
                "name": name,
                "level": level,
                "strength": float(strength),
                "images": len(rows),
                "metric_name": metric,
                "metric": interval,
            }
        )
    if progress is not None:
        progress("testing robustness", len(plan), len(plan))
    return results


def sample_by_class(y_true: np.ndarray, limit: int, seed: int) -> np.ndarray:
    """Indices of at most ``limit`` images, ascending, the classes as equal as possible."""
    generator = np.random.default_rng(seed)
    order = generator.permutation(len(y_true))
    # The first of each class, then the second of each, and so on.
    rank = np.zeros(len(y_true), dtype=np.int64)
    for label in np.unique(y_true):
        members = order[y_true[order] == label]
        rank[members] = np.arange(len(members))
    return np.sort(order[np.argsort(rank[order], kind="stable")][:limit])


def _to_uint8(values: np.ndarray) -> np.ndarray:
    return np.clip(np.round(values), 0, 255).astype(np.uint8)
