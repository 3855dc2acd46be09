"""The trained part of the network, written for training on a CPU.

Its function is Keras' to rounding. What differs is the work: BatchNorm never changes, so it is
folded into the convolution before it, and a 1×1 convolution is a matrix product. Forwards that
leaves products with a bias and a ReLU6, which TensorFlow fuses; backwards it saves BatchNorm's
gradient and the transposed convolutions. Half as much again of what Keras' layers train.
"""

from collections.abc import Callable

import keras
import tensorflow as tf

from automl.search.model import cut_layer

Fold = tuple[tf.Tensor, tf.Tensor]


def build_suffix(backbone: keras.Model, depth: int) -> Callable[[tf.Tensor], tf.Tensor]:
    """From the cut of ``depth`` (n, h, w, c) to the features (n, C).

    The kernels are the backbone's own variables, so that training them trains the backbone;
    BatchNorm is taken as it is now.
    """
    names = [layer.name for layer in backbone.layers]
    layers = backbone.layers[names.index(cut_layer(depth)) + 1 :]
    # Every convolution of MobileNetV2 is followed by its own BatchNorm.
    folds = {
        sources(norm)[0]: fold(norm)
        for norm in layers
        if isinstance(norm, keras.layers.BatchNormalization)
    }

    def apply(x: tf.Tensor) -> tf.Tensor:
        values = {cut_layer(depth): x}
        for layer in layers:
            inputs = [values[name] for name in sources(layer)]
            values[layer.name] = run_layer(layer, inputs, folds.get(layer.name))
        return values[layers[-1].name]

    return apply


def sources(layer: keras.Layer) -> list[str]:
    """Names of the layers that a layer reads."""
    tensors = layer.input if isinstance(layer.input, list) else [layer.input]
    return [tensor._keras_history.operation.name for tensor in tensors]


def fold(norm: keras.layers.BatchNormalization) -> Fold:
    """BatchNorm in inference mode as (slope, shift), each (c,)."""
    slope = norm.gamma.numpy() / (norm.moving_variance.numpy() + norm.epsilon) ** 0.5
    return tf.constant(slope), tf.constant(norm.beta.numpy() - slope * norm.moving_mean.numpy())


def run_layer(layer: keras.Layer, inputs: list[tf.Tensor], fold: Fold | None) -> tf.Tensor:
    """One layer's output; ``fold`` is that of the BatchNorm behind a convolution."""
    x = inputs[0]
    if isinstance(layer, keras.layers.BatchNormalization):
        return x
    if isinstance(layer, keras.layers.Add):
        return x + inputs[1]
    if isinstance(layer, keras.layers.ReLU):
        assert layer.max_value == 6
        return tf.nn.relu6(x)
    if fold is None:  # padding, and the mean over all places
        return layer(x)
    slope, shift = fold
    if isinstance(layer, keras.layers.DepthwiseConv2D):
        kernel = layer.kernel.value * slope[:, None]
        x = tf.nn.depthwise_conv2d(x, kernel, [1, *layer.strides, 1], layer.padding.upper())
        return tf.nn.bias_add(x, shift)
    assert layer.kernel_size == layer.strides == (1, 1)
    kernel = layer.kernel.value[0, 0] * slope
    rows = tf.matmul(tf.reshape(x, (-1, x.shape[-1])), kernel)
    return tf.reshape(tf.nn.bias_add(rows, shift), (-1, *x.shape[1:3], kernel.shape[-1]))
