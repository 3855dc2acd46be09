"""The stages between the data and the report, each a function of records.

They import the framework, so ``pipeline`` imports them only when the data is good.
"""

import json
import os
import resource
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from automl.config import SearchConfig
from automl.console import Console
from automl.data.pictures import write_picture
from automl.data.split import rows_without_twins
from automl.errors import SearchError
from automl.evaluation.baselines import all_baselines, predict_out_of_fold
from automl.evaluation.calibration import (
    apply_calibration,
    fit_temperature,
    prior_shift,
)
from automl.evaluation.evaluate import evaluate_model
from automl.evaluation.heatmaps import overlay
from automl.evaluation.metrics import predict_classes
from automl.evaluation.robustness import evaluate_robustness
from automl.evaluation.saliency import check_saliency, grad_cam
from automl.evaluation.thresholds import choose_threshold
from automl.folder import (
    check_fingerprint,
    count_test_evaluations,
    write_json,
    write_probabilities,
)
from automl.records import ModelInfo, Scan, Split, Study
from automl.search.engine import tensorflow_engine
from automl.search.hyperband import make_schedule
from automl.search.model import cut_logits
from automl.search.objective import probabilities_of
from automl.search.plan import (
    BUDGET_SHARE,
    balanced_size,
    candidate_schedules,
    describe_network,
    describe_schedule,
    estimate_bytes,
    estimate_seconds,
    hang_seconds,
    mean_speeds,
    measure_speeds,
)
from automl.search.space import describe_space
from automl.search.spec import Network, PixelSource, Speeds, StudySpec
from automl.search.study import CRASH_RETRIES, StudyPlan, run_study
from automl.search.summary import summarise_study
from automl.search.trial import Trainer, prepare_trainer
from automl.search.worker import WorkerError
from automl.serving.export import export_saved_model, measure_folder, prove_model
from automl.serving.guards import add_guards, fit_guards
from automl.serving.parity import FILES, TestSet
from automl.serving.predictor import Predictor, load
from automl.tracking.journal import Journal

# Seconds that a budget keeps back for evaluation, export and report.
RESERVE_SECONDS = 45.0
RESERVE_SHARE = 0.15
GRID_IMAGES = 6
PICTURE_SIDE = 160
SALIENCY_IMAGES = 48
PASSES = ("train", "predict")
PROOF_IMAGES = 600


@dataclass(frozen=True)
class SearchPlan:
    """A study about to begin, with what it is expected to cost."""

    study: StudyPlan
    networks: dict[float, Network]
    speeds: dict[float, Speeds]
    expected_seconds: float
    description: dict[str, Any]


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
    seconds_left: float | None,
    filling: float,
    console: Console,
) -> SearchPlan:
    """Fix the schedule; a resumed search keeps its own.

    Args:
        seconds_left: until the search must end, or None; without such a limit this machine's
            speed may be one that was measured before.
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
        recalled = read_speeds(store, key, networks[width]) if seconds_left is None else None
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

    def plan_of(schedule: list[list[tuple[int, int]]]) -> tuple[StudyPlan, float]:
        study = StudyPlan(spec, schedule, config.width, config.batch_size, folder)
        firsts = study.make_oracle().first_values()
        return study, filling + estimate_seconds(speeds, spec, schedule, firsts, workers)

    if started is not None:
        schedule = [
            [(rung["size"], rung["epochs"]) for rung in bracket["rungs"]]
            for bracket in started["plan"]["brackets"]
        ]
        study, seconds = plan_of(schedule)
    elif seconds_left is None:
        study, seconds = plan_of(make_schedule(config.max_epochs, config.factor, config.min_epochs))
    else:
        plans = [plan_of(s) for s in candidate_schedules(config.factor, config.min_epochs)]
        fitting = [p for p in plans if p[1] - filling <= BUDGET_SHARE * seconds_left]
        # The largest that fits; where nothing does, the smallest is cut off by the clock.
        study, seconds = (
            max(fitting, key=lambda p: p[1]) if fitting else min(plans, key=lambda p: p[1])
        )
    description = describe_schedule(study.schedule) | {
        "seconds": round(seconds, 1),
        "workers": workers,
        "bytes": estimate_bytes(list(networks.values()), spec, study.schedule, workers),
        "training_images": balanced_size(spec),
    }
    return SearchPlan(study, networks, speeds, seconds, description)


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
    left = None if deadline is None else deadline - time.monotonic()
    plan = make_plan(config, spec, folder, pool, journal.events, left, filled, console)
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
    for torn in (folder / "checkpoints").glob("*.part"):
        torn.unlink()

    measured = time.monotonic() - started - filled
    if config.trial_timeout is None:
        pool.timeout = hang_seconds(plan.speeds, spec, plan.study.schedule)

    def show(trials: int, best: Any, done: int, total: int) -> None:
        score = f", best {config.objective} {best.score:.4f}" if best else ""
        # One stage name throughout: the time left is measured from its first appearance.
        trial = min(trials + 1, max(trials, plan.description["trials"]))
        console.progress("searching", done, total, note=f"trial {trial}{score}")

    study = run_study(
        plan.study,
        pool,
        journal,
        workers=lambda: pool.size,
        deadline=deadline,
        speeds=plan.speeds,
        expected_seconds=plan.expected_seconds,
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
        f"Plan: {plan.description['configurations']} configurations, "
        f"{plan.description['trials']} trials, "
        f"{plan.description['epochs']} epochs of {plan.description['training_images']:,} images; "
        f"about {minutes(plan.expected_seconds)}."
    ]
    for bracket in plan.description["brackets"]:
        rungs = " → ".join(f"{r['size']} × {r['epochs']}" for r in bracket["rungs"])
        lines.append(f"  bracket {bracket['bracket']}: {rungs}   (configurations × epochs)")
    size = plan.description["bytes"]
    lines.append(
        f"  disk {size['cache'] / 1e6:,.0f} MB of activations and at most "
        f"{size['checkpoints'] / 1e6:,.0f} MB of checkpoints; weights: {config.weights_used}"
    )
    return "\n".join(lines)


def minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


@dataclass(frozen=True)
class Winner:
    """The finished model with its answers: probabilities (n, k), ``features`` of every image."""

    model: Any
    temperature: float
    threshold: float | None
    val: np.ndarray
    test_before: np.ndarray
    test: np.ndarray
    features: np.ndarray


def finish_model(
    study: Study, spec: StudySpec, scan: Scan, split: Split, console: Console
) -> Winner:
    """The best trial as one whole model, calibrated on validation.

    The logits are first moved back from the balanced classes to the training data's own,
    then divided by a temperature; both are part of the model.
    """
    trainer = Trainer(spec, float(study.best.params["width"]))
    assert scan.pixels is not None
    rows = {name: split.rows(name) for name in ("val", "test")}
    targets = scan.dataset.targets
    counts = np.bincount(targets[spec.train_rows], minlength=spec.n_classes)
    balanced = np.full_like(counts, counts.max()) if spec.balance != "none" else counts
    shift = prior_shift(counts, balanced)
    head_shift = np.array([shift[1] - shift[0]]) if spec.n_classes == 2 else shift
    model = trainer.best_model(study.best.params, study.checkpoint, bias_shift=head_shift)
    logits = tensorflow_engine(cut_logits(model))
    answers = {}
    for done, (name, part) in enumerate(rows.items()):
        console.progress("predicting", done, len(rows))
        blocks = [
            logits(np.asarray(scan.pixels[part[i : i + 32]], np.float32))[0]
            for i in range(0, len(part), 32)
        ]
        answers[name] = np.concatenate(blocks)
    console.progress("predicting", len(rows), len(rows))
    temperature = fit_temperature(answers["val"], targets[rows["val"]])
    final = trainer.best_model(study.best.params, study.checkpoint, temperature, head_shift)
    val = apply_calibration(answers["val"], temperature)
    threshold = None
    if spec.n_classes == 2:
        threshold = choose_threshold(targets[rows["val"]] == 1, val[:, 1])
    unshifted = answers["test"] - head_shift
    features = trainer.activations.read(0, 0, np.arange(len(targets)))
    return Winner(
        model=final,
        temperature=temperature,
        threshold=threshold,
        val=val,
        test_before=probabilities_of(unshifted),
        test=apply_calibration(answers["test"], temperature),
        features=features,
    )


def evaluate_winner(
    winner: Winner,
    scan: Scan,
    split: Split,
    config: SearchConfig,
    folder: Path,
    journal: Journal,
    group_kind: str,
    console: Console,
) -> dict[str, Any]:
    """The test set, once: the "evaluation" and "baselines" parts, and predictions.csv."""
    dataset = scan.dataset
    test, val = split.rows("test"), split.rows("val")
    targets = dataset.targets
    names = [dataset.samples[row].image for row in test]
    used = count_test_evaluations(folder) + 1
    attributes = sorted({key for row in test for key in dataset.samples[row].attributes})
    without = np.isin(test, rows_without_twins(split))
    console.progress("looking for wrong labels", 0, 1)
    rest, p_rest = predict_out_of_fold(scan, split, winner.features, config.seed)
    console.progress("looking for wrong labels", 1, 1)
    parts = evaluate_model(
        classes=dataset.classes,
        positive=dataset.positive,
        y_val=targets[val],
        p_val=winner.val,
        y_test=targets[test],
        p_test=winner.test,
        p_test_before=winner.test_before,
        images_test=names,
        threshold=winner.threshold,
        groups_test=split.group[test],
        group_kind=group_kind,
        patients_test=patient_codes([dataset.samples[row].group for row in test]),
        temperature=winner.temperature,
        without_twins=without,
        attributes={
            k: [dataset.samples[row].attributes.get(k) for row in test] for k in attributes
        },
        baselines=all_baselines(scan, split, features=winner.features),
        out_of_sample=([dataset.samples[row].image for row in rest], targets[rest], p_rest),
        test_evaluations=used,
        seed=config.seed,
        progress=console.progress,
    )
    journal.append(
        "evaluated", on="test", images=len(test), metrics=parts["evaluation"]["test"]["metrics"]
    )
    for name, rows, p in (
        ("predictions.csv", test, winner.test),
        ("predictions_val.csv", val, winner.val),
    ):
        guesses = predict_classes(p, winner.threshold, 1)
        write_probabilities(
            folder / name,
            [dataset.samples[row].image for row in rows],
            [dataset.samples[row].label for row in rows],
            [dataset.classes[guess] for guess in guesses],
            p,
            dataset.classes,
        )
    return parts


def patient_codes(patients: Sequence[str | None]) -> np.ndarray | None:
    """Patients as 0 … P-1, int (n,); None if one of them is unknown."""
    known = [patient for patient in patients if patient]
    return np.unique(known, return_inverse=True)[1] if len(known) == len(patients) else None


def export_winner(
    winner: Winner,
    scan: Scan,
    split: Split,
    config: SearchConfig,
    folder: Path,
    parts: dict[str, Any],
    console: Console,
) -> tuple[Predictor, dict[str, Any]]:
    """model.keras and model/ with its guards, proved equal in a process of its own."""
    dataset = scan.dataset
    test, train, val = (split.rows(name) for name in ("test", "train", "val"))
    steps = 5
    console.progress("exporting the model", 0, steps)
    part = folder / "model.part.keras"
    winner.model.save(part)
    os.replace(part, folder / "model.keras")
    metrics = parts["evaluation"]["test"]["metrics"]
    info = ModelInfo(
        name=folder.name,
        classes=dataset.classes,
        positive=dataset.positive,
        threshold=0.5 if winner.threshold is None else winner.threshold,
        temperature=winner.temperature,
        image_size=config.image_size,
        headline={name: metrics[name] for name in ("roc_auc", "balanced_accuracy", "accuracy")},
        detail={"data": scan.digest, "split": split.digest, "weights": config.weights_used},
    )
    export_saved_model(winner.model, info, folder / "model")
    console.progress("exporting the model", 1, steps)
    predictor = load(folder / "model")
    assert scan.pixels is not None
    seen = predictor.describe(TakeRows(scan.pixels, train))
    console.progress("exporting the model", 2, steps)
    guards = fit_guards(
        seen.features,
        seen.statistics,
        scan.thumbnails[train],
        [scan.facts[row]["sha256"] for row in train],
        winner.val,
        dataset.targets[val],
        groups_train=split.group[train],
        seed=config.seed,
    )
    add_guards(folder / "model", guards)
    console.progress("exporting the model", 3, steps)
    some = test[:PROOF_IMAGES]
    proofs = prove_model(
        folder / "model", TestSet(np.asarray(scan.pixels[some]), winner.test[: len(some)])
    )
    console.progress("exporting the model", 4, steps)
    latency = []
    for row in test[:64]:
        started = time.perf_counter()
        predictor.engine.run(np.asarray(scan.pixels[row : row + 1]))
        latency.append(1000 * (time.perf_counter() - started))
    console.progress("exporting the model", 5, steps)
    cost = {
        "latency": {
            "p50_ms": round(float(np.quantile(latency, 0.5)), 2),
            "p95_ms": round(float(np.quantile(latency, 0.95)), 2),
        },
        "images_per_second": round(1000 / float(np.median(latency)), 1),
        "model_mb": round(measure_folder(folder / "model") / 1e6, 2),
        "exports": [
            {
                "format": name,
                "mb": round(measure_folder(folder / "model", FILES.get(name, "*")) / 1e6, 2),
                "parity": proof.to_json(),
            }
            for name, proof in proofs.items()
        ],
    }
    return load(folder / "model"), cost


class TakeRows:
    """Some rows of a memory map, read only when they are sliced."""

    def __init__(self, pixels: np.ndarray, rows: np.ndarray) -> None:
        self.pixels, self.rows = pixels, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, part: slice) -> np.ndarray:
        return np.asarray(self.pixels[self.rows[part]])


def probe_winner(
    winner: Winner,
    predictor: Predictor,
    scan: Scan,
    split: Split,
    config: SearchConfig,
    console: Console,
) -> dict[str, Any]:
    """Robustness and saliency: what the model does with worse images, and where it looks."""
    assert scan.pixels is not None
    test = split.rows("test")
    targets = scan.dataset.targets
    pixels = TakeRows(scan.pixels, test)
    robustness = evaluate_robustness(
        lambda batch: predictor.describe(batch).probabilities,
        pixels,  # type: ignore[arg-type]
        targets[test],
        winner.threshold,
        split.group[test],
        config.seed,
        progress=console.progress,
    )
    console.lap("robustness")
    chosen = np.random.default_rng(config.seed).permutation(test)[:SALIENCY_IMAGES]
    console.progress("looking at what the model looks at", 0, 1)
    saliency = check_saliency(
        winner.model, np.asarray(scan.pixels[np.sort(chosen)]), seed=config.seed
    )
    console.progress("looking at what the model looks at", 1, 1)
    console.lap("saliency")
    return {"robustness": robustness, "saliency": saliency}


def draw_pictures(
    scan: Scan,
    split: Split,
    winner: Winner,
    report: dict[str, Any],
    folder: Path,
    config: SearchConfig,
) -> None:
    """Write the report's pictures and put their names where the report has room for them."""
    assert scan.pixels is not None
    pictures = folder / "pictures"
    row_of = {sample.image: row for row, sample in enumerate(scan.dataset.samples)}

    def picture(row: int) -> str:
        path = pictures / f"{row:06d}.jpg"
        if not path.exists():
            write_picture(np.asarray(scan.pixels[row]), path, PICTURE_SIDE)
        return path.name

    draw = np.random.default_rng(config.seed)
    grid = {}
    for index, name in enumerate(scan.dataset.classes):
        rows = np.flatnonzero(scan.dataset.targets == index)
        chosen = np.sort(draw.choice(rows, min(GRID_IMAGES, len(rows)), replace=False))
        grid[name] = [picture(int(row)) for row in chosen]
    report["dataset"]["grid"] = grid
    for pair in report["audit"].get("twins", {}).get("pairs", []):
        pair["picture_a"], pair["picture_b"] = (
            picture(row_of[pair["a"]]),
            picture(row_of[pair["b"]]),
        )
    evaluation = report["evaluation"]
    cases = [*evaluation["mistakes"], *evaluation["label_suspects"]]
    explained = [case for group in evaluation["examples"].values() for case in group]
    explained += evaluation["mistakes"]
    for case in [*cases, *explained]:
        case["picture"] = picture(row_of[case["image"]])
    names = {case["image"]: case["predicted"] for case in explained}
    if not names:
        return
    rows = np.array([row_of[name] for name in names])
    pixels = np.asarray(scan.pixels[rows])
    classes = list(scan.dataset.classes)
    guesses = np.array([classes.index(guess) for guess in names.values()])
    for index in np.unique(guesses):
        at = np.flatnonzero(guesses == index)
        for row, image, heat in zip(
            rows[at], pixels[at], grad_cam(winner.model, pixels[at], int(index)), strict=True
        ):
            path = pictures / f"{row:06d}-heat.jpg"
            write_picture(overlay(image, heat), path, PICTURE_SIDE)
    for case in explained:
        case["saliency"] = f"{row_of[case['image']]:06d}-heat.jpg"


def peak_memory_mb() -> dict[str, float]:
    """The largest resident sizes so far, of this process and of its largest child."""
    return {
        "driver": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
        "worker": round(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024, 1),
    }


def describe_search(
    study: Study, plan: SearchPlan, detail: dict[str, Any], winner: Winner
) -> dict[str, Any]:
    """The report's "search" part."""
    summary = summarise_study(study, describe_space(plan.study.make_oracle().get_space()))
    depth = int(study.best.params["fine_tune_depth"])
    network = plan.networks[float(study.best.params["width"])]
    head = sum(
        int(np.prod(weight.shape))
        for layer in winner.model.layers
        if layer.name in ("hidden", "logits")
        for weight in layer.weights
    )
    body = network.trained[depth] - network.trained[0]
    summary["best"] |= {
        "parameters": int(winner.model.count_params()),
        "trainable_parameters": head + body,
        "macs": count_macs(winner.model),
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


def count_macs(model: Any) -> int:
    """Multiply-accumulates of one image through the convolutions and dense layers."""
    total = 0
    for layer in model.layers:
        kernel = getattr(layer, "kernel", None)
        if kernel is not None:
            # Each weight is used once for every position of its output.
            positions = (
                int(np.prod(layer.output.shape[1:-1])) if len(layer.output.shape) == 4 else 1
            )
            total += int(np.prod(kernel.shape)) * positions
    return total
