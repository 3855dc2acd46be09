"""What a peer is given and what it owes; imported by the scripts beside this file.

A job is a folder with ``job.json`` and ``images.csv`` (path, split, label). Test images come
without a label, so no peer can look at one. A script ends by writing ``answers.csv`` (path,
probability of class 1) and ``notes.json``. Nothing here needs more than NumPy and Pillow: some
peers live in environments of their own.
"""

import csv
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

# What is kept of a budget for restoring the best model and asking it about the test images.
RESERVE_SECONDS, RESERVE_SHARE = 15.0, 0.05


@dataclass(frozen=True)
class Job:
    """Files and labels (0 or 1, int64) of each part; times are seconds of ``time.time``."""

    folder: Path
    paths: dict[str, list[str]]
    labels: dict[str, np.ndarray]
    began: float
    budget: float
    seed: int
    image_size: int
    backbone: Path

    @property
    def seconds(self) -> float:
        """Since the command was started, imports included."""
        return time.time() - self.began

    @property
    def seconds_left(self) -> float:
        """Until the search must end, at least 0."""
        reserve = max(RESERVE_SECONDS, RESERVE_SHARE * self.budget)
        return max(0.0, self.budget - reserve - self.seconds)

    def write(
        self, probabilities: np.ndarray, seconds_to_best: float, name: str = "", **notes: Any
    ) -> None:
        """The answers to the test images, (n,) in their order; ``name`` tells second answers."""
        probabilities = np.asarray(probabilities, dtype=np.float64).reshape(-1)
        if len(probabilities) != len(self.paths["test"]) or not np.isfinite(probabilities).all():
            raise ValueError(f"{len(probabilities)} answers, or some are not numbers")
        suffix = name and f"_{name}"
        with open(self.folder / f"answers{suffix}.csv", "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["path", "probability"])
            writer.writerows(zip(self.paths["test"], probabilities.tolist(), strict=True))
        text = json.dumps({"seconds_to_best": seconds_to_best, **notes}, default=float)
        (self.folder / f"notes{suffix}.json").write_text(text, encoding="utf-8")


def read_job() -> Job:
    """The job whose folder is the script's one argument."""
    folder = Path(sys.argv[1])
    settings = json.loads((folder / "job.json").read_text(encoding="utf-8"))
    paths: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    labels: dict[str, list[int]] = {"train": [], "val": []}
    with open(folder / "images.csv", newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            paths[row["split"]].append(row["path"])
            if row["split"] != "test":
                labels[row["split"]].append(int(row["label"]))
    return Job(
        folder=folder,
        paths=paths,
        labels={part: np.array(values, dtype=np.int64) for part, values in labels.items()},
        began=settings["began"],
        budget=settings["budget"],
        seed=settings["seed"],
        image_size=settings["image_size"],
        backbone=Path(settings["backbone"]),
    )


def read_images(paths: list[str], size: int) -> np.ndarray:
    """Pixels, uint8 (n, size, size, 3), read once into memory."""
    pixels = np.empty((len(paths), size, size, 3), dtype=np.uint8)
    for row, path in enumerate(paths):
        with Image.open(path) as image:
            resized = image.convert("RGB").resize((size, size), Image.Resampling.BILINEAR)
        pixels[row] = np.asarray(resized)
    return pixels


def balanced_rows(labels: np.ndarray, seed: int) -> np.ndarray:
    """Every row once, and rows of the smaller class again until both are equal, int (m,)."""
    counts = np.bincount(labels, minlength=2)
    small = np.flatnonzero(labels == counts.argmin())
    extra = np.random.default_rng(seed).choice(small, abs(int(counts[1] - counts[0])))
    return np.concatenate([np.arange(len(labels)), extra])
