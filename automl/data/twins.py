"""Near-duplicate images: pairs with their evidence, and the groups they form.

Public sets of medical images are full of copies of the same slice. Perceptual hashes cannot
find them (almost all MRI slices hash alike), so the unit thumbnails of the scan are correlated
in a blocked matrix product: as they are, mirrored left to right, and turned by two degrees.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from automl.data.neighbours import ROUNDING, find_basis, multiply_pairs, shorten
from automl.records import Finding, Scan, Twins

KINDS = ("bytes", "pixels", "near", "flipped", "rotated")
# Rows of one block of the matrix product: 16 MB for each float32 product of two blocks.
BLOCK = 2048
# One direction is enough: turning b against a and a against b covers both signs.
ANGLE_DEGREES = 2.0
# Grey levels; below it a thumbnail is compression noise stretched to unit norm.
BLANK_STD = 1.0
# More links than this are thinned to the strongest; groups are made of all of them.
MAX_PAIRS = 200_000
# A group with more of the data than this is a chain of look-alikes rather than copies.
LARGEST_SHARE = 0.05
LARGEST_SMALL = 10


def find_twins(
    scan: Scan,
    threshold: float = 0.98,
    neighbour: float = 0.95,
    progress: Callable[[str, int, int], None] | None = None,
) -> Twins:
    """Link every two images whose thumbnails correlate at ``threshold`` or more.

    Nearly constant images are linked to nothing, not even to identical
    ones: they show nothing that could leak, and would chain patients together.

    Args:
        scan: ``thumbnails`` (n, 32, 32) zero mean, unit norm; ``facts`` with the hashes.
        threshold: correlation in [0.5, 1] from which two images are twins.
        neighbour: correlation from which two images that are not twins are counted as
            neighbours.
    """
    thumbnails = np.array(scan.thumbnails, dtype=np.float32)
    thumbnails[[fact.get("std", np.inf) < BLANK_STD for fact in scan.facts]] = 0
    links = link_thumbnails(thumbnails, min(threshold, 1 - ROUNDING), neighbour, progress)
    kind = np.where(
        same(scan.facts, "sha256", links),
        0,
        np.where(same(scan.facts, "pixel_sha256", links), 1, links["kind"]),
    )
    pairs = tuple(
        (int(i), int(j), round(min(float(c), 1.0), 4), KINDS[k])
        for i, j, c, k in zip(links["i"], links["j"], links["correlation"], kind, strict=True)
    )
    findings = [*blank_findings(scan, thumbnails)]
    findings += merged_findings(scan, links["group"], pairs, threshold)
    if links["dropped"]:
        findings.append(
            Finding(
                "twin_pairs_thinned",
                "info",
                f"{links['dropped']:,} weaker twin pairs are not listed; the groups use all.",
                count=links["dropped"],
                remedy="Counts of pairs are lower bounds. Groups and the split are exact.",
            )
        )
    return Twins(links["group"], pairs, threshold, links["neighbours"], tuple(findings))


def link_thumbnails(
    thumbnails: np.ndarray,
    threshold: float,
    neighbour: float,
    progress: Callable[[str, int, int], None] | None = None,
) -> dict[str, Any]:
    """All pairs at or above ``threshold``, sorted by (i, j), and the groups they connect.

    Time grows with n²: some 400 n² floating-point operations, 4,096 n² for images that no
    subspace holds. Memory is bounded by three copies of the thumbnails, the block and MAX_PAIRS.

    Args:
        thumbnails: float32 (n, s, s), rows of zero mean and unit norm or all zeros.

    Returns:
        i, j int64 with i < j, correlation float32, kind (index into KINDS) int8; group int64
        (n,), numbered by first member; neighbours and dropped, int.
    """
    n = len(thumbnails)
    plain = thumbnails.reshape(n, -1)
    flipped = np.ascontiguousarray(thumbnails[:, :, ::-1]).reshape(n, -1)
    turned = unit_rows(rotate(thumbnails, ANGLE_DEGREES).reshape(n, -1))
    basis = find_basis(plain)
    sides = {"plain": plain, "flipped": flipped, "turned": turned}
    short = {name: shorten(rows, basis) for name, rows in sides.items()}
    group = np.arange(n)
    kept = np.zeros((0, 4), dtype=np.float64)
    neighbours = total = 0
    for first in range(0, n, BLOCK):
        for second in range(first, n, BLOCK):

            def above(
                left: str, right: str, limit: float, first: int = first, second: int = second
            ) -> np.ndarray:
                """Pairs i < j of the two blocks at or above ``limit``: rows (i, j, product)."""
                a, b = slice(first, first + BLOCK), slice(second, second + BLOCK)
                bound = short[left][a] @ short[right][b].T
                i, j = np.divmod(np.flatnonzero(bound >= limit - ROUNDING), bound.shape[1])
                later = i + first < j + second
                i, j = i[later], j[later]
                product = multiply_pairs(sides[left][a], sides[right][b], i, j)
                found = np.column_stack([i + first, j + second, product])
                return found[product >= limit]

            near = above("plain", "plain", min(neighbour, threshold))
            is_twin = near[:, 2] >= threshold
            neighbours += int(np.count_nonzero(near[~is_twin, 2] >= neighbour))
            ways = (
                near[is_twin],
                above("plain", "flipped", threshold),
                np.concatenate(
                    [above("plain", "turned", threshold), above("turned", "plain", threshold)]
                ),
            )
            links = first_of_each(ways)
            if len(links):
                total += len(links)
                group = connect(group, links[:, 0].astype(np.int64), links[:, 1].astype(np.int64))
                kept = strongest(np.concatenate([kept, links]), MAX_PAIRS)
        if progress is not None:
            progress("looking for twins", min(first + BLOCK, n), n)
    kept = kept[np.lexsort((kept[:, 1], kept[:, 0]))]
    return {
        "i": kept[:, 0].astype(np.int64),
        "j": kept[:, 1].astype(np.int64),
        "correlation": kept[:, 2],
        "kind": kept[:, 3].astype(np.int8),
        "group": group,
        "neighbours": neighbours,
        "dropped": total - len(kept),
    }


def first_of_each(ways: Sequence[np.ndarray]) -> np.ndarray:
    """One row (i, j, correlation, kind) a pair: of the first way that found it, the best.

    Args:
        ways: rows (i, j, correlation), in the order of KINDS from "near" on.
    """
    links = np.concatenate(
        [np.column_stack([rows, np.full(len(rows), kind)]) for kind, rows in enumerate(ways, 2)]
    )
    links = links[np.lexsort((-links[:, 2], links[:, 3], links[:, 1], links[:, 0]))]
    new = np.ones(len(links), dtype=bool)
    new[1:] = (links[1:, :2] != links[:-1, :2]).any(axis=1)
    return links[new]


def strongest(links: np.ndarray, limit: int) -> np.ndarray:
    """The ``limit`` links of the highest correlation."""
    if len(links) <= limit:
        return links
    return links[np.argsort(-links[:, 2], kind="stable")[:limit]]


def connect(group: np.ndarray, i: np.ndarray, j: np.ndarray) -> np.ndarray:
    """Merge groups along the links i–j.

    Args:
        group: int64 (n,), equal numbers are one group.
        i, j: int64 (m,), indices of linked samples.

    Returns:
        int64 (n,): groups numbered from 0 in the order of their first members.
    """
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    n = len(group)
    _, group = np.unique(group, return_inverse=True)
    edges = coo_matrix((np.ones(len(i), dtype=bool), (group[i], group[j])), shape=(n, n))
    merged = connected_components(edges, directed=False)[1][group]
    _, first, number = np.unique(merged, return_index=True, return_inverse=True)
    order = np.empty(len(first), dtype=np.int64)
    order[np.argsort(first)] = np.arange(len(first))
    return order[number]


def rotate(thumbnails: np.ndarray, degrees: float) -> np.ndarray:
    """Turn (n, s, s) about the centre, bilinear; the edge is repeated outwards."""
    size = thumbnails.shape[1]
    centre = (size - 1) / 2
    angle = np.deg2rad(degrees)
    y, x = np.mgrid[:size, :size] - centre
    source_y = np.clip(np.cos(angle) * y - np.sin(angle) * x + centre, 0, size - 1)
    source_x = np.clip(np.sin(angle) * y + np.cos(angle) * x + centre, 0, size - 1)
    top, left = (np.minimum(v.astype(int), size - 2) for v in (source_y, source_x))
    down, right = (source_y - top).astype(np.float32), (source_x - left).astype(np.float32)
    upper = thumbnails[:, top, left] * (1 - right) + thumbnails[:, top, left + 1] * right
    lower = thumbnails[:, top + 1, left] * (1 - right) + thumbnails[:, top + 1, left + 1] * right
    return upper * (1 - down) + lower * down


def unit_rows(rows: np.ndarray) -> np.ndarray:
    """Zero mean and unit norm for each row of float32 (n, d); rows of zeros stay zeros."""
    rows = rows - rows.mean(axis=1, keepdims=True)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-6)


def same(facts: Sequence[dict[str, Any]], key: str, links: dict[str, Any]) -> np.ndarray:
    """Whether both ends of each link have the same value of ``key``, bool (m,)."""
    values = [fact.get(key) for fact in facts]
    return np.array(
        [
            values[i] is not None and values[i] == values[j]
            for i, j in zip(links["i"], links["j"], strict=True)
        ],
        dtype=bool,
    )


def group_sizes(group: np.ndarray) -> dict[int, int]:
    """How many groups have each size, smallest size first."""
    sizes, counts = np.unique(np.bincount(group), return_counts=True)
    return {int(s): int(c) for s, c in zip(sizes, counts, strict=True) if s}


def blank_findings(scan: Scan, thumbnails: np.ndarray) -> list[Finding]:
    """Images that are nearly constant; those of a single colour are a finding of the scan."""
    single = np.array(["blank" in fact.get("notes", ()) for fact in scan.facts])
    blank = np.flatnonzero(~np.any(thumbnails, axis=(1, 2)) & ~single)
    if not len(blank):
        return []
    return [
        Finding(
            "blank_images",
            "warning",
            f"{len(blank):,} of {len(thumbnails):,} images are nearly constant and show nothing.",
            count=len(blank),
            examples=tuple(scan.dataset.samples[i].image for i in blank[:12]),
            remedy="Remove them: a model can learn nothing from them but their label's share.",
        )
    ]


def merged_findings(
    scan: Scan,
    group: np.ndarray,
    pairs: Sequence[tuple[int, int, float, str]],
    threshold: float,
) -> list[Finding]:
    """A warning where the threshold chains more than LARGEST_SHARE of the data together."""
    n = len(group)
    counts = np.bincount(group, minlength=1)
    largest = int(counts.max()) if n else 0
    limit = max(LARGEST_SHARE * n, LARGEST_SMALL)
    if largest <= limit:
        return []
    better = gentler_threshold(n, pairs, threshold, limit)
    advice = (
        f"Try --twin-threshold {better}, where the largest group is below {LARGEST_SHARE:.0%}."
        if better is not None
        else "No threshold below 1 separates them: they may be frames of one recording. Name the "
        "patients with --group-column, and expect a wide interval."
    )
    members = np.flatnonzero(group == counts.argmax())
    return [
        Finding(
            "twins_merged",
            "warning",
            f"One group of twins holds {largest:,} of {n:,} images ({largest / n:.0%}) at the "
            f"threshold {threshold:g}.",
            count=largest,
            examples=tuple(scan.dataset.samples[i].image for i in members[:12]),
            remedy="Look-alikes were chained together, which costs test images. " + advice,
            detail={"threshold": threshold, "suggested": better},
        )
    ]


def gentler_threshold(
    n: int, pairs: Sequence[tuple[int, int, float, str]], threshold: float, limit: float
) -> float | None:
    """The lowest of a few higher thresholds whose largest group has at most ``limit`` images."""
    ends = np.array([pair[:2] for pair in pairs], dtype=np.int64).reshape(-1, 2)
    correlation = np.array([pair[2] for pair in pairs])
    for candidate in (0.98, 0.985, 0.99, 0.995, 0.998):
        keep = correlation >= candidate
        if candidate > threshold:
            group = connect(np.arange(n), ends[keep, 0], ends[keep, 1])
            if np.bincount(group).max() <= limit:
                return candidate
    return None
