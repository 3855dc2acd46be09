"""What stock ``keras_tuner.Hyperband`` and our oracle do with the same trouble; no training.

    python benchmarks/versus_hyperband.py

The score of a trial is a function of its values and epochs, so that a search takes a second.
Each row is one situation; R = 27, eta = 3 unless it says otherwise.
"""

import contextlib
import io
import os
import random
import tempfile

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import keras_tuner

from automl.search.hyperband import HyperbandOracle, make_schedule

R, ETA = 27, 3


def define(hp: keras_tuner.HyperParameters, small: bool) -> None:
    if small:
        hp.Choice("units", [32, 64, 128, 256])
    else:
        hp.Float("rate", 1e-4, 1e-1, sampling="log")
        hp.Choice("depth", [0, 1, 2, 4, 7])


def score(values: dict) -> float:
    quality = values.get("rate", 0) + 0.01 * values.get("depth", 0) + values.get("units", 0) / 1e4
    return quality + values["tuner/epochs"] / 1e3


class Pretend(keras_tuner.Tuner):
    """A tuner whose trials cost nothing; ``fails`` says which of them raise."""

    fails: object = None
    log: list

    def run_trial(self, trial: keras_tuner.engine.trial.Trial, *args: object) -> dict:
        values = dict(trial.hyperparameters.values)
        failed = self.fails(len(self.log))
        self.log.append((values, failed))
        if failed:
            raise keras_tuner.errors.FailedTrialError("made to fail")
        return {"score": score(values)}

    def load_model(self, trial: object) -> None: ...
    def save_model(self, *args: object) -> None: ...


class Stock(Pretend, keras_tuner.Hyperband):
    """KerasTuner's own, with trials that cost nothing."""


def search(ours: bool, fails: object, small: bool, seed: int, max_epochs: int) -> list:
    space = keras_tuner.HyperParameters()
    define(space, small)
    objective = keras_tuner.Objective("score", "max")
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        common = {"directory": folder, "project_name": "p", "max_consecutive_failed_trials": 10**6}
        if ours:
            oracle = HyperbandOracle(
                objective, max_epochs, ETA, seed=seed, hyperparameters=space,
                max_consecutive_failed_trials=10**6,
            )  # fmt: skip
            del common["max_consecutive_failed_trials"]
            tuner = Pretend(oracle=oracle, hypermodel=lambda hp: None, **common)
        else:
            tuner = Stock(
                hypermodel=lambda hp: None, objective=objective, max_epochs=max_epochs,
                factor=ETA, seed=seed, hyperparameters=space, tune_new_entries=False, **common,
            )  # fmt: skip
        tuner.fails, tuner.log = fails, []
        with contextlib.redirect_stderr(io.StringIO()):
            tuner.search()
    return tuner.log


def describe(log: list, max_epochs: int) -> dict:
    """Trials, epochs trained, and how many trials reached R in each bracket."""
    finished: dict[int, int] = {}
    epochs = 0
    for values, failed in log:
        epochs += values["tuner/epochs"] - values["tuner/initial_epoch"]
        reached = values["tuner/epochs"] == max_epochs and not failed
        bracket = values["tuner/bracket"]
        finished[bracket] = finished.get(bracket, 0) + reached
    top = max(finished, default=0)
    return {
        "trials": len(log),
        "epochs": epochs,
        "finished": "/".join(str(finished.get(b, 0)) for b in range(top, -1, -1)),
    }


def fail_at(number: int):
    return lambda i: i == number


def fail_share(share: float, seed: int):
    draw = random.Random(seed)
    return lambda i: draw.random() < share


def main() -> None:
    never = fail_at(-1)
    rows = [
        ("nothing goes wrong", {"fails": never}),
        ("one trial of the first rung fails", {"fails": fail_at(5)}),
        ("every fifth trial fails, at random", {"fails": fail_share(0.2, 1)}),
        ("a space of 4 configurations", {"fails": never, "small": True}),
        ("R = 10", {"fails": never, "max_epochs": 10}),
    ]
    print("| situation | plan: trials, epochs, to R by bracket | KerasTuner | automl |")
    print("|---|---|---|---|")
    for name, changes in rows:
        options = {"small": False, "seed": 0, "max_epochs": R} | changes
        schedule = make_schedule(options["max_epochs"], ETA)
        trials = sum(size for rungs in schedule for size, _ in rungs)
        epochs = sum(
            size * (e - (rungs[i - 1][1] if i else 0))
            for rungs in schedule
            for i, (size, e) in enumerate(rungs)
        )
        cells = [f"{trials}, {epochs}, " + "/".join(str(rungs[-1][0]) for rungs in schedule)]
        for ours in (False, True):
            if name.startswith("every fifth"):
                options["fails"] = fail_share(0.2, 1)
            told = describe(search(ours, **options), options["max_epochs"])
            cells.append(f"{told['trials']}, {told['epochs']}, {told['finished']}")
        print(f"| {name} | " + " | ".join(cells) + " |")
    same = []
    for ours in (False, True):
        twice = [search(ours, never, False, 0, R) for _ in range(2)]
        same.append("the same" if twice[0] == twice[1] else "different")
    print(f"| seed 0, twice | the same trials | {same[0]} | {same[1]} |")


if __name__ == "__main__":
    main()
