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

import numpy as np
from scipy.linalg import eigh

from automl.data.arrays import drop_colour, turn_grey

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


def measure_pixels(pixels: np.ndarray) -> np.ndarray:
    """Plain statistics of uint8 (n, size, size, 3): float32 (n, 90).

    An 8 x 8 layout of mean grey levels, percentiles, gradients at three scales, the border,
    the background, left-right symmetry, contrast and colour.
    """
    return np.stack([measure_image(image) for image in pixels])


def measure_image(image: np.ndarray) -> np.ndarray:
    """``measure_pixels`` for one image (size, size, 3)."""
    lean = drop_colour(image)
    picture = turn_grey(lean)
    levels = np.asarray(picture)
    grey = levels.astype(np.float32) / np.float32(255)
    counts = np.cumsum(picture.histogram())
    inside = np.searchsorted(counts, np.array(PERCENTILES) / 100 * counts[-1]) / 255
    layout = shrink(grey, len(grey) // LAYOUT)
    slopes = []
    scaled = grey
    for scale in range(3):
        scaled = shrink(scaled, 2) if scale else scaled
        for steps in (scaled[1:] - scaled[:-1], scaled[:, 1:] - scaled[:, :-1]):
            flat = steps.reshape(-1)
            slopes += [np.abs(flat).sum() / flat.size, np.sqrt(flat @ flat / flat.size)]
    border = np.concatenate([levels[0], levels[-1], levels[:, 0], levels[:, -1]])
    middle = int(np.median(border))
    low, high = max(0, middle - BACKGROUND_LEVELS), min(255, middle + BACKGROUND_LEVELS)
    background = (counts[high] - (counts[low - 1] if low else 0)) / counts[-1]
    centred = layout - layout.mean()
    symmetry = (centred * centred[:, ::-1]).sum() / ((centred**2).sum() + 1e-6)
    colour = np.zeros(2)
    if lean.shape[2] == 3:
        red, green, blue = np.moveaxis(image[::3, ::3].astype(np.int16), 2, 0)
        colour = np.array([np.abs(red - green).mean(), np.abs(green - blue).mean()]) / 255
    plain = [border.mean() / 255, border.std() / 255, background, symmetry, grey.std()]
    # Logarithms and roots make long tails short, as Mahalanobis distance expects.
    return np.concatenate(
        [layout.ravel(), inside, np.log(np.array(slopes) + 1e-3), plain, np.sqrt(colour)]
    ).astype(np.float32)


def shrink(grey: np.ndarray, cell: int) -> np.ndarray:
    """Means of whole cells of ``cell`` x ``cell`` pixels; what is left at the edge is cut."""
    rows, columns = grey.shape[0] // cell, grey.shape[1] // cell
    # Whole rows are added, of the picture and then of the transposed: several times as fast as
    # a mean over two axes.
    strips = grey[: rows * cell].reshape(rows, cell, -1).sum(axis=1).T[: columns * cell]
    cells = np.ascontiguousarray(strips).reshape(columns, cell, -1).sum(axis=1).T
    return np.ascontiguousarray(cells) / np.float32(cell * cell)


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

    ``correlation`` (n,) is that of each thumbnail with the most similar one in training.
    """
    distances = measure_distances(arrays, features, statistics, correlation)
    return (distances / arrays["scales"]).max(axis=1) / arrays["limit"]


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
