"""What a search will cost, before it starts: time, memory and disk, from measured speeds."""

import math
import time
from itertools import product
from typing import Any

import numpy as np
import tensorflow as tf

from automl.search.activations import BLOCK
from automl.search.course import HEAD_FIRST_EPOCHS, REFINE_DEPTH
from automl.search.engine import choose_engine, each, engine_name
from automl.search.hyperband import make_schedule
from automl.search.model import (
    count_macs,
    cut_prefix,
    output_units,
    trained_layers,
    trained_variables,
)
from automl.search.program import head_shapes
from automl.search.spec import Network, Speeds, StudySpec
from automl.search.trial import CHUNK_BYTES, balanced_size, get_trainer

Schedule = list[list[tuple[int, int]]]
# Epochs of the longest trial that a budget may choose.
CHOICES = (1, 2, 3, 4, 6, 9, 12, 18, 27, 54, 81)
# Of these, none is above so many epochs, or steps where an epoch has few, if the best will be
# refined: after that, one of four epochs is as good as one of nine.
LONGEST_EPOCHS, LONGEST_STEPS = 6, 600
# Epochs of the only trial, where a budget has no time to compare any.
ALONE_EPOCHS = (2, 3)
# Share of the time left that a schedule may be expected to take: estimates are within 30 %.
BUDGET_SHARE = 0.85
# What a budget is spent on, from what was measured: a refinement of so many epochs is worth more
# than other configurations than the defaults, and so is this share of a longer time.
REFINE_FIRST = 4
REFINE_SHARE = 0.6
# Share of the time left that it may take when it begins: its epochs take the same time each, that
# is known better than a schedule's, and it ends early rather than late.
REFINE_BUDGET_SHARE = 0.95
# Its process starts anew, for the memory, and writes its graph.
REFINE_START_SECONDS = 8.0
# Seconds of a trial besides training: reset, checkpoint, journal.
TRIAL_SECONDS = 0.15
MEASURED_BATCHES = 3
# Without --trial-timeout a trial is given up after these, or after so many times its estimate.
HANG_SECONDS = 900.0
HANG_FACTOR = 20.0
# An operation of the first layers, whose maps are large, takes longer than one of the last; and
# a refinement makes its views.
REFINE_OVERHEAD = 2.2
# Filling takes longer than computing: views are made and files written.
FILLING_OVERHEAD = 1.3


def describe_network(spec: StudySpec, width: float) -> Network:
    """Look at the backbone of ``width``; nothing is computed."""
    trainer = get_trainer(spec, width)
    outputs = output_units(spec.n_classes)
    head = head_shapes(trainer.channels, outputs).values()
    shapes, trained = {}, {}
    for depth in trainer.depths:
        shapes[depth] = trainer.activations.shape(depth)
        body = [variable.shape for variable in trained_variables(trainer.backbone, depth)]
        trained[depth] = sum(math.prod(shape) for shape in [*body, *head])
    macs, whole = (
        count_macs(trained_layers(trainer.backbone, depth))
        for depth in (max(trainer.depths), REFINE_DEPTH)
    )
    cost = REFINE_OVERHEAD * whole / macs if macs else 0.0
    return Network(trainer.weights_digest, shapes, trained, max(1.0, cost))


def measure_speeds(spec: StudySpec, width: float, batch_size: int) -> Speeds:
    """Train a few batches at every depth on random activations; the graphs stay for the search."""
    trainer = get_trainer(spec, width)
    train, predict = {}, {}
    draw = np.random.default_rng(0)
    seed, batch = tf.constant(1), tf.constant(batch_size)
    for depth in trainer.depths:
        program = trainer.program(depth)
        n = MEASURED_BATCHES * batch_size * (16 if depth == 0 else 1)
        x = draw.normal(size=(n, *trainer.activations.shape(depth)))
        x = np.maximum(x, 0).astype(np.float32)
        y = draw.integers(0, spec.n_classes, n).astype(np.int32)
        call = tuple(tf.constant(array) for array in (x, y, np.ones(n, np.float32)))
        # The first call compiles.
        program.train(*(array[:batch_size] for array in call), batch, seed)
        program.predict(call[0][:batch_size])
        started = time.monotonic()
        float(program.train(*call, batch, seed))
        train[depth] = (time.monotonic() - started) / n
        started = time.monotonic()
        program.predict(call[0]).numpy()
        predict[depth] = (time.monotonic() - started) / n
    trainer.restore()
    return Speeds(train, predict)


def mean_speeds(measured: list[Speeds]) -> Speeds:
    """The mean over workers that were measured side by side, as they will work."""
    return Speeds(
        *(
            {depth: sum(table[depth] for table in tables) / len(tables) for depth in tables[0]}
            for tables in ([m.train for m in measured], [m.predict for m in measured])
        )
    )


def measure_filling(spec: StudySpec, width: float) -> float:
    """Expected seconds to fill the activation cache; 0 if it is filled."""
    trainer = get_trainer(spec, width)
    if spec.cache_folder is None or trainer.activations.is_filled():
        return 0.0
    images = count_images(spec)
    size = spec.pixels.shape[1]
    blocks = np.random.default_rng(0).integers(0, 255, (4 * BLOCK, size, size, 3))
    started = time.monotonic()
    run = choose_engine(engine_name(images), cut_prefix(trainer.backbone, trainer.depths))
    run(blocks[:BLOCK].astype(np.float32))
    convert = time.monotonic() - started
    started = time.monotonic()
    each(lambda block: run(block.astype(np.float32)), np.split(blocks, 4))
    return convert + images * (time.monotonic() - started) / len(blocks) * FILLING_OVERHEAD


def count_images(spec: StudySpec) -> int:
    """Images that the cache holds activations of: view 0 of all, the others of training."""
    return len(spec.targets) + (spec.views - 1) * len(spec.train_rows)


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


def refine_seconds(
    networks: dict[float, Network], speeds: dict[float, Speeds], spec: StudySpec
) -> float:
    """Expected seconds of one worker for an epoch of refinement, of the dearest width."""
    n_train, n_val, deepest = balanced_size(spec), len(spec.val_rows), max(spec.depths)
    return max(
        networks[width].refine_cost * trial_seconds(table, deepest, 1, n_train, n_val, fresh=False)
        for width, table in speeds.items()
    )


def fit_refinement(most: int, seconds: float, epoch: float) -> int:
    """Epochs of refinement, at most ``most``, that fit into ``seconds`` with ``epoch`` for each."""
    if epoch <= 0:
        return most
    return max(0, int(min(most, (seconds - REFINE_START_SECONDS) / epoch)))


def share_out(left: float, cheapest: float, epoch: float, most: int) -> int:
    """Epochs of refinement, at most ``most``, for a search that has ``left`` seconds.

    Args:
        cheapest: seconds of the cheapest schedule, which has to come before it.
        epoch: seconds of one epoch.
    """
    first = REFINE_START_SECONDS + REFINE_FIRST * epoch
    return fit_refinement(most, max(REFINE_SHARE * left, min(first, left - cheapest)), epoch)


def estimate_seconds(
    speeds: dict[float, Speeds],
    spec: StudySpec,
    schedule: Schedule,
    firsts: list[list[dict[str, Any]]],
    workers: int,
) -> float:
    """Seconds from the first trial to the last, as Graham bounds them.

    Work that is shared out as it comes takes at most its mean over the workers and the longest
    part's rest beside it (Graham: "Bounds on multiprocessing timing anomalies", 1969). For a
    schedule of a few long trials that is nearer to the truth than the mean alone.

    Args:
        speeds: by width.
        firsts: for each bracket the values of its first configurations. Which of them will
            be promoted is not known; the dearest are assumed, since the deepest mostly are.
    """
    n_train, n_val = balanced_size(spec), len(spec.val_rows)
    total = longest = part = 0.0
    for rungs, configurations in zip(schedule, firsts, strict=True):
        done = 0
        chain = 0.0
        for size, epochs in rungs:
            costs = [
                trial_seconds(
                    speeds[float(values["width"])], int(values["fine_tune_depth"]),
                    epochs - done, n_train, n_val, fresh=done == 0,
                )
                for values in configurations
            ]  # fmt: skip
            dearest = sorted(costs, reverse=True)[:size]
            total += sum(dearest)
            chain += max(dearest, default=0.0)
            part = max([part, *dearest])
            done = epochs
        longest = max(longest, chain)
    return max(total / workers + (1 - 1 / workers) * part, longest)


def hang_seconds(
    speeds: dict[float, Speeds], spec: StudySpec, schedule: Schedule, refinement: float = 0.0
) -> float:
    """Seconds after which a trial must be hanging: many times what the dearest one takes."""
    epochs = max(epochs for rungs in schedule for _, epochs in rungs)
    n_train, n_val = balanced_size(spec), len(spec.val_rows)
    dearest = max(
        trial_seconds(table, depth, epochs, n_train, n_val, fresh=True)
        for table in speeds.values()
        for depth in spec.depths
    )
    return max(HANG_SECONDS, HANG_FACTOR * max(dearest, refinement))


def longest_trial(n_train: int, batch_size: int, refined: bool) -> int:
    """Epochs of ``n_train`` balanced rows that a budget gives a trial at most."""
    if not refined:
        return CHOICES[-1]
    return max(LONGEST_EPOCHS, LONGEST_STEPS // math.ceil(n_train / batch_size))


def candidate_schedules(factor: int, min_epochs: int, most: int) -> list[Schedule]:
    """Schedules for a budget: Algorithm 1 for several R, whole or without its last brackets.

    No trial has more than ``most`` epochs, unless ``min_epochs`` wants more. One in two may be
    promoted as well as one in ``factor``: where there is time, that tries more configurations.

    The brackets that go first are those that train everything to the end: they are the
    dearest, and the least likely to find what the others missed. Where there is time for
    neither, the first configuration is trained alone.
    """
    schedules = [[[(1, epochs)]] for epochs in ALONE_EPOCHS if epochs >= min_epochs]
    lengths = [epochs for epochs in CHOICES if min_epochs <= epochs <= most] or [min_epochs]
    for max_epochs, eta in product(lengths, {factor, 2}):
        whole = make_schedule(max_epochs, eta, min_epochs)
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
    networks: list[Network], spec: StudySpec, schedule: Schedule, workers: int
) -> dict[str, int]:
    """Disk for activations and checkpoints, and a worker's memory above the framework's."""
    sizes = [4 * math.prod(shape) for network in networks for shape in network.shapes.values()]
    # Weights, Adam's two moments, the weights' average, and the best epoch's.
    checkpoint = max(5 * 4 * n for network in networks for n in network.trained.values())
    # Of every bracket the last promotion waits until the end.
    alive = max(rungs[0][0] for rungs in schedule) + len(schedule) + workers
    return {
        "cache": 0 if spec.cache_folder is None else sum(sizes) * count_images(spec),
        "checkpoints": checkpoint * alive,
        "worker": 2 * CHUNK_BYTES + max(sizes) * len(spec.val_rows) + 2 * checkpoint,
    }
