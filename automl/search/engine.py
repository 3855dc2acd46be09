"""Who runs the frozen prefix: LiteRT where it pays, else TensorFlow.

LiteRT (XNNPACK) runs MobileNetV2 about 2.5 times as fast as TensorFlow on a CPU and
agrees with it to 1e-4, but takes seconds to convert a network: worth it from a few
thousand images on.
"""

import importlib.util
import warnings
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

LITERT_FROM_IMAGES = 1500

Engine = Callable[[np.ndarray], list[np.ndarray]]


def engine_name(n_images: int) -> str:
    """ "litert" or "tensorflow", by the number of images; a GPU always gets TensorFlow."""
    if tf.config.list_physical_devices("GPU") or n_images < LITERT_FROM_IMAGES:
        return "tensorflow"
    return "litert" if litert_interpreter() is not None else "tensorflow"


def litert_interpreter() -> Any:
    """The Interpreter class of ai_edge_litert, of TensorFlow, or None."""
    if importlib.util.find_spec("ai_edge_litert") is not None:
        from ai_edge_litert.interpreter import Interpreter

        return Interpreter
    lite = getattr(tf, "lite", None)
    return getattr(lite, "Interpreter", None)


def choose_engine(name: str, network: keras.Model, threads: int) -> Engine:
    """A function from float32 (n, S, S, 3) to a list with each output's (n, …) array."""
    return litert_engine(network, threads) if name == "litert" else tensorflow_engine(network)


def tensorflow_engine(network: keras.Model) -> Engine:
    run = tf.function(
        lambda x: network(x, training=False), jit_compile=False, reduce_retracing=True
    )

    def call(images: np.ndarray) -> list[np.ndarray]:
        outputs = run(tf.constant(images))
        outputs = outputs if isinstance(outputs, list | tuple) else [outputs]
        return [output.numpy() for output in outputs]

    return call


def litert_engine(network: keras.Model, threads: int) -> Engine:
    """Images one by one: XNNPACK is fastest at batch 1, and memory stays flat."""
    signature = tf.TensorSpec((1, *network.input.shape[1:]), tf.float32, name="images")

    @tf.function(input_signature=[signature], jit_compile=False)
    def serve(images: tf.Tensor) -> list[tf.Tensor]:
        outputs = network(images, training=False)
        return list(outputs) if isinstance(outputs, list | tuple) else [outputs]

    # Weights must be constants: as variables they are neither initialised nor fused.
    frozen = convert_variables_to_constants_v2(serve.get_concrete_function())
    converter = tf.lite.TFLiteConverter.from_concrete_functions([frozen])
    with warnings.catch_warnings():
        # tf.lite announces its own move to ai_edge_litert at every use.
        warnings.simplefilter("ignore")
        interpreter = litert_interpreter()(model_content=converter.convert(), num_threads=threads)
    interpreter.allocate_tensors()
    entry = interpreter.get_input_details()[0]["index"]
    # The converter may reorder the outputs but keeps their names.
    exits = {detail["name"]: detail["index"] for detail in interpreter.get_output_details()}
    order = [exits[output.name.removesuffix(":0")] for output in frozen.outputs]

    def call(images: np.ndarray) -> list[np.ndarray]:
        outputs: list[list[np.ndarray]] = [[] for _ in order]
        for image in images:
            interpreter.set_tensor(entry, image[None])
            interpreter.invoke()
            for output, index in zip(outputs, order, strict=True):
                output.append(interpreter.get_tensor(index))
        return [np.concatenate(output) for output in outputs]

    return call
