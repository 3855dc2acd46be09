"""Our search against a stock KerasTuner search: same images, split, space, seeds and epochs.

    KERAS_HOME=… python benchmarks/versus_keras_tuner.py DATA [--depths 0,1,2,4,7] [--views 1]
        [--out FILE.json]

DATA is the folder of Kaggle's jakeshbohaju/brain-tumor. The split is by rows: the first 80 %
train, the next 10 % validation, the last 10 % test. The peer is written as a competent user
would: images decoded once into memory, tf.data with prefetching, the backbone frozen below the
cut, BatchNorm in inference mode, the training set oversampled, the features standardised. Both
sides run one after the other in processes of their own and from an empty cache. Ours trains on
``--views`` fixed views of each image, whose extraction is part of its time; with 1 it sees what
the peer sees.
"""

import argparse
import csv
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
SIZE, WIDTH, MAX_EPOCHS, FACTOR, BATCH = 160, 1.0, 9, 3, 32


def write_split(data: Path, out: Path) -> Path:
    """The rows of the CSV in order: 80 % train, 10 % validation, 10 % test."""
    with open(next(data.glob("*.csv")), newline="") as file:
        names = [row["Image"] for row in csv.DictReader(file)]
    n = len(names)
    part = ["train" if i < 0.8 * n else "val" if i < 0.9 * n else "test" for i in range(n)]
    with open(out, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "split"])
        writer.writerows([f"{name}.jpg", where] for name, where in zip(names, part, strict=True))
    return out


def our_command(
    data: Path,
    split: Path,
    depths: str,
    folder: Path,
    seed: int,
    name: str,
    cache: Path,
    views: int,
) -> list[str]:
    return [
        sys.executable, "run_search.py", "--data", str(data), "--split", str(split),
        "--width", str(WIDTH), "--image-size", str(SIZE), "--max-epochs", str(MAX_EPOCHS),
        "--factor", str(FACTOR), "--fine-tune-depths", depths, "--views", str(views),
        "--seed", str(seed), "--batch-size", str(BATCH), "--no-tracking", "--cache-dir", str(cache),
        "--out", str(folder), "--name", name, "--quiet",
    ]  # fmt: skip


def ended_trials(run: Path) -> list[dict]:
    path = run / "journal.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line) for line in lines if '"event":"trial_ended"' in line]


def seconds_to_first_trial(*arguments: object) -> float:
    """From the start of the command until its first trial is in the journal; then it is ended."""
    began = time.time()
    command = our_command(*arguments)  # type: ignore[arg-type]
    run = Path(command[command.index("--out") + 1]) / command[command.index("--name") + 1]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL) as process:
        while not ended_trials(run) and process.poll() is None:
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
    return ended_trials(run)[0]["time"] - began


def run_ours(*arguments: object) -> dict:
    """One search by its command line, from process start to end."""
    command = our_command(*arguments)  # type: ignore[arg-type]
    run = Path(command[command.index("--out") + 1]) / command[command.index("--name") + 1]
    began = time.time()
    subprocess.run(command, check=True, cwd=ROOT)
    total = time.time() - began
    report = json.loads((run / "report.json").read_text())
    ended = ended_trials(run)
    return {
        "search_seconds": report["search"]["wall_seconds"],
        "total_seconds": total,
        "first_trial_seconds": ended[0]["time"] - began,
        "trials": len(ended),
        "epochs": report["search"]["epochs"],
        "best_val_auc": report["search"]["best"]["score"],
        "curve": best_so_far(sorted(epoch for event in ended for epoch in epochs_of(event, began))),
        "stages": report["search"]["stages"],
        "cache": report["search"]["cache"],
        "test": {
            k: report["evaluation"]["test"]["metrics"][k]["value"] for k in ("accuracy", "roc_auc")
        },
    }


def epochs_of(ended: dict, began: float) -> list[tuple[float, float]]:
    """(seconds since ``began`` when it ended, validation AUC) of each epoch of a trial."""
    seconds = ended["time"] - began
    points = []
    for epoch in reversed(ended.get("history") or []):
        points.append((seconds, epoch["val_roc_auc"]))
        seconds -= epoch["seconds"]
    return points


def best_so_far(points: object) -> list[tuple[float, float]]:
    curve, best = [], float("-inf")
    for seconds, score in points:  # type: ignore[attr-defined]
        if score > best:
            best = score
            curve.append((round(seconds, 1), score))
    return curve


def run_peer(data: Path, split: Path, depths: str, folder: Path, seed: int) -> dict:
    """The stock search in a process of its own, by this file's ``--peer``."""
    out = folder / "peer.json"
    command = [sys.executable, __file__, str(data), "--peer", str(split), "--depths", depths]
    environment = {
        **os.environ,
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "PYTHONPATH": str(ROOT),
    }
    subprocess.run([*command, "--out", str(out), "--seed", str(seed)], check=True, env=environment)
    return json.loads(out.read_text())


def search_with_keras_tuner(data: Path, split: Path, depths: tuple[int, ...], seed: int) -> dict:
    """Stock ``keras_tuner.Hyperband`` on whole models; needs tensorboard installed."""
    began = time.time()
    import keras
    import keras_tuner
    import numpy as np
    import tensorflow as tf
    from PIL import Image
    from sklearn.metrics import roc_auc_score

    from automl.search.space import MobileNetHyperModel
    from automl.search.weights import load_backbone

    with open(next(data.glob("*.csv")), newline="") as file:
        labels = {row["Image"]: int(row["Class"]) for row in csv.DictReader(file)}
    with open(split, newline="") as file:
        parts = {row["image"].removesuffix(".jpg"): row["split"] for row in csv.DictReader(file)}
    files = {path.stem: path for path in data.rglob("*.jpg")}
    images, targets = {}, {}
    for part in ("train", "val", "test"):
        names = [name for name in labels if parts[name] == part]
        images[part] = np.stack(
            [
                np.asarray(
                    Image.open(files[name]).convert("RGB").resize((SIZE, SIZE), Image.BILINEAR)
                )
                for name in names
            ]
        )
        targets[part] = np.array([labels[name] for name in names])
    draw = np.random.default_rng(seed)
    y = targets["train"]
    small = np.argmin(np.bincount(y))
    extra = draw.choice(
        np.flatnonzero(y == small), abs(int((y == 0).sum() - (y == 1).sum())), replace=False
    )
    order = np.concatenate([np.arange(len(y)), extra])
    options = {"num_parallel_calls": tf.data.AUTOTUNE}

    def cast(x, label):
        return tf.cast(x, tf.float32), label

    train = (
        tf.data.Dataset.from_tensor_slices((images["train"][order], y[order]))
        .shuffle(len(order), seed=seed)
        .batch(BATCH)
        .map(cast, **options)
        .prefetch(tf.data.AUTOTUNE)
    )
    val = (
        tf.data.Dataset.from_tensor_slices((images["val"], targets["val"]))
        .batch(64)
        .map(cast, **options)
        .prefetch(tf.data.AUTOTUNE)
    )
    backbone = load_backbone(SIZE, WIDTH, "imagenet", seed)
    features = backbone.predict(images["train"][:512].astype("float32"), verbose=0)
    variance = np.maximum(features.var(axis=0), 0.01 * features.var(axis=0).mean())
    statistics = (features.mean(axis=0), variance)
    del backbone
    epochs = []

    class Clock(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            epochs.append((time.time() - began, float(logs["val_roc_auc"])))

        def __deepcopy__(self, memo):
            return self

    with tempfile.TemporaryDirectory() as folder:
        tuner = keras_tuner.Hyperband(
            MobileNetHyperModel(
                2,
                SIZE,
                depths=depths,
                widths=(WIDTH,),
                weights="imagenet",
                seed=seed,
                statistics=statistics,
            ),
            keras_tuner.Objective("val_roc_auc", "max"),
            max_epochs=MAX_EPOCHS,
            factor=FACTOR,
            seed=seed + 1,
            directory=folder,
            project_name="peer",
        )
        started = time.time()
        tuner.search(train, validation_data=val, callbacks=[Clock()], verbose=0)
        search_seconds = time.time() - started
        model = tuner.get_best_models(1)[0]
        val_p = model.predict(images["val"].astype("float32"), verbose=0)[:, 0]
        test_p = model.predict(images["test"].astype("float32"), verbose=0)[:, 0]
        trials = len(tuner.oracle.trials)
    return {
        "search_seconds": search_seconds,
        "total_seconds": time.time() - began,
        "trials": trials,
        "epochs": len(epochs),
        "best_val_auc": float(roc_auc_score(targets["val"], val_p)),
        "curve": best_so_far(epochs),
        "test": {
            "accuracy": float(((test_p >= 0.5) == targets["test"]).mean()),
            "roc_auc": float(roc_auc_score(targets["test"], test_p)),
        },
    }


def seconds_to(curve: list[tuple[float, float]], target: float) -> float | None:
    return next((seconds for seconds, score in curve if score >= target), None)


def print_table(ours: dict, warm: float, peer: dict) -> None:
    target = peer["curve"][-1][1]
    reached = seconds_to(ours["curve"], target)
    print("\n| | KerasTuner | automl | ratio |\n|---|---|---|---|")
    rows = [
        ("search, s (cache filling included)", peer["search_seconds"], ours["search_seconds"]),
        (
            f"until validation AUC {target:.4f}, s (start-up included)",
            peer["curve"][-1][0],
            reached,
        ),
    ]
    for name, theirs, mine in rows:
        ratio = f"{theirs / mine:.1f}×" if mine else "not reached"
        print(f"| {name} | {theirs:.0f} | {mine if mine is None else round(mine)} | {ratio} |")
    print(
        f"| trials / epochs | {peer['trials']} / {peer['epochs']} "
        f"| {ours['trials']} / {ours['epochs']} | |"
    )
    print(f"| best validation AUC | {peer['best_val_auc']:.4f} | {ours['best_val_auc']:.4f} | |")
    for name in ("accuracy", "roc_auc"):
        print(f"| test {name} | {peer['test'][name]:.4f} | {ours['test'][name]:.4f} | |")
    print(f"| whole command, s | {peer['total_seconds']:.0f} | {ours['total_seconds']:.0f} | |")
    print(f"| first trial of a second search, warm cache, s | | {warm:.1f} | |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--depths", default="0,1,2,4,7")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--views", type=int, default=1)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--peer", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    data = options.data.resolve()
    if options.peer:
        depths = tuple(int(depth) for depth in options.depths.split(","))
        result = search_with_keras_tuner(data, options.peer, depths, options.seed)
        options.out.write_text(json.dumps(result))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        split = write_split(data, folder / "split.csv")
        arguments = (data, split, options.depths, folder, options.seed)
        ours = run_ours(*arguments, "cold", folder / "cache", options.views)
        warm = seconds_to_first_trial(*arguments, "warm", folder / "cache", options.views)
        peer = run_peer(*arguments)
    print_table(ours, warm, peer)
    if options.out:
        options.out.write_text(json.dumps({"ours": ours, "warm": warm, "peer": peer}, indent=1))


if __name__ == "__main__":
    main()
