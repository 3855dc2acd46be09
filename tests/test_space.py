"""The HyperModel and the oracle in stock KerasTuner tuners, as others would use them."""

import keras
import keras_tuner
import numpy as np
import pytest

from automl.search.hyperband import HyperbandOracle, make_schedule
from automl.search.space import MobileNetHyperModel, define_space, describe_space, step_size

pytestmark = [
    # KerasTuner 1.4.8 uses threading.currentThread and asks for tensorboard.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]
SIZE = 32


def make_images(n=24):
    draw = np.random.default_rng(0)
    y = np.arange(n) % 2
    x = draw.integers(0, 60, (n, SIZE, SIZE, 3)).astype(np.float32)
    x[y == 1, 8:20, 8:20] += 120
    return x, y


def test_the_space_has_the_four_hyperparameters_and_sensible_defaults():
    space = keras_tuner.HyperParameters()
    values = define_space(space, (0, 2, 4), (0.35,))
    rows = {row["name"]: row for row in describe_space(space)}
    assert set(rows) == {"fine_tune_depth", "head_units", "dropout", "learning_rate", "width"}
    assert values["fine_tune_depth"] == 4
    assert rows["learning_rate"]["sampling"] == "log"
    assert step_size(values) < values["learning_rate"]
    assert step_size(values | {"fine_tune_depth": 0}) == values["learning_rate"]


@pytest.mark.slow
def test_a_stock_hyperband_runs_our_hypermodel(tmp_path):
    pytest.importorskip("tensorboard", reason="keras_tuner 1.4.8 imports it in every trial")
    x, y = make_images()
    tuner = keras_tuner.Hyperband(
        MobileNetHyperModel(2, SIZE, depths=(0, 1), weights="none"),
        keras_tuner.Objective("val_roc_auc", "max"),
        max_epochs=2,
        factor=2,
        seed=1,
        directory=tmp_path,
        project_name="stock",
        overwrite=True,
    )
    # One bracket: two trials and the better of them promoted; each takes seconds to compile.
    tuner.oracle.max_trials = 3
    tuner.search(x, y, validation_data=(x, y), batch_size=8, verbose=0)
    done = [t for t in tuner.oracle.trials.values() if t.status == "COMPLETED"]
    assert [t.hyperparameters.values["tuner/epochs"] for t in done] == [1, 1, 2]
    assert all(np.isfinite(trial.score) for trial in done)
    model = tuner.get_best_models(1)[0]
    p = model.predict(x, verbose=0)
    assert p.shape == (24, 1)
    frozen = [layer for layer in model.layers if layer.name.startswith("block_1_")]
    assert not any(layer.trainable_weights for layer in frozen)


class SmallHyperModel(MobileNetHyperModel):
    """Our space and our ``fit`` around a network that compiles in no time."""

    def build(self, hp):
        params = define_space(hp, self.depths, self.widths)
        model = keras.Sequential(
            [
                keras.Input((SIZE, SIZE, 3)),
                keras.layers.GlobalAveragePooling2D(),
                keras.layers.Dense(1, activation="sigmoid"),
            ]
        )
        model.compile(
            keras.optimizers.Adam(step_size(params)),
            "binary_crossentropy",
            metrics=[keras.metrics.AUC(name="roc_auc")],
        )
        return model


@pytest.mark.slow
def test_our_oracle_runs_in_a_stock_tuner(tmp_path):
    pytest.importorskip("tensorboard", reason="keras_tuner 1.4.8 imports it in every trial")
    x, y = make_images()
    tuner = keras_tuner.Tuner(
        HyperbandOracle(
            keras_tuner.Objective("val_roc_auc", "max"), max_epochs=2, factor=2, seed=0
        ),
        SmallHyperModel(2, SIZE, depths=(0, 1), statistics=(np.zeros(1), np.ones(1))),
        directory=tmp_path,
        project_name="ours",
        overwrite=True,
    )
    tuner.search(x, y, validation_data=(x, y), batch_size=8, verbose=0)
    trials = tuner.oracle.trials
    assert len(trials) == sum(size for rungs in make_schedule(2, 2) for size, _ in rungs)
    assert {trial.status for trial in trials.values()} == {"COMPLETED"}
    assert sorted(t.hyperparameters.values["tuner/epochs"] for t in trials.values()) == [
        1,
        1,
        2,
        2,
        2,
    ]
