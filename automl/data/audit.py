"""What the data can and cannot support: one plain function for each check."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from automl.config import SearchConfig
from automl.data.neighbours import nearest_others
from automl.data.shortcuts import measure_shortcuts
from automl.data.split import (
    describe_groups,
    leaking_pairs,
    merge_groups,
    rows_without_twins,
    summarise_split,
)
from automl.data.summary import describe_dataset, describe_twins, score_neighbours
from automl.data.twins import BLANK_STD
from automl.records import SEVERITIES, SPLITS, Audit, Dataset, Finding, Scan, Split, Twins

MAX_EXAMPLES = 12
# Largest class against smallest: from the first a remark, from the second a warning.
IMBALANCE_NOTED, IMBALANCE_WARNED = 3, 10
# Half-width of a 95 % interval that a reader can use, at an accuracy of 90 %:
# 1.96² · 0.9 · 0.1 / 0.05² = 139 independent images of each class.
HALF_WIDTH = 0.05
LIKELY_RATE = 0.9
# Lower end of the AUC's interval from which a shortcut is worth a remark, and a warning.
SHORTCUT_NOTED, SHORTCUT_WARNED = 0.6, 0.75
# Robust standard deviations below the median similarity to the nearest other image.
OUTLIER_DEVIATIONS = 6
TWINS_WARNED = 0.05


def audit_dataset(scan: Scan, twins: Twins, split: Split | None, config: SearchConfig) -> Audit:
    """Run every check.

    Returns:
        All findings, most severe first, with those of earlier stages; and as summary the
        parts "dataset", "twins", "shortcuts" and "one_nn" of the report, and with a split
        "split" and "without_twins": {images, of, names} of test images without a relative in
        train or val.
    """
    dataset = scan.dataset
    group = merge_groups(dataset, twins) if split is None else split.group
    other, outside, similarity = nearest_others(scan.thumbnails, group)
    shortcuts = measure_shortcuts(
        scan.facts, dataset.samples, dataset.targets, group, len(dataset.classes), config.seed
    )
    findings = [*dataset.findings, *scan.findings, *twins.findings]
    findings += split.findings if split is not None else ()
    findings += check_twins(dataset, twins)
    findings += check_conflicts(dataset, twins)
    if split is not None:
        findings += check_leaks(dataset, twins, split)
    findings += check_balance(dataset)
    findings += check_amount(dataset, group, split, config, describe_groups(dataset, twins))
    findings += check_shortcuts(shortcuts)
    findings += check_names(shortcuts)
    findings += check_outliers(scan, similarity)
    summary = {
        "dataset": describe_dataset(scan, group, describe_groups(dataset, twins)),
        "twins": describe_twins(scan, twins, split),
        "shortcuts": shortcuts,
        "one_nn": score_neighbours(dataset.targets, other, outside),
    }
    if split is not None:
        rows = rows_without_twins(split)
        summary["split"] = summarise_split(split, dataset)
        summary["without_twins"] = {
            "images": len(rows),
            "of": len(split.rows("test")),
            "names": [dataset.samples[row].image for row in rows],
        }
    return Audit(order_findings(findings), summary)


def order_findings(findings: Sequence[Finding]) -> tuple[Finding, ...]:
    """Most severe first, otherwise in the order found; what two stages say is said once."""
    unique: list[Finding] = []
    for finding in findings:
        if finding not in unique:
            unique.append(finding)
    return tuple(sorted(unique, key=lambda finding: SEVERITIES.index(finding.severity)))


def check_twins(dataset: Dataset, twins: Twins) -> list[Finding]:
    """Images that have a twin."""
    counts = np.bincount(twins.group)
    rows = np.flatnonzero(counts[twins.group] > 1)
    if not len(rows):
        return []
    share = len(rows) / len(twins.group)
    n_groups = int(np.sum(counts > 1))
    return [
        Finding(
            "twins",
            "warning" if share > TWINS_WARNED else "info",
            f"{len(rows):,} of {len(twins.group):,} images ({share:.0%}) have a twin, in "
            f"{n_groups:,} groups of near-duplicates.",
            count=len(rows),
            examples=name_pairs(dataset, twins.pairs),
            remedy="The grouped split keeps each group on one side. Any other way of dividing "
            "these images tests a model on what it has seen.",
            detail={"kinds": dict(Counter(pair[3] for pair in twins.pairs))},
        )
    ]


def check_conflicts(dataset: Dataset, twins: Twins) -> list[Finding]:
    """Twins with different labels: at least one of the two is wrong if they are identical."""
    labels = [sample.label for sample in dataset.samples]
    conflicts = [pair for pair in twins.pairs if labels[pair[0]] != labels[pair[1]]]
    findings = []
    for identical in (True, False):
        pairs = [pair for pair in conflicts if (pair[3] in ("bytes", "pixels")) == identical]
        if pairs:
            findings.append(
                Finding(
                    "identical_conflict" if identical else "twin_conflict",
                    "error" if identical else "warning",
                    f"{len(pairs):,} pairs of {'identical' if identical else 'nearly identical'} "
                    "images have different labels.",
                    count=len(pairs),
                    examples=name_pairs(dataset, sorted(pairs, key=lambda pair: -pair[2])),
                    remedy="Look at them together: correct the wrong label, or remove both."
                    if identical
                    else "Look at them side by side: a wrong label, or neighbouring slices at "
                    "the edge of a lesion.",
                )
            )
    return findings


def check_leaks(dataset: Dataset, twins: Twins, split: Split) -> list[Finding]:
    """Twins and patients on two sides of the split."""
    findings = []
    leaks = leaking_pairs(split.part, twins)
    clean = len(rows_without_twins(split))
    n_test = len(split.rows("test"))
    if leaks:
        touched = {row for pair in leaks for row in pair[:2] if split.part[row] == "test"}
        leaks.sort(key=lambda pair: "test" not in split.part[list(pair[:2])])
        sides = Counter(" and ".join(sorted(split.part[list(pair[:2])])) for pair in leaks)
        findings.append(
            Finding(
                "leaking_twins",
                "error" if touched else "warning",
                f"{len(leaks):,} pairs of twins are on two sides of the split; "
                f"{len(touched):,} of {n_test:,} test images are touched.",
                count=len(leaks),
                examples=name_pairs(dataset, leaks),
                remedy=leak_remedy(split, clean),
                detail={"sides": dict(sides)},
            )
        )
    straddling = straddling_patients(dataset, split)
    if straddling:
        findings.append(
            Finding(
                "leaking_patients",
                "error",
                f"{len(straddling):,} patients have images on two sides of the split.",
                count=len(straddling),
                examples=tuple(straddling[:MAX_EXAMPLES]),
                remedy=leak_remedy(split, clean),
            )
        )
    return findings


def leak_remedy(split: Split, clean: int) -> str:
    """What to do about a split that leaks, and what remains honest in it."""
    alone = (
        f"The {clean:,} test images without relatives in train or val are scored separately; "
        "believe that number."
        if clean
        else "No test image is without relatives, so no number from this test can be believed."
    )
    if split.kind == "random":
        return f"Use --split grouped. {alone}"
    return f"{alone} To divide anew, leave the given split out and use --split grouped."


def straddling_patients(dataset: Dataset, split: Split) -> list[str]:
    """One image of each patient whose images are in several parts."""
    parts: dict[str, set[str]] = {}
    first: dict[str, str] = {}
    for sample, part in zip(dataset.samples, split.part, strict=True):
        if sample.group is not None and part in SPLITS:
            parts.setdefault(sample.group, set()).add(part)
            first.setdefault(sample.group, sample.image)
    return [first[patient] for patient, found in parts.items() if len(found) > 1]


def check_balance(dataset: Dataset) -> list[Finding]:
    """One class much larger than another."""
    counts = Counter(sample.label for sample in dataset.samples)
    (large, most), (small, least) = counts.most_common()[0], counts.most_common()[-1]
    ratio = most / max(least, 1)
    if ratio < IMBALANCE_NOTED:
        return []
    return [
        Finding(
            "imbalance",
            "warning" if ratio >= IMBALANCE_WARNED else "info",
            f"Class {large!r} has {ratio:.1f} times as many images as {small!r} "
            f"({most:,} and {least:,}).",
            count=most - least,
            remedy="Training balances the classes. Read balanced accuracy and the recall of each "
            "class: accuracy alone rewards ignoring the small one.",
            detail={"ratio": round(ratio, 2)},
        )
    ]


def check_amount(
    dataset: Dataset, group: np.ndarray, split: Split | None, config: SearchConfig, kind: str
) -> list[Finding]:
    """Too few independent test groups of some class for a useful interval."""
    targets = dataset.targets
    need = int(np.ceil(1.96**2 * LIKELY_RATE * (1 - LIKELY_RATE) / HALF_WIDTH**2))
    short = {}
    for k, label in enumerate(dataset.classes):
        if split is None:
            have = int(len(np.unique(group[targets == k])) * config.test_fraction)
        else:
            have = len(np.unique(group[(targets == k) & (split.part == "test")]))
        if have < need:
            short[label] = have
    if not short:
        return []
    unit = "images" if kind == "images" else f"groups ({kind})"
    least = min(short.values())
    width = 1.96 * np.sqrt(LIKELY_RATE * (1 - LIKELY_RATE) / max(least, 1))
    listed = ", ".join(f"{have:,} of {label!r}" for label, have in short.items())
    return [
        Finding(
            "few_test_groups",
            "warning",
            f"The test part has {listed}, counted in {unit}: a rate of {LIKELY_RATE:.0%} is known "
            f"to about ±{100 * min(width, 0.5):.0f} points only.",
            count=least,
            remedy=f"±5 points need {need} in the test of each class. Collect more, or raise "
            "--test-fraction; do not compare models by differences within the interval.",
            detail={"needed": need, "have": short},
        )
    ]


def check_shortcuts(shortcuts: dict[str, Any]) -> list[Finding]:
    """Properties such as size and brightness that predict the label."""
    if shortcuts["auc"] is None or shortcuts["low"] < SHORTCUT_NOTED:
        return []
    best = [row for row in shortcuts["properties"] if row["seen"] and row["auc"] >= 0.55][:4]
    listed = ", ".join(f"{row['name']} {row['auc']:.2f}" for row in best)
    return [
        Finding(
            "shortcuts",
            "warning" if shortcuts["low"] >= SHORTCUT_WARNED else "info",
            "Simple properties of the images predict the label with an AUC of "
            f"{shortcuts['auc']:.2f} ({shortcuts['low']:.2f}–{shortcuts['high']:.2f}).",
            count=len(best),
            remedy=f"Strongest by itself: {listed or 'none'}. A model may learn these instead of "
            "the disease: compare it with the shortcut baseline, make the classes alike in them, "
            "and test on images of another source.",
        )
    ]


def check_names(shortcuts: dict[str, Any]) -> list[Finding]:
    """Names, folders and columns that tell the label: no model sees them, but they tell of
    different sources."""
    found = [
        row for row in shortcuts["properties"] if not row["seen"] and row["auc"] >= SHORTCUT_WARNED
    ]
    if not found:
        return []
    listed = ", ".join(f"{row['name']} {row['auc']:.2f}" for row in found)
    return [
        Finding(
            "name_patterns",
            "info",
            f"Names tell the label apart (AUC: {listed}).",
            count=len(found),
            remedy="No model sees them, but they hint that the classes come from different "
            "sources. Ask where each class was collected, and with which scanner.",
        )
    ]


def check_outliers(scan: Scan, similarity: np.ndarray) -> list[Finding]:
    """Images unlike all others: wrong body part, a screenshot, a damaged file.

    Args:
        similarity: correlation with the nearest image of another group, (n,).
    """
    plain = np.array([fact.get("std", np.inf) >= BLANK_STD for fact in scan.facts])
    if plain.sum() < 20:
        return []
    # Distances of unit vectors spread more evenly than correlations, which crowd at 1.
    distance = np.sqrt(np.maximum(2 - 2 * similarity, 0))
    middle = np.median(distance[plain])
    spread = 1.4826 * np.median(np.abs(distance[plain] - middle))
    rows = np.flatnonzero(plain & (distance > middle + OUTLIER_DEVIATIONS * max(spread, 0.01)))
    if not len(rows):
        return []
    rows = rows[np.argsort(-distance[rows], kind="stable")]
    return [
        Finding(
            "outliers",
            "info",
            f"{len(rows):,} {'image is' if len(rows) == 1 else 'images are'} unlike all others.",
            count=len(rows),
            examples=tuple(scan.dataset.samples[row].image for row in rows[:MAX_EXAMPLES]),
            remedy="Look at them: another body part or view, a screenshot, a damaged export.",
        )
    ]


def name_pairs(dataset: Dataset, pairs: Sequence[tuple[int, int, float, str]]) -> tuple[str, ...]:
    """ "a = b" for at most half a dozen pairs."""
    names = [sample.image for sample in dataset.samples]
    return tuple(f"{names[pair[0]]} = {names[pair[1]]}" for pair in pairs[:6])
