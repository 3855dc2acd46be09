"""Fixed augmented views: view 0 is the image, view v a seeded small change of it.

A network's frozen part can be cached only for inputs that do not change, so augmentation
is a choice among N fixed views instead of a new draw in every step. What view v of an
image looks like depends on the seed, v and the image's row alone.
"""

import numpy as np
import tensorflow as tf

# Small changes that leave a diagnosis as it is.
MAX_ROTATION_DEGREES = 12.0
MAX_SHIFT = 0.06
MAX_ZOOM = 0.10
MAX_BRIGHTNESS = 0.10
MAX_CONTRAST = 0.15


def make_view(pixels: np.ndarray, rows: np.ndarray, view: int, seed: int) -> np.ndarray:
    """View ``view`` of some images.

    Args:
        pixels: uint8 (n, S, S, 3).
        rows: int (n,), the images' rows in the data set.

    Returns:
        float32 (n, S, S, 3), 0–255.
    """
    images = pixels.astype(np.float32)
    if view == 0:
        return images
    size = images.shape[1]
    transforms = np.empty((len(images), 8), np.float32)
    gain = np.empty((len(images), 1, 1, 1), np.float32)
    offset = np.empty_like(gain)
    for i, row in enumerate(rows):
        draw = np.random.default_rng([seed, view, int(row)])
        angle = np.deg2rad(draw.uniform(-MAX_ROTATION_DEGREES, MAX_ROTATION_DEGREES))
        zoom = 1 + draw.uniform(-MAX_ZOOM, MAX_ZOOM)
        flip = -1.0 if draw.random() < 0.5 else 1.0
        shift = draw.uniform(-MAX_SHIFT, MAX_SHIFT, 2) * size
        # Output → input coordinates about the centre, as ImageProjectiveTransform wants.
        a, b = np.cos(angle) / zoom * flip, -np.sin(angle) / zoom
        c, d = np.sin(angle) / zoom * flip, np.cos(angle) / zoom
        centre = (size - 1) / 2
        transforms[i] = [
            a, b, centre - a * centre - b * centre + shift[0],
            c, d, centre - c * centre - d * centre + shift[1],
            0, 0,
        ]  # fmt: skip
        gain[i] = 1 + draw.uniform(-MAX_CONTRAST, MAX_CONTRAST)
        offset[i] = draw.uniform(-MAX_BRIGHTNESS, MAX_BRIGHTNESS) * 255
    moved = tf.raw_ops.ImageProjectiveTransformV3(
        images=images,
        transforms=transforms,
        output_shape=[size, size],
        fill_value=0.0,
        interpolation="BILINEAR",
        fill_mode="CONSTANT",
    ).numpy()
    # Brightness scales what is there; a black background stays black.
    shown = moved > 0
    moved = moved * gain + offset * shown
    return np.clip(moved, 0, 255, out=moved)
