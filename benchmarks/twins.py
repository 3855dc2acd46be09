"""Planted copies among real images: how many are found, and how many pairs are wrong.

    python benchmarks/twins.py --data ../shared/data/brain-tumor

Prints tables and writes --out. Times are of one thread; the larger set is drawn
from the thumbnails of the real one with noise, since only the comparison grows with n².
"""

import argparse
import json
import resource
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
from automl.data.twins import find_twins, group_sizes, unit_rows
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


def enlarge(scan: Scan, n: int) -> Scan:
    """``n`` noisy images drawn from the scan's thumbnails."""
    random = np.random.default_rng(0)
    rows = random.integers(0, len(scan.facts), n)
    noisy = scan.thumbnails[rows].reshape(n, -1)
    noisy = unit_rows(noisy + (0.1 / 32) * random.standard_normal(noisy.shape, dtype=np.float32))
    samples = tuple(
        replace(scan.dataset.samples[row], image=f"{i}.jpg") for i, row in enumerate(rows)
    )
    facts = tuple({**scan.facts[row], "sha256": i, "pixel_sha256": i} for i, row in enumerate(rows))
    dataset = replace(scan.dataset, samples=samples)
    return Scan(dataset, facts, noisy.reshape(n, 32, 32), None, None, "")


def time_audit(scan: Scan) -> dict[str, Any]:
    """Seconds of each stage on one thread, processor and wall clock."""
    config = SearchConfig()
    row: dict[str, Any] = {"images": len(scan.facts)}
    state: dict[str, Any] = {}
    stages = {
        "twins": lambda: find_twins(scan),
        "split": lambda: make_split(scan, state["twins"], config),
        "audit": lambda: audit_dataset(scan, state["twins"], state["split"], config),
    }
    begin, begin_wall = time.process_time(), time.perf_counter()
    for name, run in stages.items():
        start = time.process_time()
        state[name] = run()
        row[name] = round(time.process_time() - start, 2)
    row["total"] = round(time.process_time() - begin, 2)
    row["wall"] = round(time.perf_counter() - begin_wall, 2)
    row["peak_mb"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    row["largest_group"] = max(group_sizes(state["twins"].group))
    return row


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
    parser.add_argument("--out", type=Path, default=Path("twins.json"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, threadpool_limits(1):
        temporary = Path(folder)
        dataset = load_dataset(SearchConfig(data=options.data))
        scan = scan_images(dataset, None, Path(options.cache or temporary / "cache"))
        times = [time_audit(scan)]
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
        times.append(time_audit(enlarge(scan, LARGE)))
    print_table("Splits", splits)
    print_table("Seconds on one thread, without reading the images", times)
    summary = {key: audit.summary[key] for key in ("twins", "shortcuts", "one_nn")}
    print("\n" + json.dumps(summary, indent=1))
    result = {"planted": thresholds, "splits": splits, "times": times, "data": summary}
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
