"""Does every export of a finished run say what its model said, each in its own runtime?

    python benchmarks/parity.py RUN RUN… [--formats onnx,tflite_float16,tflite_int8] [--out FILE]

RUN is a run folder whose images are still where they were. Its whole test set goes through the
SavedModel (as pixels, and as the bytes of the files), through model.tflite and through fresh
exports, each in a process that can import neither automl nor another runtime. Prints a table
and writes JSON.
"""

import argparse
import json
import os
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np

from automl.console import Console
from automl.errors import ModelError
from automl.exports import gather_images
from automl.serving.export import ROUNDED, export_model
from automl.serving.parity import TestSet, check_parity, check_parity_of_files


def prove_run(run: Path, formats: list[str]) -> list[dict[str, Any]]:
    """One row for each way to ask the model of ``run``."""
    proof, files = gather_images(run, Console(quiet=True))
    images: TestSet = proof["images"]
    plain = TestSet(images.pixels, images.expected)
    rows = [
        {"format": "SavedModel, pixels", **check_parity(run, plain).to_json()},
        {
            "format": "SavedModel, bytes of the files",
            **check_parity_of_files(run, files, images.expected).to_json(),
        },
        {"format": "LiteRT float32", **check_parity(run, plain, "tflite").to_json()},
    ]
    for name in formats:
        with tempfile.TemporaryDirectory() as out:
            try:
                (result,) = export_model(run, [name], out=Path(out), **proof)
                rows.append({"format": name, "mb": result["mb"], **result["parity"]})
            except ModelError as error:
                rows.append({"format": name, "refused": str(error)})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--formats", default=",".join(("onnx", *ROUNDED)))
    parser.add_argument("--out", type=Path, default=Path("parity.json"))
    options = parser.parse_args()
    results = {}
    print("| run | classes | images | format | largest | mean | labels | ROC AUC |")
    print("|---|---|---|---|---|---|---|---|")
    for run in options.runs:
        report = json.loads((run / "report.json").read_text())
        params = report["search"]["best"]["params"]
        title = f"width {params['width']}, depth {params['fine_tune_depth']}"
        classes = len(report["dataset"]["classes"])
        rows = results[str(run)] = prove_run(run, [n for n in options.formats.split(",") if n])
        for row in rows:
            if "refused" in row:
                print(f"| {title} | {classes} | | {row['format']} | refused: {row['refused']} |")
                continue
            change = row["auc_change"]
            text = "" if change is None else "{value:+.4f} ({low:+.4f} to {high:+.4f})"
            print(
                f"| {title} | {classes} | {row['images']} | {row['format']} "
                f"| {row['max_difference']:.1e} | {row['mean_difference']:.1e} "
                f"| {100 * np.round(row['agreement'], 4):g} % | {text.format(**(change or {}))} |",
                flush=True,
            )
    options.out.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
