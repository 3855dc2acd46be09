"""Whole units to parts in given shares, stratified by class.

A greedy assignment, largest units first: each goes where it brings the parts' class counts
closest to their targets. Units of one image fill what is left, so the counts are exact
wherever the larger units leave room.
"""

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np

# Two images of a class in each part: with one, a metric of that class is 0 or 1.
MINIMUM = 2
# Other orders that are tried when the first leaves a class short in some part.
ATTEMPTS = 40
# Outweighs any deviation from the targets.
SHORTAGE_WEIGHT = 1e6


def assign_units(
    units: Sequence[tuple[str, list[int]]],
    targets: np.ndarray,
    n_classes: int,
    shares: Mapping[str, float],
    bound: Mapping[str, np.ndarray],
    seed: int,
) -> list[tuple[list[int], str]]:
    """Give each unit a part.

    Args:
        units: name (unique, independent of the row order) and rows of each unit.
        targets: class indices of all rows, int64 (n,).
        shares: part → share; scaled to sum 1.
        bound: part → class counts (k,) that are in the part already.
        seed: changes which of equal units goes where.

    Returns:
        Rows and part of each unit. Where a class cannot have MINIMUM in each part, it is
        still short in the result: the caller says so.
    """
    parts = tuple(shares)
    share = np.array([shares[name] for name in parts]) / sum(shares.values())
    counts = np.array(
        [np.bincount(targets[rows], minlength=n_classes) for _, rows in units], dtype=np.int64
    ).reshape(-1, n_classes)
    start = np.array([bound.get(name, np.zeros(n_classes)) for name in parts], dtype=np.int64)
    goal = exact_counts(counts.sum(axis=0) + start.sum(axis=0), share)
    best, best_cost = None, np.inf
    for attempt in range(ATTEMPTS):
        keys = [digest(seed, attempt, name) for name, _ in units]
        sizes = counts.sum(axis=1)
        # The first attempt takes the largest units first; the others any order, since the
        # largest may be the only ones that can serve a part.
        order = sorted(range(len(units)), key=lambda u: (0 if attempt else -sizes[u], keys[u]))
        chosen, total = assign_greedily(counts, order, start, goal, insist=attempt > 0)
        cost = deviation(total, goal)
        if cost < best_cost:
            best, best_cost = chosen, cost
        if (total >= MINIMUM).all() and attempt == 0:
            break
        if attempt == 0 and not feasible(counts, start):
            break
    assert best is not None
    return [(rows, parts[p]) for (_, rows), p in zip(units, best, strict=True)]


def assign_greedily(
    counts: np.ndarray, order: Sequence[int], start: np.ndarray, goal: np.ndarray, insist: bool
) -> tuple[list[int], np.ndarray]:
    """Part index of each unit and the class counts reached.

    Args:
        counts: int64 (u, k); start, goal: int64 (p, k).
        insist: serve parts that are short of MINIMUM before anything else.
    """
    total = start.astype(np.float64)
    wanted = goal.astype(np.float64)
    scale = 1 / np.maximum(wanted, 1)
    chosen = [0] * len(order)
    for unit in order:
        count = counts[unit]
        cost = ((count**2 - 2 * count * (wanted - total)) * scale).sum(axis=1)
        if insist:
            served = np.minimum(np.maximum(MINIMUM - total, 0), count).sum(axis=1)
            cost -= SHORTAGE_WEIGHT * served
        part = int(cost.argmin())
        chosen[unit] = part
        total[part] += count
    return chosen, total.astype(np.int64)


def exact_counts(totals: np.ndarray, share: np.ndarray) -> np.ndarray:
    """Whole numbers (p, k) in the shares (p,) that sum to ``totals`` (k,).

    Each part gets MINIMUM of a class if there is enough for all.
    """
    raw = share[:, None] * totals[None, :]
    goal = np.floor(raw).astype(np.int64)
    for k, total in enumerate(totals):
        rest = np.argsort(-(raw[:, k] - goal[:, k]), kind="stable")
        goal[rest[: int(total - goal[:, k].sum())], k] += 1
        if total >= MINIMUM * len(share):
            while (goal[:, k] < MINIMUM).any():
                goal[goal[:, k].argmax(), k] -= 1
                goal[goal[:, k].argmin(), k] += 1
    return goal


def deviation(total: np.ndarray, goal: np.ndarray) -> float:
    """Cost of class counts (p, k): relative squared distance, and shortages above all."""
    short = np.maximum(np.minimum(goal, MINIMUM) - total, 0).sum()
    return float(((total - goal) ** 2 / np.maximum(goal, 1)).sum() + SHORTAGE_WEIGHT * short)


def feasible(counts: np.ndarray, start: np.ndarray) -> bool:
    """False if some class has too few images or units to reach every part."""
    served = (start >= MINIMUM).any(axis=0)
    need = len(start) - served
    return bool(((counts > 0).sum(axis=0) >= need).all())


def digest(seed: int, attempt: int, name: str) -> bytes:
    """A pseudo-random key of a unit."""
    text = f"{seed}\0{attempt}\0{name}"
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()
