"""What to do with heat maps once they exist: compare, measure, and paint them. No framework.

A heat map is float32 (h, w) in [0, 1]; 0 is nothing, 1 the hottest place of its own image.
"""

import numpy as np
from scipy.ndimage import binary_fill_holes, label
from scipy.stats import rankdata

# matplotlib's inferno (CC0; Smith & van der Walt 2015) at 17 equal steps: its lightness grows
# evenly and it reads the same with colour-blind eyes and in grey.
INFERNO = np.array(
    [
        *([0, 0, 4], [11, 7, 36], [33, 12, 74], [61, 9, 101], [87, 16, 110], [113, 25, 110]),
        *([138, 34, 106], [163, 44, 97], [188, 55, 84], [210, 70, 68], [228, 90, 49]),
        *([241, 115, 29], [249, 142, 9], [252, 172, 17], [249, 203, 53], [242, 234, 105]),
        [252, 255, 164],
    ],
    dtype=np.float64,
)
STRONGEST_COVER = 0.65


def colour(heat: np.ndarray) -> np.ndarray:
    """Inferno colours of values in [0, 1], float64 (…, 3) in 0–255."""
    steps = np.linspace(0.0, 1.0, len(INFERNO))
    return np.stack([np.interp(heat, steps, INFERNO[:, i]) for i in range(3)], axis=-1)


def overlay(pixels: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """Heat painted over the image, which stays visible: uint8 (h, w, 3), or (n, h, w, 3).

    The hotter, the more opaque; where there is no heat the image is untouched.
    ``pixels`` is uint8 of that shape, ``heat`` (h, w), or (n, h, w).
    """
    cover = STRONGEST_COVER * np.clip(heat, 0, 1)[..., None]
    mixed = pixels * (1 - cover) + colour(heat) * cover
    return np.round(mixed).astype(np.uint8)


def centre_of_mass(heat: np.ndarray) -> np.ndarray:
    """(n, 2): row and column of the heat's centre in pixels; the middle where there is none."""
    _, height, width = heat.shape
    total = heat.sum(axis=(1, 2))
    safe = np.where(total > 0, total, 1.0)
    row = (heat.sum(axis=2) @ np.arange(height)) / safe
    column = (heat.sum(axis=1) @ np.arange(width)) / safe
    middle = np.array([(height - 1) / 2, (width - 1) / 2])
    return np.where((total > 0)[:, None], np.stack([row, column], axis=1), middle)


def rank_correlation(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Spearman's correlation of each pair of maps (n, h, w) → (n,); 0 where one is flat."""
    ranks = [
        rankdata(maps.reshape(len(maps), -1), axis=1).astype(np.float64) for maps in (first, second)
    ]
    centred = [rank - rank.mean(axis=1, keepdims=True) for rank in ranks]
    norms = [np.sqrt((rank**2).sum(axis=1)) for rank in centred]
    product = norms[0] * norms[1]
    return np.where(
        product > 0, (centred[0] * centred[1]).sum(axis=1) / np.where(product > 0, product, 1), 0.0
    )


def head_mask(pixels: np.ndarray) -> np.ndarray:
    """Where the head is, bool (n, h, w): the largest bright region, its holes filled.

    Bright is above a fifth of Otsu's way from background to foreground, because Otsu's own
    threshold (1979, doi 10.1109/TSMC.1979.4310076) cuts dark tissue away. An image without two
    levels is all head. ``pixels`` is uint8 (n, h, w, 3).
    """
    return np.stack([_mask_of_one(image) for image in pixels])


def _mask_of_one(image: np.ndarray) -> np.ndarray:
    grey = image.mean(axis=2)
    histogram = np.bincount(grey.astype(np.int64).ravel(), minlength=256).astype(np.float64)
    levels = np.arange(256)
    below, mass_below = histogram.cumsum(), (histogram * levels).cumsum()
    above, mass_above = below[-1] - below, mass_below[-1] - mass_below
    known = (below > 0) & (above > 0)
    if not known.any():
        return np.ones(grey.shape, dtype=bool)
    dark = mass_below / np.where(known, below, 1)
    bright = mass_above / np.where(known, above, 1)
    cut = int(np.argmax(np.where(known, below * above * (dark - bright) ** 2, -1.0)))
    parts, count = label(grey > dark[cut] + 0.2 * (bright[cut] - dark[cut]))
    largest = 1 + int(np.argmax(np.bincount(parts.ravel(), minlength=count + 1)[1:]))
    return binary_fill_holes(parts == largest)


def outside_share(heat: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Share of each map's heat outside its mask, (n,) in [0, 1]; NaN where there is no heat."""
    total = heat.sum(axis=(1, 2))
    outside = np.where(masks, 0.0, heat).sum(axis=(1, 2))
    return np.where(total > 0, outside / np.where(total > 0, total, 1.0), np.nan)
