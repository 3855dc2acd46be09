"""LiteRT's interpreter, from ai-edge-litert or else TensorFlow's copy; loads neither by itself."""

import warnings
from typing import Any

from automl.console import hush


def interpreter_class() -> Any:
    """The class, or None where neither package has it."""
    try:
        from ai_edge_litert.interpreter import Interpreter

        return Interpreter
    except ImportError:
        import tensorflow as tf

        return getattr(getattr(tf, "lite", None), "Interpreter", None)


def make_interpreter(content: bytes) -> Any:
    """An interpreter of one thread, its tensors allocated."""
    # The library announces its delegate on standard error, and tf.lite its own move at every use.
    with hush(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        interpreter = interpreter_class()(model_content=content, num_threads=1)
        interpreter.allocate_tensors()
        return interpreter
