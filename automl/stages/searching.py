"""The search: plan it, fill the cache, train the trials, describe what came out."""

import json
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from automl.config import SearchConfig
from automl.console import Console
from automl.errors import SearchError
from automl.folder import check_fingerprint
from automl.records import Scan, Split, Study
from automl.reporting.formats import plural
from automl.search.course import trained_depth
from automl.search.hyperband import make_schedule
from automl.search.model import count_macs, trained_layers
from automl.search.plan import (
    BUDGET_SHARE,
    balanced_size,
    candidate_schedules,
    describe_network,
    describe_schedule,
    estimate_bytes,
    estimate_seconds,
    hang_seconds,
    longest_trial,
    mean_speeds,
    measure_speeds,
    refine_seconds,
    share_out,
)
from automl.search.space import describe_space
from automl.search.spec import Network, PixelSource, Speeds, StudySpec
from automl.search.study import CRASH_RETRIES, StudyPlan, run_study
from automl.search.summary import summarise_study
from automl.search.trial import Trainer, prepare_trainer
from automl.search.worker import WorkerError
from automl.stages.evaluating import Winner
from automl.tracking.journal import Journal
from automl.writing import delete_parts, write_json

# Shares of a budget that are kept back for evaluation, export and report, least and most.
RESERVE_SHARE, MOST_RESERVE_SHARE = 0.15, 0.6
# On a machine that loads TensorFlow in so many seconds or fewer, with room to spare: what is the
# same for every data set (starting processes, conversions, proofs), and an image at width 1.0,
# 160 px, looked at with its mirror image.
LOADING_SECONDS = 3.5
FINISHING_SECONDS = 40.0
FINISHING_IMAGE_SECONDS = 0.016
# Below this share of a budget the plan says that the rest will not be used.
UNUSED_SHARE = 0.5
PASSES = ("train", "predict")


@dataclass(frozen=True)
class SearchPlan:
    """A study about to begin, with what it is expected to cost.

    ``expected_seconds`` are those of the whole, ``refine_epoch`` those that one worker would
    take for an epoch of refinement.
    """

    study: StudyPlan
    networks: dict[float, Network]
    speeds: dict[float, Speeds]
    expected_seconds: float
    refine_epoch: float
    description: dict[str, Any]


def share_of_search(config: SearchConfig, images: int, loading: float) -> float:
    """Seconds of the budget after which the search must end; the rest is for what follows it.

    Args:
        loading: seconds that TensorFlow took to load. What follows the search is mostly of the
            same kind, and as much slower on a machine that is slow or busy.
    """
    assert config.budget is not None
    size = max(config.width) ** 2 * (config.image_size / 160) ** 2
    finishing = FINISHING_SECONDS + FINISHING_IMAGE_SECONDS * size * images
    finishing *= max(1.0, loading / LOADING_SECONDS)
    reserve = max(RESERVE_SHARE * config.budget, finishing)
    return config.budget - min(reserve, MOST_RESERVE_SHARE * config.budget)


def make_spec(config: SearchConfig, scan: Scan, split: Split, cache: Path) -> StudySpec:
    """What workers are told of the data."""
    assert scan.pixels is not None and scan.pixels_path is not None
    return StudySpec(
        pixels=PixelSource(scan.pixels_path, scan.pixels.shape, scan.digest),
        targets=scan.dataset.targets,
        train_rows=split.rows("train"),
        val_rows=split.rows("val"),
        n_classes=len(scan.dataset.classes),
        weights=config.weights_used,
        depths=tuple(sorted(config.fine_tune_depths)),
        views=config.views,
        balance=config.balance,
        objective=config.objective,
        seed=config.seed,
        cache_folder=cache / "activations" if config.cache else None,
        cache_limit=config.cache_limit * 2**30,
    )


def make_plan(
    config: SearchConfig,
    spec: StudySpec,
    folder: Path,
    pool: Any,
    events: Sequence[dict[str, Any]],
    deadline: float | None,
    filling: float,
    console: Console,
) -> SearchPlan:
    """Fix the schedule; a resumed search keeps its own.

    Args:
        deadline: ``time.monotonic`` at which the search must end, or None; without one this
            machine's speed may be one that was measured before.
        filling: seconds that the cache takes or took.
    """
    started = next((event for event in events if event["event"] == "search_started"), None)
    workers = pool.size
    networks, speeds = {}, {}
    for done, width in enumerate(config.width):
        console.progress("measuring this machine", done, len(config.width))
        networks[width] = insist(pool.submit, describe_network, spec, width)
        store = spec.cache_folder and spec.cache_folder.parent / "speeds.json"
        facts = [pool.machine, workers, pool.threads, width, spec.pixels.shape[1]]
        key = "/".join(map(str, [*facts, spec.n_classes, config.batch_size]))
        recalled = read_speeds(store, key, networks[width]) if deadline is None else None
        speeds[width] = recalled or mean_speeds(
            insist(pool.everywhere, measure_speeds, spec, width, config.batch_size)
        )
        if store is not None and recalled is None:
            write_speeds(store, key, speeds[width])
    console.progress("measuring this machine", len(config.width), len(config.width))
    spec = replace(spec, weights_digests={w: n.weights_digest for w, n in networks.items()})
    if pool.remote:
        # The best model is put together here, so other weights must be found out now.
        for width in config.width:
            Trainer(spec, width)

    refine_epoch = refine_seconds(networks, speeds, spec)
    refines = most = config.most_refine_epochs

    def plan_of(schedule: list[list[tuple[int, int]]]) -> tuple[StudyPlan, float]:
        study = StudyPlan(spec, schedule, config.width, config.batch_size, folder, most)
        firsts = study.make_oracle().first_values()
        return study, estimate_seconds(speeds, spec, schedule, firsts, workers)

    if started is not None:
        schedule = [
            [(rung["size"], rung["epochs"]) for rung in bracket["rungs"]]
            for bracket in started["plan"]["brackets"]
        ]
        study, seconds = plan_of(schedule)
        refines = started["plan"].get("refine_epochs", most)
    elif deadline is None:
        study, seconds = plan_of(make_schedule(config.max_epochs, config.factor, config.min_epochs))
    else:
        longest = longest_trial(balanced_size(spec), config.batch_size, most > 0)
        schedules = candidate_schedules(config.factor, config.min_epochs, longest)
        plans = [plan_of(schedule) for schedule in schedules]
        left = BUDGET_SHARE * (deadline - time.monotonic())
        cheapest = min(plans, key=lambda p: p[1])
        refines = share_out(left, cheapest[1], refine_epoch / workers, most)
        rest = left - refines * refine_epoch / workers
        fitting = [p for p in plans if p[1] <= rest]
        # The largest that fits; where nothing does, the smallest is cut off by the clock.
        study, seconds = max(fitting, key=lambda p: p[1], default=cheapest)
    seconds += filling + refines * refine_epoch / workers
    description = describe_schedule(study.schedule) | {
        "seconds": round(seconds, 1),
        "workers": workers,
        "bytes": estimate_bytes(list(networks.values()), spec, study.schedule, workers),
        "training_images": balanced_size(spec),
        "refine_epochs": refines,
    }
    return SearchPlan(study, networks, speeds, seconds, refine_epoch, description)


def insist(ask: Callable[..., Any], *question: Any) -> Any:
    """``ask(*question)``, again if the worker was killed meanwhile: rarely the question's fault.

    Raises:
        SearchError: it was killed every time.
    """
    for attempt in range(CRASH_RETRIES + 1):
        try:
            answer = ask(*question)
            return answer.result() if isinstance(answer, Future) else answer
        except WorkerError as error:
            if error.reason == "cancelled" or attempt == CRASH_RETRIES:
                raise SearchError(
                    f"The search cannot begin: {error.message} worker.log in the run's folder "
                    "may say more. If memory is short, use fewer --workers."
                ) from error
    raise AssertionError


def read_speeds(path: Path | None, key: str, network: Network) -> Speeds | None:
    """What an earlier search measured on such a machine, if it measured every depth."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))[key] if path else {}
        tables = [{int(depth): float(s) for depth, s in found[kind].items()} for kind in PASSES]
    except (OSError, ValueError, KeyError):
        return None
    return Speeds(*tables) if all(set(network.shapes) <= set(table) for table in tables) else None


def write_speeds(path: Path, key: str, speeds: Speeds) -> None:
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        known = {}
    write_json(path, known | {key: {kind: getattr(speeds, kind) for kind in PASSES}})


def fingerprint(config: SearchConfig, scan: Scan, split: Split, plan: SearchPlan) -> dict[str, Any]:
    """All that must not change between the start of a search and its resumption."""
    space = describe_space(plan.study.make_oracle().get_space())
    return {
        "data": scan.digest,
        "split": split.digest,
        "image_size": config.image_size,
        "space": json.loads(json.dumps(space)),
        "schedule": [config.max_epochs, config.factor, config.min_epochs, config.budget],
        "objective": config.objective,
        "weights": {str(width): n.weights_digest for width, n in plan.networks.items()},
        "seed": config.seed,
        "balance": config.balance,
        "views": config.views,
        "batch_size": config.batch_size,
        "refine_epochs": config.refine_epochs,
    }


def search_models(
    config: SearchConfig,
    scan: Scan,
    split: Split,
    folder: Path,
    journal: Journal,
    pool: Any,
    *,
    cache: Path,
    deadline: float | None,
    begin: dict[str, Any],
    console: Console,
    on_start: Callable[[], None],
) -> tuple[Study, SearchPlan, dict[str, Any]]:
    """Plan, fill the cache, run the study.

    Args:
        deadline: ``time.monotonic`` at which the search must end, or None.
        begin: run id, name, command and so on for the journal's first event.
        on_start: called when the journal has that event.

    Raises:
        ResumeError: the run was begun with something else.
    """
    spec = make_spec(config, scan, split, cache)
    started = time.monotonic()
    caches = [insist(pool.submit, prepare_trainer, spec, width) for width in config.width]
    filled = time.monotonic() - started
    plan = make_plan(config, spec, folder, pool, journal.events, deadline, filled, console)
    marks = fingerprint(config, scan, split, plan)
    check_fingerprint(journal.events, marks)
    if not any(event["event"] == "search_started" for event in journal.events):
        space = describe_space(plan.study.make_oracle().get_space())
        journal.append(
            "search_started", **begin, fingerprint=marks, plan=plan.description, space=space
        )
    sessions = sum(event["event"] == "session_started" for event in journal.events)
    journal.append("session_started", session=sessions, pid=os.getpid(), host=os.uname().nodename)
    on_start()
    console.say(plan_text(plan, config))
    delete_parts(folder / "checkpoints")

    measured = time.monotonic() - started - filled
    if config.trial_timeout is None:
        for runner in filter(None, (pool, pool.lead)):
            runner.timeout = hang_seconds(
                plan.speeds,
                spec,
                plan.study.schedule,
                plan.study.refine_epochs * plan.refine_epoch,
            )

    def show(trials: int, refining: bool, best: Any, done: int, total: int) -> None:
        planned = plan.description["trials"]
        now = "refining" if refining else f"trial {min(trials + 1, max(trials, planned))}"
        score = f", best {config.objective} {best.score:.4f}" if best else ""
        # One stage name throughout: the time left is measured from its first appearance.
        console.progress("searching", done, total, note=f"{now}{score}")

    study = run_study(
        plan.study,
        pool,
        journal,
        workers=lambda: pool.size,
        lead=pool.lead,
        deadline=deadline,
        speeds=plan.speeds,
        expected_work=(plan.expected_seconds - filled) * pool.size,
        refine_epoch=plan.refine_epoch,
        show=show,
        started=started,
    )
    if not any(event["event"] == "search_ended" for event in journal.events):
        journal.append(
            "search_ended",
            best=study.best.trial,
            score=study.best.score,
            wall_seconds=study.wall_seconds,
            stages={
                "activations": round(filled, 2),
                "planning": round(measured, 2),
                "trials": round(study.wall_seconds - filled - measured, 2),
            },
        )
    detail = {
        "cache": {key: sum(c[key] for c in caches) for key in ("hits", "misses", "bytes")}
        | {"engine": caches[0]["engine"], "images_per_second": caches[0]["images_per_second"]},
        "filled": filled,
        "measured": measured,
    }
    return study, plan, detail


def plan_text(plan: SearchPlan, config: SearchConfig) -> str:
    """The plan for the person who waits."""
    lines = [
        f"Plan: {plural(plan.description['configurations'], 'configuration')}, "
        f"{plural(plan.description['trials'], 'trial')}, "
        f"{plural(plan.description['epochs'], 'epoch')} of "
        f"{plan.description['training_images']:,} images; about {minutes(plan.expected_seconds)}."
    ]
    for bracket in plan.description["brackets"]:
        rungs = " → ".join(f"{r['size']} × {r['epochs']}" for r in bracket["rungs"])
        lines.append(f"  bracket {bracket['bracket']}: {rungs}   (configurations × epochs)")
    if plan.study.is_single and config.budget:
        lines.append("  no time to compare configurations: the defaults are trained")
    epochs = plan.description["refine_epochs"]
    if epochs:
        taking = epochs * plan.refine_epoch / plan.description["workers"]
        lines.append(
            f"  then the best one is refined for {epochs} epochs, about "
            f"{minutes(taking)}{'; more, fewer or none as time is left' if config.budget else ''}"
        )
    if config.budget and plan.expected_seconds < UNUSED_SHARE * config.budget:
        lines.append(
            "  the rest of the budget will not be used: no longer schedule is known to be better"
        )
    size = plan.description["bytes"]
    lines.append(
        f"  disk {size['cache'] / 1e6:,.0f} MB of activations and at most "
        f"{size['checkpoints'] / 1e6:,.0f} MB of checkpoints; weights: {config.weights_used}"
    )
    return "\n".join(lines)


def minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


def describe_search(
    study: Study, plan: SearchPlan, detail: dict[str, Any], winner: Winner
) -> dict[str, Any]:
    """The report's "search" part."""
    summary = summarise_study(study, describe_space(plan.study.make_oracle().get_space()))
    depth = trained_depth(study.best.params, study.best.refines)
    head = [layer for layer in winner.model.layers if layer.name in ("hidden", "logits")]
    trained = [*head, *trained_layers(winner.model, depth)]
    summary["best"] |= {
        "parameters": int(winner.model.count_params()),
        "trainable_parameters": sum(int(layer.count_params()) for layer in trained),
        "macs": count_macs(winner.model.layers) * (2 if winner.mirror["used"] else 1),
    }
    trials = study.wall_seconds - detail["filled"] - detail["measured"]
    return {
        **summary,
        "plan": {
            key: plan.description[key] for key in ("brackets", "trials", "configurations", "epochs")
        },
        "stages": {
            "activations": round(detail["filled"], 2),
            "planning": round(detail["measured"], 2),
            "trials": round(trials, 2),
        },
        "cache": detail["cache"],
    }
