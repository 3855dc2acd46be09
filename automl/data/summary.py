"""The audit's numbers for the report: what there is, without judging it."""

from collections import Counter
from typing import Any

import numpy as np

from automl.data.twins import group_sizes
from automl.records import Scan, Split, Twins

# Pairs of each kind that are listed, and most frequent values.
MAX_LISTED = 12


def describe_dataset(scan: Scan, group: np.ndarray, kind: str) -> dict[str, Any]:
    """The "dataset" part of report.json, without pictures."""
    dataset = scan.dataset
    counts = Counter(sample.label for sample in dataset.samples)
    sizes = Counter(f"{fact.get('width')}x{fact.get('height')}" for fact in scan.facts)
    return {
        "name": dataset.name,
        "kind": dataset.kind,
        "images": len(dataset.samples),
        "classes": {label: counts[label] for label in dataset.classes},
        "positive": dataset.positive,
        "groups": len(np.unique(group)),
        "group_kind": kind,
        "sizes": most_common(sizes),
        "modes": most_common(Counter(str(fact.get("mode")) for fact in scan.facts)),
        "formats": most_common(Counter(str(fact.get("format")) for fact in scan.facts)),
        "synthetic": dataset.synthetic,
    }


def most_common(counts: Counter[str]) -> dict[str, int]:
    """The dozen most frequent values; the rest as "other"."""
    top = dict(counts.most_common(MAX_LISTED))
    rest = sum(counts.values()) - sum(top.values())
    return {**top, "other": rest} if rest else top


def describe_twins(scan: Scan, twins: Twins, split: Split | None) -> dict[str, Any]:
    """The "twins" part of the report's audit.

    Of its pairs some have different labels; of the others those that leak come first, then
    those that are not identical.
    """
    dataset = scan.dataset
    counts = np.bincount(twins.group)
    copies = [n for n in Counter(fact["sha256"] for fact in scan.facts).values() if n > 1]
    labels = [sample.label for sample in dataset.samples]

    def rank(pair: tuple[int, int, float, str]) -> tuple[bool, bool, bool, float]:
        i, j, correlation, kind = pair
        leaks = split is not None and split.part[i] != split.part[j]
        return labels[i] == labels[j], not leaks, kind in ("bytes", "pixels"), -correlation

    ranked = sorted(twins.pairs, key=rank)
    conflicts = [pair for pair in ranked if labels[pair[0]] != labels[pair[1]]]
    shown = conflicts[:MAX_LISTED] + ranked[len(conflicts) :][:MAX_LISTED]
    return {
        "groups": int(np.sum(counts > 1)),
        "images": int(np.sum(counts[counts > 1])),
        "largest": int(counts.max()) if len(counts) else 0,
        "histogram": {str(size): n for size, n in group_sizes(twins.group).items()},
        "threshold": twins.threshold,
        "byte_identical": {"groups": len(copies), "images": sum(copies)},
        "pairs": [
            {
                "a": dataset.samples[i].image,
                "b": dataset.samples[j].image,
                "label_a": labels[i],
                "label_b": labels[j],
                "correlation": correlation,
                "kind": kind,
            }
            for i, j, correlation, kind in shown
        ],
        "neighbours": twins.neighbours,
    }


def score_neighbours(
    targets: np.ndarray, other: np.ndarray, outside: np.ndarray
) -> dict[str, float | None]:
    """Accuracy of the nearest neighbour's label, leaving out the image itself ("random") or
    its whole group ("grouped")."""
    scores: dict[str, float | None] = {}
    for name, nearest in (("random", other), ("grouped", outside)):
        known = nearest >= 0
        right = targets[nearest[known]] == targets[known]
        scores[name] = round(float(right.mean()), 4) if known.any() else None
    return scores
