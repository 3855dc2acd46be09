"""Run one exported model; needs its runtime, NumPy and, for image files, Pillow.

    python predict.py scan.png …                                       answers as CSV
    python run_export.py --arrays KIND MODEL INPUTS.npy OUTPUT.npz     used by automl's proofs

The first form is that of the copy which lies in an export's folder; it reads manifest.json and
the model beside it, and takes 8-bit images. KIND is saved_model, encoded (inputs are files'
bytes), tflite or onnx. Nothing of automl is imported, so it is short enough to copy from.
"""

import csv
import json
import os
import sys
from pathlib import Path

import numpy as np

BATCH = 16


def run_saved_model(path: str, inputs: np.ndarray, signature: str) -> np.ndarray:
    """Probabilities (n, classes) by TensorFlow, from pixels or from files' bytes."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import tensorflow as tf

    serve = tf.saved_model.load(path).signatures[signature]
    parts = []
    for start in range(0, len(inputs), BATCH):
        batch = inputs[start : start + BATCH]
        if signature == "encoded":
            # Stored as one byte string each, padded with a marker so that NumPy keeps zeros.
            answer = serve(encoded=tf.constant([bytes(item[:-1]) for item in batch]))
        else:
            answer = serve(images=tf.constant(batch.astype(np.float32)))
        parts.append(answer["probabilities"].numpy())
    return np.concatenate(parts)


def run_tflite(path: str, inputs: np.ndarray) -> np.ndarray:
    """Probabilities (n, classes) by LiteRT, one image at a time."""
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError:
        # An attribute that TensorFlow makes on demand: importing it by its name fails.
        import tensorflow as tf

        Interpreter = tf.lite.Interpreter
    interpreter = Interpreter(model_path=path, num_threads=1)
    classify = interpreter.get_signature_runner("serving_default")
    return np.concatenate(
        [classify(pixels=image[None].astype(np.float32))["probabilities"] for image in inputs]
    )


def run_onnx(path: str, inputs: np.ndarray) -> np.ndarray:
    """Probabilities (n, classes) by ONNX Runtime."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return np.concatenate(
        [
            session.run(
                ["probabilities"], {"pixels": inputs[start : start + BATCH].astype(np.float32)}
            )[0]
            for start in range(0, len(inputs), BATCH)
        ]
    )


def run_arrays(kind: str, path: str, inputs_path: str, output_path: str) -> None:
    """Run and store: probabilities and the names of the modules that were loaded."""
    inputs = np.load(inputs_path, mmap_mode=None if kind == "encoded" else "r")
    if kind == "tflite":
        probabilities = run_tflite(path, inputs)
    elif kind == "onnx":
        probabilities = run_onnx(path, inputs)
    else:
        signature = "encoded" if kind == "encoded" else "serving_default"
        probabilities = run_saved_model(path, inputs, signature)
    loaded = [name for name in ("automl", "tensorflow") if name in sys.modules]
    np.savez(output_path, probabilities=probabilities, loaded=np.array(loaded, dtype="U32"))


def read_image(path: str, size: int) -> np.ndarray:
    """An 8-bit image file as the model wants it: uint8 (size, size, 3)."""
    from PIL import Image, ImageOps

    with Image.open(path) as image:
        if image.mode in ("F", "I") or image.mode.startswith("I;16"):
            raise SystemExit(f"{path} has more than 8 bits; `automl predict` can read it.")
        pixels = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    if pixels.shape[:2] != (size, size):
        pixels = resize(resize(pixels, size).swapaxes(0, 1), size).swapaxes(0, 1)
    return np.clip(np.rint(pixels), 0, 255).astype(np.uint8)


def resize(values: np.ndarray, n_out: int) -> np.ndarray:
    """The first axis of (n, m, 3) as ``tf.image.resize(…, "bilinear", antialias=True)`` has it."""
    one, half, n_in = np.float32(1), np.float32(0.5), len(values)
    inverse = one / (np.float32(n_out) / np.float32(n_in))
    radius = max(inverse, one)
    centre = (np.arange(n_out, dtype=np.float32) + half) * inverse
    start = np.clip(np.ceil(centre - radius - half).astype(int), 0, n_in - 1)
    end = np.clip(np.floor(centre + radius - half).astype(int), 0, n_in - 1) + 1
    taps, weights = [], []
    for tap in range((end - start).max()):
        source = start + tap
        distance = np.abs((source.astype(np.float32) + half - centre) * (one / radius))
        taps.append(np.minimum(source, n_in - 1))
        weights.append(np.where(source < end, np.maximum(0, one - distance), 0).astype(np.float32))
    scale = one / sum(weights[1:], weights[0])
    parts = [values[t] * (w * scale)[:, None, None] for t, w in zip(taps, weights, strict=True)]
    return sum(parts[1:], parts[0])


def answer_files(files: list[str]) -> None:
    """CSV on standard output: image, label, and the probability of each class."""
    folder = Path(__file__).resolve().parent
    manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
    classes, run = manifest["classes"], {"tflite": run_tflite, "onnx": run_onnx}[manifest["kind"]]
    model = str(folder / f"model.{manifest['kind']}")
    out = csv.writer(sys.stdout, lineterminator="\n")
    out.writerow(["image", "label", *(f"probability_{name}" for name in classes)])
    for start in range(0, len(files), BATCH):
        batch = files[start : start + BATCH]
        pixels = np.stack([read_image(file, manifest["image_size"]) for file in batch])
        for file, row in zip(batch, run(model, pixels), strict=True):
            index = int(row.argmax())
            if len(classes) == 2:
                index = int(row[1] >= np.float32(manifest["threshold"]))
            out.writerow([file, classes[index], *(f"{value:.8g}" for value in row)])


if __name__ == "__main__":
    if sys.argv[1:2] == ["--arrays"]:
        run_arrays(*sys.argv[2:])
    elif len(sys.argv) > 1:
        answer_files(sys.argv[1:])
    else:
        raise SystemExit(__doc__)
