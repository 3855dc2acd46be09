"""How fast a finished model answers: each format alone, and `automl predict` end to end.

    python benchmarks/predict.py RUN IMAGES [--count 500] [--out predict.json]

RUN is a run folder with model.keras and model/, IMAGES a folder. Prints a table and writes
JSON. The comparison is what a script written in a hurry does: open, resize, and call
``model.predict`` on one image at a time.
"""

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np

from automl.data.images import open_image
from automl.data.pixels import resize_pixels
from automl.serving.engines import LiteEngine, SavedModelEngine, count_workers
from automl.serving.export import load_keras_model
from automl.serving.manifest import FAST_FILE
from automl.serving.predictor import find_images, load
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
    """Images per second of one call of ``work``."""
    start = time.perf_counter()
    work()
    return round(images / (time.perf_counter() - start), 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("images", type=Path)
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--out", type=Path, default=Path("predict.json"))
    options = parser.parse_args()
    files = list(find_images(options.images))[: options.count]
    predictor = load(options.run)
    size, folder = predictor.info.image_size, options.run / "model"
    pixels = np.stack([resize_pixels(open_image(file)[0], size) for file in files])
    model = load_keras_model(options.run / "model.keras")
    engines = {
        "LiteRT": LiteEngine(folder / FAST_FILE),
        "SavedModel": SavedModelEngine(folder),
    }
    few = pixels[: min(len(pixels), 200)]
    results: dict[str, dict[str, float]] = {}
    for name, engine in engines.items():
        results[name] = measure_latency(engine.run, few)
        predictor.engine = engine
        predictor.describe(pixels[:64])
        results[name]["bulk"] = measure_rate(lambda: predictor.describe(pixels), len(pixels))
    results["model.predict"] = measure_latency(
        lambda batch: model.predict(batch.astype(np.float32), verbose=0), few
    )

    def predict_in_a_hurry() -> None:
        for file in files[: len(few)]:
            batch = resize_pixels(open_image(file)[0], size)[np.newaxis].astype(np.float32)
            model.predict(batch, verbose=0)

    predictor.engine = engines["LiteRT"]
    out = options.out.with_suffix(".csv")
    ends = {
        "automl predict, decode to CSV, all flags": measure_rate(
            lambda: write_predictions(predictor.iterate(files), predictor.info.classes, out),
            len(files),
        ),
        "loop of open, resize, model.predict": measure_rate(predict_in_a_hurry, len(few)),
    }
    out.unlink()
    print(
        f"{len(files)} images, {size} px, {count_workers()} processors, "
        f"load {os.getloadavg()[0]:.1f}"
    )
    print(f"{'':16}{'p50 ms':>8}{'p95 ms':>8}{'loop/s':>9}{'bulk/s':>9}")
    for name, row in results.items():
        bulk = f"{row['bulk']:9.0f}" if "bulk" in row else ""
        print(f"{name:16}{row['p50_ms']:8.2f}{row['p95_ms']:8.2f}{row['loop']:9.0f}{bulk}")
    for name, rate in ends.items():
        print(f"{name:44}{rate:8.1f} images/s")
    options.out.write_text(json.dumps({"engines": results, "end_to_end": ends}, indent=2) + "\n")


if __name__ == "__main__":
    main()
