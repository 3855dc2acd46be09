"""The HyperModel: MobileNetV2 variants and their search space, as KerasTuner wants them.

The study trains these same configurations from cached activations; here they are whole
models that a stock ``keras_tuner`` tuner can build and fit from pixels.
"""

from typing import Any

import keras
import keras_tuner
import numpy as np

from automl.search.model import head_layers, output_units, trained_layers
from automl.search.weights import load_backbone

HEAD_UNITS = (0, 64, 128, 256)
LEARNING_RATES = (2e-3, 1e-2)
# The searched rate is the head's. Pretrained layers want about a tenth of it: with one
# absolute range for all depths a third of the trials diverge or stand still.
FINE_TUNE_RATE = 0.1


def define_space(
    hp: keras_tuner.HyperParameters, depths: tuple[int, ...], widths: tuple[float, ...]
) -> dict[str, Any]:
    """Declare the hyperparameters on ``hp`` and return this configuration's values.

    ``fine_tune_depth`` blocks from the end; ``head_units`` 0 is a linear head; ``dropout``
    in [0, 0.6]; ``learning_rate`` is the head's, see ``step_size``. Defaults are the
    deepest of ``depths`` and what suits small sets.
    """
    ordered = sorted(depths)
    values = {
        "fine_tune_depth": hp.Choice("fine_tune_depth", ordered, default=ordered[-1], ordered=True),
        "head_units": hp.Choice("head_units", list(HEAD_UNITS), default=128, ordered=True),
        "dropout": hp.Float("dropout", 0.0, 0.6, step=0.1, default=0.3),
        "learning_rate": hp.Float("learning_rate", *LEARNING_RATES, sampling="log", default=5e-3),
    }
    if len(widths) > 1:
        values["width"] = hp.Choice("width", sorted(widths), default=min(widths), ordered=True)
    else:
        values["width"] = hp.Fixed("width", widths[0])
    return values


def step_size(params: dict[str, Any]) -> float:
    """Adam's learning rate for a configuration, relative to its depth."""
    rate = float(params["learning_rate"])
    return rate * FINE_TUNE_RATE if params["fine_tune_depth"] else rate


def describe_space(hp: keras_tuner.HyperParameters) -> list[dict[str, Any]]:
    """The space as plain rows: name, kind, values or low, high and sampling, default."""
    rows = []
    for parameter in hp.space:
        config = parameter.get_config()
        row: dict[str, Any] = {"name": parameter.name, "default": parameter.default}
        if "values" in config:
            row |= {"kind": "choice", "values": list(config["values"])}
        elif "min_value" in config:
            row |= {
                "kind": "float",
                "low": config["min_value"],
                "high": config["max_value"],
                "sampling": config.get("sampling") or "linear",
            }
        else:
            row |= {"kind": "fixed"}
        rows.append(row)
    return rows


class MobileNetHyperModel(keras_tuner.HyperModel):
    """Builds and compiles one configuration: pixels (n, S, S, 3) in 0–255 → (n, 1 or k).

    Two classes end in a sigmoid with binary cross-entropy, more in a softmax with the
    sparse categorical one. ``fit`` standardises the features on the first training
    images and honours ``tuner/epochs``, so that our oracle works in a stock tuner too.

    Args:
        n_classes: two or more.
        image_size: side of the input in pixels.
        depths, widths: what the search may choose from.
        weights: "imagenet", "none" or a path.
        seed: of a random backbone and of the head's start.
        statistics: mean and variance (C,) of the training features, where they are known;
            else ``fit`` measures them.
    """

    def __init__(
        self,
        n_classes: int,
        image_size: int = 160,
        depths: tuple[int, ...] = (0, 1, 2, 4, 7),
        widths: tuple[float, ...] = (0.35,),
        weights: str = "imagenet",
        seed: int = 0,
        statistics: tuple[np.ndarray, np.ndarray] | None = None,
    ) -> None:
        super().__init__(name="mobilenet_v2")
        self.statistics = statistics
        self.n_classes = n_classes
        self.image_size = image_size
        self.depths = depths
        self.widths = widths
        self.weights = weights
        self.seed = seed

    def build(self, hp: keras_tuner.HyperParameters) -> keras.Model:
        params = define_space(hp, self.depths, self.widths)
        backbone = load_backbone(self.image_size, params["width"], self.weights, self.seed)
        mean, variance = self.statistics or (None, None)
        logits = head_layers(
            backbone.output,
            self.n_classes,
            head_units=params["head_units"],
            dropout=params["dropout"],
            mean=mean,
            variance=variance,
            seed=self.seed,
        )
        binary = output_units(self.n_classes) == 1
        activation = keras.layers.Activation("sigmoid" if binary else "softmax")
        model = keras.Model(backbone.input, activation(logits), name="automl")
        for layer in trained_layers(backbone, params["fine_tune_depth"]):
            layer.trainable = True
        model.compile(
            optimizer=keras.optimizers.Adam(step_size(params)),
            loss="binary_crossentropy" if binary else "sparse_categorical_crossentropy",
            metrics=["accuracy", keras.metrics.AUC(name="roc_auc")] if binary else ["accuracy"],
            jit_compile=False,
        )
        return model

    def fit(
        self, hp: keras_tuner.HyperParameters, model: keras.Model, x: Any, *args: Any, **kwargs: Any
    ) -> Any:
        if self.statistics is None:
            images = x if isinstance(x, np.ndarray) else np.concatenate([b[0] for b in x.take(8)])
            backbone = keras.Model(model.input, model.get_layer("features").output)
            features = backbone.predict(images[:512], verbose=0)
            standardise = model.get_layer("standardise")
            standardise.adapt_mean.assign(features.mean(axis=0))
            standardise.adapt_variance.assign(features.var(axis=0))
            standardise.finalize_state()
        if "tuner/epochs" in hp.values:
            kwargs["epochs"] = hp.values["tuner/epochs"]
        return model.fit(x, *args, **kwargs)
