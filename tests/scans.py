"""Small scans made from drawn pictures, for tests of twins, split, audit and baselines."""

import hashlib
from pathlib import Path

import numpy as np
from PIL import Image

from automl.data.arrays import describe_pixels
from automl.data.twins import find_twins
from automl.records import Dataset, Sample, Scan, Twins


def draw_picture(seed: int, side: int = 96) -> np.ndarray:
    """A bright disc with its own smooth texture on black, uint8 (side, side, 3)."""
    random = np.random.default_rng(seed)
    texture = Image.fromarray(random.integers(60, 255, (7, 7)).astype(np.uint8))
    grey = np.asarray(texture.resize((side, side), Image.Resampling.BICUBIC)).copy()
    y, x = np.mgrid[:side, :side] / side - 0.5
    grey[(x / 0.4) ** 2 + (y / 0.46) ** 2 > 1] = 0
    return np.repeat(grey[:, :, None], 3, axis=2)


def make_dataset(
    labels: list[str], groups: list[str | None] | None = None, names: list[str] | None = None
) -> Dataset:
    """Samples in the given order, classes sorted."""
    names = names or [f"scan_{i:04d}.png" for i in range(len(labels))]
    groups = groups or [None] * len(labels)
    samples = tuple(
        Sample(name, Path("/nowhere") / name, label, group)
        for name, label, group in zip(names, labels, groups, strict=True)
    )
    return Dataset("drawn", Path("/nowhere"), "csv", samples, tuple(sorted(set(labels))))


def make_scan(pictures: list[np.ndarray], dataset: Dataset) -> Scan:
    """What scan_images would find if the pictures were uncompressed files."""
    facts, thumbnails = [], []
    for pixels in pictures:
        thumbnail, more = describe_pixels(pixels)
        digest = hashlib.sha256(str(pixels.shape).encode() + pixels.tobytes()).hexdigest()
        height, width = pixels.shape[:2]
        thumbnails.append(thumbnail)
        facts.append(
            {
                "width": width,
                "height": height,
                "mode": "RGB",
                "format": "PNG",
                "bytes": pixels.nbytes,
                "exif": False,
                "sha256": digest,
                "pixel_sha256": digest,
                **more,
            }
        )
    return Scan(dataset, tuple(facts), np.array(thumbnails), None, None, "digest")


def bare_scan(dataset: Dataset) -> Scan:
    """A scan for functions that look at names, labels and groups only."""
    n = len(dataset.samples)
    return Scan(dataset, ({},) * n, np.zeros((n, 32, 32), np.float32), None, None, "digest")


def make_twins(group: list[int]) -> Twins:
    """Twins with a pair for every two members of a group."""
    pairs = tuple(
        (i, j, 0.99, "near")
        for i in range(len(group))
        for j in range(i + 1, len(group))
        if group[i] == group[j]
    )
    return Twins(np.array(group, dtype=np.int64), pairs, 0.98)


def scan_and_twins(pictures: list[np.ndarray], labels: list[str]) -> tuple[Scan, Twins]:
    scan = make_scan(pictures, make_dataset(labels))
    return scan, find_twins(scan)
