"""The network: MobileNetV2 flat, from pixels to probabilities, and where it can be cut.

Sandler, Howard, Zhu, Zhmoginov, Chen: "MobileNetV2: Inverted Residuals and Linear
Bottlenecks", CVPR 2018. Its 17 inverted-residual blocks are counted from the end:
``fine_tune_depth`` d trains the last d blocks and the convolution after them. What lies
below never changes, and BatchNorm is in inference mode everywhere, so the output at a cut
is a constant of the image. That is what the activation cache stores.

    pixels 0–255 → rescale to [-1, 1] → stem, blocks 0–16, Conv_1 → features (average)
      → standardise → [hidden → dropout] → logits → temperature → probabilities

A mirrored network looks at each image and at its mirror image, and goes on with the mean of
their features.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from automl.config import N_BLOCKS


@dataclass(frozen=True)
class Head:
    """The trained head as arrays; ``hidden`` parts are None for a linear head.

    ``mean`` and ``variance`` (C,) standardise the features; ``hidden_kernel`` (C, units),
    ``hidden_bias`` (units,); ``kernel`` (units or C, outputs), ``bias`` (outputs,), with
    one output for two classes.
    """

    mean: np.ndarray
    variance: np.ndarray
    kernel: np.ndarray
    bias: np.ndarray
    hidden_kernel: np.ndarray | None = None
    hidden_bias: np.ndarray | None = None
    dropout: float = 0.0


def build_backbone(
    image_size: int, width: float, weights: str | None = None, mirror: bool = False
) -> keras.Model:
    """MobileNetV2 from "pixels" float32 (n, size, size, 3), 0–255, to "features" (n, C).

    All layers are flat and frozen; ``weights`` is None or "imagenet" (see
    ``automl.search.weights``, which turns Keras' failures into advice). With ``mirror`` the
    layers between see n images and then their n mirror images.
    """
    pixels = keras.Input((image_size, image_size, 3), name="pixels")
    seen = keras.ops.concatenate([pixels, keras.ops.flip(pixels, 2)]) if mirror else pixels
    scaled = keras.layers.Rescaling(1 / 127.5, offset=-1, name="rescale")(seen)
    network = keras.applications.MobileNetV2(
        input_tensor=scaled,
        input_shape=(image_size, image_size, 3),
        alpha=width,
        include_top=False,
        weights=weights,
    )
    if mirror:
        both = keras.layers.GlobalAveragePooling2D(name="both_features")(network.output)
        pairs = keras.ops.reshape(both, (2, -1, both.shape[-1]))
        features = keras.layers.Identity(name="features")(keras.ops.mean(pairs, axis=0))
    else:
        features = keras.layers.GlobalAveragePooling2D(name="features")(network.output)
    backbone = keras.Model(pixels, features, name="backbone")
    backbone.trainable = False
    return backbone


def cut_layer(depth: int) -> str:
    """Name of the layer whose output the trainable part of ``depth`` begins with.

    Depth 0 trains the head alone, depth 17 all but the stem.
    """
    if depth == 0:
        return "features"
    block = N_BLOCKS - 1 - depth
    if block < 0:
        return "Conv1_relu"
    if block == 0:
        return "expanded_conv_project_BN"
    # Blocks that change the number of channels or the resolution have no sum at the end.
    return f"block_{block}_{'project_BN' if block in (1, 3, 6, 10, 13, 16) else 'add'}"


def cut_prefix(backbone: keras.Model, depths: tuple[int, ...]) -> keras.Model:
    """The frozen part, with one output for each of ``depths``; shares the layers."""
    outputs = [backbone.get_layer(cut_layer(depth)).output for depth in depths]
    return keras.Model(backbone.input, outputs, name="prefix")


def trained_layers(backbone: keras.Model, depth: int) -> list[Any]:
    """The layers that a trial of ``depth`` trains, in order: convolutions, never BatchNorm."""
    if depth == 0:
        return []
    names = [layer.name for layer in backbone.layers]
    above = backbone.layers[names.index(cut_layer(depth)) + 1 :]
    return [
        layer
        for layer in above
        if isinstance(layer, keras.layers.Conv2D | keras.layers.DepthwiseConv2D)
    ]


def trained_variables(backbone: keras.Model, depth: int) -> list[Any]:
    """The kernels of ``trained_layers``, in order."""
    return [variable for layer in trained_layers(backbone, depth) for variable in layer.weights]


def count_macs(layers: Iterable[Any]) -> int:
    """Multiply-accumulates of one image through the convolutions and dense layers."""
    total = 0
    for layer in layers:
        kernel = getattr(layer, "kernel", None)
        if kernel is not None:
            # Each weight is used once for every position of its output.
            positions = math.prod(layer.output.shape[1:-1]) if len(layer.output.shape) == 4 else 1
            total += math.prod(kernel.shape) * positions
    return total


def output_units(n_classes: int) -> int:
    """One sigmoid for two classes, a softmax of k for more."""
    return 1 if n_classes == 2 else n_classes


def head_layers(
    features: Any,
    n_classes: int,
    *,
    head_units: int,
    dropout: float,
    mean: np.ndarray | None = None,
    variance: np.ndarray | None = None,
    seed: int | None = None,
) -> Any:
    """Logits (n, 1 or k) of ``features`` (n, C): standardise, maybe a hidden layer, linear.

    Without ``mean`` and ``variance`` (C,) the standardisation is a weight, to be adapted.
    """
    x = keras.layers.Normalization(mean=mean, variance=variance, name="standardise")(features)
    if head_units:
        x = keras.layers.Dense(
            head_units,
            activation="relu",
            kernel_initializer=keras.initializers.GlorotUniform(seed=seed),
            name="hidden",
        )(x)
    x = keras.layers.Dropout(dropout, seed=seed, name="dropout")(x)
    return keras.layers.Dense(
        output_units(n_classes),
        kernel_initializer=keras.initializers.GlorotUniform(seed=seed),
        name="logits",
    )(x)


def join(
    backbone: keras.Model, head: Head, n_classes: int, temperature: float = 1.0
) -> keras.Model:
    """The whole model, as it is evaluated and exported: pixels → probabilities (n, k).

    Two classes give ``[1 - p, p]``. The backbone's layers are shared, not copied.
    """
    logits = head_layers(
        backbone.output,
        n_classes,
        head_units=0 if head.hidden_kernel is None else head.hidden_kernel.shape[1],
        dropout=head.dropout,
        mean=head.mean,
        variance=head.variance,
    )
    scaled = keras.layers.Rescaling(1 / temperature, name="temperature")(logits)
    if n_classes == 2:
        positive = keras.layers.Activation("sigmoid", name="positive")(scaled)
        negative = keras.layers.Rescaling(-1.0, offset=1.0, name="negative")(positive)
        probabilities = keras.layers.Concatenate(name="probabilities")([negative, positive])
    else:
        probabilities = keras.layers.Softmax(name="probabilities")(scaled)
    model = keras.Model(backbone.input, probabilities, name="automl")
    if head.hidden_kernel is not None:
        model.get_layer("hidden").set_weights([head.hidden_kernel, head.hidden_bias])
    model.get_layer("logits").set_weights([head.kernel, head.bias])
    model.trainable = False
    return model


def mirror_backbone(backbone: keras.Model, width: float) -> keras.Model:
    """The mirrored network with a copy of the weights of ``backbone``."""
    mirrored = build_backbone(backbone.input.shape[1], width, mirror=True)
    mirrored.set_weights(backbone.get_weights())
    return mirrored


def cut_head(model: keras.Model) -> keras.Model:
    """A joined model from its features (n, C) to its logits, before the temperature."""
    return keras.Model(model.get_layer("features").output, model.get_layer("logits").output)
