"""What a search will cost, before it starts: time, memory and disk, from measured speeds."""

import math
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from automl.search.activations import BLOCK
from automl.search.engine import choose_engine, engine_name
from automl.search.hyperband import make_schedule
from automl.search.model import cut_prefix
from automl.search.trial import CHUNK_BYTES, HEAD_FIRST_EPOCHS, StudySpec, get_trainer

Schedule = list[list[tuple[int, int]]]
# Epochs of the longest trial that a budget may choose.
CHOICES = (1, 2, 3, 4, 6, 9, 12, 18, 27, 54, 81)
# Share of the time left that a schedule may be expected to take: estimates are within 30 %.
BUDGET_SHARE = 0.8
# Seconds of a trial besides training: reset, checkpoint, journal.
TRIAL_SECONDS = 0.15
MEASURED_BATCHES = 4


@dataclass(frozen=True)
class Speeds:
    """Measured on this machine for one width.

    ``train`` and ``predict`` are seconds an image by depth, ``extract`` seconds an image,
    ``convert`` seconds before the first, ``shapes`` an activation's shape and ``trained`` the
    number of trained weights by depth.
    """

    train: dict[int, float]
    predict: dict[int, float]
    extract: float
    convert: float
    engine: str
    shapes: dict[int, tuple[int, ...]]
    trained: dict[int, int]
    weights_digest: str


def measure_speeds(spec: StudySpec, width: float, batch_size: int) -> Speeds:
    """Run a few batches at every depth on random activations; the graphs stay for the search."""
    trainer = get_trainer(spec, width)
    train, predict, shapes, trained = {}, {}, {}, {}
    draw = np.random.default_rng(0)
    seed = tf.constant(1)
    for depth in trainer.depths:
        program = trainer.program(depth)
        shapes[depth] = trainer.activations.shape(depth)
        trained[depth] = sum(int(np.prod(v.shape)) for v in program.body + program.head)
        n = MEASURED_BATCHES * batch_size * (16 if depth == 0 else 1)
        x = np.maximum(draw.normal(size=(n, *shapes[depth])), 0).astype(np.float32)
        y = draw.integers(0, spec.n_classes, n).astype(np.int32)
        weight = np.ones(n, np.float32)
        batch = tf.constant(batch_size)
        call = tuple(tf.constant(array) for array in (x, y, weight))
        program.train(*call, batch, seed)
        program.predict(call[0])
        started = time.monotonic()
        float(program.train(*call, batch, seed))
        train[depth] = (time.monotonic() - started) / n
        started = time.monotonic()
        program.predict(call[0]).numpy()
        predict[depth] = (time.monotonic() - started) / n
    trainer.restore()
    engine = engine_name(len(spec.targets) + (spec.views - 1) * len(spec.train_rows))
    if trainer.activations.is_filled():
        return Speeds(train, predict, 0.0, 0.0, engine, shapes, trained, trainer.weights_digest)
    started = time.monotonic()
    size = spec.pixels.shape[1]
    images = draw.integers(0, 255, (BLOCK, size, size, 3)).astype(np.float32)
    run = choose_engine(engine, cut_prefix(trainer.backbone, trainer.depths), spec.threads)
    run(images)
    convert = time.monotonic() - started
    started = time.monotonic()
    run(images)
    extract = (time.monotonic() - started) / BLOCK
    return Speeds(train, predict, extract, convert, engine, shapes, trained, trainer.weights_digest)


def trial_seconds(
    speeds: Speeds, depth: int, epochs: int, n_train: int, n_val: int, fresh: bool
) -> float:
    """Expected seconds of one trial; ``n_train`` counts the balanced rows of an epoch."""
    seconds = TRIAL_SECONDS + epochs * (
        n_train * speeds.train[depth] + n_val * speeds.predict[depth]
    )
    if depth and fresh:
        seconds += HEAD_FIRST_EPOCHS * n_train * speeds.train[0]
    return seconds


def estimate_seconds(
    speeds: dict[float, Speeds],
    spec: StudySpec,
    schedule: Schedule,
    firsts: list[list[dict[str, Any]]],
) -> float:
    """Seconds from filling the cache to the last trial.

    Args:
        speeds: by width.
        firsts: for each bracket the values of its first configurations. Which of them will
            be promoted is not known; a rung's mean cost is taken to be its bracket's.
    """
    n_train, n_val = balanced_size(spec), len(spec.val_rows)
    images = len(spec.targets) + (spec.views - 1) * len(spec.train_rows)
    seconds = sum(s.convert + s.extract * images for s in speeds.values())
    for rungs, configurations in zip(schedule, firsts, strict=True):
        done = 0
        for size, epochs in rungs:
            costs = [
                trial_seconds(
                    speeds[float(values["width"])], int(values["fine_tune_depth"]),
                    epochs - done, n_train, n_val, fresh=done == 0,
                )
                for values in configurations
            ]  # fmt: skip
            if costs:
                seconds += min(size, len(costs)) * sum(costs) / len(costs)
            done = epochs
    return seconds


def balanced_size(spec: StudySpec) -> int:
    """Rows of one epoch after balancing."""
    counts = np.bincount(spec.targets[spec.train_rows], minlength=spec.n_classes)
    return (
        int(counts.max() * (counts > 0).sum())
        if spec.balance == "oversample"
        else int(counts.sum())
    )


def candidate_schedules(factor: int, min_epochs: int) -> list[Schedule]:
    """Schedules for a budget: Algorithm 1 for several R, whole or without its last brackets.

    The brackets that go first are those that train everything to the end: they are the
    dearest, and the least likely to find what the others missed.
    """
    schedules = []
    for max_epochs in CHOICES:
        if max_epochs < min_epochs:
            continue
        whole = make_schedule(max_epochs, factor, min_epochs)
        schedules += [whole[:k] for k in range(1, len(whole) + 1)]
    return schedules


def describe_schedule(schedule: Schedule) -> dict[str, Any]:
    """Brackets and totals as plain data: trials, configurations and epochs trained."""
    epochs = 0
    brackets = []
    for index, rungs in enumerate(schedule):
        before = 0
        rows = []
        for number, (size, target) in enumerate(rungs):
            epochs += size * (target - before)
            before = target
            rows.append({"round": number, "epochs": target, "size": size})
        brackets.append({"bracket": len(schedule) - 1 - index, "rungs": rows})
    return {
        "brackets": brackets,
        "trials": sum(size for rungs in schedule for size, _ in rungs),
        "configurations": sum(rungs[0][0] for rungs in schedule),
        "epochs": epochs,
    }


def estimate_bytes(
    speeds: dict[float, Speeds], spec: StudySpec, schedule: Schedule
) -> dict[str, int]:
    """Disk for activations and checkpoints, and the worker's memory above the framework's."""
    images = len(spec.targets) + (spec.views - 1) * len(spec.train_rows)
    cache = sum(
        4 * math.prod(shape) * images for s in speeds.values() for shape in s.shapes.values()
    )
    # Weights, Adam's two moments, and the best epoch's weights where it is not the last.
    checkpoint = max(4 * 4 * n for s in speeds.values() for n in s.trained.values())
    alive = max(rungs[0][0] for rungs in schedule) + 2
    val = max(
        4 * math.prod(shape) * len(spec.val_rows)
        for s in speeds.values()
        for shape in s.shapes.values()
    )
    return {
        "cache": 0 if spec.cache_folder is None else cache,
        "checkpoints": checkpoint * alive,
        "worker": 2 * CHUNK_BYTES + val + 2 * checkpoint,
    }
