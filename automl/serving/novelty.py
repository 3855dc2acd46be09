"""Does an image look like the training data at all?

Five distances, because no single one sees everything. In the model's features: Mahalanobis
distance, what the principal components leave over, and the distance to the nearest training
images. In plain statistics of the pixels, which notice what a network trained to tell two
classes has learnt to ignore: Mahalanobis distance. Among thumbnails: how far the most
similar training image is.

Each distance is divided by what training images show when their own fold is left out; an
image counts as unlike the training data when its largest ratio lies beyond the 99th
percentile of that largest ratio in training. Folds keep groups whole, or near-copies would
make the training data look denser than new images find it.
"""

import numpy as np

PERCENTILE = 99.0
N_COMPONENTS = 64
N_NEIGHBOURS = 5
N_FOLDS = 5
MAX_REFERENCES = 5000
LAYOUT = 8
# Pixels within this many grey levels of the border's median belong to the background.
BACKGROUND_LEVELS = 12


def measure_pixels(pixels: np.ndarray) -> np.ndarray:
    """Plain statistics of uint8 (n, size, size, 3): float32 (n, 87).

    An 8 x 8 layout of mean grey levels, percentiles, gradients at three scales, the border,
    colour, left-right symmetry and the jump at the edges of the layout's cells.
    """
    return np.stack([describe_image(image) for image in pixels])


def describe_image(image: np.ndarray) -> np.ndarray:
    """``measure_pixels`` for one image (size, size, 3)."""
    colour = image.astype(np.float32) / 255
    grey = colour.mean(axis=2)
    size = grey.shape[0] // LAYOUT * LAYOUT
    square = grey[:size, :size]
    cell = size // LAYOUT
    layout = square.reshape(LAYOUT, cell, LAYOUT, cell).mean(axis=(1, 3))
    border = np.concatenate([grey[0], grey[-1], grey[:, 0], grey[:, -1]])
    inside = np.percentile(grey, (1, 10, 25, 50, 75, 90, 99))
    slopes = []
    scaled = grey
    for _ in range(3):
        down, right = np.abs(np.diff(scaled, axis=0)), np.abs(np.diff(scaled, axis=1))
        slopes += [down.mean(), right.mean(), max(down.std(), right.std())]
        even = scaled.shape[0] // 2 * 2
        scaled = scaled[:even, :even].reshape(even // 2, 2, even // 2, 2).mean(axis=(1, 3))
    centred = layout - layout.mean()
    energy = (centred**2).sum() + 1e-6
    symmetry = (centred * centred[:, ::-1]).sum() / energy
    background = np.abs(grey - np.median(border)) < BACKGROUND_LEVELS / 255
    chroma = [
        np.abs(colour[..., 0] - colour[..., 1]).mean(),
        np.abs(colour[..., 1] - colour[..., 2]).mean(),
    ]
    plain = [border.mean(), border.std(), background.mean(), symmetry, grey.std()]
    # Square roots and logarithms make the long tails short, as Mahalanobis distance expects.
    return np.concatenate(
        [layout.ravel(), inside, np.log(np.array(slopes) + 1e-3), plain, np.sqrt(chroma)]
    ).astype(np.float32)


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
        seed: of the folds and of the subset that is kept where n is large.

    Returns:
        Small arrays for ``score_novelty``; the keys "scales" (5,) and "limit" () hold the
        thresholds.
    """
    count = len(features)
    rng = np.random.default_rng(seed)
    groups = np.arange(count) if groups is None else np.asarray(groups)
    names, of_row = np.unique(groups, return_inverse=True)
    folds = rng.permutation(len(names))[of_row] % min(N_FOLDS, len(names))
    inputs = (features, statistics, thumbnails.reshape(count, -1))
    distances = np.zeros((count, 5), np.float32)
    for fold in range(folds.max() + 1):
        held, rest = folds == fold, folds != fold
        if not rest.any():
            rest = held
        known = fit_references(*(values[rest] for values in inputs), rng)
        distances[held] = measure_distances(known, *(values[held] for values in inputs))
    arrays = fit_references(*inputs, rng)
    arrays["scales"] = np.maximum(np.percentile(distances, PERCENTILE, axis=0), 1e-6)
    arrays["limit"] = np.percentile((distances / arrays["scales"]).max(axis=1), PERCENTILE)
    return arrays


def score_novelty(
    arrays: dict[str, np.ndarray],
    features: np.ndarray,
    statistics: np.ndarray,
    thumbnails: np.ndarray,
) -> np.ndarray:
    """How unlike the training data (n,): above 1 lies beyond its 99th percentile."""
    distances = measure_distances(
        arrays, features, statistics, thumbnails.reshape(len(features), -1)
    )
    return (distances / arrays["scales"]).max(axis=1) / arrays["limit"]


def fit_references(
    features: np.ndarray, statistics: np.ndarray, thumbnails: np.ndarray, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """The spaces and the reference images that distances are measured against."""
    arrays = {}
    for name, values in (("features", features), ("statistics", statistics)):
        arrays |= {f"{name}_{key}": value for key, value in fit_space(values).items()}
    rows = np.arange(len(features))
    if len(rows) > MAX_REFERENCES:
        rows = np.sort(rng.choice(rows, MAX_REFERENCES, replace=False))
    projected = project(arrays, "features", features[rows])[0]
    arrays["features_references"] = projected.astype(np.float16)
    arrays["thumbnail_references"] = thumbnails[rows].astype(np.float16)
    return arrays


def fit_space(values: np.ndarray) -> dict[str, np.ndarray]:
    """Centre, scale and principal components of (n, c); directions without spread are floored."""
    values = values.astype(np.float64)
    centre, spread = values.mean(axis=0), values.std(axis=0)
    spread = np.maximum(spread, max(1e-6, 0.05 * float(np.median(spread))))
    standard = (values - centre) / spread
    _, singular, directions = np.linalg.svd(standard, full_matrices=False)
    kept = min(N_COMPONENTS, max(1, len(values) // 4), len(singular))
    deviation = singular[:kept] / np.sqrt(max(1, len(values) - 1))
    deviation = np.maximum(deviation, 0.05 * deviation[0])
    return {
        "centre": centre.astype(np.float32),
        "spread": spread.astype(np.float32),
        "components": directions[:kept].T.astype(np.float32),
        "deviation": deviation.astype(np.float32),
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
    thumbnails: np.ndarray,
) -> np.ndarray:
    """The five distances of the module's head, (n, 5)."""
    inside, left_over = project(arrays, "features", features)
    plain, plain_left_over = project(arrays, "statistics", statistics)
    references = arrays["features_references"].astype(np.float32)
    squares = (
        (inside**2).sum(axis=1)[:, None]
        - 2 * inside @ references.T
        + (references**2).sum(axis=1)[None]
    )
    nearest = min(N_NEIGHBOURS, len(references))
    nearby = np.partition(squares, nearest - 1, axis=1)[:, :nearest].mean(axis=1)
    correlation = thumbnails @ arrays["thumbnail_references"].astype(np.float32).T
    return np.stack(
        [
            np.sqrt((inside**2).sum(axis=1)),
            left_over,
            np.sqrt(np.maximum(nearby, 0)),
            np.sqrt((plain**2).sum(axis=1) + plain_left_over**2),
            1 - correlation.max(axis=1),
        ],
        axis=1,
    )
