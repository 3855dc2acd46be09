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
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from automl.search.activations import Activations
from automl.search.checkpoint import read_checkpoint, write_checkpoint
from automl.search.model import (
    Head,
    cut_layer,
    join,
    mirror_backbone,
    output_units,
    trained_variables,
)
from automl.search.objective import better, score_outputs
from automl.search.space import HEAD_UNITS, step_size
from automl.search.spec import StudySpec, TrialError, TrialResult, TrialTask
from automl.search.suffix import build_suffix
from automl.search.weights import check_digest, digest_weights, load_backbone
from automl.search.worker import notify

# Linear probing before fine-tuning keeps the pretrained features: Kumar, Raghunathan,
# Jones, Ma, Liang: "Fine-Tuning can Distort Pretrained Features and Underperform
# Out-of-Distribution", ICLR 2022. On cached features an epoch takes a fraction of a second.
HEAD_FIRST_EPOCHS = 8
HEAD_FIRST_RATE = 1e-3
# Adam's first steps are as long as the rate allows in every weight, whatever the gradients say
# (Ma & Yarats: "On the adequacy of untuned warmup for adaptive optimization", AAAI 2021). At
# full rate they undo the pretrained layers: the loss of the first epoch is five times the head's.
WARM_UP_STEPS = 200
# Least variance of a standardised feature, as a share of the mean over all features.
VARIANCE_FLOOR = 0.01
# What is scored and delivered is the weights' running average (Polyak & Juditsky 1992) over
# about the last hundred steps: it is ahead of the weights while the rate is high.
AVERAGE_DECAY = 0.98
# The winner's refinement, see `Trainer.run`: all but the stem, at a rate below that of the search's
# default for pretrained layers, after a short warm-up of the new optimizer.
REFINE_DEPTH = 17
REFINE_RATE = 3e-4
REFINE_WARM_UP_STEPS = 50
# Activations read at a time: bounds memory, and keeps the next read behind the training.
CHUNK_BYTES = 48 * 2**20


class Program:
    """The training loop of one depth as one graph, used by all trials of that depth.

    Heads of every size share the graph: the hidden layer has the largest size, and units
    that a configuration does not have are masked, so that their gradients are zero and
    Adam leaves them alone. A linear head masks all of them and opens the direct path.
    """

    def __init__(self, backbone: keras.Model, depth: int, n_classes: int) -> None:
        self.depth = depth
        self.suffix = build_suffix(backbone, depth) if depth else None
        self.body = trained_variables(backbone, depth)
        self.start = [variable.numpy() for variable in self.body]
        self.channels = int(backbone.output.shape[-1])
        self.units, self.outputs = max(HEAD_UNITS), output_units(n_classes)
        shapes = head_shapes(self.channels, self.outputs)
        self.head = [keras.Variable(np.zeros(s, "float32"), name=n) for n, s in shapes.items()]
        self.mean = tf.Variable(tf.zeros(self.channels))
        self.scale = tf.Variable(tf.ones(self.channels))
        self.mask = tf.Variable(tf.ones(self.units + self.channels))
        self.dropout = tf.Variable(0.0)
        self.optimizer = Adam(self.body + self.head)
        # Given, so that chunks of every length share one trace.
        entry = backbone.get_layer(cut_layer(depth)).output.shape[1:]
        x = tf.TensorSpec((None, *entry), tf.float32)
        rows = [tf.TensorSpec((None,), kind) for kind in (tf.int32, tf.float32)]
        number = tf.TensorSpec((), tf.int32)
        self.train = tf.function(self._train, [x, *rows, number, number], jit_compile=False)
        self.predict = tf.function(self._predict, [x], jit_compile=False)

    def reset(self, params: dict[str, Any], seed: list[int], mean: Any, scale: Any) -> None:
        """Start a configuration: pretrained body, fresh head, empty optimizer."""
        units = int(params["head_units"])
        for variable, value in zip(self.body, self.start, strict=True):
            variable.assign(value)
        for variable, value in zip(self.head, self._fresh_head(units, seed), strict=True):
            variable.assign(value)
        self.optimizer.reset()
        self.optimizer.rate.assign(step_size(params))
        self.mean.assign(mean)
        self.scale.assign(scale)
        mask = np.zeros(self.units + self.channels, np.float32)
        mask[:units] = 1
        mask[self.units :] = units == 0
        self.mask.assign(mask)
        self.dropout.assign(float(params["dropout"]))

    def _fresh_head(self, units: int, seed: list[int]) -> list[np.ndarray]:
        """Glorot uniform (Glorot & Bengio 2010) for the units in use, zero elsewhere."""
        draw = np.random.default_rng(seed)
        arrays = [
            np.zeros(shape, np.float32)
            for shape in head_shapes(self.channels, self.outputs).values()
        ]
        hidden_kernel, _, kernel, _ = arrays
        if units:
            hidden_kernel[:, :units] = glorot(draw, self.channels, units)
            kernel[:units] = glorot(draw, units, self.outputs)
        else:
            kernel[self.units :] = glorot(draw, self.channels, self.outputs)
        return arrays

    def _logits(self, x: tf.Tensor, seed: tf.Tensor | None) -> tf.Tensor:
        features = self.suffix(x) if self.suffix is not None else x
        hidden_kernel, hidden_bias, kernel, bias = (variable.value for variable in self.head)
        standard = (features - self.mean) * self.scale
        hidden = tf.nn.relu(standard @ hidden_kernel + hidden_bias)
        top = tf.concat([hidden, standard], axis=1) * self.mask
        if seed is not None:
            kept = tf.random.stateless_uniform(tf.shape(top), seed) >= self.dropout
            top = top * tf.cast(kept, tf.float32) / (1 - self.dropout)
        return top @ kernel + bias

    def _train(self, x: Any, y: Any, weight: Any, batch_size: Any, seed: Any) -> Any:
        """One pass over a chunk in the order given; returns the summed loss."""
        n = tf.shape(x)[0]
        total = 0.0
        for start in tf.range(0, n, batch_size):
            end = tf.minimum(start + batch_size, n)
            with tf.GradientTape() as tape:
                logits = self._logits(x[start:end], tf.stack([seed, start]))
                losses = loss_of(logits, y[start:end]) * weight[start:end]
                loss = tf.reduce_mean(losses)
            self.optimizer.apply(tape.gradient(loss, self.optimizer.trained))
            total += tf.reduce_sum(losses)
        return total

    def _predict(self, x: Any) -> Any:
        return self._logits(x, None)

    def state(self) -> dict[str, np.ndarray]:
        """The trained arrays, by name."""
        arrays = {f"head/{variable.name}": variable.numpy() for variable in self.head}
        return arrays | {f"body/{i}": v.numpy() for i, v in enumerate(self.body)}

    def optimizer_state(self) -> dict[str, np.ndarray]:
        return {f"optimizer/{i}": v.numpy() for i, v in enumerate(self.optimizer.variables)}

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The weights' running averages in place of the weights."""
        raw = [variable.numpy() for variable in self.optimizer.trained]
        for variable, average in zip(self.optimizer.trained, self.optimizer.averages, strict=True):
            variable.assign(average)
        try:
            yield
        finally:
            for variable, value in zip(self.optimizer.trained, raw, strict=True):
                variable.assign(value)

    def load(self, arrays: dict[str, np.ndarray]) -> None:
        """Head, optimizer and body; a shallower trial's body is the end of this one."""
        for variable in self.head:
            variable.assign(arrays[f"head/{variable.name}"])
        below = len(self.body) - sum(name.startswith("body/") for name in arrays)
        for i, variable in enumerate(self.body[below:]):
            variable.assign(arrays[f"body/{i}"])
        for i, variable in enumerate(self.optimizer.variables):
            if f"optimizer/{i}" in arrays:
                variable.assign(arrays[f"optimizer/{i}"])


def head_shapes(channels: int, outputs: int) -> dict[str, tuple[int, ...]]:
    """Shapes of the largest head's variables: a hidden layer, and a direct path beside it."""
    units = max(HEAD_UNITS)
    return {
        "hidden_kernel": (channels, units),
        "hidden_bias": (units,),
        "kernel": (units + channels, outputs),
        "bias": (outputs,),
    }


class Adam:
    """Adam (Kingma & Ba, ICLR 2015) by TensorFlow's fused kernel.

    The same formula and constants as Keras' Adam, in one pass over memory for each variable
    where Keras' takes ten.
    """

    BETA_1, BETA_2, EPSILON = 0.9, 0.999, 1e-7

    def __init__(self, variables: list[keras.Variable]) -> None:
        self.trained = [variable.value for variable in variables]
        self.rate = tf.Variable(0.0)
        # Steps until the rate is whole.
        self.warm_up = tf.Variable(1.0)
        self.steps = tf.Variable(0.0)
        self.moments = [
            (tf.Variable(tf.zeros(v.shape)), tf.Variable(tf.zeros(v.shape))) for v in self.trained
        ]
        self.averages = [tf.Variable(tf.zeros(v.shape)) for v in self.trained]

    @property
    def variables(self) -> list[tf.Variable]:
        """What a later rung continues with."""
        return [self.steps, *(m for pair in self.moments for m in pair), *self.averages]

    def reset(self) -> None:
        """Begin anew from the weights as they are."""
        for variable in self.variables:
            variable.assign(tf.zeros(variable.shape))
        for average, variable in zip(self.averages, self.trained, strict=True):
            average.assign(variable)

    def apply(self, gradients: list[tf.Tensor]) -> None:
        step = self.steps.assign_add(1.0)
        rate = self.rate * tf.minimum(1.0, step / self.warm_up)
        forget = 1 - tf.minimum(AVERAGE_DECAY, (1 + step) / (10 + step))
        for variable, (first, second), average, gradient in zip(
            self.trained, self.moments, self.averages, gradients, strict=True
        ):
            tf.raw_ops.ResourceApplyAdam(
                var=variable.handle,
                m=first.handle,
                v=second.handle,
                beta1_power=tf.pow(self.BETA_1, step),
                beta2_power=tf.pow(self.BETA_2, step),
                lr=rate,
                beta1=self.BETA_1,
                beta2=self.BETA_2,
                epsilon=self.EPSILON,
                grad=gradient,
            )
            average.assign_sub(forget * (average - variable))


def loss_of(logits: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
    """Cross-entropy of each row: sigmoid for one output, softmax for more."""
    if logits.shape[-1] == 1:
        return tf.nn.sigmoid_cross_entropy_with_logits(tf.cast(y, tf.float32), logits[:, 0])
    return tf.nn.sparse_softmax_cross_entropy_with_logits(y, logits)


def trained_depth(params: dict[str, Any], refines: int) -> int:
    """How many of the last blocks are trained by a rung, or by ``refines`` epochs after it."""
    depth = int(params["fine_tune_depth"])
    return max(depth, REFINE_DEPTH) if refines else depth


def rate_of(task: TrialTask, epoch: float) -> float:
    """Adam's rate in ``epoch``; a refinement's falls with every chunk, to nothing at its end."""
    if not task.refines:
        return step_size(task.params) * decay(int(epoch), task.max_epochs)
    progress = 1 - (task.epochs + 1 - epoch) / task.refines
    return REFINE_RATE * 0.5 * (1 + math.cos(math.pi * progress))


def decay(epoch: int, max_epochs: int) -> float:
    """Half a cosine over the longest trial, from 1 in epoch 1 down to a twentieth.

    A trial that ends at an early rung has seen the beginning of the same course (Loshchilov &
    Hutter: "SGDR", ICLR 2017), so what a promotion continues is what it would have been.
    """
    progress = (epoch - 1) / max(1, max_epochs - 1)
    return 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * progress))


def glorot(draw: np.random.Generator, fan_in: int, fan_out: int) -> np.ndarray:
    limit = math.sqrt(6 / (fan_in + fan_out))
    return draw.uniform(-limit, limit, (fan_in, fan_out)).astype(np.float32)


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

        A task that refines goes on from its parent's best weights with (almost) the whole
        network, and instead of the cached views every epoch sees each image changed anew. Its
        last epoch is what it is for, where the rate has come down, whatever the earlier ones score.
        """
        started = time.monotonic()
        self.prepare()
        depth = trained_depth(task.params, task.refines)
        program = self.program(depth)
        self.restore()
        seed = [self.spec.seed, task.configuration]
        program.reset(task.params, seed, self.mean, self.scale)
        program.optimizer.warm_up.assign(self._warm_up_steps(task) if depth else 1.0)
        meta: dict[str, Any] = {"epoch": 0, "best_epoch": 0, "best_score": None, "depth": depth}
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
        elif depth:
            self._train_head_first(program, task, seed)
        history = []
        for epoch in range(meta["epoch"] + 1, task.epochs + 1):
            row, averaged = self._train_epoch(program, task, epoch)
            history.append(row)
            score = row[f"val_{self.spec.objective}"]
            if not math.isfinite(score) or not math.isfinite(row["loss"]):
                raise TrialError(
                    "nan", f"The loss was {row['loss']} and the score {score} in epoch {epoch}."
                )
            anew = task.refines > 0 or meta["best_score"] is None
            if anew or better(self.spec.objective, score, meta["best_score"]):
                meta |= {"best_score": score, "best_epoch": epoch}
                best = averaged
            meta["epoch"] = epoch
        write_checkpoint(task.checkpoint, program.state() | program.optimizer_state(), best, meta)
        return TrialResult(
            meta["best_score"], meta["best_epoch"], tuple(history), time.monotonic() - started
        )

    def restore(self) -> None:
        """Put the loaded weights back into the backbone, which all programs train in place."""
        for program in self._programs.values():
            for variable, value in zip(program.body, program.start, strict=True):
                variable.assign(value)

    def _warm_up_steps(self, task: TrialTask) -> float:
        """At most a quarter of the longest trial, where that has so few steps."""
        if task.refines:
            return REFINE_WARM_UP_STEPS
        steps = math.ceil(balanced_size(self.spec) / task.batch_size)
        return float(min(WARM_UP_STEPS, steps * max(1, task.max_epochs // 4)))

    def _train_head_first(self, program: Program, task: TrialTask, seed: list[int]) -> None:
        """Train the head alone on the cached features, and give it to ``program``."""
        probe = self.program(0)
        probe.reset(task.params, seed, self.mean, self.scale)
        probe.optimizer.rate.assign(HEAD_FIRST_RATE)
        for epoch in range(HEAD_FIRST_EPOCHS):
            self._pass(probe, 0, -1 - epoch, task)
        for variable, trained in zip(program.head, probe.optimizer.averages, strict=True):
            variable.assign(trained)
        program.optimizer.reset()

    def _train_epoch(
        self, program: Program, task: TrialTask, epoch: int
    ) -> tuple[dict[str, float], dict[str, np.ndarray]]:
        """One epoch; its row of the history, and the averaged weights that it scored."""
        started = time.monotonic()
        # Views above the cached ones are made while they are read.
        view = self.spec.views + epoch if task.refines else (epoch - 1) % self.spec.views
        rate = rate_of(task, epoch)
        program.optimizer.rate.assign(rate)
        loss = self._pass(program, view, epoch, task)
        with program.averaged():
            outputs = self.outputs(program, self.spec.val_rows)
            averaged = program.state()
        y = self.spec.targets[self.spec.val_rows]
        scores = score_outputs(self.spec.objective, outputs, y)
        row = {"epoch": epoch, "loss": loss} | {f"val_{k}": v for k, v in scores.items()}
        row |= {"learning_rate": rate, "seconds": round(time.monotonic() - started, 4)}
        return row, averaged

    def _pass(self, program: Program, view: int, epoch: int, task: TrialTask) -> float:
        """One epoch over the balanced training rows; returns the mean loss."""
        draw = np.random.default_rng([self.spec.seed, task.configuration, epoch + 1000])
        rows, weights = balance_rows(
            self.spec.train_rows, self.spec.targets, self.spec.balance, self.spec.n_classes, draw
        )
        total = 0.0
        batch = tf.constant(task.batch_size)
        for number, (part, x) in enumerate(
            self._chunks(program.depth, view, rows, task.batch_size)
        ):
            y = tf.constant(self.spec.targets[rows[part]].astype(np.int32))
            word = (task.configuration * 7919 + epoch * 104729 + number * 15485863) % 2**31
            seed = tf.constant(word, tf.int32)
            if task.refines:
                program.optimizer.rate.assign(rate_of(task, epoch + part.start / len(rows)))
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

    def best_model(
        self,
        params: dict[str, Any],
        checkpoint: Path,
        temperature: float = 1.0,
        bias_shift: np.ndarray | float = 0.0,
        mirror: bool = False,
    ) -> keras.Model:
        """The whole model with the best weights of ``checkpoint``.

        ``bias_shift`` (outputs,) is added to the logits, before they are divided by
        ``temperature``; for ``mirror`` see ``build_backbone``.
        """
        self.prepare(training=False)
        self.restore()
        _, best, meta = read_checkpoint(checkpoint)
        program = self.program(meta["depth"])
        program.reset(params, [0], self.mean, self.scale)
        program.load(best)
        head = head_of(program, params, self.variance)
        head = replace(head, bias=(head.bias + bias_shift).astype(np.float32))
        backbone = mirror_backbone(self.backbone, self.width) if mirror else self.backbone
        return join(backbone, head, self.spec.n_classes, temperature)


def head_of(program: Program, params: dict[str, Any], variance: np.ndarray) -> Head:
    """The part of a program's head that the configuration uses."""
    units = int(params["head_units"])
    hidden_kernel, hidden_bias, kernel, bias = (variable.numpy() for variable in program.head)
    mean = program.mean.numpy()
    if not units:
        return Head(mean, variance, kernel[program.units :], bias, dropout=params["dropout"])
    return Head(
        mean, variance, kernel[:units], bias, hidden_kernel[:, :units], hidden_bias[:units],
        params["dropout"],
    )  # fmt: skip


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
