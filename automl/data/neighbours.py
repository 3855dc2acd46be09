"""Nearest neighbours among thumbnails, in blocks so that memory stays bounded.

Most pairs of thumbnails are nothing alike, and a few of their coordinates are enough to see it:
with a and b split into their parts in a small subspace and outside of it, the correlation is at
most a₁·b₁ + |a₂||b₂|. Only pairs that this bound lets through are compared in full, so the
result is exact, and for medical images a tenth of the work.
"""

import numpy as np

# Rows of the similarity matrix at one time.
BLOCK = 1024
# Fewer rows than this are compared in full: finding a subspace would take longer.
FEWEST = 3 * BLOCK
# Dimensions of the subspace, and rows that it is found from.
DIMENSIONS, SAMPLE = 96, 4096
# Where more of a block than this passes the bound, multiplying all of it is quicker.
DENSE = 0.05
# Pairs compared at a time: 32 MB for each side.
PAIRS = 8192
# Float32 rounding leaves identical unit vectors this far below a correlation of 1.
ROUNDING = 1e-5


def find_basis(rows: np.ndarray, fewest: int = FEWEST) -> np.ndarray | None:
    """Directions (d, DIMENSIONS) that hold most of rows float32 (n, d); None if n < fewest."""
    from scipy.linalg import eigh

    n, size = rows.shape
    if n < fewest or size <= DIMENSIONS:
        return None
    some = rows[:: max(1, n // SAMPLE)]
    return eigh(some.T @ some, subset_by_index=(size - DIMENSIONS, size - 1))[1]


def shorten(rows: np.ndarray, basis: np.ndarray | None) -> np.ndarray:
    """Rows float32 (m, d) whose products are upper bounds of the products of unit ``rows``.

    The coordinates in the basis, and the length of what lies outside; ``rows`` without one.
    """
    if basis is None:
        return rows
    inside = rows @ basis
    left = np.sum(rows * rows, axis=1) - np.sum(inside * inside, axis=1)
    return np.column_stack([inside, np.sqrt(np.maximum(left, 0))]).astype(np.float32)


def multiply_pairs(left: np.ndarray, right: np.ndarray, i: np.ndarray, j: np.ndarray) -> np.ndarray:
    """left[i]·right[j] for each pair, float32 (p,)."""
    if len(i) > DENSE * len(left) * len(right):
        return (left @ right.T)[i, j]
    return np.concatenate(
        [
            np.einsum("pd,pd->p", left[i[at : at + PAIRS]], right[j[at : at + PAIRS]])
            for at in range(0, max(len(i), 1), PAIRS)
        ]
    )


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
    short = shorten(flat, find_basis(flat))
    order = np.argsort(group, kind="stable")
    bounds = np.searchsorted(group[order], np.arange(group.max() + 2 if n else 1))
    other = np.full(n, -1)
    outside = np.full(n, -1)
    correlation = np.full(n, -1.0, dtype=np.float32)
    for start in range(0, n, BLOCK):
        rows = np.arange(start, min(start + BLOCK, n))
        limit = short[rows] @ short.T
        limit[rows - start, rows] = -2
        other[rows], _ = best_columns(flat[rows], flat, limit)
        for row in rows:
            members = order[bounds[group[row]] : bounds[group[row] + 1]]
            limit[row - start, members] = -2
        outside[rows], correlation[rows] = best_columns(flat[rows], flat, limit)
    return other, outside, correlation


def best_columns(
    left: np.ndarray, right: np.ndarray, limit: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """For each row of ``left`` the row of ``right`` with the largest product, and the product.

    Args:
        limit: upper bounds of the products, (len(left), len(right)); -2 where a pair is barred.

    Returns:
        Indices, -1 where all are barred, the first among equals; and products, there -1.
    """
    n = len(left)
    rows = np.arange(n)
    # What the most promising column reaches is what another one must be able to reach.
    first = limit.argmax(axis=1)
    reached = multiply_pairs(left, right, rows, first)
    barred = limit[rows, first] == -2
    reached[barred] = 2
    i, j = np.divmod(np.flatnonzero(limit >= reached[:, None] - ROUNDING), limit.shape[1])
    product = multiply_pairs(left, right, i, j)
    best = np.lexsort((j, -product, i))
    i, j, product = i[best], j[best], product[best]
    winner = np.searchsorted(i, rows[~barred])
    column, value = np.full(n, -1), np.full(n, -1.0, dtype=np.float32)
    column[~barred], value[~barred] = j[winner], product[winner]
    return column, value
