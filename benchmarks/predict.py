"""How fast a finished model answers: each format alone, and ``automl predict`` end to end.

    python benchmarks/predict.py RUN IMAGES [--count 500] [--rounds 5] [--long 10000]
        [--many 10000] [--out predict.json]

RUN is a run folder with model.keras and model/, IMAGES a folder. Prints two tables and writes
JSON. "batch 1" asks for one image at a time; "bulk" is the engine alone, with one interpreter for
each processor, on the same images decoded and resized in memory beforehand. What ``automl
predict`` needs from ``--long`` files to the CSV with all flags, starting the processes included,
is held against it. A machine's speed drifts, so the two are measured in turns, ``--rounds``
times, and the median of the rounds' ratios is what counts. The loop is what a script written in a
hurry does: open, resize and call ``model.predict`` on one image. ``--many`` runs the command
itself, from its start to its end, on that many files (IMAGES again and again), and adds up the
memory of its processes.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle, islice
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np

from automl.data.images import open_image
from automl.data.pixels import resize_pixels
from automl.serving.engines import Engine, LiteEngine, SavedModelEngine, count_workers
from automl.serving.export import export_model, load_keras_model
from automl.serving.inputs import find_images
from automl.serving.manifest import FAST_FILE
from automl.serving.predictor import CHUNK, load
from automl.serving.tables import write_predictions

WARM_UP = 8


def measure_latency(answer: Callable[[np.ndarray], Any], pixels: np.ndarray) -> dict[str, float]:
    """Milliseconds of single-image calls: p50, p95, and images per second of the loop."""
    for image in pixels[:WARM_UP]:
        answer(image[np.newaxis])
    times = []
    for image in pixels:
        start = time.perf_counter()
        answer(image[np.newaxis])
        times.append(time.perf_counter() - start)
    p50, p95 = np.percentile(times, (50, 95)) * 1000
    return {"p50_ms": round(p50, 2), "p95_ms": round(p95, 2), "loop": round(1 / np.mean(times), 1)}


def measure_rate(work: Callable[[], Any], images: int) -> float:
    """Images per second of ``work``."""
    start = time.perf_counter()
    work()
    return round(images / (time.perf_counter() - start), 1)


def run_in_bulk(engine: Engine, pixels: np.ndarray) -> None:
    """The engine alone, in the chunks and by the threads of ``automl predict``."""
    chunks = [pixels[start : start + CHUNK] for start in range(0, len(pixels), CHUNK)]
    with ThreadPoolExecutor(count_workers()) as pool:
        list(pool.map(engine.run, chunks))


def open_onnx(folder: Path) -> Callable[[np.ndarray], Any]:
    """ONNX Runtime on the export in ``folder``."""
    import onnxruntime

    session = onnxruntime.InferenceSession(
        str(folder / "model.onnx"), providers=["CPUExecutionProvider"]
    )
    return lambda pixels: session.run(None, {"pixels": pixels.astype(np.float32)})


def measure_memory(pid: int) -> float:
    """Megabytes of a process and its children, memory that they share divided among them."""
    children = Path(f"/proc/{pid}/task/{pid}/children")
    total = 0.0
    try:
        for process in (pid, *map(int, children.read_text().split())):
            found = re.search(r"Pss:\s+(\d+)", Path(f"/proc/{process}/smaps_rollup").read_text())
            total += int(found[1]) / 1024 if found else 0.0
    except OSError:  # it has just ended
        return 0.0
    return total


def predict_many(run: Path, files: list[Path], count: int) -> dict[str, float]:
    """``automl predict`` on ``count`` names on standard input, in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        names, out = Path(folder, "names.txt"), Path(folder, "answers.csv")
        names.write_text("\n".join(str(file.resolve()) for file in islice(cycle(files), count)))
        command = [sys.executable, "-m", "automl", "predict", str(run), "-", "-q", "--out", out]
        start, peak = time.perf_counter(), 0.0
        with open(names, "rb") as given, subprocess.Popen(command, stdin=given) as process:
            while process.poll() is None:
                peak = max(peak, measure_memory(process.pid))
                time.sleep(0.2)
        seconds = time.perf_counter() - start
        rows = out.read_text("utf-8").count("\n") - 1
    assert rows == count, f"{rows} rows for {count} images"
    return {"images": count, "rate": round(count / seconds, 1), "peak_mb": round(peak)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("images", type=Path)
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--long", type=int, default=10000)
    parser.add_argument("--many", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("predict.json"))
    options = parser.parse_args()
    files = list(islice(find_images(options.images), options.count))
    predictor = load(options.run)
    size, folder = predictor.info.image_size, options.run / "model"
    pixels = np.stack([resize_pixels(open_image(file)[0], size) for file in files])
    few = pixels[: min(len(pixels), 100)]
    model = load_keras_model(options.run / "model.keras")
    lite, saved = LiteEngine(folder / FAST_FILE), SavedModelEngine(folder)
    with tempfile.TemporaryDirectory() as exports:
        export_model(options.run, ["onnx"], out=Path(exports))
        answers = {
            "LiteRT": lite.run,
            "SavedModel": saved.run,
            "ONNX Runtime": open_onnx(Path(exports, "onnx")),
            "model.predict": lambda batch: model.predict(batch.astype(np.float32), verbose=0),
        }
        latency = {name: measure_latency(answer, few) for name, answer in answers.items()}

    def predict_in_a_hurry() -> None:
        for file in files[: len(few)]:
            batch = resize_pixels(open_image(file)[0], size)[np.newaxis].astype(np.float32)
            model.predict(batch, verbose=0)

    ends = {"loop of open, resize, model.predict": measure_rate(predict_in_a_hurry, len(few))}
    long = list(islice(cycle(files), options.long))
    out = options.out.with_suffix(".csv")
    shares = {}
    for engine in (lite, saved):
        predictor.engine = engine
        some = long if engine is lite else files
        rounds = []
        for _ in range(options.rounds):
            bulk = measure_rate(lambda engine=engine: run_in_bulk(engine, pixels), len(pixels))
            whole = measure_rate(
                lambda some=some: write_predictions(
                    predictor.iterate(some), predictor.info.classes, out
                ),
                len(some),
            )
            # Before and after, since the longer of the two has seen the machine change.
            again = measure_rate(lambda engine=engine: run_in_bulk(engine, pixels), len(pixels))
            rounds.append(((bulk + again) / 2, whole))
        bulk, whole = np.median(rounds, axis=0).round(1).tolist()
        ends[f"{engine.name}: engine in bulk"] = bulk
        ends[f"{engine.name}: automl predict, files to CSV, all flags"] = whole
        ratios = [whole / bulk for bulk, whole in rounds]
        shares[engine.name] = [round(float(f(ratios)), 3) for f in (np.median, min, max)]
    out.unlink()
    many = predict_many(options.run, files, options.many) if options.many else None
    print(
        f"{len(files)} images, {size} px, {count_workers()} processors, "
        f"load {os.getloadavg()[0]:.1f}"
    )
    print(f"{'batch 1':16}{'p50 ms':>8}{'p95 ms':>8}{'images/s':>10}")
    for name, row in latency.items():
        print(f"{name:16}{row['p50_ms']:8.2f}{row['p95_ms']:8.2f}{row['loop']:10.0f}")
    for name, rate in ends.items():
        print(f"{name:58}{rate:8.1f} images/s")
    for name, (share, low, high) in shares.items():
        print(f"{name}: automl predict at {share} ({low} to {high}) of the engine's own rate")
    if many:
        print(
            "{images:,} files by the command itself: {rate} images/s, {peak_mb} MB at most".format(
                **many
            )
        )
    result = {"latency": latency, "end_to_end": ends, "shares": shares, "many": many}
    options.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
