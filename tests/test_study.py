"""The study: what it asks, tells and writes down, without any training."""

import contextlib
import json
import math
import time
from concurrent.futures import Executor, Future
from dataclasses import replace
from pathlib import Path
from threading import Thread

import numpy as np
import pytest

from automl.errors import SearchError, StorageError
from automl.records import Trial
from automl.search.hyperband import make_schedule
from automl.search.plan import (
    REFINE_START_SECONDS,
    candidate_schedules,
    describe_schedule,
    longest_trial,
)
from automl.search.space import describe_space
from automl.search.spec import PixelSource, Speeds, StudySpec, TrialError, TrialResult
from automl.search.study import Progress, StudyPlan, run_study
from automl.search.summary import describe_refinement, summarise_study
from automl.search.worker import WorkerError
from automl.tracking.journal import Journal


class Pretend(Executor):
    """Answers trials at once: a score from the configuration's values, or the failure planned.

    It stands for the training alone; oracle, study, journal and files are real.
    """

    def __init__(self, failures=None, stop_after=None, gain=0.0, loss=1.0, ran=None):
        self.failures = failures or {}
        # Epochs that a refinement has time for.
        self.most = ran
        self.gain, self.loss = gain, loss
        self.stop_after = stop_after
        self.ran = []

    def submit(self, fn, /, spec, task):
        future = Future()
        if self.stop_after is not None and len(self.ran) >= self.stop_after:
            raise KeyboardInterrupt
        self.ran.append(task)
        tries = sum(other.trial == task.trial for other in self.ran)
        error = self.failures.get(task.trial)
        if callable(error):
            error = error(tries, task)
        if error is not None:
            future.set_exception(error)
            return future
        task.checkpoint.parent.mkdir(parents=True, exist_ok=True)
        task.checkpoint.write_bytes(task.trial.encode())
        rate = np.log10(task.params["learning_rate"])
        score = float(0.9 - 0.05 * abs(rate + 3) + 0.001 * task.epochs)
        score += self.gain if task.refines else 0
        loss = self.loss if task.refines else 1.0
        history = tuple(
            {
                "epoch": e,
                "loss": 1.0,
                "val_loss": loss,
                "val_loss_error": 0.05,
                "val_roc_auc": score,
                "seconds": 0.1,
            }
            for e in range(task.epochs - task.refines + 1 if task.refines else 1, task.epochs + 1)
        )
        history = history[: self.most] if task.refines else history
        future.set_result(TrialResult(score, task.epochs, history, 0.1))
        return future


def make_study(folder: Path, max_epochs: int = 9) -> StudyPlan:
    rows = np.arange(10)
    spec = StudySpec(
        PixelSource(folder / "pixels.npy", (10, 8, 8, 3), "d"), rows % 2, rows[:6], rows[6:8], 2,
        "none", (0, 2, 4), 1, "oversample", "roc_auc", 3, None, 1e9,
    )  # fmt: skip
    return StudyPlan(spec, make_schedule(max_epochs, 3), (0.35,), 32, folder)


def run(
    folder: Path,
    executor: Pretend,
    max_epochs: int = 9,
    workers: int = 1,
    refine_epochs: int = 0,
    seconds: float | None = None,
    refine_epoch: float = 0.0,
):
    folder.mkdir(exist_ok=True)
    plan = replace(make_study(folder, max_epochs), refine_epochs=refine_epochs)
    deadline = seconds and time.monotonic() + seconds
    with Journal(folder / "journal.jsonl") as journal:
        return run_study(
            plan,
            executor,
            journal,
            workers=workers,
            deadline=deadline,
            refine_epoch=refine_epoch,
        )


def study_space(folder: Path):
    return make_study(folder).make_oracle().get_space()


def result_of(study):
    return [(t.trial, t.status, t.score, t.epochs, json.dumps(t.params)) for t in study.trials]


def test_a_study_runs_its_schedule_and_keeps_only_the_best_checkpoint(tmp_path):
    study = run(tmp_path, Pretend())
    assert len(study.trials) == 22
    assert study.best.score == max(trial.score for trial in study.trials)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == [
        f"{study.best.trial}.npz"
    ]
    assert study.checkpoint.read_bytes() == study.best.trial.encode()


@pytest.mark.parametrize("after", [0, 1, 5, 9, 13, 21])
def test_an_interrupted_study_goes_on_where_it_stopped(tmp_path, after):
    whole = run(tmp_path / "whole", Pretend())
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "half", Pretend(stop_after=after))
    rest = Pretend()
    study = run(tmp_path / "half", rest)
    assert result_of(study) == result_of(whole)
    assert len(rest.ran) == 22 - after, "nothing that ended is run again"
    assert study.best == whole.best or study.best.trial == whole.best.trial


def test_workers_do_not_change_the_result(tmp_path):
    one = run(tmp_path / "one", Pretend())
    four = run(tmp_path / "four", Pretend(), workers=4)
    assert result_of(one) == result_of(four)


@pytest.mark.parametrize("workers", [1, 4])
@pytest.mark.parametrize(
    ("gain", "loss", "used"),
    [(0.01, 1.2, True), (-0.01, 1.14, True), (-0.01, 1.15, False)],
)
def test_the_best_is_refined_last_and_delivered_unless_score_and_loss_say_no(
    tmp_path, gain, loss, used, workers
):
    plain = run(tmp_path / "plain", Pretend())
    executor = Pretend(gain=gain, loss=loss)
    study = run(tmp_path / "refined", executor, workers=workers, refine_epochs=3)
    task = executor.ran[-1]
    assert (task.refines, task.epochs) == (3, plain.best.epochs + 3)
    assert task.parent.stem == plain.best.trial
    assert [t.refines for t in executor.ran].count(3) == 1 and len(study.trials) == 23
    rungs = [row for row in result_of(study) if row[0] != task.trial]
    assert rungs == result_of(plain), "the schedule is what it was"
    assert (study.best.trial == task.trial) == used
    assert study.checkpoint.exists() and study.best.params == plain.best.params
    numbers = {trial.trial: number for number, trial in enumerate(study.trials, 1)}
    refinement = describe_refinement(study, numbers)
    assert refinement["used"] == used and refinement["epochs"] == 3
    assert refinement["score_before"] == plain.best.score
    assert (refinement["loss_before"], refinement["loss"]) == (1.0, loss)
    # Each loss has an error of .05.
    assert refinement["loss_limit"] == pytest.approx(1.0 + 2 * math.sqrt(2) * 0.05)


@pytest.mark.parametrize("after", [21, 22, 23])
def test_a_refinement_that_was_interrupted_is_made_when_the_study_goes_on(tmp_path, after):
    whole = run(tmp_path / "whole", Pretend(gain=0.01), refine_epochs=2)
    with contextlib.suppress(KeyboardInterrupt):
        run(tmp_path / "half", Pretend(stop_after=after, gain=0.01), refine_epochs=2)
    rest = Pretend(gain=0.01)
    study = run(tmp_path / "half", rest, refine_epochs=2)
    assert result_of(study) == result_of(whole) and study.best.refines == 2
    assert len(rest.ran) == 23 - after


@pytest.mark.parametrize(
    ("most", "epoch", "epochs"),
    [(9, 10.0, 9), (9, 110.0, 8), (9, 900.0, 1), (9, 960.0, 0), (2, 400.0, 2), (0, 10.0, 0)],
)
def test_before_a_deadline_a_refinement_has_as_many_epochs_as_have_time(
    tmp_path, most, epoch, epochs
):
    study = run(tmp_path, Pretend(), refine_epochs=most, seconds=1000, refine_epoch=epoch)
    assert sum(trial.refines for trial in study.trials) == epochs


def test_a_refinement_that_ended_early_counts_the_epochs_that_ran(tmp_path):
    executor = Pretend(gain=0.01, ran=2)
    study = run(tmp_path, executor, refine_epochs=4, seconds=1000, refine_epoch=10.0)
    task = executor.ran[-1]
    assert task.refines == 4 and 900 < task.seconds < 1000 - REFINE_START_SECONDS
    assert all(other.seconds is None for other in executor.ran[:-1])
    assert (study.best.refines, study.best.epochs) == (2, task.epochs - 2)
    again = run(tmp_path, Pretend(), refine_epochs=4, seconds=1000, refine_epoch=10.0)
    assert result_of(again) == result_of(study) and again.best.refines == 2


def test_a_refinement_goes_on_with_the_epochs_it_was_begun_with(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, Pretend(stop_after=22), refine_epochs=9, seconds=1000, refine_epoch=150.0)
    study = run(tmp_path, Pretend(), refine_epochs=9, seconds=10000, refine_epoch=150.0)
    assert [trial.refines for trial in study.trials if trial.refines] == [6]


def test_a_refinement_that_fails_leaves_the_best_as_it_is(tmp_path):
    best = run(tmp_path / "plain", Pretend()).best
    name = f"{best.configuration:04d}-{best.bracket + 1}"
    study = run(tmp_path / "f", Pretend({name: TrialError("nan", "no")}), refine_epochs=2)
    assert [trial.trial for trial in study.trials if trial.status == "failed"] == [name]
    assert study.best.trial == best.trial and study.checkpoint.exists()


@pytest.mark.parametrize(
    ("error", "reason", "tries"),
    [
        (TrialError("nan", "the loss was NaN"), "nan", 1),
        (WorkerError("timeout", "too long"), "timeout", 1),
        (WorkerError("crash", "SIGSEGV"), "crash", 3),
        (WorkerError("oom", "out of memory"), "oom", 2),
        (ValueError("odd"), "error", 1),
    ],
)
def test_a_failed_trial_is_a_result_and_is_replaced(tmp_path, error, reason, tries):
    executor = Pretend({"0002-0": error})
    study = run(tmp_path, executor)
    failed = [trial for trial in study.trials if trial.status == "failed"]
    assert [(trial.trial, trial.reason) for trial in failed] == [("0002-0", reason)]
    assert failed[0].message
    assert sum(task.trial == "0002-0" for task in executor.ran) == tries
    assert sum(trial.epochs == 9 and trial.status == "completed" for trial in study.trials) == 5
    assert len(study.trials) == 23


def test_memory_that_ran_out_is_met_with_half_the_batch(tmp_path):
    executor = Pretend(
        {"0002-0": lambda tries, task: WorkerError("oom", "-") if tries == 1 else None}
    )
    study = run(tmp_path, executor)
    assert [task.batch_size for task in executor.ran if task.trial == "0002-0"] == [32, 16]
    assert all(trial.status == "completed" for trial in study.trials)


def test_three_failures_of_a_kind_in_a_row_stop_the_search(tmp_path):
    names = [f"{c:04d}-0" for c in range(40)]
    with pytest.raises(SearchError, match=r"three|3 trials in a row.*first, .*broken"):
        run(tmp_path, Pretend(dict.fromkeys(names, TrialError("error", "broken"))))


def test_a_full_disk_ends_the_search_and_loses_no_trial(tmp_path):
    executor = Pretend()
    executor.failures = {"0001-0": OSError(28, "No space left on device")}
    with pytest.raises(StorageError, match="No space left"):
        run(tmp_path, executor)
    before = len(executor.ran) - 1
    rest = Pretend()
    study = run(tmp_path, rest)
    assert len(rest.ran) == 22 - before
    assert len(study.trials) == 22


def test_a_journal_cut_anywhere_in_its_last_lines_is_resumed(tmp_path):
    whole = run(tmp_path / "whole", Pretend())
    data = (tmp_path / "whole" / "journal.jsonl").read_bytes()
    start = len(data) - sum(len(line) + 1 for line in data.split(b"\n")[:-1][-3:])
    for end in range(start, len(data), 7):
        folder = tmp_path / f"cut{end}"
        folder.mkdir()
        (folder / "journal.jsonl").write_bytes(data[:end])
        rest = Pretend()
        assert result_of(run(folder, rest)) == result_of(whole)
        assert len(rest.ran) <= 2


def test_a_clock_that_jumps_back_does_not_change_durations(tmp_path, monkeypatch):
    import time

    clock = iter(range(10**9, 0, -1000))
    monkeypatch.setattr(time, "time", lambda: float(next(clock)))
    study = run(tmp_path, Pretend())
    assert 0 <= study.wall_seconds < 60
    assert all(trial.finished_at >= 0 for trial in study.trials)


def test_summary_counts_and_numbers_agree(tmp_path):
    study = run(tmp_path, Pretend({"0002-0": TrialError("nan", "NaN")}))
    summary = summarise_study(study, describe_space(study_space(tmp_path)))
    assert (summary["trials"], summary["failed"]) == (23, 1)
    assert [row["number"] for row in summary["rows"]] == list(range(1, 24))
    best = next(row for row in summary["rows"] if row["number"] == summary["best"]["number"])
    assert best["score"] == summary["best"]["score"] == study.best.score
    # The learning rate alone decides the score here.
    importance = {row["name"]: row["value"] for row in summary["importance"]}
    assert max(importance, key=importance.get) == "learning_rate"


def test_budget_schedules_grow_and_each_trains_something_to_its_end():
    schedules = candidate_schedules(3, 1, 81)
    totals = [describe_schedule(schedule)["epochs"] for schedule in schedules]
    assert min(totals) == 1
    assert max(totals) > 1000
    assert all(schedule[0][-1][0] >= 1 for schedule in schedules)
    alone = [[[(1, epochs)]] for epochs in (2, 3)]
    assert schedules[:2] == alone
    assert not [s for s in candidate_schedules(3, 4, 81) if s in alone], "fewer than --min-epochs"


def test_a_budget_chooses_no_longer_trials_than_pay():
    def longest(min_epochs: int, most: int) -> int:
        schedules = candidate_schedules(3, min_epochs, most)
        return max(epochs for s in schedules for rungs in s for _, epochs in rungs)

    assert [longest(1, most) for most in (6, 8, 27)] == [6, 6, 27]
    widest = max(describe_schedule(s)["configurations"] for s in candidate_schedules(3, 1, 6))
    assert widest == describe_schedule(make_schedule(6, 2))["configurations"] > 5
    assert longest(9, 6) == 9, "--min-epochs is kept all the same"
    # Some 3,200 images are a hundred batches of 32; of few images an epoch is soon over.
    assert [longest_trial(n, 32, True) for n in (100_000, 3200, 640, 64)] == [6, 6, 30, 300]
    assert longest_trial(3200, 32, False) == 81, "what is not refined needs its epochs"


def make_progress(folder: Path, total: float, show) -> tuple[Progress, Trial]:
    """A progress line, and the last trial of a study that has ended."""
    with Journal(folder / "journal.jsonl") as journal:
        plan = make_study(folder, 3)
        trial = run_study(plan, Pretend(), journal).trials[-1]
    speeds = {0.35: Speeds(dict.fromkeys((0, 2, 4), 1.0), dict.fromkeys((0, 2, 4), 0.0))}
    return Progress(plan, speeds, total, show), trial


def test_progress_is_never_at_its_end_while_a_trial_runs(tmp_path):
    shown = []
    progress, trial = make_progress(
        tmp_path, 10.0, lambda trials, refining, best, done, total: shown.append((done, total))
    )
    work = progress.work_of(trial)
    assert work > 10, "dearer than the whole schedule was expected to be"
    progress.trial_started(trial)
    progress.update()
    progress.trial_ended(trial)
    for name in ("second", "third"):
        progress.trial_started(replace(trial, trial=name))
    progress.update()
    progress.update(finished=True)
    first, second, last = (done / total for done, total in shown)
    assert (first, last) == (0, 1)
    assert second == pytest.approx(1 / 3, abs=1e-3)


def test_the_lead_has_its_own_executor_and_runs_alone(tmp_path):
    class Lead(Pretend):
        ended = False

        def pause(self):
            self.ended = True

    lead, others = Lead(), Pretend()
    later = Future()
    submit = lead.submit
    waiting = []

    def hold(*call):
        waiting.append(submit(*call))
        return later

    lead.submit = hold
    with Journal(tmp_path / "journal.jsonl") as journal:
        thread = Thread(
            target=run_study,
            args=(make_study(tmp_path), others, journal),
            kwargs={"workers": 4, "lead": lead},
        )
        thread.start()
        while not waiting:
            time.sleep(0.01)
        time.sleep(0.1)
        assert len(others.ran) == 1 and not lead.ended, "nothing is started beside the lead"
        later.set_result(waiting[0].result())
        thread.join()
    assert lead.ended and len(lead.ran) == 1 and len(others.ran) == 21
    assert lead.ran[0].epochs == lead.ran[0].max_epochs == 9
    again = Lead()
    rest = tmp_path / "journal.jsonl"
    with Journal(rest) as journal:
        run_study(make_study(tmp_path), others, journal, workers=4, lead=again)
    assert again.ended and not again.ran, "a lead that is known is not run again"


def test_a_process_that_trains_all_there_is_starts_once(tmp_path):
    class Lead(Pretend):
        paused = 0

        def pause(self):
            self.paused += 1

    lead, others = Lead(), Lead()
    plan = replace(make_study(tmp_path), schedule=[[(1, 2)]], refine_epochs=3)
    said = []
    with Journal(tmp_path / "journal.jsonl") as journal:
        study = run_study(
            plan,
            others,
            journal,
            workers=2,
            lead=lead,
            show=lambda trials, refining, *_: said.append((trials, refining)),
        )
    assert said[0] == (0, False) and (1, True) in said, "whoever waits sees what is done now"
    assert [task.refines for task in lead.ran] == [0, 3] and not others.ran
    assert (lead.paused, others.paused) == (0, 1)
    assert [trial.epochs for trial in study.trials] == [2, 5]


def test_a_long_trial_counts_while_it_runs(tmp_path, monkeypatch):
    shown = []
    progress, trial = make_progress(
        tmp_path, 100.0, lambda trials, refining, best, done, total: shown.append(done / total)
    )
    clock = iter([0.0, 2.0, 3.0, 1000.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    progress.trial_started(trial, pace=2.0)
    for _ in range(3):
        progress.update()
    work = progress.work_of(trial)
    assert shown == pytest.approx([0.04, 0.06, 0.95 * work / 100], abs=1e-3)
