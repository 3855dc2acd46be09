"""Does an image look like the training data at all?

Five distances, because no single one sees everything. In the model's features: Mahalanobis
distance, what the principal components leave over, and the distance to the nearest training
images. In plain statistics of the pixels, which notice what a network trained to tell two
classes has learnt to ignore: Mahalanobis distance. Among thumbnails: how far the most
similar training image is.

Each distance is divided by what training images show when their own fold is left out; an
image counts as unlike the training data when its largest ratio lies beyond the 99.5th
percentile of that largest ratio in training. Folds keep groups whole, or near-copies would
make the training data look denser than new images find it.
"""

from collections.abc import Sequence

import numpy as np

from automl.data.arrays import (
    crop_thumbnail,
    drop_colour,
    find_boxes,
    find_threshold,
    read_grey,
    turn_grey,
)

# The 99th with some reserve: images of new patients vary more than folds can show.
PERCENTILE = 99.5
N_COMPONENTS = 64
N_NEIGHBOURS = 5
N_FOLDS = 5
# Least spread of a value, as a share of the median spread, and of a component, as a share of
# the first: what never varied in training may vary a little without raising an alarm.
FLOOR = 0.4
MAX_REFERENCES = 5000
LAYOUT = 8
PERCENTILES = (1, 10, 25, 50, 75, 90, 99)
# Pixels within this many grey levels of the border's median belong to the background.
BACKGROUND_LEVELS = 12
# The place of the contrast among the statistics, and the share of the training images' mean below
# which there is nothing to see: a black frame may be nearer to scans than most foreign images.
CONTRAST, EMPTY = -3, 0.05
# Images measured at a time: as many as stay in the processor's cache.
BLOCK = 4


def measure_pixels(images: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Plain statistics and a thumbnail of each image as the network sees it.

    Args:
        images: uint8 (size, size, 3), or (size, size, 1) where the channels are equal.

    Returns:
        float32 (n, 90): an 8 x 8 layout of mean grey levels, percentiles, gradients at three
        scales, the border, the background, left-right symmetry, contrast and colour.
        float32 (n, 32, 32): see ``automl.data.arrays.describe_pixels``.
    """
    lean = [drop_colour(image) for image in images]
    parts = [measure_block(lean[start : start + BLOCK]) for start in range(0, len(lean), BLOCK)]
    if not parts:
        return np.zeros((0, 90), np.float32), np.zeros((0, 32, 32), np.float32)
    statistics, thumbnails = zip(*parts, strict=True)
    return np.concatenate(statistics), np.concatenate(thumbnails)


def measure_block(lean: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """``measure_pixels`` for a few images at once, of one channel where three are equal."""
    pictures = [turn_grey(image) for image in lean]
    levels = np.stack([read_grey(*pair) for pair in zip(lean, pictures, strict=True)])
    histograms = np.array([picture.histogram() for picture in pictures])
    counts = np.cumsum(histograms, axis=1)
    total = levels[0].size
    shares = histograms / total
    boxes = find_boxes(levels > find_threshold(shares)[:, None, None])
    thumbnails = [crop_thumbnail(*pair) for pair in zip(pictures, boxes.tolist(), strict=True)]
    wanted = np.array(PERCENTILES) / 100 * total
    inside = (counts[:, None] < wanted[:, None]).sum(axis=2) / 255
    grey = levels.astype(np.float32)
    grey /= np.float32(255)
    layout = shrink(grey, grey.shape[1] // LAYOUT)
    slopes = []
    scaled = grey
    for scale in range(3):
        scaled = halve(scaled) if scale else scaled
        for steps in (scaled[:, 1:] - scaled[:, :-1], scaled[:, :, 1:] - scaled[:, :, :-1]):
            flat = steps.reshape(len(lean), -1)
            squares = np.vecdot(flat, flat)
            size = flat.shape[1]
            slopes += [np.abs(flat, out=flat).sum(axis=1) / size, np.sqrt(squares / size)]
    border = np.concatenate([levels[:, 0], levels[:, -1], levels[:, :, 0], levels[:, :, -1]], 1)
    middle = np.median(border, axis=1).astype(int)
    row = np.arange(len(lean))
    above = counts[row, np.minimum(255, middle + BACKGROUND_LEVELS)]
    low = middle - BACKGROUND_LEVELS
    below = np.where(low > 0, counts[row, np.maximum(low, 1) - 1], 0)
    centred = layout - layout.mean(axis=(1, 2), keepdims=True)
    likeness, strength = (centred * centred[:, :, ::-1]).sum((1, 2)), (centred**2).sum((1, 2))
    plain = [
        border.mean(axis=1) / 255,
        border.std(axis=1) / 255,
        (above - below) / total,
        likeness / (strength + 1e-6),
        measure_spread(shares),
    ]
    # Logarithms and roots make long tails short, as Mahalanobis distance expects.
    statistics = np.concatenate(
        [
            layout.reshape(len(lean), -1),
            inside,
            np.log(np.stack(slopes, axis=1) + 1e-3),
            np.stack(plain, axis=1),
            np.sqrt([measure_colour(image) for image in lean]),
        ],
        axis=1,
    )
    return statistics.astype(np.float32), np.stack(thumbnails)


def measure_spread(share: np.ndarray) -> np.ndarray:
    """Standard deviation of grey levels in 0-1, (n,), from the share of each level (n, 256)."""
    grey = np.arange(256) / 255
    return np.sqrt(np.maximum(share @ grey**2 - (share @ grey) ** 2, 0))


def measure_colour(lean: np.ndarray) -> tuple[float, float]:
    """Mean difference of red and green, and of green and blue, in 0-1."""
    if lean.shape[2] == 1:
        return 0.0, 0.0
    red, green, blue = np.moveaxis(lean[::3, ::3].astype(np.int16), 2, 0)
    return float(np.abs(red - green).mean() / 255), float(np.abs(green - blue).mean() / 255)


def shrink(grey: np.ndarray, cell: int) -> np.ndarray:
    """Means of whole cells of ``cell`` x ``cell`` pixels of (n, h, w); the rest is cut."""
    count, rows, columns = len(grey), grey.shape[1] // cell, grey.shape[2] // cell
    # Whole rows are added, of the picture and then of the transposed: several times as fast as
    # a mean over two axes.
    strips = grey[:, : rows * cell].reshape(count, rows, cell, -1).sum(axis=2).swapaxes(1, 2)
    cells = np.ascontiguousarray(strips[:, : columns * cell])
    means = cells.reshape(count, columns, cell, rows).sum(axis=2).swapaxes(1, 2)
    return np.ascontiguousarray(means) / np.float32(cell * cell)


def halve(grey: np.ndarray) -> np.ndarray:
    """``shrink`` with cells of 2 x 2."""
    rows, columns = grey.shape[1] // 2 * 2, grey.shape[2] // 2 * 2
    strips = grey[:, 0:rows:2] + grey[:, 1:rows:2]
    return (strips[:, :, 0:columns:2] + strips[:, :, 1:columns:2]) * np.float32(0.25)


def fit_novelty(
    features: np.ndarray,
    statistics: np.ndarray,
    thumbnails: np.ndarray,
    groups: np.ndarray | None = None,
    seed: int = 0,
) -> dict[str, np.ndarray]:
    """Learn what the training images look like.

    Args:
        features: (n, channels), the model's.
        statistics: (n, s), from ``measure_pixels``.
        thumbnails: (n, 32, 32), zero mean and unit norm.
        groups: (n,), rows with equal numbers stay in one fold; None: every row alone.
        seed: of the folds and of the references that are kept where n is large.

    Returns:
        Small arrays for ``score_novelty``; "scales" (5,) and "limit" () are the thresholds.
    """
    count = len(features)
    rng = np.random.default_rng(seed)
    names, of_row = np.unique(np.arange(count) if groups is None else groups, return_inverse=True)
    folds = (rng.permutation(len(names)) % N_FOLDS)[of_row]
    flat = thumbnails.reshape(count, -1).astype(np.float32)
    distances = np.zeros((count, 5), np.float32)
    for fold in np.unique(folds):
        held = folds == fold
        rest = ~held if not held.all() else held
        known = fit_spaces(features[rest], statistics[rest], rng)
        correlation = (flat[held] @ flat[rest].T).max(axis=1)
        distances[held] = measure_distances(known, features[held], statistics[held], correlation)
    arrays = fit_spaces(features, statistics, rng)
    arrays["scales"] = np.maximum(np.percentile(distances, PERCENTILE, axis=0), 1e-6)
    arrays["limit"] = np.percentile((distances / arrays["scales"]).max(axis=1), PERCENTILE)
    return arrays


def score_novelty(
    arrays: dict[str, np.ndarray],
    features: np.ndarray,
    statistics: np.ndarray,
    correlation: np.ndarray,
) -> np.ndarray:
    """How unlike the training data (n,): above 1 lies beyond its 99.5th percentile.

    Infinite for an image without contrast.

    ``correlation`` (n,) is that of each thumbnail with the most similar one in training.
    """
    distances = measure_distances(arrays, features, statistics, correlation)
    scores = (distances / arrays["scales"]).max(axis=1) / arrays["limit"]
    empty = statistics[:, CONTRAST] < EMPTY * arrays["statistics_centre"][CONTRAST]
    return np.where(empty, np.inf, scores)


def fit_spaces(
    features: np.ndarray, statistics: np.ndarray, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """The two spaces, and the reference images in that of the features."""
    arrays = {}
    for name, values in (("features", features), ("statistics", statistics)):
        arrays |= {f"{name}_{key}": value for key, value in fit_space(values).items()}
    rows = np.arange(len(features))
    if len(rows) > MAX_REFERENCES:
        rows = rng.choice(rows, MAX_REFERENCES, replace=False)
    arrays["references"] = project(arrays, "features", features[rows])[0]
    return arrays


def fit_space(values: np.ndarray) -> dict[str, np.ndarray]:
    """Centre, spread and principal components of (n, c); small deviations are floored."""
    from scipy.linalg import eigh  # takes as long to load as a hundred images to predict

    centre, spread = values.mean(axis=0), values.std(axis=0)
    spread = np.maximum(spread, max(1e-6, FLOOR * float(np.median(spread))))
    standard = (values - centre) / spread
    width = standard.shape[1]
    kept = min(N_COMPONENTS, max(1, len(values) // 4), width)
    squares, directions = eigh(
        standard.T @ standard / max(1, len(values) - 1), subset_by_index=(width - kept, width - 1)
    )
    deviation = np.sqrt(np.maximum(squares[::-1], 0))
    return {
        "centre": centre.astype(np.float32),
        "spread": spread.astype(np.float32),
        "components": directions[:, ::-1].astype(np.float32),
        "deviation": np.maximum(deviation, FLOOR * deviation[0] + 1e-6).astype(np.float32),
    }


def project(
    arrays: dict[str, np.ndarray], name: str, values: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Whitened coordinates (n, d) in a space, and the length (n,) of what they leave over."""
    standard = (values - arrays[f"{name}_centre"]) / arrays[f"{name}_spread"]
    coordinates = standard @ arrays[f"{name}_components"]
    squares = (standard**2).sum(axis=1) - (coordinates**2).sum(axis=1)
    return coordinates / arrays[f"{name}_deviation"], np.sqrt(np.maximum(squares, 0))


def measure_distances(
    arrays: dict[str, np.ndarray],
    features: np.ndarray,
    statistics: np.ndarray,
    correlation: np.ndarray,
) -> np.ndarray:
    """The five distances of the module's head, (n, 5)."""
    inside, left_over = project(arrays, "features", features)
    plain, plain_left_over = project(arrays, "statistics", statistics)
    references = arrays["references"]
    lengths = (inside**2).sum(axis=1)
    squares = lengths[:, None] - 2 * inside @ references.T + (references**2).sum(axis=1)
    nearest = min(N_NEIGHBOURS, len(references))
    nearby = np.partition(squares, nearest - 1, axis=1)[:, :nearest].mean(axis=1)
    return np.stack(
        [
            np.sqrt(lengths),
            left_over,
            np.sqrt(np.maximum(nearby, 0)),
            np.sqrt((plain**2).sum(axis=1) + plain_left_over**2),
            1 - correlation,
        ],
        axis=1,
    )
