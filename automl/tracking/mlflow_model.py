"""The model that MLflow serves: the SavedModel folder under TensorFlow, and nothing of ours.

MLflow copies this file into the logged model and runs it ("models from code"), so there is
no pickle and no import of automl. A row has either ``b64``, a JPEG or PNG file as base64
text or bytes, or ``pixels``, an array (h, w, 3) or (h, w) of 0-255.
"""

import base64
import binascii
from typing import Any

import mlflow
import pandas as pd
from mlflow.exceptions import MlflowException

BATCH = 32
JPEG, PNG = b"\xff\xd8\xff", b"\x89PNG"


class ImageClassifier(mlflow.pyfunc.PythonModel):
    """Answers with ``label``, ``class_index`` and ``probability_<class>`` for each row."""

    def load_context(self, context: Any) -> None:
        import tensorflow as tf

        self.saved_model = tf.saved_model.load(context.artifacts["saved_model"])
        self.classes = list(context.model_config["classes"])

    def predict(self, context: Any, model_input: pd.DataFrame, params: Any = None) -> pd.DataFrame:
        columns = list(getattr(model_input, "columns", []))
        given = [name for name in ("b64", "pixels") if name in columns]
        if len(given) != 1:
            raise refuse(
                f"The columns are {columns}. Expected one column: b64 with JPEG or PNG files as "
                'base64, such as {"instances": [{"b64": "..."}]}, or pixels with arrays '
                "(h, w, 3) of 0-255."
            )
        answer = self._predict_files if given == ["b64"] else self._predict_pixels
        return pd.DataFrame(answer(list(model_input[given[0]])))

    def _predict_files(self, values: list[Any]) -> list[dict[str, Any]]:
        import tensorflow as tf

        files = [decode(value, row) for row, value in enumerate(values)]
        call = self.saved_model.signatures["encoded"]
        rows: list[dict[str, Any]] = []
        for start in range(0, len(files), BATCH):
            try:
                rows += self._rows(call(tf.constant(files[start : start + BATCH])))
            except tf.errors.InvalidArgumentError:
                last = min(start + BATCH, len(files)) - 1
                raise refuse(
                    f"Rows {start} to {last}: a JPEG or PNG file is damaged or cut off."
                ) from None
        return rows

    def _predict_pixels(self, values: list[Any]) -> list[dict[str, Any]]:
        """One image at a time: their sizes may differ."""
        import numpy as np
        import tensorflow as tf

        call = self.saved_model.signatures["serving_default"]
        rows: list[dict[str, Any]] = []
        for row, value in enumerate(values):
            try:
                pixels = np.asarray(value, dtype=np.float32)
            except (TypeError, ValueError):
                raise refuse(f"Row {row}: pixels are not numbers in equal rows.") from None
            if pixels.ndim == 2:
                pixels = np.repeat(pixels[..., None], 3, axis=-1)
            if pixels.ndim != 3 or pixels.shape[-1] != 3 or not pixels.size:
                raise refuse(
                    f"Row {row}: pixels have the shape {pixels.shape}. "
                    "Expected (h, w, 3) or (h, w)."
                )
            if not (pixels.min() >= 0 and pixels.max() <= 255):
                raise refuse(f"Row {row}: pixels are outside 0-255.")
            rows += self._rows(call(tf.constant(pixels[None])))
        return rows

    def _rows(self, outputs: dict[str, Any]) -> list[dict[str, Any]]:
        labels = [label.decode() for label in outputs["label"].numpy()]
        indices = outputs["class_index"].numpy()
        return [
            {
                "label": label,
                "class_index": int(index),
                **{
                    f"probability_{name}": float(probability)
                    for name, probability in zip(self.classes, probabilities, strict=True)
                },
            }
            for label, index, probabilities in zip(
                labels, indices, outputs["probabilities"].numpy(), strict=True
            )
        ]


def decode(value: Any, row: int) -> bytes:
    """A file's bytes from bytes or from base64, which JSON needs."""
    if not isinstance(value, (str, bytes)):
        raise refuse(f"Row {row}: b64 is {type(value).__name__}. Expected text.")
    data = value.encode("ascii", "replace") if isinstance(value, str) else value
    if not data.startswith((JPEG, PNG)):
        try:
            data = base64.b64decode(data, validate=True)
        except (binascii.Error, ValueError):
            data = b""
    if not data.startswith((JPEG, PNG)):
        raise refuse(f"Row {row}: b64 is not a JPEG or PNG file in base64.")
    return data


def refuse(message: str) -> MlflowException:
    """An error that the server answers with status 400 and no traceback: the caller's mistake."""
    return MlflowException.invalid_parameter_value(message)


mlflow.models.set_model(ImageClassifier())
