"""Hyperband at scale, without training: what an ask and a tell cost, and how busy workers are.

    python benchmarks/simulate.py [--workers 1000] [--out results.json]

The oracle and the journal are the real ones; only the training is replaced, by a score drawn
from the configuration and a time drawn from a heavy tail: a trial takes its epochs times a
log-normal factor (sigma 1: one in forty takes seven times the median). Time is simulated, so
that 10,000 configurations on 1,000 workers take minutes.

Utilisation is the work done divided by workers times the time until the last trial ended. No
schedule can be faster than the work divided by the workers, nor than the longest chain of
promotions, nor than both together (see ``least_makespan``): that is the bound.
"""

import argparse
import hashlib
import heapq
import json
import math
import os
import statistics
import tempfile
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras_tuner

from automl.search.hyperband import HyperbandOracle, make_schedule
from automl.search.space import define_space
from automl.tracking.journal import Journal

SIGMA = 1.0
# A trial: (seconds of simulated time when it was asked for, its seconds).
Times = dict[str, tuple[float, float]]


def chance(text: str) -> float:
    """A number in (0, 1) that depends on ``text`` alone."""
    return (int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big") + 0.5) / 2**48


def duration(trial: str, epochs: int) -> float:
    """Simulated seconds: the epochs times a log-normal factor of this very trial."""
    return epochs * math.exp(SIGMA * statistics.NormalDist().inv_cdf(chance(f"time {trial}")))


def score(trial: str) -> float:
    """The configuration's quality, and noise that differs between rungs."""
    return chance(trial.split("-")[0]) + 0.1 * chance(trial)


def make_oracle(schedule: list[list[tuple[int, int]]]) -> HyperbandOracle:
    space = keras_tuner.HyperParameters()
    define_space(space, (0, 1, 2, 4, 7), (0.35, 1.0))
    return HyperbandOracle(
        keras_tuner.Objective("score", "max"),
        seed=0,
        hyperparameters=space,
        group_by="fine_tune_depth",
        rungs=schedule,
    )


def simulate(
    schedule: list[list[tuple[int, int]]], workers: int, journal: Journal | None
) -> tuple[Times, dict[str, list[float]]]:
    """Run the schedule to its end on ``workers`` simulated workers.

    Returns:
        The trials' times, and real seconds of every ask, tell and journal entry.
    """
    oracle = make_oracle(schedule)
    began = time.perf_counter()
    oracle.first_values()
    cost: dict[str, list[float]] = {"draw": [time.perf_counter() - began]}
    cost |= {"ask": [], "tell": [], "journal": []}
    running: list[tuple[float, str]] = []
    times: Times = {}
    now, idle = 0.0, workers

    def measure(kind: str, function, *args, **values):
        began = time.perf_counter()
        answer = function(*args, **values)
        cost[kind].append(time.perf_counter() - began)
        return answer

    def note(event: str, **values) -> None:
        if journal is not None:
            measure("journal", journal.append, event, **values)

    while True:
        while idle:
            trial = measure("ask", oracle.create_trial, f"worker {len(times)}")
            if trial.status != "RUNNING":
                break
            values = trial.hyperparameters.values
            epochs = values["tuner/epochs"] - values["tuner/initial_epoch"]
            seconds = duration(trial.trial_id, epochs)
            note("trial_started", trial=trial.trial_id, params=dict(values))
            times[trial.trial_id] = (now, seconds)
            heapq.heappush(running, (now + seconds, trial.trial_id))
            idle -= 1
        if not running:
            return times, cost
        now, name = heapq.heappop(running)
        idle += 1

        def tell(name: str = name) -> None:
            oracle.update_trial(name, {"score": score(name)}, step=1)
            ended = oracle.trials[name]
            ended.status = "COMPLETED"
            oracle.end_trial(ended)

        measure("tell", tell)
        note("trial_ended", trial=name, status="completed", score=score(name), history=[])


def makespan(times: Times) -> float:
    return max(asked + seconds for asked, seconds in times.values())


def least_makespan(free: Times, workers: int) -> float:
    """No schedule on ``workers`` can end before this.

    Args:
        free: the times with as many workers as there is work: every trial begins at the first
            moment at which its promotion is certain, so none can begin earlier anywhere.

    Returns:
        The largest over all times t of t plus the work of trials that cannot begin before t,
        shared out among the workers; and the longest chain, which is ``free``'s own makespan.
    """
    bound = makespan(free)
    left = 0.0
    for asked, seconds in sorted(free.values(), reverse=True):
        left += seconds
        bound = max(bound, asked + left / workers)
    return bound


def quantile(values: list[float], q: float) -> float:
    return sorted(values)[min(len(values) - 1, int(q * len(values)))]


def one_bracket(first: int, max_epochs: int = 81) -> list[list[tuple[int, int]]]:
    """Successive halving of ``first`` configurations, a third at a time, up to ``max_epochs``."""
    rungs = [(first, 1)]
    while rungs[-1][1] < max_epochs:
        size, epochs = rungs[-1]
        rungs.append((size // 3, 3 * epochs))
    return [rungs]


def whole(max_epochs: int) -> list[list[tuple[int, int]]]:
    return make_schedule(max_epochs, 3)


def examine(name: str, schedule, workers: int, folder: Path) -> dict:
    with Journal(folder / "journal.jsonl") as journal:
        times, cost = simulate(schedule, workers, journal)
    (folder / "journal.jsonl").unlink()
    free, _ = simulate(schedule, len(times), None)
    assert set(free) == set(times), "the order of execution changed what was tried"
    work = sum(seconds for _, seconds in times.values())
    least = least_makespan(free, workers)
    row = {
        "schedule": name,
        "configurations": sum(rungs[0][0] for rungs in schedule),
        "trials": len(times),
        "workers": workers,
        "utilisation": work / workers / makespan(times),
        "bound": work / workers / least,
        "of_bound": least / makespan(times),
        "draw_us": 1e6 * cost["draw"][0] / sum(rungs[0][0] for rungs in schedule),
    }
    for kind in ("ask", "tell", "journal"):
        row[f"{kind}_p50_us"] = 1e6 * quantile(cost[kind], 0.5)
        row[f"{kind}_p99_us"] = 1e6 * quantile(cost[kind], 0.99)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, default=1000)
    parser.add_argument("--sizes", default="100,1000,10000", help="configurations of one bracket")
    parser.add_argument("--epochs", default="81,729,6561", help="R of whole Hyperbands")
    parser.add_argument("--out", help="write the rows there, too, as JSON")
    options = parser.parse_args()
    cases = [("one bracket, R = 81", one_bracket(int(n))) for n in options.sizes.split(",") if n]
    cases += [(f"Hyperband, R = {r}", whole(int(r))) for r in options.epochs.split(",") if r]
    rows = []
    print("| schedule | configurations | trials | workers | utilisation | bound | of the bound "
          "| ask p50 / p99 µs | tell p50 / p99 µs | journal p50 / p99 µs | draw µs |")  # fmt: skip
    print("|---" * 11 + "|")
    with tempfile.TemporaryDirectory() as name:
        for title, schedule in cases:
            configurations = sum(rungs[0][0] for rungs in schedule)
            for workers in sorted({max(1, configurations // 10), options.workers}):
                row = examine(title, schedule, workers, Path(name))
                rows.append(row)
                pairs = [
                    f"{row[f'{kind}_p50_us']:.0f} / {row[f'{kind}_p99_us']:.0f}"
                    for kind in ("ask", "tell", "journal")
                ]
                print(f"| {title} | {row['configurations']} | {row['trials']} | {workers} "
                      f"| {row['utilisation']:.3f} | {row['bound']:.3f} | {row['of_bound']:.3f} "
                      f"| {' | '.join(pairs)} | {row['draw_us']:.0f} |", flush=True)  # fmt: skip
    if options.out:
        Path(options.out).write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
