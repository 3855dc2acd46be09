"""Who runs the frozen prefix: LiteRT where it pays, else TensorFlow.

LiteRT (XNNPACK) runs MobileNetV2 about 2.5 times as fast as TensorFlow on a CPU and
agrees with it to 1e-4, but takes seconds to convert a network: worth it from a few
thousand images on.
"""

import os
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

from automl.console import hush
from automl.search.litert import interpreter_class, make_interpreter

LITERT_FROM_IMAGES = 1500

Engine = Callable[[np.ndarray], list[np.ndarray]]


def engine_name(n_images: int) -> str:
    """ "litert" or "tensorflow", by the number of images; a GPU always gets TensorFlow."""
    with hush():  # without a GPU, CUDA says so
        gpus = tf.config.list_physical_devices("GPU")
    if gpus or n_images < LITERT_FROM_IMAGES:
        return "tensorflow"
    return "litert" if interpreter_class() is not None else "tensorflow"


def choose_engine(name: str, network: keras.Model) -> Engine:
    """A function from float32 (n, S, S, 3) to a list with each output's (n, …) array.

    It may be called by several threads at once, see ``each``.
    """
    return litert_engine(network) if name == "litert" else tensorflow_engine(network)


def each(function: Callable[[Any], Any], items: Iterable[Any]) -> None:
    """Call ``function`` with every item, by a thread for each processor; the first error ends it.

    The network runs outside of Python's lock, and so do copying and writing arrays: threads
    with an interpreter of one thread each are faster than one interpreter with all of them.
    """
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for _ in pool.map(function, items):
            pass


def tensorflow_engine(network: keras.Model) -> Engine:
    run = tf.function(
        lambda x: network(x, training=False),
        jit_compile=False,
        reduce_retracing=True,
        autograph=False,
    )

    def call(images: np.ndarray) -> list[np.ndarray]:
        outputs = run(tf.constant(images))
        outputs = outputs if isinstance(outputs, list | tuple) else [outputs]
        return [output.numpy() for output in outputs]

    return call


def litert_engine(network: keras.Model) -> Engine:
    """Images one by one: XNNPACK is fastest at batch 1, and memory stays flat."""
    signature = tf.TensorSpec((1, *network.input.shape[1:]), tf.float32, name="images")

    @tf.function(input_signature=[signature], jit_compile=False, autograph=False)
    def serve(images: tf.Tensor) -> list[tf.Tensor]:
        outputs = network(images, training=False)
        return list(outputs) if isinstance(outputs, list | tuple) else [outputs]

    # Weights must be constants: as variables they are neither initialised nor fused.
    frozen = convert_variables_to_constants_v2(serve.get_concrete_function())
    converter = tf.lite.TFLiteConverter.from_concrete_functions([frozen])
    with hush():
        content = converter.convert()
    here = threading.local()

    def call(images: np.ndarray) -> list[np.ndarray]:
        if not hasattr(here, "interpreter"):
            here.interpreter = make_interpreter(content)
        interpreter = here.interpreter
        entry = interpreter.get_input_details()[0]["index"]
        # The converter may reorder the outputs but keeps their names.
        exits = {detail["name"]: detail["index"] for detail in interpreter.get_output_details()}
        order = [exits[output.name.removesuffix(":0")] for output in frozen.outputs]
        outputs: list[list[np.ndarray]] = [[] for _ in order]
        for image in images:
            interpreter.set_tensor(entry, image[None])
            interpreter.invoke()
            for output, index in zip(outputs, order, strict=True):
                output.append(interpreter.get_tensor(index))
        return [np.concatenate(output) for output in outputs]

    return call
