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
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from automl.errors import ModelError, UsageError
from automl.records import ModelInfo
from automl.serving.engines import make_interpreter
from automl.serving.formats import build_two_outputs, convert_onnx, convert_tflite
from automl.serving.manifest import FAST_FILE, hash_file, read_info, write_info
from automl.serving.parity import FILES, check_parity

FAST_TOLERANCE = 1e-4
FORMATS = ("saved_model", "tflite", "tflite_float16", "tflite_int8", "onnx")


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
        ``info`` with the hashes of what was written. The LiteRT file is left out where it
        differs by more than FAST_TOLERANCE; prediction then uses the SavedModel.

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
        fast = convert_tflite(model, info)
        if measure_fast_difference(model, fast, info.image_size) <= FAST_TOLERANCE:
            (temporary / FAST_FILE).write_bytes(fast)
        return write_info(temporary, info, "saved_model")


def measure_fast_difference(model: keras.Model, fast: bytes, size: int) -> float:
    """Largest difference in probability between the model and its LiteRT file, on a few images."""
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (4, size, size, 3)).astype(np.float32)
    # Noise at two contrasts, and slopes, which are closer to what a scan looks like.
    pixels = np.concatenate([noise, np.rint(noise / 4), np.sort(noise, axis=1)])
    classify = make_interpreter(fast).get_signature_runner("serving_default")
    found = [classify(pixels=image[np.newaxis])["probabilities"][0] for image in pixels]
    difference = np.abs(np.array(found) - model(pixels, training=False).numpy())
    return float(difference.max()) if np.isfinite(difference).all() else 1.0


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


def export_model(
    run_folder: Path,
    formats: Iterable[str],
    calibration: np.ndarray | None = None,
    pixels: np.ndarray | None = None,
    expected: np.ndarray | None = None,
    out: Path | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> list[dict[str, Any]]:
    """Write a finished run's model in further formats, each in its own folder, and prove them.

    Args:
        run_folder: holds model.keras and model/.
        formats: of FORMATS.
        calibration: uint8 (n, size, size, 3) training images, for tflite_int8.
        pixels: uint8 (n, size, size, 3) test images for the proof; None leaves it out.
        expected: (n, classes), what the evaluated model said to ``pixels``.
        out: parent of the new folders; default ``run_folder``/exports.

    Returns:
        For each format a dict: format, folder, mb, digest (SHA-256 of the model file) and
        parity (see ``Parity``, or None).

    Raises:
        UsageError: an unknown format, or one whose converter is missing.
        ModelError: the run has no model, or an export cannot be run.
    """
    formats = list(formats)
    for name in formats:
        if name not in FORMATS:
            raise UsageError(f"--format {name!r} is not known. Allowed: {', '.join(FORMATS)}.")
    info = read_info(run_folder / "model")
    model = load_keras_model(run_folder / "model.keras")
    check_model(model, info)
    results = []
    for done, name in enumerate(formats):
        if progress is not None:
            progress(f"exporting {name}", done, len(formats))
        folder = (out or run_folder / "exports") / name
        file = write_format(model, info, name, folder, calibration)
        parity = None
        if pixels is not None and expected is not None:
            parity = check_parity(folder, pixels, expected).to_json()
        results.append(
            {
                "format": name,
                "folder": str(folder),
                "mb": round(measure_folder(folder) / 1e6, 3),
                "digest": hash_file(file),
                "parity": parity,
            }
        )
    return results


def write_format(
    model: keras.Model, info: ModelInfo, name: str, folder: Path, calibration: np.ndarray | None
) -> Path:
    """One format into ``folder``; returns its main file."""
    if name == "saved_model":
        export_saved_model(model, info, folder)
        return folder / "saved_model.pb"
    if name == "onnx":
        kind, data = "onnx", convert_onnx(model, info)
    else:
        precision = name.removeprefix("tflite").removeprefix("_") or "float32"
        kind, data = "tflite", convert_tflite(model, info, precision, calibration)
    with replace_folder(folder) as temporary:
        (temporary / FILES[kind]).write_bytes(data)
        write_info(temporary, info, kind)
    return folder / FILES[kind]


def load_keras_model(path: Path) -> keras.Model:
    """Load a ``.keras`` file; code inside (Lambda layers) is refused.

    Raises:
        ModelError: it is missing, damaged or not allowed.
    """
    if path.suffix != ".keras" or not path.is_file():
        raise ModelError(f"{path} is not there. Expected the model.keras of a finished run.")
    try:
        return keras.saving.load_model(path, compile=False, safe_mode=True)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ModelError(f"{path} cannot be loaded: {error}") from error


def measure_folder(folder: Path) -> int:
    """Bytes of all files below ``folder``."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
