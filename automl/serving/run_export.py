"""Run one exported model on stored inputs; knows its runtime and NumPy, and nothing of automl.

    python -I run_export.py KIND MODEL INPUTS.npy OUTPUT.npz

KIND is saved_model, encoded (inputs are files' bytes), tflite or onnx. Used by
``automl.serving.parity`` in a fresh process, and short enough to copy from.
"""

import os
import sys

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
        from tensorflow.lite import Interpreter
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


def main(kind: str, path: str, inputs_path: str, output_path: str) -> None:
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


if __name__ == "__main__":
    main(*sys.argv[1:])
