"""What each stage costs as the data grows: seconds and peak memory.

    KERAS_HOME=… python benchmarks/scale.py DATA [--images 1000,3762,20000] [--out FILE.json]

DATA is the folder of Kaggle's jakeshbohaju/brain-tumor. More images than it has are made from
its own by small changes of brightness, position and noise. Each size runs in a process of its
own with an empty cache; memory is the largest anonymous resident size during the stage, so
pages of mapped files, which the system may drop at any time, are not counted.
"""

import argparse
import csv
import json
import math
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

ROOT = Path(__file__).parents[1]
SIZE, WIDTH, DEPTHS = 160, 1.0, (0, 2, 4, 7)


def make_images(data: Path, folder: Path, n: int) -> None:
    """``n`` images in class folders: the real ones, then changed copies of them."""
    with open(next(data.glob("*.csv")), newline="") as file:
        labels = {row["Image"]: row["Class"] for row in csv.DictReader(file)}
    files = sorted(data.rglob("*.jpg"))
    draw = np.random.default_rng(0)
    for i in range(n):
        source = files[i % len(files)]
        target = folder / f"class{labels[source.stem]}" / f"{i:06d}.jpg"
        target.parent.mkdir(parents=True, exist_ok=True)
        if i < len(files):
            target.write_bytes(source.read_bytes())
            continue
        pixels = np.asarray(Image.open(source).convert("L"), np.float32)
        pixels = np.roll(pixels, draw.integers(-6, 7, 2), (0, 1)) * draw.uniform(0.85, 1.15)
        pixels += draw.normal(0, 6, pixels.shape)
        Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(target, quality=85)


def anonymous_mb() -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024


class Stages:
    """Times stages and watches memory meanwhile."""

    def __init__(self) -> None:
        self.rows: dict[str, tuple[float, float]] = {}
        self.peak = 0.0
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while True:
            self.peak = max(self.peak, anonymous_mb())
            time.sleep(0.02)

    def run(self, name: str, function: Callable[[], Any]) -> Any:
        self.peak = 0.0
        started = time.monotonic()
        result = function()
        self.rows[name] = (round(time.monotonic() - started, 2), round(self.peak))
        return result


def measure(folder: Path, cache: Path) -> dict[str, tuple[float, float]]:
    from automl.config import SearchConfig
    from automl.data.audit import audit_dataset
    from automl.data.pixels import scan_images
    from automl.data.sources import load_dataset
    from automl.data.split import make_split
    from automl.data.twins import find_twins

    config = SearchConfig(
        data=str(folder), image_size=SIZE, width=(WIDTH,), fine_tune_depths=DEPTHS,
        cache_dir=str(cache), tracking=False,
    )  # fmt: skip
    stages = Stages()
    dataset = stages.run("reading", lambda: load_dataset(config))
    scan = stages.run("decoding", lambda: scan_images(dataset, SIZE, cache))
    twins = stages.run("twins", lambda: find_twins(scan, config.twin_threshold))
    split = stages.run("split", lambda: make_split(scan, twins, config))
    stages.run("audit", lambda: audit_dataset(scan, twins, split, config))

    from automl.search.spec import TrialTask
    from automl.search.trial import get_trainer
    from automl.search.worker import prepare_framework
    from automl.stages.searching import make_spec

    prepare_framework(1)
    spec = make_spec(config, scan, split, cache)
    trainer = stages.run("backbone", lambda: get_trainer(spec, WIDTH))
    stages.run("activations", trainer.prepare)
    for depth in (0, 4):
        params = {
            "width": WIDTH, "fine_tune_depth": depth, "head_units": 128, "dropout": 0.2,
            "learning_rate": 3e-3,
        }  # fmt: skip
        task = TrialTask("t", 1, params, 1, 1, None, cache / "t.npz", 32)
        stages.run(f"an epoch at depth {depth}", lambda task=task: trainer.run(task))
    return stages.rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--images", default="1000,3762,20000")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        rows = measure(options.measure / "images", options.measure / "cache")
        options.out.write_text(json.dumps(rows))
        return
    sizes = [int(word) for word in options.images.split(",")]
    results = {}
    for n in sizes:
        with tempfile.TemporaryDirectory() as name:
            make_images(options.data.resolve(), Path(name) / "images", n)
            out = Path(name) / "result.json"
            subprocess.run(
                [sys.executable, __file__, str(options.data), "--measure", name, "--out", str(out)],
                check=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
            )  # fmt: skip
            results[n] = json.loads(out.read_text())
    heads = " | ".join(f"{n:,} images" for n in sizes)
    print(f"| stage | {heads} | growth | \n|---|{'---|' * (len(sizes) + 1)}")
    for stage in results[sizes[0]]:
        cells = [results[n][stage] for n in sizes]
        # The exponent b of seconds ~ n^b between the two largest sizes.
        ratio = max(cells[-1][0], 0.01) / max(cells[-2][0], 0.01)
        growth = math.log(ratio) / math.log(sizes[-1] / sizes[-2])
        text = " | ".join(f"{seconds:.1f} s, {peak:,} MB" for seconds, peak in cells)
        print(f"| {stage} | {text} | n^{growth:.2f} |")
    if options.out:
        options.out.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
