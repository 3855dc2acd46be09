"""Whether one model beats another on the same test images, from their predictions alone."""

import csv
import hashlib
from pathlib import Path

import numpy as np

RESAMPLES = 2000
PREFIX = "probability_"


def digest_test_set(predictions: Path) -> str:
    """SHA-256 over the images and labels of a predictions.csv, whatever their order; "" if none."""
    if not predictions.is_file():
        return ""
    with open(predictions, newline="", encoding="utf-8") as file:
        rows = sorted((row["image"], row["label"]) for row in csv.DictReader(file))
    return hashlib.sha256(repr(rows).encode()).hexdigest()


def auc_difference(champion: Path, challenger: Path, split: Path) -> dict[str, float]:
    """ROC AUC of the challenger less the champion's, with a 95 % interval.

    A paired bootstrap over the groups of split.csv (columns image and group), or over images
    where it is missing: both models are scored on the same resampled groups, so that what
    makes an image hard for both cancels out. Many classes: the mean of one versus the rest.
    """
    old, new = _read(champion), _read(challenger)
    images = sorted(new)
    if sorted(old) != images:
        raise ValueError("The two predictions are not of the same images.")
    # In the order of the columns: of two classes the positive one is last.
    classes = [name for name in new[images[0]] if name.startswith(PREFIX)]
    labels = np.array([PREFIX + new[image]["label"] for image in images])
    used = classes[-1:] if len(classes) == 2 else classes
    truth = np.stack([labels == name for name in used])
    scores = np.stack(
        [[[float(side[image][name]) for image in images] for name in used] for side in (old, new)]
    )
    groups = _read(split) if split.is_file() else {}
    unit = np.array([groups.get(image, {}).get("group") or image for image in images])
    _, group = np.unique(unit, return_inverse=True)
    members = [np.flatnonzero(group == number) for number in range(group.max() + 1)]
    random = np.random.default_rng(0)
    draws = []
    for _ in range(RESAMPLES):
        chosen = random.integers(len(members), size=len(members))
        rows = np.concatenate([members[number] for number in chosen])
        value = _difference(truth[:, rows], scores[:, :, rows])
        if np.isfinite(value):
            draws.append(value)
    low, high = np.quantile(draws, (0.025, 0.975)) if draws else (np.nan, np.nan)
    return {"value": _difference(truth, scores), "low": float(low), "high": float(high)}


def _read(path: Path) -> dict[str, dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return {row["image"]: row for row in csv.DictReader(file)}


def _difference(truth: np.ndarray, scores: np.ndarray) -> float:
    """``truth`` bool (k, n), ``scores`` (2, k, n); nan where a class is all or nothing."""
    old, new = (np.mean([_auc(t, s) for t, s in zip(truth, side, strict=True)]) for side in scores)
    return float(new - old)


def _auc(truth: np.ndarray, score: np.ndarray) -> float:
    """The share of positive and negative pairs in the right order; ties count half."""
    positive = int(truth.sum())
    negative = len(truth) - positive
    if not positive or not negative:
        return float("nan")
    _, inverse, counts = np.unique(score, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    return float((ranks[truth].sum() - positive * (positive + 1) / 2) / (positive * negative))
