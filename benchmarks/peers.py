"""automl beside what else there is: same images, same splits, same budgets, scored by one rule.

    KERAS_HOME=… python benchmarks/peers.py DATA --out DIR [--peers ours,keras_tuner]
        [--budgets 5,15,45] [--splits grouped,rows,fold1,…,fold5] [--seeds 0]
        [--python autogluon=ENV/bin/python --python ludwig=ENV/bin/python …]

DATA is the folder of Kaggle's jakeshbohaju/brain-tumor. ``grouped`` is automl's split, which
keeps near-copies together; ``rows`` the student project's: rows of the CSV in order, 80/10/10;
``fold1`` to ``fold5`` test a fifth of the groups each, all images once.
Every peer runs in a process of its own (peers/run_*.py says how each was written) that gets no
label of a test image, and has to end by itself within its budget. DIR keeps
``SPLIT-PEER-BUDGET-SEED.csv`` (image, label, probability), a ``.json`` with what it took and a
``.log`` of what it told its user; what is there is not run again. ``--score`` only prints the
tables.

A budget is the whole command's: start, reading, search, answers. Peers without one (fast,
balanced, best, nearest, logistic) run once. ``disturbed`` is the share of the cores' time that
others took.
"""

import argparse
import csv
import json
import os
import re
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from sklearn.model_selection import StratifiedGroupKFold

from automl.config import SearchConfig
from automl.data.pixels import scan_images
from automl.data.sources import load_dataset
from automl.data.split import (
    divide,
    finish_split,
    make_split,
    merge_groups,
    rows_without_twins,
    write_split,
)
from automl.data.twins import find_twins
from automl.evaluation.curves import GRID, curve_bands
from automl.evaluation.intervals import Interval, bootstrap_difference, bootstrap_metrics

ROOT = Path(__file__).parents[1]
SCRIPTS = Path(__file__).parent / "peers"
IMAGE_SIZE = 160
FOLDS = tuple(f"fold{number}" for number in range(1, 6))
# A peer that is not back by then will not be.
PATIENCE_SHARE, PATIENCE_SECONDS = 1.5, 300.0
SAMPLING_SECONDS = 1.0
LEAKS = re.compile(r"\bleak|duplicate|near-cop|(pairs of|have a) twin|identical", re.IGNORECASE)
WARNS = re.compile(r"warn|error:|caution", re.IGNORECASE)
ERRORS = re.compile(r"^(?:(?:[\w.]+\.)?\w*(?:Error|Exception)\b|error:).*", re.MULTILINE)
COLUMNS = {
    "roc_auc": "ROC AUC",
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "sensitivity_at_95": "sensitivity at 95 % specificity",
    "brier": "Brier",
    "ece": "ECE",
}


@dataclass(frozen=True)
class Peer:
    """``script`` and its arguments; None is automl's own command with ``options``.

    ``given_by`` names the peer whose script gives these answers beside its own.
    """

    title: str
    script: tuple[str, ...] | None
    budgeted: bool = True
    given_by: str | None = None
    options: tuple[str, ...] = ()

    @property
    def is_ours(self) -> bool:
        return self.script is None and self.given_by is None


PEERS = {
    "ours": Peer("automl", None),
    "balanced": Peer(
        "automl, preset balanced", None, budgeted=False, options=("--preset", "balanced")
    ),
    "fast": Peer("automl, preset fast", None, budgeted=False, options=("--preset", "fast")),
    "best": Peer("automl, preset best", None, budgeted=False, options=("--preset", "best")),
    "student_as_it_was": Peer("the student project, as it was", None, given_by="student"),
    "student": Peer("the student project, its model asked properly", ("run_student.py",)),
    "keras_tuner": Peer("KerasTuner Hyperband", ("run_keras_tuner.py",)),
    "autokeras": Peer("AutoKeras", ("run_autokeras.py",)),
    "autokeras_mobilenet": Peer("AutoKeras, our backbone", ("run_autokeras.py", "mobilenet")),
    "ludwig": Peer("Ludwig, our backbone", ("run_ludwig.py",)),
    "autogluon": Peer("AutoGluon MultiModal, our backbone", ("run_autogluon.py",)),
    "nearest": Peer("1-NN on thumbnails", ("run_nearest.py",), budgeted=False),
    "logistic": Peer("logistic regression, frozen features", ("run_logistic.py",), budgeted=False),
}


@dataclass(frozen=True)
class Images:
    """All images in automl's order, and the parts of each split.

    ``groups`` int (n,): near-copies have equal numbers. ``alone`` names the test rows that
    have no relative in train or val, by split.
    """

    names: list[str]
    paths: list[str]
    labels: np.ndarray
    groups: np.ndarray
    parts: dict[str, np.ndarray]
    alone: dict[str, np.ndarray]
    leaking_pairs: dict[str, int]


def prepare_images(data: Path, out: Path, seed: int) -> Images:
    """Read the data, find the near-copies, and write the splits for automl's command."""
    config = SearchConfig(data=str(data), seed=seed)
    scan = scan_images(load_dataset(config), None, out / "cache")
    dataset, twins = scan.dataset, find_twins(scan)
    splits = {"grouped": make_split(scan, twins, config)}
    with open(next(data.glob("*.csv")), newline="", encoding="utf-8") as file:
        order = [row["Image"] for row in csv.DictReader(file)]
    n = len(order)
    where = {
        name: "train" if row < 0.8 * n else "val" if row < 0.9 * n else "test"
        for row, name in enumerate(order)
    }
    part = np.array([where[sample.path.stem] for sample in dataset.samples], dtype=object)
    groups = merge_groups(dataset, twins)
    splits["rows"] = finish_split(dataset, twins, part, groups, "file", 0)
    folds = StratifiedGroupKFold(len(FOLDS), shuffle=True, random_state=seed)
    shares = {"train": 1 - config.val_fraction, "val": config.val_fraction}
    for name, (_, rows) in zip(FOLDS, folds.split(groups, dataset.targets, groups), strict=True):
        part = np.full(n, "train", dtype=object)
        part[rows] = "test"
        part = divide(dataset, groups, part, shares, seed)
        splits[name] = finish_split(dataset, twins, part, groups, "file", seed)
    for name, split in splits.items():
        write_split(split, dataset, out / f"{name}.csv")
    return Images(
        names=[sample.image for sample in dataset.samples],
        paths=[str(sample.path) for sample in dataset.samples],
        labels=dataset.targets,
        groups=groups,
        parts={name: split.part for name, split in splits.items()},
        alone={name: rows_without_twins(split) for name, split in splits.items()},
        leaking_pairs={name: split.leaking_pairs for name, split in splits.items()},
    )


def write_backbone(out: Path) -> Path:
    """MobileNetV2's ImageNet weights as plain arrays, for peers that have no Keras.

    Layer i of 52 in order: ``kernel_i`` (out, in, h, w), and what BatchNorm makes of its result
    in inference mode, ``slope_i`` · x + ``shift_i``.
    """
    import h5py

    path = out / "backbone.npz"
    if path.exists():
        return path
    home = Path(os.environ.get("KERAS_HOME", Path.home() / ".keras"))
    name = f"mobilenet_v2_weights_tf_dim_ordering_tf_kernels_1.0_{IMAGE_SIZE}_no_top.h5"
    arrays: dict[str, np.ndarray] = {}
    kernels = norms = 0
    with h5py.File(home / "models" / name) as file:
        for layer in file.attrs["layer_names"]:
            group = file[layer]
            values = {
                str(weight).split("/")[-1].split(":")[0]: np.asarray(group[weight])
                for weight in group.attrs["weight_names"]
            }
            if "gamma" in values:
                # Keras' MobileNetV2 has ε = 0.001.
                slope = values["gamma"] / np.sqrt(values["moving_variance"] + 1e-3)
                arrays[f"slope_{norms}"] = slope
                arrays[f"shift_{norms}"] = values["beta"] - slope * values["moving_mean"]
                norms += 1
            elif "kernel" in values or "depthwise_kernel" in values:
                depthwise = "depthwise" in str(layer)
                (kernel,) = values.values()
                axes = (2, 3, 0, 1) if depthwise else (3, 2, 0, 1)
                arrays[f"kernel_{kernels}"] = kernel.transpose(axes)
                kernels += 1
    np.savez(path, **arrays)
    return path


def write_job(
    folder: Path, images: Images, split: str, budget: float, seed: int, backbone: Path
) -> None:
    """Everything a peer may know; see peers/job.py."""
    with open(folder / "images.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "split", "label"])
        for path, part, label in zip(images.paths, images.parts[split], images.labels, strict=True):
            writer.writerow([path, part, "" if part == "test" else label])
    settings = {
        "began": time.time(),
        "budget": budget,
        "seed": seed,
        "image_size": IMAGE_SIZE,
        "backbone": str(backbone),
    }
    (folder / "job.json").write_text(json.dumps(settings), encoding="utf-8")


def our_command(data: Path, split: Path, seed: int, more: list[str]) -> list:
    """Our command as a user gives it, from an empty cache."""
    return [
        sys.executable, ROOT / "run_search.py", "--data", data, "--split", split, "--seed", seed,
        "--no-tracking", "--out", "runs", "--name", "run", "--cache-dir", "cache", *more,
    ]  # fmt: skip


def our_answers(folder: Path, began: float) -> tuple[dict[str, float], dict[str, Any]]:
    """Probability of class 1 by image, and notes, from a finished run's folder."""
    run = folder / "runs" / "run"
    report = json.loads((run / "report.json").read_text(encoding="utf-8"))
    with open(run / "predictions.csv", newline="", encoding="utf-8") as file:
        answers = {row["image"]: float(row["probability_1"]) for row in csv.DictReader(file)}
    lines = (run / "journal.jsonl").read_text(encoding="utf-8").splitlines()
    ended = [json.loads(line) for line in lines if '"event":"trial_ended"' in line]
    best = next(e for e in ended if e["trial"] == report["search"]["best"]["trial"])
    return answers, {
        "seconds_to_best": best["time"] - began,
        "threshold": report["evaluation"]["test"]["threshold"],
        "val_score": best["score"],
        "trials": len(ended),
        "epochs": report["search"]["epochs"],
        "findings": [
            finding["title"]
            for finding in report["audit"]["findings"]
            if finding["severity"] != "info"
        ],
    }


def measure(command: list, folder: Path, log: Path, patience: float) -> dict[str, Any]:
    """Run ``command`` to its end: seconds, peak MB, exit code, share taken by others.

    Memory is the sum over its processes of what each has for itself and its part of what they
    share (PSS), looked at every second.
    """
    cores = len(os.sched_getaffinity(0))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "2"}
    environment |= {"HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
    before, own, began = machine_seconds(), child_seconds(), time.time()
    peak = 0
    with open(log, "w", encoding="utf-8") as file:
        process = subprocess.Popen(
            [str(part) for part in command],
            cwd=folder,
            env=environment,
            stdout=file,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            while process.poll() is None:
                peak = max(peak, memory_of(process.pid))
                if time.time() - began > patience:
                    os.killpg(process.pid, signal.SIGKILL)
                time.sleep(SAMPLING_SECONDS)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    seconds = time.time() - began
    others = machine_seconds() - before - (child_seconds() - own)
    return {
        "began": began,
        "seconds": seconds,
        "peak_mb": peak / 1e6,
        "exit_code": process.returncode,
        "disturbed": max(0.0, others / (seconds * cores)),
    }


def machine_seconds() -> float:
    """Processor time that all processes have had, and that was taken from this machine."""
    times = psutil.cpu_times()
    return sum(times) - times.idle - times.iowait - times.guest - times.guest_nice


def child_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def memory_of(pid: int) -> int:
    """Bytes of a process and all below it, 0 if it is gone."""
    total = 0
    try:
        family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0
    for process in family:
        try:
            total += process.memory_full_info().pss
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return total


def run_peer(
    name: str, images: Images, split: str, minutes: float, seed: int, options: argparse.Namespace
) -> None:
    """One peer, one budget, one split: writes its CSV, or a ``.json`` that says why not."""
    peer = PEERS[name]
    stem = stem_of(name, split, minutes, seed)
    folder = options.out / "work" / stem
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    budget = 60 * minutes if peer.budgeted else 3600.0
    write_job(folder, images, split, budget, seed, write_backbone(options.out))
    if peer.is_ours:
        more = [*peer.options, *shlex.split(options.ours)]
        if peer.budgeted:
            more += ["--budget", f"{budget:.0f}s"]
        command = our_command(options.data, options.out / f"{split}.csv", seed, more)
    else:
        script, *arguments = peer.script
        python = options.python.get(name, sys.executable)
        command = [python, SCRIPTS / script, folder, *arguments]
    log = options.out / f"{stem}.log"
    taken = measure(command, folder, log, PATIENCE_SHARE * budget + PATIENCE_SECONDS)
    text = log.read_text(encoding="utf-8", errors="replace")
    taken |= {"peer": name, "split": split, "minutes": minutes, "seed": seed} | told(text)
    if taken["exit_code"] != 0:
        errors = ERRORS.findall(text)
        taken["error"] = errors[-1] if errors else f"exit code {taken['exit_code']}"
        write_json(options.out / f"{stem}.json", taken)
    elif peer.is_ours:
        answers, notes = our_answers(folder, taken["began"])
        write_json(options.out / f"{stem}.json", taken | notes)
        write_answers(options.out / f"{stem}.csv", images, split, answers)
    else:
        for path in sorted(folder.glob("answers*.csv")):
            second = path.stem.removeprefix("answers")
            notes = json.loads((folder / f"notes{second}.json").read_text(encoding="utf-8"))
            with open(path, newline="", encoding="utf-8") as file:
                by_path = {row["path"]: float(row["probability"]) for row in csv.DictReader(file)}
            answers = {
                image: by_path[path_]
                for image, path_ in zip(images.names, images.paths, strict=True)
                if path_ in by_path
            }
            target = stem_of(name + second, split, minutes, seed)
            write_json(options.out / f"{target}.json", taken | {"peer": name + second} | notes)
            write_answers(options.out / f"{target}.csv", images, split, answers)
    if not options.keep:
        shutil.rmtree(folder)


def stem_of(name: str, split: str, minutes: float, seed: int) -> str:
    budget = f"{minutes:g}m" if PEERS[name].budgeted else "any"
    return f"{split}-{name}-{budget}-{seed}"


def told(text: str) -> dict[str, list[str]]:
    """What the command told its user: lines about leaks, and all warnings (the first 20)."""
    lines = [line.strip() for line in text.replace("\r", "\n").splitlines()]
    return {
        "about_leaks": [line for line in lines if LEAKS.search(line)],
        "warnings": [line for line in lines if WARNS.search(line)][:20],
    }


def write_answers(path: Path, images: Images, split: str, answers: Mapping[str, float]) -> None:
    temporary = path.with_suffix(".tmp")
    with open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "label", "probability"])
        for row in np.flatnonzero(images.parts[split] == "test"):
            name = images.names[row]
            writer.writerow([name, images.labels[row], answers[name]])
    os.replace(temporary, path)


def write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1, default=float) + "\n", encoding="utf-8")


@dataclass(frozen=True)
class Result:
    """One peer's answers to a split's test images: ``probabilities`` (m,) in ``rows``' order."""

    peer: Peer
    notes: dict[str, Any]
    rows: np.ndarray
    probabilities: np.ndarray

    @property
    def threshold(self) -> float:
        """Its own where it chose one on validation, else one half."""
        return float(self.notes.get("threshold") or 0.5)

    @property
    def budget(self) -> str:
        """Minutes, for a table."""
        return f"{self.notes['minutes']:g}" if self.peer.budgeted else "–"

    @property
    def both(self) -> np.ndarray:
        return np.column_stack([1 - self.probabilities, self.probabilities])

    @property
    def labels(self) -> np.ndarray:
        """The answers as probabilities of 0 and 1, (m, 2)."""
        positive = (self.probabilities >= self.threshold).astype(float)
        return np.column_stack([1 - positive, positive])


def read_results(out: Path, images: Images, split: str) -> Iterator[Result]:
    """The results of a split that are there, in the order of PEERS, then of budgets."""
    place = {name: row for row, name in enumerate(images.names)}
    found = []
    for path in out.glob(f"{split}-*.json"):
        notes = json.loads(path.read_text(encoding="utf-8"))
        table = path.with_suffix(".csv")
        answers = {}
        if table.exists():
            with open(table, newline="", encoding="utf-8") as file:
                answers = {
                    place[row["image"]]: float(row["probability"]) for row in csv.DictReader(file)
                }
        rows = np.array(sorted(answers), dtype=np.int64)
        if answers and not np.array_equal(rows, np.flatnonzero(images.parts[split] == "test")):
            sys.exit(
                f"{table} is of another split. Give another --out, or the --split-seed it had."
            )
        probabilities = np.array([answers[row] for row in rows])
        found.append(Result(PEERS[notes["peer"]], notes, rows, probabilities))
    order = list(PEERS)
    yield from sorted(
        found, key=lambda r: (order.index(r.notes["peer"]), r.notes["minutes"], r.notes["seed"])
    )


def score(result: Result, images: Images, rows: np.ndarray | None = None) -> dict[str, Interval]:
    """automl's own metrics and intervals, resampling groups of near-copies."""
    chosen = np.isin(result.rows, result.rows if rows is None else rows)
    y, p = images.labels[result.rows[chosen]], result.both[chosen]
    groups = images.groups[result.rows[chosen]]
    values = bootstrap_metrics(y, p, result.threshold, groups)
    curve = curve_bands(y, p, groups)["roc"]
    if curve is not None:
        place = int(np.flatnonzero(np.isclose(GRID, 0.05))[0])
        values["sensitivity_at_95"] = {
            "value": float(curve["tpr"][place]),
            "low": float(curve["low"][place]),
            "high": float(curve["high"][place]),
        }
    return values


def show(interval: Interval, sign: str = "") -> str:
    value, low, high = (interval[key] for key in ("value", "low", "high"))
    return f"{value:{sign}.3f} ({low:{sign}.3f} to {high:{sign}.3f})"


def show_difference(interval: Interval) -> str:
    apart = interval["low"] > 0 or interval["high"] < 0
    return show(interval, "+") + (" *" if apart else "")


# Each result's metrics, by peer and budget.
Spread = defaultdict[tuple[str, str], list[dict[str, Interval]]]


def print_tables(out: Path, images: Images, split: str) -> Spread:
    """The tables of one split; returns what they show."""
    spread: Spread = defaultdict(list)
    results = list(read_results(out, images, split))
    if not results:
        return spread
    n_test = int((images.parts[split] == "test").sum())
    alone = images.alone[split]
    leaks = images.leaking_pairs[split]
    print(f"\n## {split}: {n_test} test images, {leaks} pairs of near-copies across the split\n")
    header = ["", "minutes", *COLUMNS.values()]
    if leaks:
        header.append(f"accuracy, the {len(alone)} without relatives")
    header += ["s to the best", "s in all", "MB", "disturbed", "told about leaks"]
    print_header(header)
    seeds = {result.notes["seed"] for result in results}
    for result in results:
        notes = result.notes
        if not len(result.rows):
            print_row(
                [result.peer.title, result.budget, f"failed: {notes.get('error', 'cut off')[:150]}"]
            )
            continue
        values = score(result, images)
        spread[result.peer.title, result.budget].append(values)
        title = result.peer.title + (f", seed {notes['seed']}" if len(seeds) > 1 else "")
        cells = [title, result.budget, *(show(values[name]) for name in COLUMNS)]
        if leaks:
            cells.append(show(score(result, images, alone)["accuracy"]))
        about = notes["about_leaks"]
        cells += [
            f"{notes['seconds_to_best']:.0f}",
            f"{notes['seconds']:.0f}",
            f"{notes['peak_mb']:,.0f}",
            f"{100 * notes['disturbed']:.0f} %",
            about[0][:160] if about else "nothing",
        ]
        print_row(cells)
    print_spread(spread, "seeds")
    print_differences(results, images, split)
    return spread


def print_spread(spread: Spread, of: str) -> None:
    """A row for each peer and budget that has several results."""
    for (title, budget), many in spread.items():
        if len(many) > 1:
            cells = [f"{title}: mean of {len(many)} {of} (lowest to highest)", budget]
            for name in COLUMNS:
                drawn = np.array([values[name]["value"] for values in many])
                cells.append(f"{drawn.mean():.3f} ({drawn.min():.3f} to {drawn.max():.3f})")
            print_row(cells)


def comparable(results: Iterable[Result]) -> Iterator[tuple[Result, Result, str]]:
    """Ours and each peer of the same budget and seed, with that budget."""
    answered = [result for result in results if len(result.rows)]
    for mine in (result for result in answered if result.peer.is_ours):
        for other in (result for result in answered if not result.peer.is_ours):
            same = mine.notes["minutes"] == other.notes["minutes"]
            same |= not (mine.peer.budgeted and other.peer.budgeted)
            if same and other.notes["seed"] == mine.notes["seed"]:
                yield mine, other, mine.budget if mine.peer.budgeted else other.budget


def print_differences(results: list[Result], images: Images, split: str) -> None:
    """Ours minus each peer, on the same replicates."""
    pairs = list(comparable(results))
    if not pairs:
        return
    print(f"\n### {split}: automl minus each, 95 % intervals (* without zero)\n")
    header = ["", "minus", "minutes", "seed", "ROC AUC", "accuracy", "balanced accuracy", "Brier"]
    print_header(header)
    for mine, other, budget in pairs:
        y, groups = images.labels[mine.rows], images.groups[mine.rows]
        difference = bootstrap_difference(
            y, mine.both, other.both, (mine.threshold, other.threshold), groups
        )
        cells = [mine.peer.title, other.peer.title, budget, str(mine.notes["seed"])]
        names = ("roc_auc", "accuracy", "balanced_accuracy", "brier")
        print_row(cells + [show_difference(difference[name]) for name in names])


def print_pooled(out: Path, images: Images, splits: list[str]) -> None:
    """Ours minus each peer on the images of all folds that both have, each judged by the model
    that had not seen its group. Models of several folds have no common ranking, so no ROC AUC.
    """
    found: dict[tuple[str, str, str, int], dict[str, tuple[Result, Result]]] = defaultdict(dict)
    for split in splits:
        for mine, other, budget in comparable(read_results(out, images, split)):
            key = mine.peer.title, other.peer.title, budget, mine.notes["seed"]
            found[key][split] = mine, other
    if not found:
        return
    print("\n## Folds together: automl minus each, 95 % intervals (* without zero)\n")
    header = ["", "minus", "minutes", "seed", "folds", "accuracy", "balanced accuracy", "Brier"]
    print_header(header)
    for key, pairs in found.items():
        difference = pool_differences(list(pairs.values()), images)
        cells = [*map(str, key), ", ".join(pairs)]
        names = ("accuracy", "balanced_accuracy", "brier")
        print_row(cells + [show_difference(difference[name]) for name in names])


def pool_differences(pairs: list[tuple[Result, Result]], images: Images) -> dict[str, Interval]:
    """First minus second, over the images of all ``pairs``, which must not overlap."""
    rows = np.concatenate([first.rows for first, _ in pairs])
    y, groups = images.labels[rows], images.groups[rows]
    both = [np.concatenate([pair[side].both for pair in pairs]) for side in (0, 1)]
    # Each fold has a threshold of its own; that of a label's probability is a half.
    labels = [np.concatenate([pair[side].labels for pair in pairs]) for side in (0, 1)]
    return {
        **bootstrap_difference(y, *labels, (0.5, 0.5), groups),
        "brier": bootstrap_difference(y, *both, (0.5, 0.5), groups)["brier"],
    }


def print_header(cells: list[str]) -> None:
    print_row(cells)
    print_row(["---"] * len(cells))


def print_row(cells: list[str]) -> None:
    print("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")


def main() -> None:
    # A benchmark that is ended takes its peer along.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    options = read_options()
    options.out.mkdir(parents=True, exist_ok=True)
    images = prepare_images(options.data, options.out, options.split_seed)
    for split in options.splits:
        for minutes in () if options.score else options.budgets:
            for seed in options.seeds:
                for name in options.peers:
                    stem = stem_of(name, split, minutes, seed)
                    if (options.out / f"{stem}.csv").exists():
                        continue
                    print(f"{time.strftime('%H:%M:%S')} {stem}", file=sys.stderr, flush=True)
                    run_peer(name, images, split, minutes, seed, options)
    folds: Spread = defaultdict(list)
    for split in options.splits:
        spread = print_tables(options.out, images, split)
        if split in FOLDS:
            for key, many in spread.items():
                folds[key] += many
    if folds:
        print("\n## All folds\n")
        print_header(["", "minutes", *COLUMNS.values()])
        print_spread(folds, "folds")
        print_pooled(options.out, images, [split for split in options.splits if split in FOLDS])


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="where results are kept")
    runnable = [name for name, peer in PEERS.items() if peer.given_by is None]
    parser.add_argument("--peers", default=",".join(runnable), help="of these, in this order")
    parser.add_argument("--budgets", default="5,15,45", help="minutes")
    parser.add_argument("--splits", default="grouped,rows")
    parser.add_argument("--seeds", default="0", help="of the searches; the split stays")
    parser.add_argument("--split-seed", type=int, default=0, help="of the grouped split")
    parser.add_argument("--cores", type=int, default=2, help="that all may use")
    parser.add_argument("--ours", default="", help="further options of our command")
    parser.add_argument("--python", action="append", default=[], metavar="PEER=PYTHON")
    parser.add_argument("--keep", action="store_true", help="keep the peers' working folders")
    parser.add_argument("--score", action="store_true", help="run nothing, print the tables")
    options = parser.parse_args()
    options.data, options.out = options.data.resolve(), options.out.resolve()
    for name, kind in (("peers", str), ("budgets", float), ("splits", str), ("seeds", int)):
        setattr(options, name, [kind(part) for part in getattr(options, name).split(",")])
    for name, known in (("peers", runnable), ("splits", ("grouped", "rows", *FOLDS))):
        for value in getattr(options, name):
            if value not in known:
                parser.error(f"--{name}: {value!r} is not known. Known: {', '.join(known)}.")
    options.python = dict(part.split("=", 1) for part in options.python)
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.cores])
    return options


if __name__ == "__main__":
    main()
