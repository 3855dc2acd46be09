"""What MLflow's autolog records of a Hyperband search, beside what the journal's copy records.

    python benchmarks/mlflow_autolog.py [--models]

A stock keras_tuner.Hyperband with a tiny dense network on random numbers, its first 20
trials: once with mlflow.keras.autolog and no run open, once within one open run, and once
with the trials written to a journal and copied by sync_run. Prints a table and writes
mlflow_autolog.json beside this file. --models leaves autolog's logging of a model for each
trial on, as it is by default: it starts a process that loads TensorFlow each time, many minutes.
"""

import contextlib
import json
import logging
import os
import sys
import tempfile
import time
import types
import warnings
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
warnings.simplefilter("ignore")
sys.path.insert(0, str(Path(__file__).parents[1]))

# What the environment and the path decide must be set before these are loaded.
import keras  # noqa: E402
import keras_tuner  # noqa: E402
import mlflow  # noqa: E402
import numpy as np  # noqa: E402

from automl.tracking.journal import FILE_NAME, Journal  # noqa: E402
from automl.tracking.mlflow_sync import default_uri, sync_run  # noqa: E402

TRIALS = 20


class Enough(keras_tuner.errors.FatalError):
    """Ends a search: of all errors in a trial, the tuner lets this kind alone pass."""


class Search(keras_tuner.Hyperband):
    """The stock tuner, which stops after TRIALS and tells a journal what it does, if given."""

    journal: Journal | None = None
    done = 0
    fitted: list[str]

    def run_trial(self, trial: Any, *arguments: Any, **named: Any) -> Any:
        if self.done >= TRIALS:
            raise Enough
        values = trial.hyperparameters.values
        number = f"{len(self.fitted):04d}"
        first, last = values["tuner/initial_epoch"], values["tuner/epochs"]
        if self.journal is not None:
            params = {k: v for k, v in values.items() if not k.startswith("tuner/")}
            self.journal.append(
                "trial_started", trial=f"{number}-0", configuration=int(number),
                bracket=values["tuner/bracket"], round=values["tuner/round"],
                initial_epoch=first, epochs=last, params=params, parent=None, attempt=0,
            )  # fmt: skip
        histories = super().run_trial(trial, *arguments, **named)
        self.fitted.append(number)
        self.done += 1
        if self.journal is not None:
            logs = histories[0].history
            history = [
                {"epoch": first + row + 1, **{name: logs[name][row] for name in logs}}
                for row in range(len(logs["loss"]))
            ]
            self.journal.append(
                "trial_ended", trial=f"{number}-0", attempt=0, status="completed",
                score=min(logs["val_loss"]), reason=None, message=None, seconds=0.0,
                history=history, epoch_of_score=last,
            )  # fmt: skip
        return histories


def build(hp: Any) -> keras.Model:
    rate = hp.Float("learning_rate", 1e-4, 1e-1, sampling="log")
    model = keras.Sequential(
        [
            keras.Input((8,)),
            keras.layers.Dense(hp.Choice("units", [4, 8, 16]), activation="relu"),
            keras.layers.Dense(1),
        ]
    )
    model.compile(keras.optimizers.Adam(rate), "mse")
    return model


def search(folder: Path, journal: Journal | None = None) -> tuple[int, float]:
    """Run the search; the trials that were trained and the seconds they took."""
    random = np.random.default_rng(0)
    x = random.normal(size=(256, 8)).astype(np.float32)
    y = x.sum(axis=1)
    tuner = Search(
        build, objective="val_loss", max_epochs=9, factor=3, seed=1, directory=str(folder),
        project_name="search",
    )  # fmt: skip
    tuner.journal, tuner.fitted = journal, []
    began = time.perf_counter()
    with contextlib.suppress(Enough):
        tuner.search(x, y, validation_data=(x[:64], y[:64]), verbose=0)
    return tuner.done, time.perf_counter() - began


def count(uri: str) -> dict[str, int]:
    """What the store holds."""
    client = mlflow.MlflowClient(uri)
    experiments = [e.experiment_id for e in client.search_experiments()]
    runs = client.search_runs(experiments, max_results=1000)
    return {
        "runs": len(runs),
        "runs with metrics": sum(bool(run.data.metrics) for run in runs),
        "runs with the tuned learning rate": sum(
            any("learning_rate" in name for name in run.data.params) for run in runs
        ),
        "runs with the tuned units": sum("units" in run.data.params for run in runs),
        "epochs of val_loss": sum(
            len(client.get_metric_history(run.info.run_id, "val_loss"))
            for run in runs
            if "val_loss" in run.data.metrics
        ),
        "logged models": len(client.search_logged_models(experiments, max_results=1000)),
        "runs that name their bracket": sum("automl.bracket" in run.data.tags for run in runs),
    }


def with_autolog(folder: Path, within_a_run: bool) -> dict[str, float]:
    folder.mkdir()
    uri = default_uri(folder)
    mlflow.set_tracking_uri(uri)
    name = str(within_a_run)
    location = (folder / "artifacts").as_uri()
    mlflow.set_experiment(experiment_id=mlflow.create_experiment(name, location))
    mlflow.keras.autolog(silent=True, log_models="--models" in sys.argv)
    try:
        if within_a_run:
            with mlflow.start_run():
                trials, seconds = search(folder)
        else:
            trials, seconds = search(folder)
    finally:
        mlflow.keras.autolog(disable=True, silent=True)
    return {"trials trained": trials, **count(uri), "seconds": round(seconds, 1)}


def with_journal(folder: Path) -> dict[str, float]:
    run = folder / "run"
    run.mkdir(parents=True)
    with Journal(run / FILE_NAME) as journal:
        journal.append(
            "search_started", schema=1, run_id="0" * 32, name="run", created="", command="",
            config={}, dataset={"name": "numbers", "digest": "0"}, plan={}, space=[], versions={},
        )  # fmt: skip
        trials, seconds = search(folder, journal)
        journal.append("session_ended", reason="done")
    began = time.perf_counter()
    sync_run(run, default_uri(folder))
    seconds += time.perf_counter() - began
    return {"trials trained": trials, **count(default_uri(folder)), "seconds": round(seconds, 1)}


def main() -> None:
    for name in ("mlflow", "alembic", "tensorflow", "absl"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    # keras_tuner asks for it in every trial, and TensorFlow no longer installs it.
    for name in ("tensorboard", "tensorboard.plugins", "tensorboard.plugins.hparams"):
        sys.modules.setdefault(name, types.ModuleType(name))
    sys.modules["tensorboard.plugins.hparams"].api = None
    with tempfile.TemporaryDirectory(prefix="automl-benchmark-") as temporary:
        root = Path(temporary)
        table = {
            "autolog, no run open": with_autolog(root / "a", within_a_run=False),
            "autolog, one run open": with_autolog(root / "b", within_a_run=True),
            "journal and sync": with_journal(root / "c"),
        }
    rows = list(next(iter(table.values())))
    print("| | " + " | ".join(table) + " |\n|---|" + "---|" * len(table))
    for row in rows:
        print(f"| {row} | " + " | ".join(str(column[row]) for column in table.values()) + " |")
    target = Path(__file__).with_suffix(".json")
    target.write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
