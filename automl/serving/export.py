"""From a Keras model to folders that other programs can run without automl.

The model's own input is (n, size, size, 3). The SavedModel resizes inside its graph, by
the same operation as ``automl.data.pixels.resize_pixels``, and decodes JPEG as Pillow
does (``dct_method="INTEGER_ACCURATE"``), so files' bytes give what the search saw.

``Model.export`` is not used: it calls the model without ``training=False``, which keeps
random layers random and lets BatchNorm update while it serves.
"""

import contextlib
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

from automl.errors import ModelError, UsageError
from automl.records import ModelInfo
from automl.serving.manifest import FAST_FILE, write_info

TFLITE_PRECISIONS = ("float32", "float16", "int8")


def export_saved_model(model: keras.Model, info: ModelInfo, folder: Path) -> ModelInfo:
    """Write the SavedModel of the contract, beside it the LiteRT file that predicts faster.

    Signatures: ``serving_default`` (images float32 (n, h, w, 3), 0-255, any h and w),
    ``encoded`` (strings (n,), bytes of JPEG or PNG files), both with the outputs
    ``probabilities`` (n, classes), ``class_index`` (n,) and ``label`` (n,); ``embed``
    (images as above) with the output ``features`` (n, channels).

    Args:
        model: input "pixels", output "probabilities", a layer "features".
        info: its threshold decides class_index where there are two classes.
        folder: replaced as a whole once the new one is complete.

    Returns:
        ``info`` with the hashes of what was written.

    Raises:
        ModelError: the model does not have the shape that ``info`` describes.
    """
    check_model(model, info)
    with replace_folder(folder) as temporary:
        archive = keras.export.ExportArchive()
        archive.track(model)
        images = tf.TensorSpec((None, None, None, 3), tf.float32, name="images")
        encoded = tf.TensorSpec((None,), tf.string, name="encoded")
        features = build_two_outputs(model)

        def classify(images: tf.Tensor) -> dict[str, tf.Tensor]:
            pixels = resize_in_graph(images, info.image_size)
            return name_outputs(model(pixels, training=False), info)

        def classify_encoded(encoded: tf.Tensor) -> dict[str, tf.Tensor]:
            pixels = tf.map_fn(
                lambda data: decode_in_graph(data, info.image_size),
                encoded,
                fn_output_signature=tf.TensorSpec((info.image_size, info.image_size, 3)),
            )
            return name_outputs(model(pixels, training=False), info)

        def embed(images: tf.Tensor) -> dict[str, tf.Tensor]:
            pixels = resize_in_graph(images, info.image_size)
            return {"features": features(pixels, training=False)[1]}

        archive.add_endpoint("serving_default", classify, input_signature=[images])
        archive.add_endpoint("encoded", classify_encoded, input_signature=[encoded])
        archive.add_endpoint("embed", embed, input_signature=[images])
        archive.write_out(str(temporary), verbose=False)
        (temporary / FAST_FILE).write_bytes(convert_tflite(model, info))
        return write_info(temporary, info, "saved_model")


def resize_in_graph(images: tf.Tensor, size: int) -> tf.Tensor:
    """Stretch float32 (n, h, w, 3) to whole grey levels (n, size, size, 3) in 0-255."""
    resized = tf.image.resize(images, (size, size), method="bilinear", antialias=True)
    return tf.clip_by_value(tf.round(resized), 0.0, 255.0)


def decode_in_graph(data: tf.Tensor, size: int) -> tf.Tensor:
    """Bytes of one JPEG or PNG file → float32 (size, size, 3), whole grey levels.

    TensorFlow's JPEG operation looks at the magic bytes and decodes PNG (and the first
    frame of a GIF) as well; it is the only one that offers the accurate transform.
    """
    image = tf.io.decode_jpeg(data, channels=3, dct_method="INTEGER_ACCURATE")
    return resize_in_graph(tf.cast(image, tf.float32)[tf.newaxis], size)[0]


def name_outputs(probabilities: tf.Tensor, info: ModelInfo) -> dict[str, tf.Tensor]:
    """Probabilities (n, classes) with the class index and the label at the threshold."""
    if len(info.classes) == 2:
        threshold = tf.constant(info.threshold, tf.float32)
        index = tf.cast(probabilities[:, 1] >= threshold, tf.int64)
    else:
        index = tf.argmax(probabilities, axis=1, output_type=tf.int64)
    label = tf.gather(tf.constant(list(info.classes)), index)
    return {"probabilities": probabilities, "class_index": index, "label": label}


def build_two_outputs(model: keras.Model) -> keras.Model:
    """The same layers with the outputs [probabilities, features]."""
    return keras.Model(model.inputs, [model.outputs[0], model.get_layer("features").output])


def check_model(model: keras.Model, info: ModelInfo) -> None:
    """Hold the model's shapes against ``info``.

    Raises:
        ModelError: they differ.
    """
    size, count = info.image_size, len(info.classes)
    if model.input_shape[1:] != (size, size, 3) or model.output_shape[1:] != (count,):
        raise ModelError(
            f"The model maps {model.input_shape} to {model.output_shape}, but its description "
            f"says {size} x {size} pixels and {count} classes. Export it with the description it "
            "was trained with."
        )


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
        precision: float32, float16 (weights) or int8 (weights and activations).
        calibration: uint8 (n, size, size, 3), a hundred or so training images; int8 only.

    Raises:
        UsageError: int8 without calibration images.
    """
    assert precision in TFLITE_PRECISIONS
    with tempfile.TemporaryDirectory() as temporary:
        module = tf.Module()
        module.classify = freeze_model(model, info, batch=1)
        tf.saved_model.save(module, temporary, signatures={"serving_default": module.classify})
        converter = tf.lite.TFLiteConverter.from_saved_model(temporary)
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
        if precision != "float32":
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
        if precision == "float16":
            converter.target_spec.supported_types = [tf.float16]
        if precision == "int8":
            if calibration is None or len(calibration) == 0:
                raise UsageError(
                    "The int8 format needs calibration images, some hundred of the training set, "
                    "to choose the ranges of its numbers. Pass them, or export float16 instead."
                )
            converter.representative_dataset = lambda: (
                {"pixels": image[np.newaxis].astype(np.float32)} for image in calibration
            )
        with quiet():
            return converter.convert()


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
    call = tf.function(lambda pixels: both(pixels, training=False), input_signature=signature)
    frozen = convert_variables_to_constants_v2(call.get_concrete_function())

    def classify(pixels: tf.Tensor) -> dict[str, tf.Tensor]:
        probabilities, features = frozen(pixels)
        return {"probabilities": probabilities, "features": features}

    return tf.function(classify, input_signature=signature)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence the converters' remarks about themselves; errors still come through."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextlib.contextmanager
def replace_folder(folder: Path) -> Iterator[Path]:
    """A temporary sibling that takes the place of ``folder`` if nothing goes wrong."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        os.chmod(temporary, 0o755)
        yield temporary
        if folder.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{folder.name}.old.", dir=folder.parent))
            os.rename(folder, old / "model")
            os.rename(temporary, folder)
            shutil.rmtree(old)
        else:
            os.rename(temporary, folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
