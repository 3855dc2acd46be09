"""The one straight path: data, audit, split, search, evaluation, export, report."""

import json
import os
import tempfile
import time
import uuid
from contextlib import nullcontext
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from automl.config import SearchConfig
from automl.console import Console, hush
from automl.data.audit import audit_dataset
from automl.data.images import ImageError, open_image
from automl.data.pictures import write_picture
from automl.data.pixels import scan_images
from automl.data.sources import cache_folder, load_dataset
from automl.data.split import divide_otherwise, make_split, write_split
from automl.data.twins import find_twins
from automl.errors import Interrupted, UsageError
from automl.folder import (
    open_folder,
    write_config,
    write_trials,
)
from automl.machine import describe_machine, environment, versions
from automl.records import Audit, Dataset, Run, Scan, Twins
from automl.reporting import study_file
from automl.search.worker import WorkerPool
from automl.tracking.journal import FILE_NAME, Journal
from automl.tracking.mlflow_sink import MlflowSink
from automl.tracking.mlflow_sync import choose_uri, describe, read_link
from automl.tracking.replay import redact
from automl.writing import write_json, write_text

# Longest side in pixels of a picture on the audit's page.
AUDIT_SIDE = 240


def run_search(
    config: SearchConfig,
    *,
    resume: bool = False,
    overwrite: bool = False,
    command: str | None = None,
    console: Console | None = None,
) -> Run:
    """From data to a report and a model, in the run folder ``config.out``/NAME.

    Raises:
        UsageError, DataError, WeightsError, SearchError, StorageError: see errors.py.
        Interrupted: Ctrl-C; all trials that ended are in the journal.
    """
    began = time.monotonic()
    console = console or Console(quiet=True)
    console.start_laps()
    dataset = load_dataset(config)
    console.lap("loading the data set")
    answers = None
    if config.study is not None:
        # Before anything is searched: a mistake in it should not show after hours.
        study_file.read_study(Path(config.study), dataset.classes)
        answers = Path(config.study).read_text(encoding="utf-8")
    uri = choose_uri(config.tracking_uri, Path(config.out)) if config.tracking else None
    folder = open_folder(config, dataset.name, resume=resume, overwrite=overwrite)
    sink = uri and MlflowSink(folder, uri, config.experiment, config.register, config.promote)
    with Journal(folder / FILE_NAME) as journal, sink or nullcontext():
        try:
            if answers is not None:
                write_text(folder / study_file.FILE_NAME, answers)
            return search_into(folder, config, dataset, journal, sink, began, command, console)
        except KeyboardInterrupt:
            close_session(journal, "interrupted")
            done = sum(event["event"] == "trial_ended" for event in journal.events)
            raise Interrupted(
                f"Interrupted; {done} finished trials are kept. Go on with: "
                f"{resume_command(command, folder)}"
            ) from None
        except BaseException:
            close_session(journal, "failed")
            raise


def search_into(
    folder: Path,
    config: SearchConfig,
    dataset: Dataset,
    journal: Journal,
    sink: MlflowSink | None,
    began: float,
    command: str | None,
    console: Console,
) -> Run:
    if (folder / "report.json").exists():
        console.say(f"{folder} is complete; nothing to resume.")
        # It may have been killed after its last file and before its last word.
        if close_session(journal, "done") and sink:
            sink.start()
            console.say(describe(sink.stop(), folder))
        return load_run(folder)
    address = sink.address if sink else config.tracking_uri and redact(config.tracking_uri)
    settings = {**config.to_json(), "tracking_uri": address}
    write_config(folder / "config.yaml", settings)
    cache = cache_folder(config)

    scan, twins = read_images(config, dataset, cache, console)
    split = make_split(scan, twins, config)
    other = None
    if config.compare_splits:
        other = divide_otherwise(scan.dataset, twins, split, config.seed)
    # The workers import the framework while the audit runs.
    pool = make_pool(config, scan, cache, folder / "config.yaml", folder / "worker.log", console)
    try:
        audit = audit_dataset(scan, twins, split, config)
        write_split(split, scan.dataset, folder / "split.csv")
        write_json(folder / "audit.json", audit.to_json())
        console.lap("split and audit")
        say_findings(audit, console)
        with hush():
            from automl.stages import evaluating, exporting, pictures, searching
        console.lap("loading TensorFlow")

        sizes = audit.summary["split"]
        begin = {
            "schema": 1,
            "run_id": uuid.uuid4().hex,
            "name": folder.name,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "command": command or "automl.search(...)",
            "config": settings,
            "dataset": {
                **{
                    key: audit.summary["dataset"][key]
                    for key in ("name", "images", "classes", "kind", "synthetic")
                },
                "digest": scan.digest,
                "split": {part: sizes[part] for part in ("train", "val", "test")},
                "split_digest": split.digest,
            },
            "versions": versions(),
            "machine": describe_machine(),
        }
        deadline = None
        if config.budget is not None:
            loading = console.seconds["loading TensorFlow"]
            images = len(scan.dataset.samples)
            deadline = began + searching.share_of_search(config, images, loading)
        study, plan, detail = searching.search_models(
            config, scan, split, folder, journal, pool,
            cache=cache, deadline=deadline, begin=begin, console=console,
            on_start=sink.start if sink else lambda: None,
        )  # fmt: skip
    finally:
        pool.shutdown()
    write_trials(folder / "trials.csv", study)
    searched = time.monotonic()
    console.lap("search")

    winner = evaluating.finish_model(study, plan.study.spec, scan, split, console)
    console.lap("predicting")
    group_kind = audit.summary["dataset"]["group_kind"]
    parts = evaluating.evaluate_winner(
        winner, scan, split, config, folder, journal, group_kind, console
    )
    console.lap("evaluation")
    predictor, cost = exporting.export_winner(winner, scan, split, config, folder, parts, console)
    console.lap("export")
    parts["evaluation"] |= evaluating.probe_winner(winner, predictor, scan, split, config, console)
    comparison = []
    if other is not None:
        from automl.comparison import compare_splits

        comparison = compare_splits(
            study, plan, parts["evaluation"]["test"]["metrics"], scan, split, other, config, folder,
            journal, console,
        )  # fmt: skip
        console.lap("comparing the splits")
    journal.append(
        "exported",
        format="saved_model",
        folder="model",
        digest=predictor.info.hashes["saved_model.pb"],
    )

    started = next(event for event in journal.events if event["event"] == "search_started")
    report = {
        "run": describe_run(started, config, journal, sink, scan),
        "dataset": {**audit.summary["dataset"], "digest": scan.digest},
        "audit": {
            "findings": [asdict(finding) for finding in audit.findings],
            **{key: audit.summary[key] for key in ("twins", "shortcuts", "one_nn")},
        },
        "split": {
            **sizes,
            "balance": describe_balance(sizes["classes"]["train"], config.balance),
            "comparison": comparison,
        },
        "search": searching.describe_search(study, plan, detail, winner),
        **parts,
        "cost": {
            **cost,
            "search_seconds": round(study.wall_seconds, 1),
            "evaluation_seconds": round(time.monotonic() - searched, 1),
            "peak_memory_mb": exporting.peak_memory_mb(),
            "disk_mb": round(exporting.measure_folder(folder) / 1e6, 1),
        },
        "environment": environment(),
    }
    pictures.draw_pictures(scan, split, winner, report, folder, config)
    console.lap("pictures")
    report["cost"] |= {
        "stages": spent_by_stage(console.seconds, report["search"]["stages"]),
        "total_seconds": round(time.monotonic() - began, 1),
    }
    run = write_report(folder, report)
    close_session(journal, "budget" if study.detail["stopped_by_budget"] else "done")
    if sink:
        console.say(describe(sink.stop(), folder))
    return run


def spent_by_stage(laps: dict[str, float], search: dict[str, float]) -> dict[str, float]:
    """Seconds by stage in their order; the search's own stages count all of its sessions."""
    spent: dict[str, float] = {}
    for name, seconds in laps.items():
        spent |= search if name == "search" else {name: round(seconds, 2)}
    return spent


def make_pool(
    config: SearchConfig, scan: Scan, cache: Path, run: Path | None, log: Path, console: Console
) -> Any:
    """Who runs the trials: processes here, or the workers of a Dask cluster.

    Args:
        run: a file in the run's folder that exists, or None if nothing will be trained.
        log: takes what worker processes on this machine print.

    Raises:
        UsageError: a cluster was asked for and Dask is not installed.
        ClusterError: the cluster cannot be reached, or none of its workers fits.
    """

    def listen(kind: str, *rest: Any) -> None:
        console.progress(*rest)

    if config.scheduler is None:
        return WorkerPool(
            config.workers, log, listen, config.trial_timeout, config.threads,
            lead=run is not None,
        )  # fmt: skip
    try:
        from automl.search.cluster import ClusterPool
    except ModuleNotFoundError as error:
        raise UsageError(
            f"--scheduler needs {error.name}: pip install 'automl[distributed]'."
        ) from error
    from automl.search.spec import PixelSource

    assert scan.pixels is not None and scan.pixels_path is not None
    pixels = PixelSource(scan.pixels_path, scan.pixels.shape, scan.digest)
    return ClusterPool(
        config.scheduler, pixels, cache, run,
        say=console.warn, listener=listen, timeout=config.trial_timeout, threads=config.threads,
    )  # fmt: skip


def read_images(
    config: SearchConfig, dataset: Dataset, cache: Path, console: Console
) -> tuple[Scan, Twins]:
    """One pass over the files, and which of them show the same."""
    scan = scan_images(dataset, config.image_size, cache, console.progress)
    console.lap("reading images")
    twins = find_twins(scan, config.twin_threshold, progress=console.progress)
    console.lap("looking for twins")
    return scan, twins


def audit_data(config: SearchConfig, console: Console | None = None) -> tuple[Dataset, Audit]:
    """The data section alone: no framework, no run folder."""
    console = console or Console(quiet=True)
    dataset = load_dataset(config)
    scan = scan_images(dataset, None, cache_folder(config), console.progress)
    twins = find_twins(scan, config.twin_threshold, progress=console.progress)
    split = make_split(scan, twins, config)
    return scan.dataset, audit_dataset(scan, twins, split, config)


def write_audit_page(dataset: Dataset, audit: Audit, path: Path) -> Path:
    """The audit as one HTML file, with the pictures of its pairs inside.

    Raises:
        StorageError: it cannot be written.
    """
    from automl.reporting.render import render_audit

    document = plain(audit.to_json())
    paths = {sample.image: sample.path for sample in dataset.samples}
    with tempfile.TemporaryDirectory() as folder:
        pairs = document["twins"]["pairs"]
        drawn = {}
        for number, name in enumerate(sorted({pair[end] for pair in pairs for end in "ab"})):
            try:
                pixels, _ = open_image(paths[name])
            except ImageError:  # gone since the scan: the page says "not kept"
                continue
            drawn[name] = write_picture(pixels, Path(folder, f"{number}.jpg"), AUDIT_SIDE).name
        for pair in pairs:
            pair["picture_a"], pair["picture_b"] = drawn.get(pair["a"]), drawn.get(pair["b"])
        return render_audit(document, dataset.name, path, Path(folder))


def plan_search(config: SearchConfig, console: Console | None = None) -> dict[str, Any]:
    """What a search would cost: the plan with its seconds and bytes; nothing is trained."""
    began = time.monotonic()
    console = console or Console(quiet=True)
    console.start_laps()
    dataset = load_dataset(config)
    cache = cache_folder(config)
    scan, twins = read_images(config, dataset, cache, console)
    split = make_split(scan, twins, config)
    console.lap("split and audit")
    with hush():
        from automl.search.plan import measure_filling
        from automl.stages import searching

    console.lap("loading TensorFlow")
    spec = searching.make_spec(config, scan, split, cache)
    pool = make_pool(config, scan, cache, None, Path(os.devnull), console)
    try:
        measuring = time.monotonic()
        filling = sum(
            searching.insist(pool.submit, measure_filling, spec, width) for width in config.width
        )
        deadline = None
        if config.budget is not None:
            loading = console.seconds["loading TensorFlow"]
            share = searching.share_of_search(config, len(scan.dataset.samples), loading)
            # As if the cache had been filled instead of measuring how long that takes.
            deadline = began + share + time.monotonic() - measuring - filling
        plan = searching.make_plan(
            config, spec, Path(config.out), pool, [], deadline, filling, console
        )
    finally:
        pool.shutdown()
    console.say(searching.plan_text(plan, config))
    return plan.description


def evaluate_run(
    folder: Path,
    data: str,
    mapping: str | None = None,
    console: Console | None = None,
    **columns: str,
) -> dict[str, Any]:
    """Score a finished run's model on another data set, into the run's report."""
    from automl.external import evaluate_external

    console = console or Console(quiet=True)
    run = load_run(folder)
    section = evaluate_external(run, data, mapping, console, columns)
    with Journal(folder / FILE_NAME) as journal:
        journal.append(
            "evaluated", on=section["name"], images=section["images"], metrics=section["metrics"]
        )
    external = [
        part
        for part in run.report["evaluation"].get("external", [])
        if part["name"] != section["name"]
    ]
    run.report["evaluation"]["external"] = [*external, section]
    write_report(folder, run.report)
    return section


def load_run(folder: Path | str) -> Run:
    """A finished run, from its folder.

    Raises:
        UsageError: it has no report.json.
    """
    path = Path(folder) / "report.json"
    if not path.exists():
        raise UsageError(
            f"{folder} has no report.json: its search did not end. Go on with --resume."
        )
    return Run(Path(folder), json.loads(path.read_text(encoding="utf-8")))


def write_report(folder: Path, parts: dict[str, Any]) -> Run:
    """report.json, report.html, model_card.md and the index of all runs.

    What the authors say comes from the folder's study.yaml, as it is now.
    """
    from automl.reporting.compare import write_index
    from automl.reporting.model_card import write_model_card
    from automl.reporting.page import build_report
    from automl.reporting.render import render_report

    path = folder / study_file.FILE_NAME
    study = study_file.read_study(path, parts["dataset"]["classes"]) if path.is_file() else {}
    report = build_report(plain({**parts, "study": study}))
    render_report(report, folder)
    write_model_card(report, folder)
    # Last, because it is what says that the run is complete.
    write_json(folder / "report.json", report)
    write_index(folder.parent)
    return Run(folder, report)


def plain(value: Any) -> Any:
    """``value`` with NumPy numbers, tuples and NaN as JSON has them."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not np.isfinite(value) else value


def describe_run(
    started: dict[str, Any],
    config: SearchConfig,
    journal: Journal,
    sink: MlflowSink | None,
    scan: Scan,
) -> dict[str, Any]:
    """The report's "run" part."""
    link = sink and read_link(sink.folder)
    sessions = sum(event["event"] == "session_started" for event in journal.events)
    weights = config.weights_used
    return {
        **{key: started[key] for key in ("name", "created", "command", "config")},
        "preset": config.preset,
        "seed": config.seed,
        "synthetic": scan.dataset.synthetic,
        "weights": weights if weights in ("imagenet", "none") else Path(weights).name,
        "resumed": sessions - 1,
        "mlflow": sink
        and {
            "tracking_uri": redact(sink.uri),
            "experiment": config.experiment,
            "run_id": link.run_id if link else None,
        },
        "research_use": True,
    }


def describe_balance(before: dict[str, int], method: str) -> dict[str, Any]:
    largest = max(before.values())
    after = dict.fromkeys(before, largest) if method == "oversample" else before
    return {"method": method, "before": before, "after": after}


def say_findings(audit: Audit, console: Console) -> None:
    for finding in audit.findings:
        if finding.severity != "info":
            console.say(f"{finding.severity}: {finding.title}")


def close_session(journal: Journal, reason: str) -> bool:
    """Write how the last session ended, if it is open; a full disk must not hide the first error.

    Returns whether it was open.
    """
    kinds = [e["event"] for e in journal.events if e["event"].startswith("session_")]
    if kinds[-1:] != ["session_started"]:
        return False
    try:
        journal.append("session_ended", reason=reason)
    except Exception:
        if reason != "failed":
            raise
    return True


def resume_command(command: str | None, folder: Path) -> str:
    command = command or "automl search"
    for word in (" --resume", " --overwrite"):
        command = command.replace(word, "")
    name = "" if "--name" in command else f" --name {folder.name}"
    return f"{command}{name} --resume"
