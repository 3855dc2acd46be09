"""Wrong labels planted in a real data set: how many does a report list, among how many?

    python benchmarks/labels.py --data ../shared/data/brain-tumor --preset fast

Turns some labels of a copy into another class, searches it with the options that are left over,
and holds "label_suspects" of report.json against what was turned. A listed image that was not
turned counts as wrong, though its label may be.
"""

import argparse
import csv
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from automl.config import SearchConfig
from automl.data.sources import load_dataset

SEARCH = Path(__file__).parents[1] / "run_search.py"


def turn_labels(data: str, folder: Path, flips: int, seed: int) -> dict[str, str]:
    """Copy images and a CSV into ``folder``; the turned images by name, with their true label."""
    dataset = load_dataset(SearchConfig(data=data))
    random = np.random.default_rng(seed)
    chosen = set(random.choice(len(dataset.samples), flips, replace=False).tolist())
    turned = {}
    (folder / "images").mkdir(parents=True)
    with open(folder / "turned.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "label"])
        for row, sample in enumerate(dataset.samples):
            name = f"images/{row:06d}{sample.path.suffix}"
            shutil.copy(sample.path, folder / name)
            label = sample.label
            if row in chosen:
                turned[name] = label
                label = random.choice([other for other in dataset.classes if other != label])
            writer.writerow([name, label])
    return turned


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="../shared/data/brain-tumor")
    parser.add_argument("--flips", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("labels.json"))
    options, rest = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        turned = turn_labels(options.data, folder / "data", options.flips, options.seed)
        command = [sys.executable, str(SEARCH), "--data", str(folder / "data" / "turned.csv")]
        command += ["--out", temporary, "--name", "run", "--no-tracking", *rest]
        command += ["--cache-dir", str(folder / "cache")]
        subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": str(SEARCH.parent)})
        report = json.loads((folder / "run" / "report.json").read_text(encoding="utf-8"))
        with open(folder / "run" / "split.csv", newline="", encoding="utf-8") as file:
            part = {row["image"]: row["split"] for row in csv.DictReader(file)}
    listed = [case["image"] for case in report["evaluation"]["label_suspects"]]
    rows = []
    for name in ("train", "val", "test", "all"):
        mine = [image for image in listed if name in ("all", part[image])]
        planted = [image for image in turned if name in ("all", part[image])]
        hits = len(set(mine) & set(planted))
        rows.append(
            {"part": name, "listed": len(mine), "planted": len(planted), "found": hits}
            | {"precision": hits / max(len(mine), 1), "recall": hits / max(len(planted), 1)}
        )
    for row in rows:
        print(", ".join(f"{key} {value:.2f}" if isinstance(value, float) else f"{key} {value}"
                        for key, value in row.items()))  # fmt: skip
    accuracy = report["evaluation"]["test"]["metrics"]["accuracy"]
    result = {"rows": rows, "accuracy": accuracy, "flips": options.flips, "options": rest}
    options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
