"""The two runtimes that can answer for a model folder, behind one call.

``LiteEngine`` runs ``model.tflite`` with LiteRT (XNNPACK), one image at a time and one
interpreter for each calling thread; TensorFlow is not even imported. ``SavedModelEngine``
runs the SavedModel itself. Both take and give the same arrays and may be called from
several threads.
"""

import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from automl.errors import ModelError
from automl.records import ModelInfo
from automl.search.litert import make_interpreter

# Operations that touch files, processes or Python. A classifier needs none of them, and a
# SavedModel that has one would run it on the machine of whoever loads it.
UNSAFE_OPERATIONS = frozenset(
    {"ReadFile", "WriteFile", "MatchingFiles", "PyFunc", "PyFuncStateless", "EagerPyFunc"}
)


class Engine(Protocol):
    """Runs a model on pixels; ``name`` says with what."""

    name: str

    def run(self, pixels: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """n images → probabilities (n, classes) and features (n, channels).

        Each is uint8 (size, size, 3), or (size, size, 1) where the channels are equal.
        """
        ...


class LiteEngine:
    """LiteRT with one single-threaded interpreter for each thread that calls ``run``."""

    name = "litert"

    def __init__(self, path: Path) -> None:
        self._data = path.read_bytes()
        self._local = threading.local()
        try:
            self._prepare()
        except (ValueError, RuntimeError, KeyError) as error:
            raise ModelError(f"{path} cannot be loaded: {error}.") from error

    def _prepare(self):
        """This thread's interpreter, and where its tensors are."""
        if not hasattr(self._local, "parts"):
            interpreter = make_interpreter(self._data)
            runner = interpreter.get_signature_runner("serving_default")
            exits = runner.get_output_details()
            self._local.parts = (
                interpreter,
                runner.get_input_details()["pixels"]["index"],
                [exits[name]["index"] for name in ("probabilities", "features")],
            )
        return self._local.parts

    def run(self, pixels: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        # Tensors directly: the signature runner's checks take a tenth of a small network's time.
        interpreter, entry, exits = self._prepare()
        answers: list[list[np.ndarray]] = []
        for image in pixels:
            fill(interpreter.tensor(entry)()[0], image)
            interpreter.invoke()
            answers.append([interpreter.get_tensor(index)[0] for index in exits])
        probabilities, features = zip(*answers, strict=True)
        return np.stack(probabilities), np.stack(features)


class SavedModelEngine:
    """TensorFlow, whose own threads share the work of a batch."""

    name = "saved_model"

    def __init__(self, folder: Path, trust: bool = False) -> None:
        import tensorflow as tf

        if not trust:
            refuse_unsafe_operations(folder)
        try:
            self._model = tf.saved_model.load(str(folder))
            self._classify = self._model.signatures["serving_default"]
            self._embed = self._model.signatures["embed"]
        except (OSError, KeyError, ValueError, tf.errors.OpError) as error:
            raise ModelError(
                f"{folder} cannot be loaded as a SavedModel with the signatures serving_default "
                f"and embed: {error}."
            ) from error
        self._tensor = tf.constant

    def run(self, pixels: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        batch = np.empty((len(pixels), *pixels[0].shape[:2], 3), np.float32)
        for target, image in zip(batch, pixels, strict=True):
            fill(target, image)
        images = self._tensor(batch)
        answer = self._embed(images=images)
        if "probabilities" not in answer:  # a folder from before embed gave both
            answer |= self._classify(images=images)
        return answer["probabilities"].numpy(), answer["features"].numpy()


def fill(target: np.ndarray, image: np.ndarray) -> None:
    """Write an image of three channels, or of one, to float32 (size, size, 3)."""
    if image.shape[2] == 3:
        target[...] = image
        return
    # Three strided writes are several times as fast as one that repeats each value.
    for channel in range(3):
        target[:, :, channel] = image[:, :, 0]


def refuse_unsafe_operations(folder: Path) -> None:
    """Look into saved_model.pb without running it.

    Raises:
        ModelError: its graph reads or writes files or calls Python, or cannot be parsed.
    """
    from google.protobuf.message import DecodeError
    from tensorflow.core.protobuf.saved_model_pb2 import SavedModel

    saved = SavedModel()
    try:
        saved.ParseFromString((folder / "saved_model.pb").read_bytes())
    except (OSError, DecodeError) as error:
        raise ModelError(f"{folder / 'saved_model.pb'} is not a SavedModel: {error}.") from None
    found = UNSAFE_OPERATIONS & set(list_operations(saved))
    if found:
        raise ModelError(
            f"{folder} holds operations that no classifier needs ({', '.join(sorted(found))}). "
            "It was not written by automl; load it with --trust only if you know who made it."
        )


def list_operations(saved: "SavedModel") -> list[str]:  # noqa: F821
    """The kind of every node in every graph and function of a parsed SavedModel."""
    kinds = []
    for meta in saved.meta_graphs:
        kinds += [node.op for node in meta.graph_def.node]
        for function in meta.graph_def.library.function:
            kinds += [node.op for node in function.node_def]
    return kinds


def choose_classes(probabilities: np.ndarray, info: ModelInfo) -> np.ndarray:
    """Class indices (n,) by the rule of the SavedModel: threshold for two, else the highest."""
    if len(info.classes) == 2:
        return (probabilities[:, 1] >= np.float32(info.threshold)).astype(np.int64)
    return probabilities.argmax(axis=1)


def count_workers() -> int:
    """Processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
