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
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from automl.errors import ModelError, UsageError
from automl.records import ModelInfo
from automl.search.litert import make_interpreter
from automl.serving.formats import build_two_outputs, convert_onnx, convert_tflite, save_module
from automl.serving.manifest import FAST_FILE, hash_file, read_info, write_info
from automl.serving.parity import FILES, RUNNER, TOLERANCE, Parity, TestSet, check_parity

# Formats whose numbers are rounded, and the least share of labels that must stay the same: below
# it a file that looks like the evaluated model is not written.
ROUNDED = ("tflite_float16", "tflite_int8")
LEAST_AGREEMENT = 0.98
FORMATS = ("saved_model", "tflite", "tflite_float16", "tflite_int8", "onnx")


def export_saved_model(model: keras.Model, info: ModelInfo, folder: Path) -> ModelInfo:
    """Write the SavedModel of the contract, beside it the LiteRT file that predicts faster.

    Signatures: ``serving_default`` (images float32 (n, h, w, 3), 0-255, any h and w),
    ``encoded`` (strings (n,), bytes of JPEG or PNG files), both with the outputs
    ``probabilities`` (n, classes), ``class_index`` (n,) and ``label`` (n,); ``embed``
    (images as above) with the outputs ``features`` (n, channels) and ``probabilities``, for
    who wants both from one pass.

    Args:
        model: input "pixels", output "probabilities", a layer "features".
        info: its threshold decides class_index where there are two classes.
        folder: replaced as a whole once the new one is complete.

    Returns:
        ``info`` with the hashes of what was written. The LiteRT file is left out where it
        differs by more than TOLERANCE; prediction then uses the SavedModel.

    Raises:
        ModelError: the model does not have the shape that ``info`` describes.
    """
    check_model(model, info)
    with replace_folder(folder) as temporary:
        images = tf.TensorSpec((None, None, None, 3), tf.float32, name="images")
        encoded = tf.TensorSpec((None,), tf.string, name="encoded")
        size = info.image_size
        both = build_two_outputs(model)

        # Traced once and called by all signatures: it is most of what saving takes.
        @tf.function(
            input_signature=[tf.TensorSpec((None, size, size, 3), tf.float32)], autograph=False
        )
        def network(pixels: tf.Tensor) -> list[tf.Tensor]:
            return both(pixels, training=False)

        @tf.function(input_signature=[images], autograph=False)
        def classify(images: tf.Tensor) -> dict[str, tf.Tensor]:
            return name_outputs(network(resize_in_graph(images, size))[0], info)

        @tf.function(input_signature=[encoded], autograph=False)
        def classify_encoded(encoded: tf.Tensor) -> dict[str, tf.Tensor]:
            pixels = tf.map_fn(
                lambda data: decode_in_graph(data, size),
                encoded,
                fn_output_signature=tf.TensorSpec((size, size, 3)),
            )
            return name_outputs(network(pixels)[0], info)

        @tf.function(input_signature=[images], autograph=False)
        def embed(images: tf.Tensor) -> dict[str, tf.Tensor]:
            probabilities, values = network(resize_in_graph(images, size))
            return {"features": values, "probabilities": probabilities}

        module = tf.Module()
        module.weights = [variable.value for variable in model.variables]
        signatures = {"serving_default": classify, "encoded": classify_encoded, "embed": embed}
        save_module(module, temporary, signatures)
        fast = convert_tflite(model, info)
        if measure_fast_difference(model, fast, info.image_size) <= TOLERANCE:
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
    images: TestSet | None = None,
    out: Path | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> list[dict[str, Any]]:
    """Write a finished run's model in further formats, each in its own folder, and prove them.

    Args:
        run_folder: holds model.keras and model/.
        formats: of FORMATS.
        calibration: uint8 (n, size, size, 3) training images, for tflite_int8.
        images: of the test set, for the proof; None leaves it out.
        out: parent of the new folders; default ``run_folder``/exports.

    Returns:
        For each format a dict: format, folder, mb, digest (SHA-256 of the model file) and
        parity (see ``Parity``, or None).

    Raises:
        UsageError: an unknown format, or one whose converter is missing.
        ModelError: the run has no model, or an export cannot be run or gives other answers;
            it is not kept then.
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
        with replace_folder(folder) as temporary:
            file = write_format(model, info, name, temporary, calibration)
            parity = None
            if images is not None:
                # Of formats that are the same numbers there is no change to be stated.
                judged = images if name in ROUNDED else replace(images, y_true=None)
                parity = check_parity(temporary, judged)
                refuse_different(name, parity)
                write_info(temporary, info, kind_of(name), {name: parity.to_json()})
        results.append(
            {
                "format": name,
                "folder": str(folder),
                "mb": round(measure_folder(folder) / 1e6, 3),
                "digest": hash_file(folder / file),
                "parity": parity and parity.to_json(),
            }
        )
    return results


def kind_of(name: str) -> str:
    """Which runtime a format of FORMATS is for."""
    return name if name in ("saved_model", "onnx") else "tflite"


def write_format(
    model: keras.Model, info: ModelInfo, name: str, folder: Path, calibration: np.ndarray | None
) -> str:
    """One format into ``folder``; returns its main file's name."""
    if name == "saved_model":
        export_saved_model(model, info, folder)
        return "saved_model.pb"
    kind = kind_of(name)
    if kind == "onnx":
        data = convert_onnx(model, info)
    else:
        precision = name.removeprefix("tflite").removeprefix("_") or "float32"
        data = convert_tflite(model, info, precision, calibration)
    (folder / FILES[kind]).write_bytes(data)
    # So that the folder can be used, and its use read, where automl is not installed.
    shutil.copyfile(RUNNER, folder / "predict.py")
    write_info(folder, info, kind)
    return FILES[kind]


def refuse_different(name: str, parity: Parity) -> None:
    """Hold a proof against what the format promises.

    Raises:
        ModelError: it is not the evaluated model's answer.
    """
    if parity.equal or (name in ROUNDED and parity.agreement >= LEAST_AGREEMENT):
        return
    limit = f"at least {LEAST_AGREEMENT:.0%} of the labels"
    if name not in ROUNDED:
        limit = f"all labels, and differences up to {TOLERANCE:g}"
    change = ""
    if parity.auc_change is not None:
        change = ", and ROC AUC changes by {value:+.4f} ({low:+.4f} to {high:+.4f})".format(
            **parity.auc_change
        )
    raise ModelError(
        f"{name} gives other answers than the evaluated model, and was not kept: on "
        f"{parity.images:,} test images {parity.agreement:.1%} of the labels agree, "
        f"probabilities differ by up to {parity.max_difference:.1e}{change}. Expected {limit}. "
        "Use the format tflite or onnx, whose numbers are not rounded."
    )


def prove_model(folder: Path, images: TestSet) -> dict[str, Parity]:
    """Proofs of a model folder's SavedModel and of the LiteRT file that predicts for it.

    They join the manifest. A LiteRT file that is not equal is removed, and ``predict`` then
    runs the SavedModel.
    """
    has_fast = (folder / FAST_FILE).is_file()
    # Side by side: their processes spend most of the time on starting, with one thread.
    with ThreadPoolExecutor(2) as pool:
        whole = pool.submit(check_parity, folder, images)
        fast = pool.submit(check_parity, folder, images, runtime="tflite") if has_fast else None
    proofs = {"saved_model": whole.result()}
    if fast is not None and fast.result().equal:
        proofs["tflite"] = fast.result()
    elif fast is not None:
        (folder / FAST_FILE).unlink()
    parity = {name: proof.to_json() for name, proof in proofs.items()}
    write_info(folder, read_info(folder), "saved_model", parity)
    return proofs


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


def measure_folder(folder: Path, pattern: str = "*") -> int:
    """Bytes of all files below ``folder``, or of those whose names match."""
    return sum(path.stat().st_size for path in folder.rglob(pattern) if path.is_file())
