"""Train one configuration for one rung, from cached activations.

``run_trial(spec, task)`` is a plain function of records: the study sends it to a worker
process, a cluster, or calls it. What is expensive and the same for all trials of a study
(the backbone, the activations, one compiled training loop for each depth) is made at the
first trial and kept in the process.
"""

import hashlib
import json
import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from automl.search.activations import Activations
from automl.search.checkpoint import read_checkpoint, write_checkpoint
from automl.search.course import HEAD_FIRST, HEAD_FIRST_EPOCHS, Course, course_of
from automl.search.model import Head
from automl.search.objective import better, score_outputs
from automl.search.program import Program, head_of
from automl.search.spec import StudySpec, TrialError, TrialResult, TrialTask
from automl.search.weights import check_digest, digest_weights, load_backbone
from automl.search.worker import notify

# Least variance of a standardised feature, as a share of the mean over all features.
VARIANCE_FLOOR = 0.01
# Activations read at a time: bounds memory, and keeps the next read behind the training.
CHUNK_BYTES = 48 * 2**20


class Trainer:
    """A study's data, backbone and programs for one width, alive in one process."""

    mean: np.ndarray | None = None
    variance: np.ndarray | None = None
    scale: np.ndarray | None = None

    def __init__(self, spec: StudySpec, width: float) -> None:
        self.spec = spec
        self.width = width
        size = spec.pixels.shape[1]
        self.backbone = load_backbone(size, width, spec.weights, spec.seed)
        self.weights_digest = digest_weights(self.backbone)
        check_digest(self.weights_digest, spec.weights_digests.get(width), width)
        self.channels = int(self.backbone.output.shape[-1])
        self.depths = tuple(sorted(set(spec.depths) | {0}))
        self._programs: dict[int, Program] = {}
        self._reader = ThreadPoolExecutor(1)
        self.activations = Activations(
            self.backbone,
            self.weights_digest,
            spec.pixels,
            self.depths,
            views=spec.views,
            seed=spec.seed,
            train_rows=spec.train_rows,
            folder=spec.cache_folder,
            limit=spec.cache_limit,
        )

    def prepare(
        self, progress: Callable[[str, int, int], None] | None = None, training: bool = True
    ) -> None:
        """Fill or open the cache, and fit the standardisation; does nothing the second time.

        Without ``training`` the images' own features are enough: where others trained, the
        rest of the cache is theirs.
        """
        if self.scale is not None:
            return
        # What is cached is the backbone as it was loaded, whatever was trained meanwhile.
        self.restore()
        self.activations.fill(progress, None if training else {(0, 0)})
        spec = self.spec
        features = self.activations.read(0, 0, spec.train_rows).astype(np.float64)
        self.mean = features.mean(axis=0).astype(np.float32)
        # A channel that hardly varies in training would blow up whatever differs later.
        variance = features.var(axis=0)
        floor = VARIANCE_FLOOR * variance.mean()
        self.variance = np.maximum(variance, floor).astype(np.float32)
        self.scale = 1 / np.sqrt(self.variance)

    def program(self, depth: int) -> Program:
        if depth not in self._programs:
            # The backbone's variables may hold another trial's values just now.
            self.restore()
            self._programs[depth] = Program(self.backbone, depth, self.spec.n_classes)
        return self._programs[depth]

    def run(self, task: TrialTask) -> TrialResult:
        """Train to ``task.epochs``; writes the checkpoint, returns the best epoch so far.

        A rung goes on from its parent as that one ended, a refinement from its best weights and
        with a new optimizer.
        """
        started = time.monotonic()
        self.prepare()
        course = course_of(task, self.spec.views, balanced_size(self.spec))
        program = self.program(course.depth)
        self.restore()
        seed = [self.spec.seed, task.configuration]
        program.reset(task.params, seed, self.mean, self.scale)
        meta: dict[str, Any] = {"epoch": 0, "best_epoch": 0, "best_score": None}
        meta["depth"] = course.depth
        best: dict[str, np.ndarray] = {}
        if task.refines:
            assert task.parent is not None
            _, parent, _ = read_checkpoint(task.parent)
            program.load(parent)
            program.optimizer.reset()
            meta["epoch"] = task.epochs - task.refines
        elif task.parent is not None and task.parent.exists():
            last, best, meta = read_checkpoint(task.parent)
            program.load(last)
        elif course.depth:
            self._train_head_first(program, task, seed)
        history = []
        for epoch in range(meta["epoch"] + 1, task.epochs + 1):
            row, averaged = self._train_epoch(program, task, course, epoch)
            history.append(row)
            score = row[f"val_{self.spec.objective}"]
            if not math.isfinite(score) or not math.isfinite(row["loss"]):
                raise TrialError(
                    "nan", f"The loss was {row['loss']} and the score {score} in epoch {epoch}."
                )
            anew = course.keeps_last or meta["best_score"] is None
            if anew or better(self.spec.objective, score, meta["best_score"]):
                meta |= {"best_score": score, "best_epoch": epoch}
                best = averaged
            meta["epoch"] = epoch
            spent = time.monotonic() - started
            if task.seconds is not None and spent + row["seconds"] > task.seconds:
                break
        write_checkpoint(task.checkpoint, program.state() | program.optimizer_state(), best, meta)
        return TrialResult(
            meta["best_score"], meta["best_epoch"], tuple(history), time.monotonic() - started
        )

    def restore(self) -> None:
        """Put the loaded weights back into the backbone, which all programs train in place."""
        for program in self._programs.values():
            for variable, value in zip(program.body, program.start, strict=True):
                variable.assign(value)

    def _train_head_first(self, program: Program, task: TrialTask, seed: list[int]) -> None:
        """Train the head alone on the cached features, and give it to ``program``."""
        probe = self.program(0)
        probe.reset(task.params, seed, self.mean, self.scale)
        for epoch in range(HEAD_FIRST_EPOCHS):
            self._pass(probe, task, HEAD_FIRST, -1 - epoch)
        for variable, trained in zip(program.head, probe.optimizer.averages, strict=True):
            variable.assign(trained)
        program.optimizer.reset()

    def _train_epoch(
        self, program: Program, task: TrialTask, course: Course, epoch: int
    ) -> tuple[dict[str, float], dict[str, np.ndarray]]:
        """One epoch; its row of the history, and the averaged weights that it scored."""
        started = time.monotonic()
        loss = self._pass(program, task, course, epoch)
        with program.averaged():
            outputs = self.outputs(program, self.spec.val_rows)
            averaged = program.state()
        y = self.spec.targets[self.spec.val_rows]
        scores = score_outputs(self.spec.objective, outputs, y)
        row = {"epoch": epoch, "loss": loss} | {f"val_{k}": v for k, v in scores.items()}
        row |= {
            "learning_rate": course.rate(epoch),
            "seconds": round(time.monotonic() - started, 4),
        }
        return row, averaged

    def _pass(self, program: Program, task: TrialTask, course: Course, epoch: int) -> float:
        """One epoch over the balanced training rows; returns the mean loss."""
        draw = np.random.default_rng([self.spec.seed, task.configuration, epoch + 1000])
        rows, weights = balance_rows(
            self.spec.train_rows, self.spec.targets, self.spec.balance, self.spec.n_classes, draw
        )
        total = 0.0
        batch = tf.constant(task.batch_size)
        program.optimizer.warm_up.assign(course.warm_up_steps)
        chunks = self._chunks(course.depth, course.view(epoch), rows, task.batch_size)
        for number, (part, x) in enumerate(chunks):
            y = tf.constant(self.spec.targets[rows[part]].astype(np.int32))
            word = (task.configuration * 7919 + epoch * 104729 + number * 15485863) % 2**31
            seed = tf.constant(word, tf.int32)
            program.optimizer.rate.assign(course.rate(epoch + part.start / len(rows)))
            total += float(program.train(x, y, tf.constant(weights[part]), batch, seed))
        return total / len(rows)

    def outputs(self, program: Program, rows: np.ndarray) -> np.ndarray:
        """Logits float32 (len(rows), 1 or k) of view 0."""
        chunks = self._chunks(program.depth, 0, rows, 64)
        return np.concatenate([program.predict(x).numpy() for _, x in chunks])

    def _chunks(self, depth: int, view: int, rows: np.ndarray, batch_size: int) -> Any:
        """Yield (slice, activations), a whole number of batches each, reading one ahead."""
        size = 4 * math.prod(self.activations.shape(depth))
        step = max(1, CHUNK_BYTES // (size * batch_size)) * batch_size
        parts = [slice(start, start + step) for start in range(0, len(rows), step)]
        read = self.activations.read
        pending = self._reader.submit(read, depth, view, rows[parts[0]])
        for part, following in zip(parts, [*parts[1:], None], strict=True):
            x = tf.constant(pending.result())
            if following is not None:
                pending = self._reader.submit(read, depth, view, rows[following])
            yield part, x

    def best_parts(self, params: dict[str, Any], checkpoint: Path) -> tuple[keras.Model, Head]:
        """Backbone and head with the best weights of ``checkpoint``; ``join`` makes them one."""
        self.prepare(training=False)
        self.restore()
        _, best, meta = read_checkpoint(checkpoint)
        program = self.program(meta["depth"])
        program.reset(params, [0], self.mean, self.scale)
        program.load(best)
        return self.backbone, head_of(program, params, self.variance)


def balance_rows(
    rows: np.ndarray, targets: np.ndarray, method: str, n_classes: int, draw: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Shuffled rows for one epoch and a weight for each.

    ``oversample`` repeats rows of the smaller classes until all are as large as the
    largest; ``class_weight`` weighs rows by n / (k * n_class); ``none`` does neither.
    """
    labels = targets[rows]
    counts = np.bincount(labels, minlength=n_classes)
    if method == "oversample":
        extra = [
            draw.choice(
                rows[labels == c], counts.max() - counts[c], replace=counts.max() > 2 * counts[c]
            )
            for c in range(n_classes)
            if 0 < counts[c] < counts.max()
        ]
        rows = np.concatenate([rows, *extra])
    weights = np.ones(len(rows), np.float32)
    if method == "class_weight":
        weights = (len(rows) / (n_classes * np.maximum(counts, 1)))[targets[rows]].astype(
            np.float32
        )
    order = draw.permutation(len(rows))
    return rows[order], weights[order]


def balanced_size(spec: StudySpec) -> int:
    """Rows of one epoch after balancing."""
    counts = np.bincount(spec.targets[spec.train_rows], minlength=spec.n_classes)
    return (
        int(counts.max() * (counts > 0).sum())
        if spec.balance == "oversample"
        else int(counts.sum())
    )


_trainers: dict[tuple[str, float], Trainer] = {}


def get_trainer(spec: StudySpec, width: float) -> Trainer:
    """This process's trainer for ``spec``; another study's trainers are let go."""
    for key in list(_trainers):
        if key[0] != spec.key:
            del _trainers[key]
    if (spec.key, width) not in _trainers:
        _trainers[spec.key, width] = Trainer(spec, width)
    return _trainers[spec.key, width]


def run_trial(spec: StudySpec, task: TrialTask) -> TrialResult:
    """Train one trial in this process.

    Raises:
        TrialError: the loss is not finite, memory ran out, or TensorFlow failed.
    """
    try:
        return get_trainer(spec, float(task.params["width"])).run(task)
    except (MemoryError, tf.errors.ResourceExhaustedError) as error:
        raise TrialError("oom", str(error).splitlines()[0][:500] or "Out of memory.") from None
    except tf.errors.OpError as error:
        raise TrialError("error", str(error).splitlines()[0][:500]) from None


def digest_checkpoint(path: Path) -> str:
    """SHA-256 over the best weights in a checkpoint, for comparing searches."""
    _, best, meta = read_checkpoint(path)
    digest = hashlib.sha256(json.dumps(meta, sort_keys=True).encode())
    for name in sorted(best):
        digest.update(best[name].tobytes())
    return digest.hexdigest()


def prepare_trainer(spec: StudySpec, width: float) -> dict[str, Any]:
    """Fill or open the activation cache in this process; says what it found there."""
    trainer = get_trainer(spec, width)
    trainer.prepare(lambda what, done, total: notify("progress", what, done, total))
    cache = trainer.activations
    rate = cache.images / cache.seconds if cache.seconds else None
    return {
        "hits": cache.hits,
        "misses": cache.misses,
        "bytes": cache.bytes,
        "engine": cache.engine,
        "images_per_second": rate and round(rate, 1),
    }
