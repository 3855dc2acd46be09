"""Nearest neighbours among thumbnails, in blocks so that memory stays bounded."""

import numpy as np

# Rows of the similarity matrix at one time.
BLOCK = 1024


def class_similarities(
    queries: np.ndarray, references: np.ndarray, targets: np.ndarray, n_classes: int
) -> np.ndarray:
    """The highest correlation of each query with a reference of each class.

    Args:
        queries: float32 (m, s, s) of unit norm.
        references: float32 (n, s, s) of unit norm.
        targets: class indices of the references, int64 (n,).

    Returns:
        float32 (m, k); -1 for a class without references.
    """
    flat = queries.reshape(len(queries), -1)
    best = np.full((len(queries), n_classes), -1, dtype=np.float32)
    for k in range(n_classes):
        mine = references[targets == k].reshape(-1, flat.shape[1])
        for start in range(0, len(mine), BLOCK):
            similarity = (flat @ mine[start : start + BLOCK].T).max(axis=1)
            np.maximum(best[:, k], similarity, out=best[:, k])
    return best


def nearest_others(
    thumbnails: np.ndarray, group: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Each image's nearest other image, and its nearest image of another group.

    Args:
        thumbnails: float32 (n, s, s) of unit norm.
        group: int64 (n,).

    Returns:
        Index of the nearest other image (n,), index of the nearest outside the group (n,),
        and the correlation with the latter (n,); -1 and -1.0 where there is none.
    """
    n = len(thumbnails)
    flat = thumbnails.reshape(n, -1)
    order = np.argsort(group, kind="stable")
    bounds = np.searchsorted(group[order], np.arange(group.max() + 2 if n else 1))
    other = np.full(n, -1)
    outside = np.full(n, -1)
    correlation = np.full(n, -1.0, dtype=np.float32)
    for start in range(0, n, BLOCK):
        rows = np.arange(start, min(start + BLOCK, n))
        similarity = flat[rows] @ flat.T
        similarity[rows - start, rows] = -2
        other[rows] = np.where(similarity.max(axis=1) > -2, similarity.argmax(axis=1), -1)
        for row in rows:
            members = order[bounds[group[row]] : bounds[group[row] + 1]]
            similarity[row - start, members] = -2
        best = similarity.argmax(axis=1)
        value = similarity[rows - start, best]
        outside[rows] = np.where(value > -2, best, -1)
        correlation[rows] = np.maximum(value, -1)
    return other, outside, correlation
