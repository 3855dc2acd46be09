"""Images as arrays: resizing that equals TensorFlow's, and thumbnails to find twins by."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image

THUMBNAIL_SIDE = 32
# Share of the foreground cut off on each side, so that specks do not move the crop.
SPECKS = 0.005
# Pixels that are held in floats at a time: 4 MB.
STRIP = 2**20


def resize_pixels(pixels: np.ndarray, size: int) -> np.ndarray:
    """Stretch an image to a square, exactly as the served model does.

    Equal to the bit to ``tf.image.resize(pixels, (size, size), "bilinear", antialias=True)``,
    rounded half to even and clipped: the same triangle filter in the same order and precision
    (TensorFlow's ``ScaleAndTranslate`` with float32 sums, rows first).

    Args:
        pixels: uint8 or float32 (h, w, c), 0–255; c is 3, or 1 after ``drop_colour``.
        size: side of the result.

    Returns:
        uint8 (size, size, c).
    """
    values = pixels
    if pixels.shape[:2] != (size, size):
        # Columns are filtered as rows of the transposed: whole rows are quick to gather.
        rows = filter_rows(pixels, size)
        values = filter_rows(np.ascontiguousarray(rows.swapaxes(0, 1)), size).swapaxes(0, 1)
    return np.ascontiguousarray(np.clip(np.rint(values), 0, 255).astype(np.uint8))


def filter_rows(values: np.ndarray, n_out: int) -> np.ndarray:
    """``filter_taps`` applied to the first axis of (n, m, c): float32 (n_out, m, c)."""
    matrix = filter_matrix(len(values), n_out)
    flat = values.reshape(len(values), -1)
    # Strip by strip, so that a large image is never held in floats as a whole.
    width = max(1, STRIP // len(flat))
    strips = [
        matrix @ flat[:, start : start + width].astype(np.float32)
        for start in range(0, flat.shape[1], width)
    ]
    total = strips[0] if len(strips) == 1 else np.concatenate(strips, axis=1)
    return total.reshape(n_out, *values.shape[1:])


@lru_cache(maxsize=256)
def filter_matrix(n_in: int, n_out: int) -> "csr_array":  # noqa: F821
    """``filter_taps`` as a sparse matrix (n_out, n_in).

    Its product adds one tap after the other in float32, as TensorFlow does, so that it gives the
    same bits.
    """
    from scipy.sparse import csr_array

    source, weights = filter_taps(n_in, n_out)
    starts = np.arange(0, weights.size + 1, weights.shape[1])
    return csr_array((weights.ravel(), source.ravel(), starts), shape=(n_out, n_in))


def drop_colour(pixels: np.ndarray) -> np.ndarray:
    """uint8 (h, w, 3) → (h, w, 1) where the three channels are equal, as in most scans."""
    if pixels.shape[2] == 1 or pixels.strides[2] == 0:  # known already
        return pixels[:, :, :1]
    flat = pixels.reshape(-1)
    same = flat[1:] == flat[:-1]
    same[2::3] = True  # the step from one pixel to the next
    return np.ascontiguousarray(pixels[:, :, :1]) if same.all() else pixels


def filter_taps(n_in: int, n_out: int) -> tuple[np.ndarray, np.ndarray]:
    """The antialiased triangle filter along one axis.

    Returns:
        Source indices int64 and weights float32, both (n_out, taps); unused taps weigh 0.
    """
    one, half = np.float32(1), np.float32(0.5)
    inverse = one / (np.float32(n_out) / np.float32(n_in))
    radius = max(inverse, one)
    centre = (np.arange(n_out, dtype=np.float32) + half) * inverse
    start = np.clip(np.ceil(centre - radius - half).astype(np.int64), 0, n_in - 1)
    end = np.clip(np.floor(centre + radius - half).astype(np.int64), 0, n_in - 1) + 1
    source = start[:, None] + np.arange((end - start).max())
    distance = np.abs((source.astype(np.float32) + half - centre[:, None]) * (one / radius))
    weights = np.where(source < end[:, None], np.maximum(0, one - distance), 0).astype(np.float32)
    total = np.zeros(n_out, np.float32)
    for tap in range(weights.shape[1]):
        total += weights[:, tap]
    return np.minimum(source, n_in - 1), weights * (one / total)[:, None]


def turn_grey(pixels: np.ndarray) -> Image.Image:
    """uint8 (h, w, 3) or (h, w, 1) as a grey image."""
    if pixels.shape[2] == 1:
        return Image.fromarray(np.ascontiguousarray(pixels[:, :, 0]))
    return Image.fromarray(pixels).convert("L")


def read_grey(pixels: np.ndarray, grey: Image.Image) -> np.ndarray:
    """``grey``, which is ``turn_grey(pixels)``, as an array (h, w): without a copy if it can be."""
    return pixels[:, :, 0] if pixels.shape[2] == 1 else np.asarray(grey)


def describe_pixels(pixels: np.ndarray) -> tuple[np.ndarray, dict[str, Any]]:
    """What two images are compared by, and facts of the grey values from the same work.

    Args:
        pixels: uint8 (h, w, 3), or (h, w, 1) after ``drop_colour``.

    Returns:
        The thumbnail, the same whatever an image's size, brightness, contrast or margin: float32
        (32, 32), the foreground stretched to a square, zero mean and unit norm, so that the
        correlation of two images is the sum of their product; all zeros for a blank image. And
        facts: mean and std (0–255), foreground (share of pixels above Otsu's threshold),
        threshold, margin_left, margin_top, margin_right, margin_bottom (share of the side outside
        the foreground), border (mean of the outermost pixels).
    """
    grey = turn_grey(pixels)
    values = read_grey(pixels, grey)
    histogram = np.array(grey.histogram(), dtype=np.float64)
    share = histogram / histogram.sum()
    threshold = int(find_threshold(share))
    box = find_boxes((values > threshold)[None])[0].tolist()
    left, top, right, bottom = box
    levels = np.arange(256)
    mean = float(share @ levels)
    width, height = grey.size
    edges = (values[0], values[-1], values[:, 0], values[:, -1])
    facts = {
        "mean": round(mean, 4),
        "std": round(float(np.sqrt(max(0.0, share @ (levels - mean) ** 2))), 4),
        "foreground": round(float(share[threshold + 1 :].sum()), 5),
        "threshold": threshold,
        "margin_left": round(left / width, 4),
        "margin_top": round(top / height, 4),
        "margin_right": round(1 - right / width, 4),
        "margin_bottom": round(1 - bottom / height, 4),
        "border": round(float(np.mean([edge.mean() for edge in edges])), 4),
    }
    return crop_thumbnail(grey, box), facts


def find_boxes(foreground: np.ndarray) -> np.ndarray:
    """Left, top, right and bottom of what is True in each image, in pixels.

    Args:
        foreground: bool (n, h, w).

    Returns:
        float64 (n, 4); the whole image where nothing is True.
    """
    left, right = find_bounds(np.add.reduce(foreground, axis=1, dtype=np.uint32))
    top, bottom = find_bounds(np.add.reduce(foreground, axis=2, dtype=np.uint32))
    return np.stack([left, top, right, bottom], axis=1)


def crop_thumbnail(grey: Image.Image, box: Sequence[float]) -> np.ndarray:
    """``box`` of a grey image as a thumbnail, see ``describe_pixels``."""
    side = (THUMBNAIL_SIDE, THUMBNAIL_SIDE)
    small = grey.resize(side, Image.Resampling.BILINEAR, box=box)
    return normalise(np.asarray(small, dtype=np.float32))


def find_threshold(share: np.ndarray) -> np.ndarray:
    """Otsu's threshold of histograms (..., 256): the level that best parts dark from bright.

    Chosen over a share of the maximum after measuring: it keeps the crop of an image in place
    under noise and a brightness offset as well, where a low threshold follows the noise.
    """
    below = np.cumsum(share, axis=-1)
    moment = np.cumsum(share * np.arange(256), axis=-1)
    between = below * (1 - below)
    spread = (moment[..., -1:] * below - moment) ** 2
    usable = between > 1e-12
    return np.argmax(np.where(usable, spread / np.where(usable, between, 1), 0), axis=-1)


def find_bounds(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where the foreground begins and ends along an axis, in fractions of a pixel.

    ``counts`` (n, side) are foreground pixels for each row or column of n images; ``SPECKS`` of
    them may lie outside on either side.
    """
    n, side = counts.shape
    total = np.add.reduce(counts, axis=1)
    share = np.zeros((n, side + 1))
    np.divide(np.cumsum(counts, axis=1), np.maximum(total, 1)[:, None], out=share[:, 1:])
    row = np.arange(n)

    def reach(wanted: float) -> np.ndarray:
        """The place up to which there is ``wanted`` of the foreground."""
        pixel = np.minimum((share <= wanted).sum(axis=1), side) - 1
        before = share[row, pixel]
        step = share[row, pixel + 1] - before
        return pixel + (wanted - before) / np.where(step > 0, step, 1)

    low, high = reach(SPECKS), reach(1 - SPECKS)
    # Pillow wants a box of some size; a single bright line is widened to a pixel.
    narrow = high - low < 1
    low = np.where(narrow, np.clip((low + high - 1) / 2, 0, side - 1), low)
    high = np.where(narrow, low + 1, high)
    return np.where(total > 0, low, 0.0), np.where(total > 0, high, float(side))


def normalise(values: np.ndarray) -> np.ndarray:
    """Zero mean and unit norm, float32 of the same shape; all zeros if there is no contrast."""
    values = values - values.mean()
    norm = np.linalg.norm(values)
    return values / norm if norm > 1e-3 else np.zeros_like(values)
