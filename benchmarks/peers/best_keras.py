"""The clock of the peers that run on KerasTuner: it stops them, and keeps the best so far."""

from typing import Any

import keras
import keras_tuner
import numpy as np
from job import Job


class TimeIsUp(keras_tuner.errors.FatalError):
    """KerasTuner lets this kind of error end a search; others only end a trial."""


class BestSoFar(keras.callbacks.Callback):
    """Remembers the best epoch on validation over all trials, and ends the search in time.

    KerasTuner has no limit of time. A user would write this: training stops at the first batch
    past the deadline, what was reached is judged on validation like any epoch, and the search
    ends.
    """

    def __init__(self, job: Job, monitor: str, verbose: bool = True) -> None:
        super().__init__()
        self.job, self.monitor, self.verbose = job, monitor, verbose
        self.score, self.seconds, self.epochs, self.trials = -np.inf, float("nan"), 0, 0
        self.kept: tuple[keras.Model, list[np.ndarray]] | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> "BestSoFar":
        # KerasTuner copies callbacks for each trial; this one is for all of them.
        return self

    def on_train_begin(self, logs: dict[str, float] | None = None) -> None:
        self.trials += 1

    def on_train_batch_end(self, batch: int, logs: dict[str, float] | None = None) -> None:
        if not self.job.seconds_left:
            self.model.stop_training = True

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        score = float((logs or {})[self.monitor])
        self.epochs += 1
        if score > self.score:
            self.score, self.seconds = score, self.job.seconds
            self.kept = (self.model, self.model.get_weights())
        if self.verbose:
            print(f"{self.job.seconds:.0f} s: trial {self.trials}, {self.monitor} {score:.4f}")
        if not self.job.seconds_left:
            raise TimeIsUp

    def best_model(self) -> keras.Model:
        """The model of the best epoch.

        Raises:
            RuntimeError: not one epoch came to its end.
        """
        if self.kept is None:
            raise RuntimeError("no epoch ended within the budget")
        model, weights = self.kept
        model.set_weights(weights)
        return model

    @property
    def notes(self) -> dict[str, float]:
        return {"trials": self.trials, "epochs": self.epochs, "val_score": self.score}
