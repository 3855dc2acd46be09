"""A finished study as the report's "search" part: rows, the winner's curves, what mattered."""

from collections.abc import Iterable
from typing import Any

import numpy as np

from automl.records import Study, Trial
from automl.search.objective import best_epoch, direction, loss_limit

# Fewer configurations than this say nothing about what mattered.
ENOUGH_CONFIGURATIONS = 8
PERMUTATIONS = 30


def summarise_study(study: Study, space: list[dict[str, Any]]) -> dict[str, Any]:
    """Trials, best, curves, importance and edges, as report.json has them."""
    numbers = {trial.trial: number for number, trial in enumerate(study.trials, 1)}
    completed = [trial for trial in study.trials if trial.status == "completed"]
    best = study.best
    return {
        "objective": study.objective,
        "space": [row for row in space if row["kind"] != "fixed"],
        "trials": len(study.trials),
        "configurations": len({trial.configuration for trial in study.trials}),
        "failed": len(study.trials) - len(completed),
        "epochs": sum(len(trial.history) for trial in completed),
        "wall_seconds": study.wall_seconds,
        "best": {
            "number": numbers[best.trial],
            "trial": best.trial,
            "params": best.params,
            "score": best.score,
            "epochs": best.epochs,
        },
        "refinement": describe_refinement(study, numbers),
        "rows": [trial_row(numbers[trial.trial], trial) for trial in study.trials],
        "curves": winner_curves(study),
        "importance": measure_importance(
            [trial for trial in completed if not trial.refines], space, study.objective
        ),
        "edges": find_edges(best, space),
    }


def describe_refinement(study: Study, numbers: dict[str, int]) -> dict[str, Any] | None:
    """The last trial, which goes on from the best one; None where there was none."""
    trials = {trial.trial: trial for trial in study.trials}
    refinement = next((trial for trial in study.trials if trial.refines), None)
    if refinement is None or refinement.parent is None:
        return None
    parent = trials[refinement.parent]
    before = best_epoch(epochs_of(parent, study.trials), study.objective)
    last = refinement.history[-1] if refinement.history else None
    return {
        "number": numbers[refinement.trial],
        "parent": numbers[refinement.parent],
        "epochs": refinement.refines,
        "score": refinement.score,
        "score_before": parent.score,
        "loss": last["val_loss"] if last else None,
        "loss_before": before["val_loss"],
        "loss_limit": loss_limit(last, before) if last else None,
        "seconds": refinement.seconds,
        "used": refinement.trial == study.best.trial,
    }


def trial_row(number: int, trial: Trial) -> dict[str, Any]:
    return {
        "number": number,
        "trial": trial.trial,
        "configuration": trial.configuration,
        "bracket": trial.bracket,
        "round": trial.round,
        "initial_epoch": trial.initial_epoch,
        "epochs": trial.epochs,
        "status": trial.status,
        "score": trial.score,
        "seconds": trial.seconds,
        "elapsed": trial.finished_at,
        "reason": trial.reason,
        "message": trial.message,
        "params": trial.params,
    }


def winner_curves(study: Study) -> list[dict[str, Any]]:
    """Every epoch of the winning configuration, rung after rung; of a refinement if it is used."""
    last = max(
        (
            trial
            for trial in study.trials
            if trial.configuration == study.best.configuration
            and (not trial.refines or trial == study.best)
        ),
        key=lambda trial: trial.round,
    )
    return epochs_of(last, study.trials)


def epochs_of(trial: Trial, trials: Iterable[Trial]) -> list[dict[str, Any]]:
    """Every epoch that led to ``trial``'s last one, rung after rung."""
    chain = [
        other
        for other in trials
        if other.configuration == trial.configuration and other.round <= trial.round
    ]
    epochs = {}
    for part in sorted(chain, key=lambda part: part.round):
        for row in part.history:
            epochs[row["epoch"]] = {**row, "round": part.round}
    return [epochs[epoch] for epoch in sorted(epochs)]


def find_edges(best: Trial, space: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Where the winner sits at an end of its range: a better one may lie beyond.

    A learning rate counts as at the edge within the outer twentieth of its (log) range.
    """
    edges = []
    for row in space:
        value = best.params.get(row["name"])
        if row["kind"] == "choice" and len(row["values"]) > 2 and row["name"] != "head_units":
            low, high = row["values"][0], row["values"][-1]
            side = "low" if value == low else "high" if value == high else None
            # A refinement has tried what lies beyond.
            side = None if best.refines and row["name"] == "fine_tune_depth" else side
        elif row["kind"] == "float":
            position = scale_value(row, value)
            side = "low" if position < 0.05 else "high" if position > 0.95 else None
            # No dropout is an end, not an edge.
            side = None if row["low"] == 0 and side == "low" else side
        else:
            side = None
        if side:
            edges.append({"name": row["name"], "value": value, "edge": side})
    return edges


def scale_value(row: dict[str, Any], value: Any) -> float:
    """A value's place in its range, 0 to 1; a choice's index."""
    if row["kind"] == "choice":
        return row["values"].index(value) / max(1, len(row["values"]) - 1)
    if row["sampling"] == "log":
        return float(np.log(value / row["low"]) / np.log(row["high"] / row["low"]))
    return float((value - row["low"]) / (row["high"] - row["low"]))


def measure_importance(
    trials: Iterable[Trial], space: list[dict[str, Any]], objective: str
) -> list[dict[str, Any]]:
    """Permutation importance of each hyperparameter (Breiman 2001) with a 95 % range.

    A forest predicts the rank of a configuration's last score, within the trials that were
    trained as long, from its values; the importance is the loss of R² when one is shuffled.
    """
    rows = [row for row in space if row["kind"] != "fixed"]
    last = {trial.configuration: trial for trial in sorted(trials, key=lambda t: t.round)}
    if len(last) < ENOUGH_CONFIGURATIONS:
        return []
    from sklearn.ensemble import RandomForestRegressor
    from sklearn.inspection import permutation_importance

    ordered = sorted(last.values(), key=lambda trial: trial.configuration)
    x = np.array([[scale_value(row, t.params[row["name"]]) for row in rows] for t in ordered])
    sign = 1 if direction(objective) == "max" else -1
    scores = np.array([sign * t.score for t in ordered])
    y = scores.argsort().argsort() / (len(scores) - 1)
    forest = RandomForestRegressor(200, min_samples_leaf=2, random_state=0).fit(x, y)
    drops = permutation_importance(forest, x, y, n_repeats=PERMUTATIONS, random_state=0).importances
    return [
        {
            "name": row["name"],
            "value": float(drop.mean()),
            "low": float(np.quantile(drop, 0.025)),
            "high": float(np.quantile(drop, 0.975)),
        }
        for row, drop in zip(rows, drops, strict=True)
    ]
