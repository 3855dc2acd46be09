"""The oracle: the paper's schedule, and its end, whatever fails and in whatever order."""

import hashlib
import math
import random
from fractions import Fraction

import keras_tuner
import pytest

from automl.search.hyperband import HyperbandOracle, make_schedule


def paper_schedule(max_epochs: int, factor: int) -> list[list[tuple[int, Fraction]]]:
    """Algorithm 1 of Li et al. (2018), line by line, in exact arithmetic."""
    s_max = 0
    while Fraction(factor) ** (s_max + 1) <= max_epochs:
        s_max += 1
    budget = (s_max + 1) * max_epochs
    brackets = []
    for s in reversed(range(s_max + 1)):
        n = math.ceil(Fraction(budget, max_epochs) * Fraction(factor**s, s + 1))
        r = max_epochs * Fraction(1, factor**s)
        brackets.append(
            [(math.floor(n * Fraction(1, factor**i)), r * factor**i) for i in range(s + 1)]
        )
    return brackets


@pytest.mark.parametrize("max_epochs", [1, 2, 3, 9, 10, 27, 50, 81, 100])
@pytest.mark.parametrize("factor", [2, 3, 4])
def test_schedule_is_that_of_the_paper(max_epochs, factor):
    ours = make_schedule(max_epochs, factor)
    paper = paper_schedule(max_epochs, factor)
    assert [[size for size, _ in rungs] for rungs in ours] == [[n for n, _ in b] for b in paper]
    for rungs, bracket in zip(ours, paper, strict=True):
        for (_, epochs), (_, exact) in zip(rungs, bracket, strict=True):
            assert abs(epochs - exact) <= Fraction(1, 2) or epochs == 1
        assert rungs[-1][1] == max_epochs


def test_min_epochs_is_the_first_rung_of_every_bracket():
    for rungs in make_schedule(27, 3, min_epochs=3):
        assert min(epochs for _, epochs in rungs) >= 3


def make_oracle(max_epochs=27, factor=3, seed=0, values=None):
    space = keras_tuner.HyperParameters()
    if values is None:
        space.Float("rate", 1e-4, 1e-1, sampling="log")
        space.Choice("depth", [0, 1, 2])
    else:
        space.Choice("depth", list(range(values)))
    return HyperbandOracle(
        keras_tuner.Objective("score", "max"),
        max_epochs=max_epochs,
        factor=factor,
        seed=seed,
        hyperparameters=space,
        group_by="depth",
    )


def chance(text: str) -> float:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big") / 2**48


def simulate(oracle, workers=1, failing=0.0, order=0):
    """Run to the end without training; returns {trial id: score or None} as they ended."""
    draw = random.Random(order)
    running, results, asked = {}, {}, 0
    while True:
        while len(running) < workers:
            asked += 1
            trial = oracle.create_trial(f"tuner{asked}")
            if trial.status != "RUNNING":
                break
            running[trial.trial_id] = trial
        if not running:
            assert trial.status == "STOPPED"
            return results
        trial = running.pop(draw.choice(sorted(running)))
        name = trial.trial_id
        if chance(f"fail {name}") < failing:
            trial.status = "INVALID"
            results[name] = None
        else:
            configuration = name.split("-")[0]
            # Scores with ties, and with noise between rungs.
            score = round(chance(configuration) + 0.1 * chance(name), 2)
            oracle.update_trial(name, {"score": score}, step=1)
            trial.status = "COMPLETED"
            results[name] = score
        oracle.end_trial(trial)


@pytest.mark.parametrize("max_epochs", [1, 9, 27, 81])
def test_every_rung_is_filled_and_the_end_is_reached(max_epochs):
    results = simulate(make_oracle(max_epochs))
    assert len(results) == sum(size for rungs in make_schedule(max_epochs, 3) for size, _ in rungs)


@pytest.mark.parametrize("failing", [0.0, 0.2])
@pytest.mark.parametrize("workers", [1, 3, 8])
def test_workers_and_order_do_not_change_what_is_tried(workers, failing):
    alone = simulate(make_oracle(), 1, failing)
    for order in range(5):
        assert simulate(make_oracle(), workers, failing, order) == alone


def test_the_best_of_a_rung_are_promoted():
    oracle = make_oracle()
    results = simulate(oracle, workers=4)
    for index, rungs in enumerate(make_schedule(27, 3)):
        first, last = oracle._first[index], oracle._first[index + 1]
        for rung in range(len(rungs) - 1):
            here = {c: results.get(f"{c:04d}-{rung}") for c in range(first, last)}
            ranked = sorted((-s, c) for c, s in here.items() if s is not None)
            best = {c for _, c in ranked[: rungs[rung + 1][0]]}
            assert best == {c for c in range(first, last) if f"{c:04d}-{rung + 1}" in results}


@pytest.mark.parametrize("seed", range(5))
def test_failures_never_starve_a_later_rung(seed):
    oracle = make_oracle(81, seed=seed)
    simulate(oracle, workers=3, failing=0.2)
    for bracket, rungs in zip(oracle.brackets, make_schedule(81, 3), strict=True):
        last = bracket.rungs[-1]
        assert len(last.candidates) == rungs[-1][0], "survivors trained to max_epochs"


def test_a_search_where_everything_fails_ends():
    results = simulate(make_oracle(), failing=1.1)
    assert set(results.values()) == {None}


@pytest.mark.parametrize("seed", range(5))
def test_every_bracket_is_spread_over_each_parameter(seed):
    oracle = make_oracle(max_epochs=81, seed=seed)
    brackets = oracle.first_values()
    for bracket in brackets:
        drawn = bracket[1:] if bracket is brackets[-1] else bracket  # the lead is the defaults
        places = sorted(math.log(values["rate"] / 1e-4) / math.log(1e3) for values in drawn)
        n = len(bracket)
        slices = [int(place * n) for place in places]
        assert len(set(slices)) == len(drawn) and set(slices) <= set(range(n))
        counts = [sum(values["depth"] == depth for values in bracket) for depth in range(3)]
        assert max(counts) - min(counts) <= 2


def test_an_exhausted_space_is_still_promoted_to_the_end():
    oracle = make_oracle(20, values=6)
    simulate(oracle)
    done = [[len(r.candidates) + len(r.promoted) for r in b.rungs] for b in oracle.brackets]
    assert done[0] == [6, 3, 1]
    assert all(rungs[-1] >= 1 for rungs in done)


@pytest.mark.parametrize("values", [1, 2])
def test_a_space_smaller_than_the_last_bracket_reaches_the_end(values):
    oracle = make_oracle(values=values)
    simulate(oracle)
    assert [len(bracket.drawn) for bracket in oracle.brackets] == [values] * 4
    assert len(oracle.brackets[-1].rungs[-1].candidates) == values


def test_a_bracket_has_no_configuration_twice():
    oracle = make_oracle()
    firsts = oracle.first_values()
    flat = [tuple(sorted(values.items())) for bracket in firsts for values in bracket]
    assert len(set(flat)) == len(flat)


def test_seed_zero_is_a_seed():
    assert make_oracle(seed=0).first_values() == make_oracle(seed=0).first_values()
    assert make_oracle(seed=0).first_values() != make_oracle(seed=1).first_values()


def test_a_promotion_continues_its_parent():
    oracle = make_oracle(3)
    for number in range(5):  # three of the first bracket, and the two of the last
        trial = oracle.create_trial("tuner0")
        oracle.update_trial(trial.trial_id, {"score": float(number)}, step=1)
        trial.status = "COMPLETED"
        oracle.end_trial(trial)
    promoted = oracle.create_trial("tuner0").hyperparameters.values
    # Trials of one depth run together, so the last asked need not be configuration 2.
    assert promoted["tuner/trial_id"] == oracle.end_order[-1]
    assert (promoted["tuner/initial_epoch"], promoted["tuner/epochs"]) == (1, 3)


def test_a_score_that_is_not_finite_is_a_failure():
    oracle = make_oracle(3)
    trial = oracle.create_trial("tuner0")
    oracle.update_trial(trial.trial_id, {"score": float("nan")}, step=1)
    trial.status = "COMPLETED"
    oracle.end_trial(trial)
    assert oracle.get_trial(trial.trial_id).status == "FAILED"


def test_checkpoints_are_needed_until_no_promotion_can_ask_for_them():
    oracle = make_oracle(9)
    for _ in range(9):
        trial = oracle.create_trial("tuner0")
        assert trial.hyperparameters.values["tuner/round"] == 0 or oracle.needed_checkpoints()
        oracle.update_trial(trial.trial_id, {"score": chance(trial.trial_id)}, step=1)
        trial.status = "COMPLETED"
        oracle.end_trial(trial)
    simulate(oracle)
    assert oracle.needed_checkpoints() == set()


@pytest.mark.parametrize("values", [None, 4])
def test_the_second_trial_is_the_defaults_trained_to_the_end(values):
    oracle = make_oracle(values=values)
    first = oracle.create_trial("tuner").hyperparameters.values
    assert first["depth"] == 0 and first["tuner/epochs"] == 1, "a quick one"
    trial = oracle.create_trial("another tuner")
    assert trial.trial_id == f"{oracle.lead:04d}-0"
    asked = trial.hyperparameters.values
    assert asked["tuner/epochs"] == 27 and asked["tuner/initial_epoch"] == 0
    assert asked["depth"] == 0 and asked.get("rate", 1e-4) == 1e-4
    third = oracle.create_trial("a third tuner").hyperparameters.values
    assert third["tuner/epochs"] == 27 and third["tuner/initial_epoch"] == 0
    waiting = [oracle._values[c]["depth"] for c in oracle.brackets[-1].waiting]
    assert third["depth"] >= max(waiting), "the longest of the bracket"


@pytest.mark.parametrize("workers", [1, 2])
def test_trials_to_the_end_come_last_and_side_by_side(workers):
    oracle = make_oracle(max_epochs=9)
    simulate(oracle, workers)
    rows = [oracle.trials[name].hyperparameters.values for name in oracle.start_order]
    to_the_end = [values["tuner/epochs"] == 9 for values in rows]
    # The lead and the third are early, and two brackets have one promotion to the end each.
    assert to_the_end[1:3] == [True, True] and sum(to_the_end) == 5
    assert all(to_the_end[-3:]), "no worker waits for a bracket that begins late"
    trained = [values["tuner/epochs"] - values["tuner/initial_epoch"] for values in rows[-3:]]
    assert trained == sorted(trained, reverse=True), "the longest of them first"
