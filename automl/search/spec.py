"""What travels between the driver and its workers: plain records, no framework.

A process that only hands them on, such as a Dask worker, must not have to load TensorFlow.
"""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np


class TrialError(Exception):
    """A trial failed; ``reason`` is nan, oom or error."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(reason, message)
        self.reason = reason
        self.message = message


@dataclass(frozen=True)
class PixelSource:
    """Where the images are, without holding them: uint8 (n, S, S, 3), by np.load or raw."""

    path: Path
    shape: tuple[int, ...]
    digest: str

    def open(self) -> np.ndarray:
        return (
            np.load(self.path, mmap_mode="r")
            if self.path.suffix == ".npy"
            else np.memmap(self.path, np.uint8, "r", shape=self.shape)
        )


@dataclass(frozen=True)
class StudySpec:
    """All that a worker needs to know of a study; travels once with every task."""

    pixels: PixelSource
    targets: np.ndarray
    train_rows: np.ndarray
    val_rows: np.ndarray
    n_classes: int
    weights: str
    depths: tuple[int, ...]
    views: int
    balance: str
    objective: str
    seed: int
    cache_folder: Path | None
    cache_limit: float
    # By width, where they are known: a worker with other weights would give other scores.
    weights_digests: dict[float, str] = field(default_factory=dict)

    @property
    def key(self) -> str:
        parts = [self.pixels.digest, self.weights, str(self.depths), str(self.views), self.balance]
        parts += [self.objective, str(self.seed), str(self.cache_folder)]
        rows = [self.targets, self.train_rows, self.val_rows]
        digest = hashlib.sha256("\n".join(parts).encode())
        for array in rows:
            digest.update(array.astype("<i8").tobytes())
        return digest.hexdigest()


@dataclass(frozen=True)
class TrialTask:
    """One trial: what to train, from which checkpoint, to which.

    ``epochs`` is where this rung ends, ``max_epochs`` where the last one does. ``refines``
    counts the epochs of a refinement; 0 is a rung. A refinement ends with an earlier epoch if
    another would take it beyond ``seconds``.
    """

    trial: str
    configuration: int
    params: dict[str, Any]
    epochs: int
    max_epochs: int
    parent: Path | None
    checkpoint: Path
    batch_size: int
    refines: int = 0
    seconds: float | None = None


@dataclass(frozen=True)
class TrialResult:
    """``score`` is the best epoch's, ``history`` has a row for each epoch that ran."""

    score: float
    epoch_of_score: int
    history: tuple[dict[str, float], ...]
    seconds: float


@dataclass(frozen=True)
class Network:
    """What one width costs in space: an activation's shape and the number of trained weights
    by depth; and how many times an epoch at the greatest depth one of refinement takes."""

    weights_digest: str
    shapes: dict[int, tuple[int, ...]]
    trained: dict[int, int]
    refine_cost: float = 1.0


@dataclass(frozen=True)
class Speeds:
    """Seconds an image of training and of predicting by depth, for one width."""

    train: dict[int, float]
    predict: dict[int, float]
