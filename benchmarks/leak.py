"""How much of a data set's usual accuracy is leak: one method under random and grouped splits.

    KERAS_HOME=… python benchmarks/leak.py --data ../shared/data/brain-tumor [--repeats 20]

One split's accuracy moves by a point or two, as much as a leak adds. So the data is divided many
times, image by image (as is usual) and by groups of near-copies, and two methods that anyone can
check are fitted each time: the label of the most similar training thumbnail, and logistic
regression on a frozen network's features. Test and training parts have the same sizes.
"""

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
from scipy.stats import t as student

from automl.config import SearchConfig
from automl.data.pixels import scan_images
from automl.data.sources import load_dataset
from automl.data.split import make_split, rows_without_twins
from automl.data.twins import find_twins
from automl.evaluation.baselines import predict_logistic_features, predict_one_nearest_neighbour
from automl.evaluation.metrics import compute_metrics
from automl.records import Scan, Split

METHODS = ("1-NN on thumbnails", "logistic regression, frozen features")
METRICS = ("accuracy", "roc_auc")


def score_split(scan: Scan, split: Split, features: np.ndarray) -> dict[str, dict[str, float]]:
    """Metrics of each method on the test images, and on those with and without relatives."""
    targets = scan.dataset.targets
    train, test = split.rows("train"), split.rows("test")
    alone = np.isin(test, rows_without_twins(split))
    answers = (
        predict_one_nearest_neighbour(
            scan.thumbnails[train], targets[train], scan.thumbnails[test], 2
        ),
        predict_logistic_features(features[train], targets[train], features[test], 2),
    )
    result = {}
    for method, p in zip(METHODS, answers, strict=True):
        result[method] = {name: compute_metrics(targets[test], p)[name] for name in METRICS}
        right = p.argmax(axis=1) == targets[test]
        result[method] |= {"alone": float(right[alone].mean()), "share_alone": float(alone.mean())}
        if not alone.all():
            result[method]["with relatives"] = float(right[~alone].mean())
    return result


def read_features(scan: Scan, size: int) -> np.ndarray:
    from automl.search.weights import load_backbone

    backbone = load_backbone(size, 1.0, "imagenet", 0)
    assert scan.pixels is not None
    blocks = range(0, len(scan.pixels), 64)
    return np.concatenate(
        [backbone.predict_on_batch(scan.pixels[i : i + 64].astype("float32")) for i in blocks]
    )


def spread(values: list[float]) -> str:
    """Mean and the 95 % interval of the mean over repeats (they share images: a lower bound)."""
    mean, n = float(np.mean(values)), len(values)
    half = float(student.ppf(0.975, n - 1) * np.std(values, ddof=1) / n**0.5)
    return f"{mean:.3f} ± {half:.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="../shared/data/brain-tumor")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--image-size", type=int, default=160)
    parser.add_argument("--out", type=Path, default=Path("leak.json"))
    options = parser.parse_args()
    found: dict[str, list[dict[str, dict[str, float]]]] = {"random": [], "grouped": []}
    with tempfile.TemporaryDirectory() as folder:
        dataset = load_dataset(SearchConfig(data=options.data))
        scan = scan_images(dataset, options.image_size, Path(folder))
        twins = find_twins(scan)
        features = read_features(scan, options.image_size)
        for seed in range(options.repeats):
            for kind, results in found.items():
                config = SearchConfig(data=options.data, split=kind, seed=seed)
                results.append(score_split(scan, make_split(scan, twins, config), features))
    print("| | split | accuracy | ROC AUC | accuracy, with relatives | accuracy, without |")
    print("|---|---|---|---|---|---|")
    for method in METHODS:
        for kind, results in found.items():
            columns = [
                spread([result[method][name] for result in results])
                if name in results[0][method]
                else "–"
                for name in (*METRICS, "with relatives", "alone")
            ]
            print(f"| {method} | {kind} | " + " | ".join(columns) + " |")
        pairs = list(zip(found["random"], found["grouped"], strict=True))
        gains = [
            spread([random[method][name] - grouped[method][name] for random, grouped in pairs])
            for name in METRICS
        ]
        print(f"| {method} | random − grouped | " + " | ".join(gains) + " | | |")
    share = spread([result[METHODS[0]]["share_alone"] for result in found["random"]])
    print(f"\nTest images without relatives in a random split: {share}")
    options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
