"""The training loop of one depth: network, head, optimizer and loss in one graph."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from automl.search.model import Head, cut_layer, output_units, trained_variables
from automl.search.space import HEAD_UNITS
from automl.search.suffix import build_suffix

# What is scored and delivered is the weights' running average (Polyak & Juditsky 1992) over
# about the last hundred steps: it is ahead of the weights while the rate is high.
AVERAGE_DECAY = 0.98


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
        # Without AutoGraph, which takes up to half of the tracing's time and writes a file for
        # each function that it converts; a worker that is killed would leave them behind.
        options = {"jit_compile": False, "autograph": False}
        self.train = tf.function(self._train, [x, *rows, number, number], **options)
        self.predict = tf.function(self._predict, [x], **options)

    def reset(self, params: dict[str, Any], seed: list[int], mean: Any, scale: Any) -> None:
        """Start a configuration: pretrained body, fresh head, empty optimizer."""
        units = int(params["head_units"])
        for variable, value in zip(self.body, self.start, strict=True):
            variable.assign(value)
        for variable, value in zip(self.head, self._fresh_head(units, seed), strict=True):
            variable.assign(value)
        self.optimizer.reset()
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

        def step(start: tf.Tensor, total: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            end = tf.minimum(start + batch_size, n)
            with tf.GradientTape() as tape:
                logits = self._logits(x[start:end], tf.stack([seed, start]))
                losses = loss_of(logits, y[start:end]) * weight[start:end]
                loss = tf.reduce_mean(losses)
            self.optimizer.apply(tape.gradient(loss, self.optimizer.trained))
            return end, total + tf.reduce_sum(losses)

        _, total = tf.while_loop(lambda start, _: start < n, step, (0, 0.0))
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


def glorot(draw: np.random.Generator, fan_in: int, fan_out: int) -> np.ndarray:
    limit = math.sqrt(6 / (fan_in + fan_out))
    return draw.uniform(-limit, limit, (fan_in, fan_out)).astype(np.float32)


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
