"""Flat formats for other runtimes: LiteRT (float32, float16, int8) and ONNX.

They take pixels that are already (size, size, 3); each comes in a folder with a manifest
that says how to make them.
"""

import contextlib
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

from automl.errors import UsageError
from automl.records import ModelInfo
from automl.search.litert import make_interpreter

TFLITE_PRECISIONS = ("float32", "float16", "int8")
# The oldest set that has every operation in use; older runtimes read it too.
ONNX_OPSET = 17


def build_two_outputs(model: keras.Model) -> keras.Model:
    """The same layers with the outputs [probabilities, features]."""
    return keras.Model(model.inputs[0], [model.outputs[0], model.get_layer("features").output])


def convert_tflite(
    model: keras.Model,
    info: ModelInfo,
    precision: str = "float32",
    calibration: np.ndarray | None = None,
) -> bytes:
    """The model as a LiteRT flat buffer with built-in operations only.

    Signature ``serving_default``: pixels float32 (1, size, size, 3) in 0-255 →
    probabilities (1, classes) and features (1, channels). The batch is fixed at one
    because XNNPACK is faster with a static shape, and one image at a time loses nothing.

    Args:
        precision: float32, float16 or int8; the latter two are of the weights. Activations
            stay float: MobileNetV2 makes thirty times as much of an error in its first layers,
            and with int8 activations as well every tenth label changed (measured on MRI).
        calibration: uint8 (n, size, size, 3), some hundred training images; int8 only.

    Raises:
        UsageError: int8 without calibration images.
    """
    assert precision in TFLITE_PRECISIONS
    if precision == "int8" and (calibration is None or len(calibration) == 0):
        raise UsageError(
            "The int8 format needs calibration images, some hundred of the training set, to "
            "correct what rounding does to the features. Pass them, or export tflite_float16."
        )
    if precision == "float16":
        model = fold_standardisation(model)
    if precision == "int8":
        model = correct_features(model, flatten(model, info, precision), calibration)
    return flatten(model, info, precision)


def flatten(model: keras.Model, info: ModelInfo, precision: str) -> bytes:
    """``convert_tflite`` without its corrections."""
    with tempfile.TemporaryDirectory() as temporary:
        module = tf.Module()
        module.classify = freeze_model(model, info, batch=1)
        save_module(module, Path(temporary), {"serving_default": module.classify})
        converter = tf.lite.TFLiteConverter.from_saved_model(temporary)
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
        if precision != "float32":
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
        if precision == "float16":
            converter.target_spec.supported_types = [tf.float16]
        with quiet():
            return converter.convert()


def save_module(
    module: tf.Module,
    folder: Path,
    signatures: Mapping[str, tf.types.experimental.GenericFunction],
) -> None:
    """``tf.saved_model.save``, which leaves nothing in the folder for temporary files.

    TensorFlow wraps each signature in a function that AutoGraph translates, whatever its context
    says. It imports the translation from a temporary file and removes that at its end, but not
    the bytecode that Python writes beside it.
    """
    before = sys.dont_write_bytecode
    sys.dont_write_bytecode = True
    try:
        tf.saved_model.save(module, str(folder), signatures=signatures)
    finally:
        sys.dont_write_bytecode = before


def correct_features(model: keras.Model, rounded: bytes, calibration: np.ndarray) -> keras.Model:
    """A copy whose standardisation expects the features of the rounded network.

    Each feature is brought back by the straight line that fits best on the calibration images;
    one that rounding has drowned is thereby turned down. The line becomes part of "standardise".
    """
    embed = keras.Model(model.inputs[0], model.get_layer("features").output)
    classify = make_interpreter(rounded).get_signature_runner("serving_default")
    images = [image[np.newaxis].astype(np.float32) for image in calibration]
    exact = np.concatenate([embed(image, training=False).numpy() for image in images])
    found = np.concatenate([classify(pixels=image)["features"] for image in images])
    centre, spread = found.mean(axis=0), found.var(axis=0)
    together = ((found - centre) * (exact - exact.mean(axis=0))).mean(axis=0)
    # Features that hardly vary, or turned round, keep a little; a slope must not be zero.
    slope = np.maximum(together / (spread + 1e-3 * spread.mean() + 1e-12), 1e-2)
    offset = exact.mean(axis=0) - slope * centre
    copy = keras.models.clone_model(model)
    copy.set_weights(model.get_weights())
    original, standardise = model.get_layer("standardise"), copy.get_layer("standardise")
    mean = (np.asarray(original.mean, np.float64) - offset) / slope
    variance = np.asarray(original.variance, np.float64) / slope**2
    standardise.mean = tf.constant(mean, tf.float32)
    standardise.variance = tf.constant(variance, tf.float32)
    return copy


def fold_standardisation(model: keras.Model) -> keras.Model:
    """A copy whose layer "standardise" does nothing, its work done by the next Dense layer.

    Reciprocals of the features' deviations span orders of magnitude, more than float16 has
    digits for.
    """
    copy = keras.models.clone_model(model)
    copy.set_weights(model.get_weights())
    names = [layer.name for layer in copy.layers]
    after = copy.layers[names.index("standardise") + 1 :]
    dense = next(layer for layer in after if isinstance(layer, keras.layers.Dense))
    standardise, original = copy.get_layer("standardise"), model.get_layer("standardise")
    mean = np.asarray(original.mean, np.float64).ravel()
    deviation = np.maximum(np.sqrt(np.asarray(original.variance, np.float64).ravel()), 1e-7)
    kernel = dense.kernel.numpy() / deviation[:, None]
    dense.kernel.assign(kernel)
    dense.bias.assign(dense.bias.numpy() - mean @ kernel)
    standardise.mean = tf.zeros_like(original.mean)
    standardise.variance = tf.ones_like(original.variance)
    return copy


def freeze_model(
    model: keras.Model, info: ModelInfo, batch: int | None
) -> tf.types.experimental.GenericFunction:
    """The model as a function pixels → {probabilities, features} whose weights are constants.

    Keras 3 variables reach the LiteRT converter as resources without values, and every
    output becomes NaN; constants cannot get lost.
    """
    both = build_two_outputs(model)
    shape = (batch, info.image_size, info.image_size, 3)
    signature = [tf.TensorSpec(shape, tf.float32, name="pixels")]
    call = tf.function(
        lambda pixels: both(pixels, training=False), input_signature=signature, autograph=False
    )
    frozen = convert_variables_to_constants_v2(call.get_concrete_function())

    def classify(pixels: tf.Tensor) -> dict[str, tf.Tensor]:
        probabilities, features = frozen(pixels)
        return {"probabilities": probabilities, "features": features}

    return tf.function(classify, input_signature=signature, autograph=False)


def convert_onnx(model: keras.Model, info: ModelInfo) -> bytes:
    """The model for ONNX Runtime: pixels float32 (n, size, size, 3) → the same two outputs.

    Raises:
        UsageError: tf2onnx is not installed.
    """
    try:
        import tf2onnx
    except ImportError:
        raise UsageError(
            "The onnx format needs the package tf2onnx. Install it with "
            "`pip install 'automl[onnx]'`, or choose another format."
        ) from None
    function = freeze_model(model, info, batch=None)
    with quiet():
        proto, _ = tf2onnx.convert.from_function(
            function, input_signature=function.input_signature, opset=ONNX_OPSET
        )
    return proto.SerializeToString()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence the converters' remarks about themselves; errors still come through."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
