"""What is in a data set, what splits of it leak, and how well planted copies are found.

    python benchmarks/twins.py --data ../shared/data/brain-tumor

Prints tables and writes --out. ``--times`` measures the command ``automl audit`` instead, on
one core for the data as it is, on all cores for 20,000 files made of it.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from threadpoolctl import threadpool_limits

from automl.config import SearchConfig
from automl.data.audit import audit_dataset
from automl.data.pixels import scan_images
from automl.data.sources import load_dataset
from automl.data.split import (
    finish_split,
    leaking_pairs,
    make_split,
    merge_groups,
    rows_without_twins,
)
from automl.data.twins import find_twins
from automl.evaluation.baselines import predict_one_nearest_neighbour
from automl.records import Sample, Scan, Split, Twins

N_COPIES = 600
LARGE = 20_000


def change_brightness(image: Image.Image, random: np.random.Generator) -> Image.Image:
    factor = random.choice((0.9, 1.1))
    return Image.fromarray(np.clip(np.asarray(image) * factor, 0, 255).astype(np.uint8))


def resize(image: Image.Image, random: np.random.Generator) -> Image.Image:
    factor = random.uniform(0.5, 1.5)
    return image.resize(tuple(round(side * factor) for side in image.size))


def crop(image: Image.Image, random: np.random.Generator) -> Image.Image:
    x, y = (round(0.03 * side) for side in image.size)
    return image.crop((x, y, image.width - x, image.height - y))


# Each is saved as JPEG again: quality 70 where that is the change, else 90.
CHANGES: dict[str, Callable[[Image.Image, np.random.Generator], Image.Image]] = {
    "re-encoded": lambda image, random: image,
    "resized 50–150 %": resize,
    "brightness ±10 %": change_brightness,
    "flipped": lambda image, random: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    "rotated ±2°": lambda image, random: image.rotate(
        random.choice((-2, 2)), Image.Resampling.BICUBIC
    ),
    "cropped 3 %": crop,
}


def plant_copies(scan: Scan, folder: Path, seed: int) -> tuple[Scan, np.ndarray, np.ndarray]:
    """The scan with N_COPIES changed copies behind it; original's row and kind of each copy."""
    random = np.random.default_rng(seed)
    originals = random.permutation(len(scan.facts))[:N_COPIES]
    kinds = np.array(list(CHANGES))[np.arange(N_COPIES) % len(CHANGES)]
    samples = []
    for number, (row, kind) in enumerate(zip(originals, kinds, strict=True)):
        sample = scan.dataset.samples[row]
        path = folder / f"copy_{number:04d}.jpg"
        with Image.open(sample.path) as image:
            changed = CHANGES[kind](image.convert("RGB"), random)
        changed.save(path, quality=70 if kind == "re-encoded" else 90)
        samples.append(Sample(path.name, path, sample.label))
    copies = replace(scan.dataset, root=folder, samples=tuple(samples))
    planted = scan_images(copies, None, folder / "cache")
    both = replace(
        scan,
        dataset=replace(scan.dataset, samples=scan.dataset.samples + planted.dataset.samples),
        facts=scan.facts + planted.facts,
        thumbnails=np.concatenate([scan.thumbnails, planted.thumbnails]),
    )
    return both, originals, kinds


def score_copies(
    scan: Scan, alone: Twins, originals: np.ndarray, kinds: np.ndarray, threshold: float
) -> list[dict[str, Any]]:
    """Recall of each kind, and precision of the pairs that touch a copy of that kind.

    A pair is right if it joins a copy to its original or to the original's own twins (two
    copies: if their originals are the same image or twins).
    """
    n = len(alone.group)
    own = {(i, j) for i, j, _, _ in alone.pairs} | {(j, i) for i, j, _, _ in alone.pairs}
    source = np.concatenate([np.arange(n), originals])
    found = {kind: set() for kind in CHANGES}
    right = dict.fromkeys(CHANGES, 0)
    wrong = dict.fromkeys(CHANGES, 0)
    for i, j, _, _ in find_twins(scan, threshold).pairs:
        a, b = int(source[i]), int(source[j])
        for end, other in ((i, j), (j, i)):
            if end >= n:
                kind = str(kinds[end - n])
                good = a == b or (a, b) in own
                right[kind] += good
                wrong[kind] += not good
                if other == originals[end - n]:
                    found[kind].add(end)
    return [
        {
            "kind": kind,
            "copies": int(np.sum(kinds == kind)),
            "recall": len(found[kind]) / np.sum(kinds == kind),
            "pairs": right[kind] + wrong[kind],
            "precision": right[kind] / max(right[kind] + wrong[kind], 1),
        }
        for kind in CHANGES
    ]


def seed_split(scan: Scan, twins: Twins) -> Split:
    """The first 80 % of the CSV's rows train, the next 10 % validate, the last 10 % test."""
    number = [int("".join(filter(str.isdigit, Path(s.image).stem))) for s in scan.dataset.samples]
    rank = np.argsort(np.argsort(number)) / len(number)
    part = np.where(rank < 0.8, "train", np.where(rank < 0.9, "val", "test")).astype(object)
    return finish_split(scan.dataset, twins, part, merge_groups(scan.dataset, twins), "file", 0)


def describe_split(name: str, scan: Scan, twins: Twins, split: Split) -> dict[str, Any]:
    """Leaks of a split, and what the nearest neighbour scores under it."""
    train, test = split.rows("train"), split.rows("test")
    targets = scan.dataset.targets
    probabilities = predict_one_nearest_neighbour(
        scan.thumbnails[train], targets[train], scan.thumbnails[test], len(scan.dataset.classes)
    )
    right = probabilities.argmax(axis=1) == targets[test]
    clean = np.isin(test, rows_without_twins(split))
    into_test = [p for p in leaking_pairs(split.part, twins) if "test" in split.part[list(p[:2])]]
    return {
        "split": name,
        "leaking_pairs": split.leaking_pairs,
        "into_test": len(into_test),
        "test": len(test),
        "test_without_twins": int(clean.sum()),
        "one_nn": float(right.mean()),
        "one_nn_without_twins": float(right[clean].mean()),
        "one_nn_with_twins": float(right[~clean].mean()) if (~clean).any() else None,
    }


def enlarge(scan: Scan, folder: Path, n: int) -> None:
    """``n`` JPEG files in class folders: the images in turn, turned, cropped, brightened."""
    random = np.random.default_rng(0)
    for label in scan.dataset.classes:
        (folder / label).mkdir(parents=True)
    for number in range(n):
        sample = scan.dataset.samples[number % len(scan.dataset.samples)]
        with Image.open(sample.path) as image:
            changed = image.convert("RGB").rotate(
                random.uniform(-10, 10), Image.Resampling.BILINEAR
            )
        x, y = (random.uniform(0, 0.08, 2) * changed.size).astype(int)
        changed = changed.crop((x, y, changed.width - y, changed.height - x))
        values = np.asarray(changed) * random.uniform(0.8, 1.2)
        changed = Image.fromarray(np.clip(values, 0, 255).astype(np.uint8))
        changed.save(folder / sample.label / f"{number:05d}.jpg", quality=85)


def time_audit(data: Path, cores: set[int], cache: Path) -> dict[str, Any]:
    """Wall clock, processor time and memory of ``automl audit``, nothing cached."""
    command = [sys.executable, "-m", "automl", "audit", str(data), "--json", "--cache-dir", cache]
    began = time.perf_counter()
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        preexec_fn=lambda: os.sched_setaffinity(0, cores),
    )
    assert process.stdout is not None
    summary = json.loads(process.stdout.read())
    _, _, usage = os.wait4(process.pid, 0)
    return {
        "images": summary["dataset"]["images"],
        "cores": len(cores),
        "seconds": round(time.perf_counter() - began, 1),
        "processor seconds": round(usage.ru_utime + usage.ru_stime, 1),
        "peak MB": usage.ru_maxrss // 1024,
        "images with a twin": summary["twins"]["images"],
        "largest group": summary["twins"]["largest"],
    }


def print_table(title: str, rows: list[dict[str, Any]]) -> None:
    print(f"\n{title}\n\n| " + " | ".join(rows[0]) + " |\n|" + "---|" * len(rows[0]))
    for row in rows:
        cells = (f"{v:.3f}" if isinstance(v, float) else str(v) for v in row.values())
        print("| " + " | ".join(cells) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="../shared/data/brain-tumor")
    parser.add_argument("--cache", help="where the scan is kept; default a temporary folder")
    parser.add_argument("--seeds", type=int, default=3, help="sets of planted copies")
    parser.add_argument("--times", action="store_true", help="measure the command instead")
    parser.add_argument("--out", type=Path, default=Path("twins.json"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, threadpool_limits(1):
        temporary = Path(folder)
        dataset = load_dataset(SearchConfig(data=options.data))
        scan = scan_images(dataset, None, Path(options.cache or temporary / "cache"))
        if options.times:
            enlarge(scan, temporary / "large", LARGE)
            every = os.sched_getaffinity(0)
            times = [
                time_audit(Path(options.data), {min(every)}, temporary / "one core"),
                time_audit(temporary / "large", every, temporary / "large cache"),
            ]
            print_table("The command automl audit, nothing cached", times)
            options.out.write_text(json.dumps({"times": times}, indent=1) + "\n")
            return
        twins = find_twins(scan)
        thresholds = {}
        for threshold in (0.975, 0.98, 0.985):
            alone = find_twins(scan, threshold)
            scores = []
            for seed in range(options.seeds):
                copies = temporary / f"{threshold}-{seed}"
                copies.mkdir()
                both, originals, kinds = plant_copies(scan, copies, seed)
                scores.append(score_copies(both, alone, originals, kinds, threshold))
            thresholds[threshold] = [pool(rows) for rows in zip(*scores, strict=True)]
            print_table(f"Planted copies, threshold {threshold}", thresholds[threshold])
        splits = [
            describe_split(name, scan, twins, split)
            for name, split in (
                ("grouped", make_split(scan, twins, SearchConfig())),
                ("random", make_split(scan, twins, SearchConfig(split="random"))),
                ("rows in order, 80/10/10", seed_split(scan, twins)),
            )
        ]
        audit = audit_dataset(scan, twins, None, SearchConfig())
    print_table("Splits", splits)
    summary = {key: audit.summary[key] for key in ("twins", "shortcuts", "one_nn")}
    print("\n" + json.dumps(summary, indent=1))
    result = {"planted": thresholds, "splits": splits, "data": summary}
    options.out.write_text(json.dumps(result, indent=1, default=float) + "\n")


def pool(rows: tuple[dict[str, Any], ...]) -> dict[str, Any]:
    """One row for the same kind in several sets of copies."""
    copies, pairs = sum(row["copies"] for row in rows), sum(row["pairs"] for row in rows)
    return {
        "kind": rows[0]["kind"],
        "copies": copies,
        "recall": float(sum(row["recall"] * row["copies"] for row in rows) / copies),
        "pairs": pairs,
        "precision": float(sum(row["precision"] * row["pairs"] for row in rows) / max(pairs, 1)),
    }


if __name__ == "__main__":
    main()
