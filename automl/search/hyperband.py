"""Hyperband as a KerasTuner oracle: the paper's schedule, and it reaches the end.

Li, Jamieson, DeSalvo, Rostamizadeh, Talwalkar: "Hyperband: A Novel Bandit-Based Approach
to Hyperparameter Optimization", JMLR 18 (2018), Algorithm 1.

What is asked depends on the seed and on scores alone, never on the order in which trials
end. Two things follow. Several workers find what one worker finds. And a search is resumed
by asking again from the start and answering from the journal what is known already: there
is no state to save.

The second trial is the defaults, trained to the end, and the third the longest of the same
bracket, which has no earlier rung. So there is a model within seconds and good ones early,
whatever the search finds after them. All other trials to the end come last, side by side: were
each bracket finished before the next, its last promotion would train while workers wait for it.
"""

import math
import random
import threading
from bisect import bisect, insort
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import keras_tuner
from keras_tuner.engine import hyperparameters as hp_module
from keras_tuner.engine import trial as trial_module

RUNNING, IDLE, STOPPED = "RUNNING", "IDLE", "STOPPED"
COMPLETED, INVALID, FAILED = "COMPLETED", "INVALID", "FAILED"
# Draws before a space counts as exhausted: with one of ten values unseen, the chance to
# miss it is 0.9^200 < 1e-9.
MAX_DRAWS = 200


def make_schedule(max_epochs: int, factor: int, min_epochs: int = 1) -> list[list[tuple[int, int]]]:
    """The brackets of Algorithm 1, most aggressive first.

    Args:
        max_epochs: R, epochs of a trial that is promoted to the end.
        factor: eta, one in ``factor`` trials is promoted.
        min_epochs: epochs of the shortest trial; the paper's 1 gives all brackets.

    Returns:
        For each bracket its rungs as (size, epochs): rung i of bracket s has
        ``floor(n / factor**i)`` trials, n = ceil((s_max + 1) / (s + 1) * factor**s), trained
        to ``R / factor**(s - i)`` epochs in all, rounded, and at least ``min_epochs``.
    """
    s_max = 0
    while factor ** (s_max + 1) * min_epochs <= max_epochs:
        s_max += 1
    brackets = []
    for s in range(s_max, -1, -1):
        # Integer ceiling: floats put 3/2*9 or 5/5*625 on the wrong side of a whole number.
        n = -(-(s_max + 1) * factor**s // (s + 1))
        brackets.append(
            [
                (n // factor**i, max(min_epochs, round_half_up(max_epochs, factor ** (s - i))))
                for i in range(s + 1)
            ]
        )
    return brackets


def round_half_up(numerator: int, denominator: int) -> int:
    """``numerator / denominator`` to the nearest whole number, halves up."""
    return (2 * numerator + denominator) // (2 * denominator)


@dataclass
class Rung:
    """One rung: its nominal size, its epochs, and who is where."""

    size: int
    epochs: int
    started: int = 0
    running: int = 0
    failed: int = 0
    # (key, configuration), best first; the key is lower for a better score. A completed
    # trial is in `candidates` until it is promoted.
    candidates: list[tuple[float, int]] = field(default_factory=list)
    promoted: list[tuple[float, int]] = field(default_factory=list)


class Bracket:
    """Successive halving over one bracket, with failures replaced.

    A configuration is promoted as soon as no unfinished trial can push it out of the top.
    A trial that fails is replaced: in the first rung by a new configuration, later by the
    next best of the rung below. Where there is none the rung is simply smaller.
    """

    def __init__(self, number: int, rungs: list[tuple[int, int]]) -> None:
        self.number = number
        self.rungs = [Rung(size, epochs) for size, epochs in rungs]
        self.waiting: list[int] = []
        self.drawn: list[int] = []
        # Of the values of those drawn, so that none is tried twice.
        self.hashes: set[str] = set()
        self.exhausted = False

    def initial_epoch(self, index: int) -> int:
        """Epochs that a trial of rung ``index`` has been trained for before."""
        return self.rungs[index - 1].epochs if index else 0

    def startable(self) -> list[int]:
        """For each rung, how many trials may still be started in it."""
        first = self.rungs[0]
        # Replacements are as many as the rung at the most, so that all failing ends too.
        wanted = min(first.size + first.failed, 2 * first.size) - first.started
        counts = [min(wanted, len(self.waiting)) if self.exhausted else wanted]
        for below, rung in pairwise(self.rungs):
            supply = len(below.candidates) + below.running + counts[-1]
            counts.append(max(0, min(rung.size + rung.failed - rung.started, supply)))
        return counts

    def promotions(self) -> Iterator[tuple[int, int]]:
        """(rung, configuration) that are certain to be promoted, highest rung first."""
        startable = self.startable()
        for index in range(len(self.rungs) - 1, 0, -1):
            below, rung = self.rungs[index - 1], self.rungs[index]
            if not below.candidates:
                continue
            best = below.candidates[0]
            # Whoever has not ended yet is taken to be better.
            rank = bisect(below.promoted, best) + below.running + startable[index - 1]
            if rank < rung.size + rung.failed:
                yield index, best[1]

    def start(self, index: int, configuration: int) -> None:
        rung = self.rungs[index]
        rung.started += 1
        rung.running += 1
        if index == 0:
            first = self.waiting.pop(0)
            assert first == configuration
            return
        below = self.rungs[index - 1]
        best = below.candidates.pop(0)
        assert best[1] == configuration
        insort(below.promoted, best)

    def end(self, index: int, configuration: int, key: float | None) -> None:
        """``key`` is None for a failure."""
        rung = self.rungs[index]
        rung.running -= 1
        if key is None:
            rung.failed += 1
        else:
            insort(rung.candidates, (key, configuration))

    def promotable(self, index: int) -> list[int]:
        """Completed configurations of rung ``index`` that may still be promoted."""
        if index + 1 >= len(self.rungs):
            return []
        rung, above = self.rungs[index], self.rungs[index + 1]
        # A trial that runs above may fail, and the next best then takes its place.
        places = self.startable()[index + 1] + above.running
        return [configuration for _, configuration in rung.candidates[:places]]


class HyperbandOracle(keras_tuner.Oracle):
    """Ask with ``create_trial``, tell with ``update_trial`` and ``end_trial``.

    Trial ids are "CONFIGURATION-ROUND" (``0007-1``). The values of a trial hold, as in
    KerasTuner's own Hyperband, ``tuner/epochs``, ``tuner/initial_epoch``, ``tuner/bracket``,
    ``tuner/round`` and, if promoted, ``tuner/trial_id``: the trial to continue.

    Args:
        objective: a ``keras_tuner.Objective`` or a metric's name.
        max_epochs: R in the paper.
        factor: eta in the paper.
        min_epochs: epochs of the shortest trial.
        seed: any integer, 0 included; None draws one.
        hyperparameters: the search space, where the tuner does not supply it.
        group_by: a numeric hyperparameter's name; first-rung trials that share its value
            are asked for one after the other (they share a cached prefix). The last
            bracket begins with the highest value: long trials must not come last where
            several workers would wait for one.
        rungs: the schedule, where it is not Algorithm 1's: as ``make_schedule`` returns it.
    """

    def __init__(
        self,
        objective: Any = None,
        max_epochs: int = 27,
        factor: int = 3,
        min_epochs: int = 1,
        seed: int | None = None,
        hyperparameters: hp_module.HyperParameters | None = None,
        group_by: str | None = None,
        rungs: list[list[tuple[int, int]]] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(objective=objective, hyperparameters=hyperparameters, seed=1, **kwargs)
        # KerasTuner's `seed or random()` would turn 0 into chance.
        self.seed = random.SystemRandom().randrange(2**31) if seed is None else seed
        self.group_by = group_by
        self.schedule = rungs or make_schedule(max_epochs, factor, min_epochs)
        last = len(self.schedule) - 1
        self.brackets = [Bracket(last - i, rungs) for i, rungs in enumerate(self.schedule)]
        # Of each bracket and parameter, the order of the slices that it is cut into.
        self._slices: dict[tuple[int, str], list[int]] = {}
        self._first = [0]
        for rungs_ in self.schedule:
            self._first.append(self._first[-1] + rungs_[0][0])
        self._values: dict[int, dict[str, Any]] = {}
        self._seen: set[str] = set()
        self._sampled = 0
        self._place: dict[str, tuple[int, int, int]] = {}
        self._tuner: dict[str, str] = {}
        self._not_finite: set[str] = set()
        self._oracle_lock = threading.RLock()
        self.verbose = 0

    # What KerasTuner asks for.

    def populate_space(self, trial_id: str) -> dict[str, Any]:
        """The next trial's values; ``trial_id`` is ignored, ids follow the configuration."""
        place = self._next_place()
        if place is None:
            return {"status": IDLE if self.ongoing_trials else STOPPED, "values": None}
        return {"status": RUNNING, "values": self._trial_values(*place), "place": place}

    def create_trial(self, tuner_id: str) -> trial_module.Trial:
        with self._oracle_lock:
            if tuner_id in self.ongoing_trials:
                return self.ongoing_trials[tuner_id]
            answer = self.populate_space("")
            hyperparameters = share_space(self.hyperparameters, answer["values"] or {})
            if answer["status"] != RUNNING:
                return trial_module.Trial(hyperparameters, trial_id="", status=answer["status"])
            index, rung, configuration = answer["place"]
            trial_id = name_trial(configuration, rung)
            self.brackets[index].start(rung, configuration)
            trial = trial_module.Trial(hyperparameters, trial_id=trial_id, status=RUNNING)
            self._place[trial_id] = (index, rung, configuration)
            self.trials[trial_id] = trial
            self.ongoing_trials[tuner_id] = trial
            self._tuner[trial_id] = tuner_id
            self.start_order.append(trial_id)
            self._save_trial(trial)
            self.save()
            return trial

    def update_trial(
        self, trial_id: str, metrics: dict[str, float], step: int = 0
    ) -> trial_module.Trial:
        """Take a trial's metrics; the objective must be among them."""
        with self._oracle_lock:
            trial = self.trials[trial_id]
            self._check_objective_found(metrics)
            for name, value in metrics.items():
                if not math.isfinite(value):
                    self._not_finite.add(trial_id)
                    continue
                if not trial.metrics.exists(name):
                    known = name == self.objective.name
                    trial.metrics.register(name, self.objective.direction if known else "min")
                trial.metrics.update(name, value, step=step)
            self._save_trial(trial)
            return trial

    def end_trial(self, trial: trial_module.Trial) -> None:
        """Take a trial's end; one that is not COMPLETED with a finite score has failed."""
        with self._oracle_lock:
            known = self.trials[trial.trial_id]
            known.hyperparameters, known.message = trial.hyperparameters, trial.message
            known.status = COMPLETED if trial.status == COMPLETED else FAILED
            key = None
            if known.status == COMPLETED:
                scored = known.metrics.exists(self.objective.name)
                if scored and known.trial_id not in self._not_finite:
                    self.score_trial(known)
                    key = -known.score if self.objective.direction == "max" else known.score
                else:
                    known.status = FAILED
                    known.message = known.message or "The score was not a finite number."
            index, rung, configuration = self._place[known.trial_id]
            self.brackets[index].end(rung, configuration, key)
            self.end_order.append(known.trial_id)
            self.ongoing_trials.pop(self._tuner.pop(known.trial_id, None), None)
            self._save_trial(known)
            self.save()

    def save(self, fname: str | None = None) -> None:
        """Nothing to save: the trials' own files, or the journal, hold all there is."""

    def reload(self, fname: str | None = None) -> None:
        raise NotImplementedError(
            "HyperbandOracle is resumed by asking again: create it anew with the same arguments "
            "and answer the trials that are known (see automl.search.study)."
        )

    def _save_trial(self, trial: trial_module.Trial) -> None:
        if getattr(self, "_directory", None) is not None:
            super()._save_trial(trial)

    # What the study asks for besides.

    def needed_checkpoints(self) -> set[str]:
        """Ids of ended trials that a promotion may still continue, or that one now continues."""
        with self._oracle_lock:
            needed = set()
            for bracket in self.brackets:
                for rung in range(len(bracket.rungs)):
                    needed.update(name_trial(c, rung) for c in bracket.promotable(rung))
            for trial in self.ongoing_trials.values():
                parent = trial.hyperparameters.values.get("tuner/trial_id")
                if parent is not None:
                    needed.add(parent)
            return needed

    def first_values(self) -> list[list[dict[str, Any]]]:
        """The values that each bracket's first rung begins with."""
        with self._oracle_lock:
            self._fill(len(self.brackets) - 1)
            return [[self._values[c] for c in bracket.drawn] for bracket in self.brackets]

    # Where the next trial is.

    @property
    def lead(self) -> int:
        """The configuration that has the defaults and is asked for second."""
        return self._first[-2]

    def _next_place(self) -> tuple[int, int, int] | None:
        if len(self._place) in (1, 2) and len(self.brackets) > 1:
            last = len(self.brackets) - 1
            self._fill(last)
            if self.brackets[last].waiting:
                return last, 0, self.brackets[last].waiting[0]
        to_the_end = []
        for index, bracket in enumerate(self.brackets):
            self._fill(index)
            for rung, configuration in self._startable_places(index):
                if rung + 1 < len(bracket.rungs):
                    return index, rung, configuration
                epochs = bracket.rungs[rung].epochs - bracket.initial_epoch(rung)
                to_the_end.append((-epochs, index, rung, configuration))
        return min(to_the_end)[1:] if to_the_end else None

    def _startable_places(self, index: int) -> Iterator[tuple[int, int]]:
        """(rung, configuration) of bracket ``index`` that can start now, highest rung first."""
        bracket = self.brackets[index]
        yield from bracket.promotions()
        if bracket.startable()[0] > 0:
            if not bracket.waiting:
                self._replace(index)
            if bracket.waiting:
                yield 0, bracket.waiting[0]

    def _trial_values(self, index: int, rung: int, configuration: int) -> dict[str, Any]:
        bracket = self.brackets[index]
        values = dict(self._values[configuration])
        values["tuner/epochs"] = bracket.rungs[rung].epochs
        values["tuner/initial_epoch"] = bracket.initial_epoch(rung)
        values["tuner/bracket"] = bracket.number
        values["tuner/round"] = rung
        if rung:
            values["tuner/trial_id"] = name_trial(configuration, rung - 1)
        return values

    # Which configurations there are: drawn from the seed, whatever happens.

    def _fill(self, index: int) -> None:
        """Draw the first rung of bracket ``index``, and of those before it, once."""
        if not self._values:
            self._draw(self.lead, self.brackets[-1])
        while self._sampled <= index:
            bracket = self.brackets[self._sampled]
            first, last = self._first[self._sampled], self._first[self._sampled + 1]
            for configuration in range(first, last):
                if configuration != self.lead and not self._draw(configuration, bracket):
                    bracket.exhausted = True
                    break
            if self.group_by is not None:
                sign = -1 if self._sampled == len(self.brackets) - 1 else 1
                bracket.waiting.sort(
                    key=lambda c: (c != self.lead, sign * self._values[c].get(self.group_by, 0))
                )
            self._sampled += 1

    def _replace(self, index: int) -> None:
        """One more configuration in place of a failed one; ids continue past the plan's."""
        bracket = self.brackets[index]
        replacement = bracket.rungs[0].started - bracket.rungs[0].size
        configuration = self._first[-1] + self._first[index] + replacement
        if bracket.exhausted or not self._draw(configuration, bracket):
            bracket.exhausted = True

    def _draw(self, configuration: int, bracket: Bracket) -> bool:
        """Give ``configuration`` values that its bracket has not, new to the search if possible."""
        fallback = None
        for attempt in range(MAX_DRAWS):
            values = self._values_of(configuration, attempt)
            digest = self._hash(values)
            if digest not in self._seen:
                fallback = values
                break
            if fallback is None and digest not in bracket.hashes:
                fallback = values
        if fallback is None:
            return False
        digest = self._hash(fallback)
        self._seen.add(digest)
        bracket.hashes.add(digest)
        self._values[configuration] = fallback
        bracket.waiting.append(configuration)
        bracket.drawn.append(configuration)
        return True

    def _values_of(self, configuration: int, attempt: int) -> dict[str, Any]:
        """The defaults for the lead, else a draw of its own."""
        drawn = hp_module.HyperParameters()
        for parameter in self.hyperparameters.space:
            drawn.merge([parameter])
            if not drawn.is_active(parameter):
                continue
            if configuration == self.lead and attempt == 0:
                drawn.values[parameter.name] = parameter.default
            else:
                place = self._place_of(configuration, attempt, parameter)
                drawn.values[parameter.name] = parameter.prob_to_value(place)
        return dict(drawn.values)

    def _place_of(self, configuration: int, attempt: int, parameter: Any) -> float:
        """Where in [0, 1) a configuration lies along a parameter.

        Each bracket is a Latin hypercube (McKay et al. 1979): cut into as many slices as it has
        configurations, every parameter has one in each; the lead's is where the default lies.
        Plain draws leave out a fifth of the depths in the short brackets. A second attempt and
        a replacement are plain draws.
        """
        name = parameter.name
        draw = random.Random(f"{self.seed}/{configuration}/{attempt}/{name}").random()
        if attempt or configuration >= self._first[-1]:
            return draw
        index = bisect(self._first, configuration) - 1
        first, last = self._first[index : index + 2]
        slices = self._slices.get((index, name))
        if slices is None:
            slices = self._slices[index, name] = list(range(last - first))
            random.Random(f"{self.seed}/{index}/{name}").shuffle(slices)
            if first == self.lead:
                default = parameter.value_to_prob(parameter.default)
                place = slices.index(min(last - first - 1, int(default * (last - first))))
                slices[0], slices[place] = slices[place], slices[0]
        return (slices[configuration - first] + draw) / len(slices)

    def _hash(self, values: dict[str, Any]) -> str:
        return repr(sorted((k, v) for k, v in values.items() if not k.startswith("tuner/")))


def share_space(
    space: hp_module.HyperParameters, values: dict[str, Any]
) -> hp_module.HyperParameters:
    """A space of its own with ``values``; the parameters in it, which never change, are shared.

    ``HyperParameters.copy`` writes every parameter out and reads it back: milliseconds a trial.
    """
    shared = hp_module.HyperParameters()
    for parameter in space.space:
        shared._hps[parameter.name].append(parameter)
        shared._space.append(parameter)
    shared.values = values
    return shared


def name_trial(configuration: int, rung: int) -> str:
    """``7, 1`` → ``"0007-1"``."""
    return f"{configuration:04d}-{rung}"
