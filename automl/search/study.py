"""The study: ask the oracle, run the trial, tell the score, write it down.

The journal is what a study remembers. To resume, the oracle is asked from the start again
and trials that the journal knows are answered from it; nothing else is stored.
"""

import math
import time
from collections.abc import Callable
from concurrent.futures import Executor, Future
from dataclasses import dataclass, replace
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import keras_tuner

from automl.errors import AutomlError, SearchError, StorageError
from automl.records import Study, Trial
from automl.search.hyperband import COMPLETED, FAILED, RUNNING, HyperbandOracle, name_trial
from automl.search.objective import best_epoch, direction, is_no_worse
from automl.search.plan import (
    REFINE_BUDGET_SHARE,
    REFINE_START_SECONDS,
    balanced_size,
    fit_refinement,
    trial_seconds,
)
from automl.search.space import define_space
from automl.search.spec import Speeds, StudySpec, TrialError, TrialResult, TrialTask
from automl.search.summary import epochs_of
from automl.search.trial import run_trial
from automl.search.worker import WorkerError, WorkerPool
from automl.tracking.journal import Journal

# Same-kind failures in a row that end the search: the next ones would fail, too.
MAX_FAILURES_IN_A_ROW = 3
# How often a trial is tried again whose worker was killed: it is rarely the trial's fault.
CRASH_RETRIES = 2
# A trial that takes longer than was expected is shown as nearly done.
NEARLY = 0.95
# How often the number of workers is looked at while trials run.
LOOK_SECONDS = 1.0


@dataclass(frozen=True)
class StudyPlan:
    """What is fixed when a study begins, and again when it is resumed."""

    spec: StudySpec
    schedule: list[list[tuple[int, int]]]
    widths: tuple[float, ...]
    batch_size: int
    folder: Path
    # At most so many, where time is short.
    refine_epochs: int = 0

    def make_oracle(self) -> HyperbandOracle:
        space = keras_tuner.HyperParameters()
        define_space(space, self.spec.depths, self.widths)
        return HyperbandOracle(
            keras_tuner.Objective(f"val_{self.spec.objective}", direction(self.spec.objective)),
            seed=self.spec.seed,
            hyperparameters=space,
            group_by="fine_tune_depth",
            rungs=self.schedule,
        )

    @property
    def is_single(self) -> bool:
        """Whether there is nothing to compare: one configuration, trained once."""
        return self.schedule[0][0][0] == len(self.schedule) == len(self.schedule[0]) == 1

    def checkpoint(self, trial: str) -> Path:
        return self.folder / "checkpoints" / f"{trial}.npz"

    def refinement(self, winner: Trial, refines: int) -> Trial:
        """The trial that goes on from the best of the schedule: one more round of its bracket."""
        # Brackets are numbered from the end, the first one highest.
        rounds = len(self.schedule[-1 - winner.bracket])
        return Trial(
            trial=name_trial(winner.configuration, rounds),
            configuration=winner.configuration,
            bracket=winner.bracket,
            round=rounds,
            initial_epoch=winner.epochs,
            epochs=winner.epochs + refines,
            params=winner.params,
            parent=winner.trial,
            refines=refines,
        )


class Progress:
    """Epochs done, best so far and expected work left, for the person who waits.

    Work is in seconds of one worker; ``total`` is what the whole schedule is expected to take,
    ``refine_epoch`` what an epoch of refinement takes.
    """

    def __init__(
        self,
        plan: StudyPlan,
        speeds: dict[float, Speeds],
        total: float,
        show: Any,
        refine_epoch: float = 0.0,
    ) -> None:
        self.plan, self.speeds, self.total, self.show = plan, speeds, total, show
        self.refine_epoch = refine_epoch
        self.done = 0.0
        # By trial its work, when it began and its pace; kept, since a thousand workers would ask
        # for a thousand at every answer.
        self.underway: dict[str, tuple[float, float, float]] = {}
        self.trials = 0
        self.refining = False
        self.best: Trial | None = None

    def work_of(self, trial: Trial) -> float:
        if not self.speeds:
            return 0.0
        if trial.refines:
            return trial.refines * self.refine_epoch
        return trial_seconds(
            self.speeds[float(trial.params["width"])],
            int(trial.params["fine_tune_depth"]),
            trial.epochs - trial.initial_epoch,
            balanced_size(self.plan.spec),
            len(self.plan.spec.val_rows),
            fresh=trial.initial_epoch == 0,
        )

    def trial_started(self, trial: Trial, pace: float = 1.0) -> None:
        """``pace`` is the work that it does in a second: that of one worker, or of all."""
        self.underway[trial.trial] = (self.work_of(trial), time.monotonic(), pace)
        self.refining = trial.refines > 0

    def trial_ended(self, trial: Trial) -> None:
        self.trials += 1
        self.done += self.work_of(trial)
        self.underway.pop(trial.trial, None)

    def update(self, finished: bool = False) -> None:
        now = time.monotonic()
        underway = self.underway.values()
        # Dearer configurations than were expected may have been promoted.
        self.total = max(self.total, self.done + sum(work for work, _, _ in underway))
        # A long trial is on its way: without its part the time left would grow while it runs.
        part = sum(min(NEARLY * work, pace * (now - began)) for work, began, pace in underway)
        total = max(1, round(1000 * self.total))
        done = total if finished else min(total - 1, round(1000 * (self.done + part)))
        self.show(self.trials, self.refining, self.best, done, total)


def run_study(
    plan: StudyPlan,
    executor: Executor,
    journal: Journal,
    *,
    workers: int | Callable[[], int] = 1,
    lead: WorkerPool | None = None,
    deadline: float | None = None,
    speeds: dict[float, Speeds] | None = None,
    expected_work: float = 1.0,
    refine_epoch: float = 0.0,
    show: Callable[[int, bool, Trial | None, int, int], None] | None = None,
    started: float | None = None,
) -> Study:
    """Run the schedule to its end, or to ``deadline`` (``time.monotonic``).

    Args:
        executor: runs ``run_trial``; a ``WorkerPool``, ``InProcess`` or a cluster's.
        workers: trials at the same time, or a function that says how many just now.
        lead: runs the oracle's lead and the refinement, beside which nothing is started; in
            between it has no process.
        refine_epoch: expected seconds of one worker for an epoch of refinement. Before a
            deadline there are as many as have time.
        speeds, expected_work, show: for the progress line only; see ``Progress``.
        started: when this session's search began (``time.monotonic``), cache included.

    Raises:
        SearchError: no trial could be completed, or three in a row failed the same way.
        StorageError: the disk is full or read-only. What has ended is in the journal.
    """
    started = time.monotonic() if started is None else started
    offset = max((event.get("elapsed", 0.0) for event in journal.events), default=0.0)
    oracle = plan.make_oracle()
    known = {e["trial"]: e for e in journal.events if e["event"] == "trial_ended"}
    progress = Progress(plan, speeds or {}, expected_work, show or (lambda *_: None), refine_epoch)
    ended: dict[str, Trial] = {}
    running: dict[Future[TrialResult], Attempt] = {}
    answered: SimpleQueue[Future[TrialResult]] = SimpleQueue()
    failures: list[Trial] = []
    checkpoints = 0
    kept = 0

    def elapsed() -> float:
        return round(offset + time.monotonic() - started, 3)

    def count_workers() -> int:
        return workers() if callable(workers) else workers

    def is_alone(trial: Trial) -> bool:
        first = trial.round == 0 and trial.configuration == oracle.lead
        return lead is not None and (first or trial.refines > 0)

    def next_trial() -> Trial | None:
        """The oracle's, and when that has no more, the refinement of the best."""
        asked = oracle.create_trial(f"worker {len(ended)}/{len(running)}")
        if asked.status == RUNNING:
            return trial_of(asked)
        if running or progress.best is None or any(trial.refines for trial in ended.values()):
            return None
        refines = count_refines()
        return plan.refinement(progress.best, refines) if refines else None

    def count_refines() -> int:
        """Epochs of the refinement: those it was begun with, or as many as have time."""
        for event in journal.events:
            if event["event"] == "trial_started" and event.get("refines"):
                return int(event["refines"])
        if deadline is None:
            return plan.refine_epochs
        left = REFINE_BUDGET_SHARE * (deadline - time.monotonic())
        pace = count_workers() if lead is not None else 1
        return fit_refinement(plan.refine_epochs, left, refine_epoch / pace)

    def room() -> int:
        """Trials that may be started now."""
        # A cluster has no lead, and a thousand trials that nobody need look through.
        if lead is not None and any(is_alone(attempt.trial) for attempt in running.values()):
            return 0
        return count_workers() - len(running)

    def run(attempt: Attempt) -> None:
        alone = is_alone(attempt.trial)
        if lead is not None and attempt.trial.refines:
            # The others are done; what they hold in memory is wanted now.
            executor.pause()  # type: ignore[attr-defined]
        seconds = None
        if deadline is not None and attempt.trial.refines:
            seconds = deadline - time.monotonic() - REFINE_START_SECONDS
        future = start(plan, lead if lead and alone else executor, journal, attempt, seconds)
        running[future] = attempt
        progress.trial_started(attempt.trial, count_workers() if alone else 1.0)
        future.add_done_callback(answered.put)

    def finish(trial: Trial) -> None:
        # Its memory is wanted by those that follow, if any do before it is needed again.
        if lead is not None and is_alone(trial) and not plan.is_single:
            lead.pause()
        ended[trial.trial] = trial
        progress.trial_ended(trial)
        if not trial.refines:
            tell(oracle, plan.spec.objective, trial)
            known_best = [progress.best] if progress.best else []
            progress.best = find_best([*known_best, trial], plan.spec.objective)
        elif trial.status == "completed" and may_replace(trial, progress.best):
            progress.best = trial

    def may_replace(refinement: Trial, best: Trial | None) -> bool:
        assert best is not None
        before = best_epoch(epochs_of(best, ended.values()), plan.spec.objective)
        return is_no_worse(plan.spec.objective, refinement.history[-1], before)

    stopped = False
    while True:
        while room() > 0:
            trial = next_trial()
            if trial is None:
                break
            if trial.trial in known:
                finish(replace_result(trial, known[trial.trial]))
                continue
            run(Attempt(trial, plan.batch_size))
        progress.update()
        if not running:
            break
        left = math.inf if deadline is None else max(0.0, deadline - time.monotonic())
        try:
            future = answered.get(timeout=min(left, LOOK_SECONDS))
        except Empty:
            if left > 0:
                continue
            # The budget is spent: what runs is given up, what has ended is used.
            stopped = True
            for runner in filter(None, (executor, lead)):
                runner.shutdown(wait=False, cancel_futures=True)
            break
        attempt = running.pop(future)
        trial, again = settle(future, attempt)
        if again is not None:
            run(again)
            continue
        trial = replace(trial, finished_at=elapsed())
        journal.append("trial_ended", **end_event(trial, attempt))
        finish(trial)
        failures = [*failures, trial] if trial.status == "failed" else []
        check_failures(failures)
        checkpoints += 1
        # Looking through all of them after every trial would take longer with every trial.
        if checkpoints > kept // 2:
            kept = delete_checkpoints(plan, oracle, progress.best, running.values())
            checkpoints = 0
    best = progress.best
    if best is None:
        message = next((t.message for t in ended.values() if t.message), None)
        raise SearchError(
            "No trial was completed"
            + (
                f". The first failure: {message}"
                if message
                else " within the budget. Give it more."
            )
        )
    delete_checkpoints(plan, oracle, best, ())
    progress.update(finished=True)
    return Study(
        trials=tuple(sort_trials(ended.values())),
        best=best,
        objective=plan.spec.objective,
        checkpoint=plan.checkpoint(best.trial),
        wall_seconds=elapsed(),
        detail={"stopped_by_budget": stopped},
    )


@dataclass(frozen=True)
class Attempt:
    """One try at a trial."""

    trial: Trial
    batch_size: int
    number: int = 0


def start(
    plan: StudyPlan,
    executor: Executor,
    journal: Journal,
    attempt: Attempt,
    seconds: float | None = None,
) -> Future[Any]:
    trial = attempt.trial
    journal.append(
        "trial_started",
        trial=trial.trial,
        configuration=trial.configuration,
        bracket=trial.bracket,
        round=trial.round,
        initial_epoch=trial.initial_epoch,
        epochs=trial.epochs,
        params=trial.params,
        parent=trial.parent,
        refines=trial.refines,
        attempt=attempt.number,
        batch_size=attempt.batch_size,
    )
    task = TrialTask(
        trial=trial.trial,
        configuration=trial.configuration,
        params=trial.params,
        epochs=trial.epochs,
        max_epochs=max(epochs for rungs in plan.schedule for _, epochs in rungs),
        parent=plan.checkpoint(trial.parent) if trial.parent else None,
        checkpoint=plan.checkpoint(trial.trial),
        batch_size=attempt.batch_size,
        refines=trial.refines,
        seconds=seconds,
    )
    return executor.submit(run_trial, plan.spec, task)


def settle(future: Future[TrialResult], attempt: Attempt) -> tuple[Trial, Attempt | None]:
    """The trial's end, or the attempt that follows a failed one.

    Raises:
        AutomlError: the failure is not the trial's: the disk, the weights.
    """
    trial = attempt.trial
    try:
        result = future.result()
    except AutomlError:
        raise
    except (TrialError, WorkerError) as error:
        reason, message = error.reason, error.message
    except OSError as error:
        raise StorageError(
            f"A checkpoint cannot be written: {error.strerror}. Free some space, and go on "
            "with --resume."
        ) from error
    except Exception as error:
        reason, message = "error", f"{type(error).__name__}: {error}"[:500]
    else:
        return replace(
            shorten(trial, result.history),
            status="completed",
            score=result.score,
            seconds=round(result.seconds, 3),
        ), None
    if reason == "crash" and attempt.number < CRASH_RETRIES:
        return trial, replace(attempt, number=attempt.number + 1)
    if reason == "oom" and attempt.number == 0 and attempt.batch_size > 1:
        # As AutoKeras does: half the batch often fits.
        return trial, replace(attempt, number=1, batch_size=attempt.batch_size // 2)
    return replace(trial, status="failed", reason=reason, message=message), None


def end_event(trial: Trial, attempt: Attempt) -> dict[str, Any]:
    return {
        "trial": trial.trial,
        "attempt": attempt.number,
        "batch_size": attempt.batch_size,
        "status": trial.status,
        "score": trial.score,
        "reason": trial.reason,
        "message": trial.message,
        "seconds": trial.seconds,
        "elapsed": trial.finished_at,
        "history": list(trial.history),
    }


def replace_result(trial: Trial, event: dict[str, Any]) -> Trial:
    """``trial`` with the end that the journal has for it."""
    return replace(
        shorten(trial, tuple(event["history"])),
        status=event["status"],
        score=event["score"],
        reason=event["reason"],
        message=event["message"],
        seconds=event["seconds"],
        finished_at=event["elapsed"],
    )


def shorten(trial: Trial, history: tuple[dict[str, float], ...]) -> Trial:
    """``trial`` with the epochs that ran: a refinement may have ended before its time did."""
    if not trial.refines or not history:
        return replace(trial, history=history)
    epochs = len(history)
    return replace(trial, history=history, refines=epochs, epochs=trial.initial_epoch + epochs)


def trial_of(asked: Any) -> Trial:
    """Our record of a KerasTuner trial; its control values become fields."""
    values = asked.hyperparameters.values
    configuration, rung = asked.trial_id.split("-")
    return Trial(
        trial=asked.trial_id,
        configuration=int(configuration),
        bracket=values["tuner/bracket"],
        round=int(rung),
        initial_epoch=values["tuner/initial_epoch"],
        epochs=values["tuner/epochs"],
        params={k: v for k, v in values.items() if not k.startswith("tuner/")},
        parent=values.get("tuner/trial_id"),
    )


def tell(oracle: HyperbandOracle, objective: str, trial: Trial) -> None:
    asked = oracle.trials[trial.trial]
    if trial.status == "completed":
        oracle.update_trial(trial.trial, {f"val_{objective}": trial.score}, step=trial.epochs)
        asked.status = COMPLETED
    else:
        asked.status, asked.message = FAILED, trial.message
    oracle.end_trial(asked)


def sort_trials(trials: Any) -> list[Trial]:
    """In the order of the plan, whatever the order of execution."""
    return sorted(trials, key=lambda t: (-t.bracket, t.round, t.configuration))


def find_best(trials: Any, objective: str) -> Trial | None:
    """The best score; among equals the first in the plan."""
    sign = -1 if direction(objective) == "max" else 1
    completed = [trial for trial in sort_trials(trials) if trial.status == "completed"]
    return min(completed, key=lambda trial: sign * trial.score, default=None)


def check_failures(failures: list[Trial]) -> None:
    last = failures[-MAX_FAILURES_IN_A_ROW:]
    if len(last) == MAX_FAILURES_IN_A_ROW and len({trial.reason for trial in last}) == 1:
        raise SearchError(
            f"{len(last)} trials in a row failed the same way ({last[0].reason}). The first, "
            f"{last[0].trial} with {last[0].params}: {last[0].message}"
        )


def delete_checkpoints(
    plan: StudyPlan, oracle: HyperbandOracle, best: Trial | None, running: Any
) -> int:
    """Keep what a promotion may continue, what runs, and the best; says how many."""
    keep = oracle.needed_checkpoints() | {attempt.trial.trial for attempt in running}
    if best is not None:
        keep.add(best.trial)
    for path in plan.checkpoint("x").parent.glob("*.npz"):
        if path.stem not in keep:
            path.unlink()
    return len(keep)
