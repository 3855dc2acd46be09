"""Hand-made reports for the tests of the page: full and binary, four classes, minimal.

The numbers are invented but hang together: 560 test images, 22 trials, epochs up to 9.
Pictures are drawn, so that no image of a person is in the repository.
"""

import copy
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

CREATED = "2026-11-23T09:41:07+00:00"
TEST_IMAGES = 560
POSITIVES = 252


def interval(value: float, half: float) -> dict[str, float]:
    low, high = max(value - half, 0.0), min(value + half * 0.9, 1.0)
    return {"value": round(value, 4), "low": round(low, 4), "high": round(high, 4)}


def full_report() -> dict[str, Any]:
    """A binary run with every optional part present."""
    evaluation = binary_evaluation()
    return {
        "schema_version": 1,
        "run": {
            "name": "brain-tumor-fast",
            "created": CREATED,
            "command": "automl search --data scans/ --preset fast --seed 7 --name brain-tumor-fast",
            "preset": "fast",
            "seed": 7,
            "config": {"image_size": 160, "max_epochs": 9, "factor": 3, "balance": "oversample"},
            "synthetic": False,
            "weights": "imagenet",
            "resumed": 1,
            "mlflow": {
                "tracking_uri": "sqlite:///reports/mlflow.db",
                "experiment": "automl",
                "run_id": "4f2c9a71d0be4b6f8d3c6a52e1970b44",
            },
            "research_use": True,
        },
        "dataset": {
            "name": "brain-tumor",
            "kind": "csv",
            "images": 3762,
            "classes": {"no tumour": 2079, "tumour": 1683},
            "positive": "tumour",
            "groups": 2731,
            "group_kind": "near-duplicates",
            "sizes": {"240x240": 3762},
            "modes": {"RGB": 3762},
            "formats": {"JPEG": 3762},
            "synthetic": False,
            "grid": {
                "no tumour": [f"grid_0_{i}.jpg" for i in range(8)],
                "tumour": [f"grid_1_{i}.jpg" for i in range(8)],
            },
        },
        "audit": audit_part(),
        "split": {
            "kind": "grouped",
            "seed": 7,
            "train": 2638,
            "val": 564,
            "test": TEST_IMAGES,
            "classes": {
                "train": {"no tumour": 1459, "tumour": 1179},
                "val": {"no tumour": 312, "tumour": 252},
                "test": {"no tumour": 308, "tumour": 252},
            },
            "groups": {"train": 1917, "val": 409, "test": 405},
            "leaking_pairs": 0,
            "digest": "9b1f5c0e77a2" + "3d" * 26,
            "balance": {
                "method": "oversample",
                "before": {"no tumour": 1459, "tumour": 1179},
                "after": {"no tumour": 1459, "tumour": 1459},
            },
            "comparison": [
                {
                    "kind": kind,
                    "test": TEST_IMAGES,
                    "touched": touched,
                    "leaking_pairs": pairs,
                    "metrics": {
                        "accuracy": interval(value, 0.018),
                        "balanced_accuracy": interval(value - 0.001, 0.018),
                        "roc_auc": interval(value + 0.016, 0.007),
                    },
                    "seconds": seconds,
                }
                for kind, touched, pairs, value, seconds in (
                    ("grouped", 0, 0, 0.9625, None),
                    ("random", 218, 677, 0.9786, 41.3),
                )
            ],
        },
        "search": search_part(),
        "evaluation": evaluation,
        "baselines": {
            "majority": metrics(0.55, 0.5, 0.042),
            "uniform": metrics(0.504, 0.5, 0.041),
            "one_nearest_neighbour": metrics(0.861, 0.862, 0.033),
            "shortcut": metrics(0.687, 0.741, 0.043),
            "logistic_features": metrics(0.927, 0.972, 0.023),
            "difference_to_1nn": {
                "accuracy": {"value": 0.1016, "low": 0.0724, "high": 0.1337},
                "roc_auc": {"value": 0.1296, "low": 0.0981, "high": 0.1623},
            },
        },
        "cost": {
            "search_seconds": 431.2,
            "evaluation_seconds": 38.6,
            "total_seconds": 512.9,
            "images_per_second": 742.0,
            "latency": {"p50_ms": 9.4, "p95_ms": 12.8},
            "model_mb": 2.31,
            "exports": [
                {"format": "saved_model", "mb": 4.9, "parity": parity(560, 4.2e-7, 3.1e-8, 1.0)},
                {"format": "tflite", "mb": 1.8, "parity": parity(560, 6.4e-6, 8.8e-7, 1.0)},
            ],
            "peak_memory_mb": {"driver": 812.0, "worker": 1490.0},
            "disk_mb": 941.0,
            "stages": {
                "loading the data set": 0.4,
                "reading images": 9.1,
                "looking for twins": 4.2,
                "split and audit": 6.3,
                "loading TensorFlow": 5.2,
                "measuring this machine": 17.8,
                "filling the cache": 21.4,
                "trials": 409.8,
                "predicting": 6.1,
                "evaluation": 8.8,
                "export": 11.7,
                "robustness": 7.3,
                "saliency": 4.4,
                "pictures": 0.6,
            },
        },
        "environment": {
            "python": "3.11.9",
            "platform": "Linux-6.1-x86_64",
            "cpu": "Intel(R) Xeon(R) Processor",
            "cores": 2,
            "packages": {"tensorflow": "2.21.0", "keras": "3.15.1", "keras-tuner": "1.4.8"},
            "git": "6607136f2b",
        },
    }


def parity(images: int, largest: float, mean: float, agreement: float) -> dict[str, float]:
    return {
        "images": images,
        "max_difference": largest,
        "mean_difference": mean,
        "agreement": agreement,
    }


def metrics(accuracy: float, roc_auc: float, half: float) -> dict[str, dict[str, float]]:
    """All twelve metrics, made to look like one model's."""
    loss = 0.70 - 0.56 * max(roc_auc - 0.5, 0) * 2 + 0.02
    values = {
        "accuracy": accuracy,
        "balanced_accuracy": accuracy - 0.004,
        "precision": accuracy - 0.021,
        "recall": accuracy - 0.018,
        "specificity": accuracy + 0.006,
        "f1": accuracy - 0.019,
        "mcc": max(2 * accuracy - 1.01, 0.0),
        "roc_auc": roc_auc,
        "average_precision": roc_auc - 0.011,
        "brier": loss / 3.4,
        "log_loss": loss,
        "ece": 0.018 + (1 - accuracy) / 6,
    }
    return {name: interval(value, half) for name, value in values.items()}


def audit_part() -> dict[str, Any]:
    return {
        "findings": [
            finding(
                "near_duplicates",
                "warning",
                "1,354 images (36 %) have a near-copy at correlation 0.98 or more.",
                1354,
                ["Image17.jpg", "Image18.jpg", "Image402.jpg"],
                "Keep each group on one side of the split (done), and count groups, not images.",
            ),
            finding(
                "label_conflict",
                "warning",
                "4 pairs of near-copies carry different labels.",
                4,
                ["Image944.jpg", "Image951.jpg"],
                "Ask who labelled them, and correct or drop them.",
            ),
            finding(
                "one_size",
                "info",
                "All images are 240x240 pixels.",
                3762,
                [],
                "Nothing to do; the originals were probably resized before they were shared.",
            ),
        ],
        "twins": {
            "groups": 323,
            "images": 1354,
            "largest": 19,
            "histogram": {"2": 164, "3": 61, "4": 38, "5": 21, "6": 14, "8": 11, "12": 9, "19": 5},
            "threshold": 0.98,
            "byte_identical": {"groups": 12, "images": 25},
            "pairs": [
                {
                    "a": f"Image{17 + i}.jpg",
                    "b": f"Image{18 + i}.jpg",
                    "label_a": "no tumour" if i == 1 else "tumour",
                    "label_b": "tumour",
                    "correlation": 0.9991 - i * 0.0041,
                    "kind": kind,
                    "picture_a": f"twin_{i}_a.jpg",
                    "picture_b": f"twin_{i}_b.jpg",
                }
                for i, kind in enumerate(("near", "near", "flipped", "rotated"))
            ],
            "neighbours": 2210,
        },
        "shortcuts": {
            "auc": 0.741,
            "low": 0.699,
            "high": 0.782,
            "properties": [
                {"name": "bytes", "auc": 0.702},
                {"name": "foreground", "auc": 0.661},
                {"name": "mean", "auc": 0.623},
                {"name": "std", "auc": 0.588},
                {"name": "width", "auc": 0.5},
            ],
        },
        "one_nn": {"random": 0.955, "grouped": 0.861},
    }


def audit_document() -> dict[str, Any]:
    """What ``automl audit --html`` renders."""
    report = full_report()
    return {**report["audit"], "dataset": report["dataset"], "split": report["split"]}


def finding(check: str, severity: str, title: str, count: int, examples: list[str], remedy: str):
    return {
        "check": check,
        "severity": severity,
        "title": title,
        "count": count,
        "examples": examples,
        "remedy": remedy,
        "detail": {},
    }


def search_part() -> dict[str, Any]:
    """Hyperband with R=9, eta=3: brackets of 9, 5 and 3 configurations, 22 trials."""
    rng = np.random.default_rng(3)
    rows, number, elapsed, configuration = [], 0, 21.4, 0
    chains = {2: [(9, 1), (3, 3), (1, 9)], 1: [(5, 3), (1, 9)], 0: [(3, 9)]}
    for bracket, rungs in chains.items():
        alive = []
        for _ in range(rungs[0][0]):
            params = {
                "fine_tune_depth": int(rng.choice([0, 4, 7])),
                "head_units": int(rng.choice([0, 64, 128])),
                "dropout": round(float(rng.uniform(0, 0.5)), 3),
                "learning_rate": float(f"{10 ** rng.uniform(-4, -2):.3g}"),
            }
            quality = 0.018 * params["fine_tune_depth"] / 7 + float(rng.normal(0, 0.012))
            quality -= 0.02 * abs(np.log10(params["learning_rate"]) + 3.0)
            alive.append((configuration, params, quality))
            configuration += 1
        start = 0
        for round_number, (_, epochs) in enumerate(rungs):
            for index, params, quality in alive:
                failed = number == 5
                score = 0.995 - 0.07 / (epochs**0.6) + quality * 0.7
                seconds = (1.5 + 0.78 * params["fine_tune_depth"]) * (epochs - start)
                elapsed += seconds
                rows.append(
                    {
                        "number": number,
                        "trial": f"{index:04d}-{round_number}",
                        "configuration": index,
                        "bracket": bracket,
                        "round": round_number,
                        "initial_epoch": start,
                        "epochs": epochs,
                        "status": "failed" if failed else "completed",
                        "score": None if failed else round(float(min(score, 0.9931)), 5),
                        "seconds": round(seconds, 2),
                        "elapsed": round(elapsed, 2),
                        "reason": "nan" if failed else None,
                        "message": "The loss became NaN in epoch 1." if failed else None,
                        "params": params,
                    }
                )
                number += 1
            scores = {
                row["configuration"]: row["score"] or 0 for row in rows if row["bracket"] == bracket
            }
            keep = rungs[round_number + 1][0] if round_number + 1 < len(rungs) else 0
            alive = sorted(alive, key=lambda item: -scores[item[0]])[:keep]
            start = epochs
    done = [row for row in rows if row["status"] == "completed"]
    best = max(done, key=lambda row: row["score"])
    return {
        "objective": "roc_auc",
        "space": [
            {"name": "fine_tune_depth", "kind": "choice", "values": [0, 4, 7]},
            {"name": "head_units", "kind": "choice", "values": [0, 64, 128]},
            {"name": "dropout", "kind": "float", "low": 0.0, "high": 0.5, "sampling": "linear"},
            {
                "name": "learning_rate",
                "kind": "float",
                "low": 1e-4,
                "high": 1e-2,
                "sampling": "log",
            },
        ],
        "plan": {
            "brackets": [
                {
                    "bracket": 2,
                    "rungs": [
                        {"round": 0, "epochs": 1, "size": 9},
                        {"round": 1, "epochs": 3, "size": 3},
                        {"round": 2, "epochs": 9, "size": 1},
                    ],
                },
                {
                    "bracket": 1,
                    "rungs": [
                        {"round": 0, "epochs": 3, "size": 5},
                        {"round": 1, "epochs": 9, "size": 1},
                    ],
                },
                {"bracket": 0, "rungs": [{"round": 0, "epochs": 9, "size": 3}]},
            ],
            "trials": 22,
            "configurations": 17,
            "epochs": 69,
        },
        "trials": len(rows),
        "configurations": configuration,
        "failed": 1,
        "epochs": 69,
        "wall_seconds": 431.2,
        "stages": {
            "read images": 11.8,
            "audit": 9.1,
            "fill the cache": 34.6,
            "trials": 396.6,
            "evaluate": 38.6,
            "export": 14.2,
            "report": 2.4,
        },
        "cache": {
            "hits": 41,
            "misses": 4,
            "bytes": 811_000_000,
            "engine": "LiteRT",
            "images_per_second": 742.0,
        },
        "best": {
            "number": best["number"],
            "trial": best["trial"],
            "params": best["params"],
            "score": best["score"],
            "epochs": best["epochs"],
            "parameters": 412_770,
            "trainable_parameters": 251_904,
            "macs": 29_800_000,
        },
        "rows": rows,
        "curves": [
            {
                "epoch": e,
                "round": 0 if e <= 3 else 1,
                "loss": round(0.52 * 0.68 ** (e - 1) + 0.031, 4),
                "val_loss": round(0.44 * 0.76 ** (e - 1) + 0.092 + 0.004 * max(e - 6, 0), 4),
                "val_roc_auc": round(0.994 - 0.058 * 0.62 ** (e - 1), 4),
                "val_accuracy": round(0.966 - 0.11 * 0.66 ** (e - 1), 4),
                "learning_rate": 1.2e-3,
            }
            for e in range(1, 10)
        ],
        "importance": [
            {"name": "learning_rate", "value": 0.46, "low": 0.21, "high": 0.66},
            {"name": "fine_tune_depth", "value": 0.39, "low": 0.17, "high": 0.58},
            {"name": "dropout", "value": 0.09, "low": 0.01, "high": 0.24},
            {"name": "head_units", "value": 0.06, "low": 0.0, "high": 0.19},
        ],
        "edges": [{"name": "fine_tune_depth", "value": 7, "edge": "high"}],
    }


def binary_evaluation() -> dict[str, Any]:
    headline = metrics(0.9625, 0.9916, 0.017)
    exact = {
        "balanced_accuracy": 0.9616,
        "precision": 0.9639,
        "recall": 0.9524,
        "f1": 0.9581,
        "specificity": 0.9708,
        "mcc": 0.924,
        "brier": 0.0288,
        "log_loss": 0.1043,
    }
    headline |= {name: interval(value, 0.021) for name, value in exact.items()}
    headline["roc_auc"] = {"value": 0.9916, "low": 0.9862, "high": 0.9958}
    headline["ece"] = {"value": 0.0214, "low": 0.013, "high": 0.034}
    fpr = np.linspace(0, 1, 61) ** 2.2
    tpr = 1 - (1 - fpr) ** 42
    tpr = np.clip(0.985 * tpr + 0.015 * fpr, 0, 1)
    recall = np.linspace(0, 1, 61)
    precision = 0.45 + 0.55 * (1 - recall**24) ** 0.9
    thresholds = np.linspace(0.02, 0.98, 25)
    model = 0.45 * (0.985 - 0.09 * thresholds**3) - 0.02 * thresholds / (1 - thresholds) * 0.35
    return {
        "test": {
            "images": TEST_IMAGES,
            "groups": 405,
            "group_kind": "near-duplicates",
            "metrics": headline,
            "threshold": 0.431,
            "confusion": [[299, 9], [12, 240]],
            "per_class": {
                "no tumour": class_row(0.961, 0.971, 0.952, 308),
                "tumour": class_row(0.964, 0.952, 0.971, 252),
            },
            "curves": {
                "roc": band("fpr", fpr, "tpr", tpr),
                "pr": band("recall", recall, "precision", precision),
                "reliability": {
                    "before": {"bins": bins(0.78), "ece": 0.061},
                    "after": {"bins": bins(0.99), "ece": 0.0214},
                },
            },
            "temperature": 1.63,
            "mirror": {"used": True, "log_loss": 0.0968, "log_loss_without": 0.1196},
            "test_evaluations": 1,
            "without_twins": {"images": 389, "metrics": metrics(0.954, 0.988, 0.021)},
            "group_level": {"groups": 187, "metrics": metrics(0.951, 0.987, 0.022)},
        },
        "thresholds": [
            policy("youden", 0.431, 0.9524, 0.9708, 0.9639, 0.9614),
            policy("sensitivity 0.95", 0.462, 0.9483, 0.9740, 0.9676, 0.9584),
            policy("specificity 0.95", 0.288, 0.9683, 0.9481, 0.9385, 0.9733),
            policy("cost 5:1", 0.167, 0.9802, 0.9188, 0.9081, 0.9827),
        ],
        "natural": {
            "sensitivity_of_100": {"value": 95.2, "low": 92.4, "high": 97.6},
            "false_alarms_of_100": {"value": 2.9, "low": 1.3, "high": 5.0},
        },
        "ppv_by_prevalence": [
            prevalence_row(p)
            for p in (0.001, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.45, 0.6, 0.8)
        ],
        "decision_curve": [
            {
                "threshold": round(float(t), 3),
                "model": round(float(m), 4),
                "all": round(float(0.45 - 0.55 * t / (1 - t)), 4),
                "none": 0.0,
            }
            for t, m in zip(thresholds, model, strict=True)
        ],
        "confidence": [
            confidence_row(0.0, 0.5, 6, 3),
            confidence_row(0.5, 0.7, 24, 7),
            confidence_row(0.7, 0.9, 61, 6),
            confidence_row(0.9, 0.95, 58, 2),
            confidence_row(0.95, 0.99, 141, 2),
            confidence_row(0.99, 1.0, 270, 1),
        ],
        "mistakes": [
            {
                "image": f"Image{1201 + 37 * i}.jpg",
                "label": ("tumour", "no tumour")[i % 2],
                "predicted": ("no tumour", "tumour")[i % 2],
                "probability": round(0.993 - 0.031 * i, 3),
                "picture": f"mistake_{i}.jpg",
                "saliency": f"mistake_{i}_heat.jpg",
            }
            for i in range(12)
        ],
        "examples": {
            "right": [example(i, "tumour", "tumour", "right") for i in range(3)],
            "missed": [example(i, "tumour", "no tumour", "missed") for i in range(3)],
            "false_alarm": [example(i, "no tumour", "tumour", "false") for i in range(3)],
        },
        "label_suspects": [
            {
                "image": "Image944.jpg",
                "label": "tumour",
                "predicted": "no tumour",
                "probability": 0.998,
                "picture": "suspect_0.jpg",
            },
            {
                "image": "Image951.jpg",
                "label": "no tumour",
                "predicted": "tumour",
                "probability": 0.996,
                "picture": "suspect_1.jpg",
            },
        ],
        "subgroups": [
            {
                "attribute": "scanner",
                "value": "A",
                "images": 311,
                "metric": {"value": 0.9711, "low": 0.951, "high": 0.987},
                "name": "accuracy",
            },
            {
                "attribute": "scanner",
                "value": "B",
                "images": 249,
                "metric": {"value": 0.952, "low": 0.922, "high": 0.976},
                "name": "accuracy",
            },
            {
                "attribute": "sex",
                "value": "female",
                "images": 274,
                "metric": {"value": 0.967, "low": 0.944, "high": 0.985},
                "name": "accuracy",
            },
            {
                "attribute": "sex",
                "value": "male",
                "images": 286,
                "metric": {"value": 0.958, "low": 0.932, "high": 0.979},
                "name": "accuracy",
            },
        ],
        "robustness": [
            {
                "name": name,
                "level": level,
                "metric": interval(0.9625 - drop * step, 0.017 + 0.004 * step),
            }
            for name, drop, levels in (
                ("noise", 0.031, (0.02, 0.05, 0.1)),
                ("blur", 0.044, (0.5, 1.0, 2.0)),
                ("gamma", 0.008, (0.8, 1.25, 1.5)),
                ("rotation", 0.013, (5, 10, 20)),
                ("jpeg", 0.006, (75, 50, 25)),
                ("shift", 0.01, (4, 8, 16)),
            )
            for step, level in enumerate(levels, 1)
        ],
        "saliency": {
            "sanity": {"correlation_randomised": 0.11},
            "outside_share": 0.17,
            "outside_area": 0.41,
        },
        "external": [],
    }


def confidence_row(low: float, high: float, images: int, errors: int) -> dict[str, Any]:
    rate = errors / images
    return {
        "low": low,
        "high": high,
        "images": images,
        "errors": errors,
        "rate": interval(rate, 1.96 * (rate * (1 - rate) / images) ** 0.5),
        "expected": round(1 - (low + high) / 2, 4),
    }


def example(i: int, label: str, predicted: str, name: str) -> dict[str, Any]:
    return {
        "image": f"Image{310 + 53 * i}.jpg",
        "label": label,
        "predicted": predicted,
        "probability": round(0.97 - 0.06 * i, 3),
        "picture": f"{name}_{i}.jpg",
        "saliency": f"{name}_{i}_heat.jpg",
    }


def class_row(precision: float, recall: float, specificity: float, support: int) -> dict[str, Any]:
    f1 = 2 * precision * recall / (precision + recall)
    return {
        "precision": interval(precision, 0.023),
        "recall": interval(recall, 0.022),
        "specificity": interval(specificity, 0.022),
        "f1": interval(f1, 0.02),
        "support": support,
    }


def band(x_name: str, x: np.ndarray, y_name: str, y: np.ndarray) -> dict[str, list[float]]:
    low, high = np.clip(y - 0.018 - 0.03 * (1 - y), 0, 1), np.clip(y + 0.014, 0, 1)
    named = {x_name: x, y_name: y, "low": low, "high": high}
    return {name: [round(float(value), 4) for value in values] for name, values in named.items()}


def bins(slope: float) -> list[dict[str, float]]:
    counts = [231, 34, 14, 11, 9, 10, 12, 16, 33, 190]
    rows = []
    for i, count in enumerate(counts):
        mean = 0.05 + 0.1 * i
        observed = float(np.clip(0.5 + (mean - 0.5) * slope + 0.02 * np.sin(5 * i), 0, 1))
        half = 1.96 * (0.25 / count) ** 0.5 * 0.8
        rows.append(
            {
                "low": round(0.1 * i, 1),
                "high": round(0.1 * (i + 1), 1),
                "mean": round(mean, 3),
                "observed": round(observed, 4),
                "count": count,
                "ci_low": round(max(observed - half, 0), 4),
                "ci_high": round(min(observed + half, 1), 4),
            }
        )
    return rows


def policy(name: str, threshold: float, *values: float) -> dict[str, Any]:
    names = ("sensitivity", "specificity", "ppv", "npv")
    return {
        "policy": name,
        "threshold": threshold,
        **{key: interval(value, 0.024) for key, value in zip(names, values, strict=True)},
    }


def prevalence_row(prevalence: float, sensitivity: float = 0.9524, specificity: float = 0.9708):
    true = sensitivity * prevalence
    false = (1 - specificity) * (1 - prevalence)
    missed = (1 - sensitivity) * prevalence
    clear = specificity * (1 - prevalence)
    return {
        "prevalence": prevalence,
        "ppv": round(true / (true + false), 4),
        "npv": round(clear / (clear + missed), 4),
    }


def minimal_report() -> dict[str, Any]:
    """What a run has at the least: no audit extras, no saliency, baselines or exports."""
    full = full_report()
    test = full["evaluation"]["test"]
    return {
        "schema_version": 1,
        "run": {
            "name": "tiny",
            "created": CREATED,
            "command": "python run_search.py",
            "preset": "smoke",
            "seed": 0,
            "synthetic": True,
            "weights": "none",
        },
        "dataset": {
            "name": "sample",
            "kind": "sample",
            "images": 240,
            "classes": {"healthy": 120, "lesion": 120},
            "positive": "lesion",
            "synthetic": True,
        },
        "audit": {"findings": []},
        "split": {"train": 168, "val": 36, "test": 36, "leaking_pairs": 0},
        "search": {
            "objective": "roc_auc",
            "trials": 1,
            "configurations": 1,
            "failed": 0,
            "epochs": 1,
            "wall_seconds": 8.4,
            "best": {"number": 0, "params": {"learning_rate": 1e-3}, "score": 0.81},
        },
        "evaluation": {
            "test": {
                "images": 36,
                "metrics": test["metrics"],
                "threshold": 0.5,
                "confusion": [[15, 3], [4, 14]],
                "test_evaluations": 1,
            }
        },
        "baselines": {},
        "cost": {},
        "environment": {},
    }


def four_class_report() -> dict[str, Any]:
    """Four classes: macro curves, a row for each class, no thresholds or prevalence."""
    report = copy.deepcopy(full_report())
    names = ["glioma", "meningioma", "no tumour", "pituitary"]
    report["run"]["name"] = "four-classes"
    report["dataset"].update(
        name="four-classes",
        kind="split_folders",
        positive=None,
        classes=dict(zip(names, (926, 937, 1001, 898), strict=True)),
        grid={name: [f"grid_{i % 2}_{j}.jpg" for j in range(8)] for i, name in enumerate(names)},
    )
    counts = {name: 140 for name in names}
    report["split"]["classes"] = {
        "train": {n: 660 for n in names},
        "val": {n: 141 for n in names},
        "test": counts,
    }
    report["split"]["balance"] = {
        "method": "oversample",
        "before": {n: 660 for n in names},
        "after": {n: 660 for n in names},
    }
    evaluation = report["evaluation"]
    evaluation["test"]["confusion"] = [
        [128, 9, 2, 1],
        [8, 121, 6, 5],
        [0, 3, 136, 1],
        [1, 2, 0, 137],
    ]
    recalls = (0.914, 0.864, 0.971, 0.979)
    evaluation["test"]["per_class"] = {
        name: class_row(0.93, recall, 0.97, 140)
        for name, recall in zip(names, recalls, strict=True)
    }
    for key in ("thresholds", "ppv_by_prevalence", "decision_curve"):
        evaluation[key] = []
    evaluation["test"]["threshold"] = None
    del evaluation["natural"]
    for items in (evaluation["mistakes"], evaluation["label_suspects"]):
        for i, item in enumerate(items):
            item["label"], item["predicted"] = names[i % 4], names[(i + 1) % 4]
    evaluation["examples"] = {"right": evaluation["examples"]["right"]}
    return report


def draw_pictures(folder: Path, report: dict[str, Any], size: int = 96) -> None:
    """Draw every picture that ``report`` names into ``folder``/pictures."""
    target = folder / "pictures"
    target.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(sorted(picture_names(report))):
        rng = np.random.default_rng(number // 2)
        lesion = any(word in name for word in ("grid_1", "right", "missed", "mistake", "suspect"))
        draw_head(rng, size, lesion, name.endswith("_heat.jpg")).save(target / name, quality=80)


def picture_names(value: Any) -> set[str]:
    if isinstance(value, dict):
        found = set()
        for key, item in value.items():
            if key in ("picture", "picture_a", "picture_b", "saliency") and isinstance(item, str):
                found.add(item)
            elif key == "grid":
                found |= {name for names in item.values() for name in names}
            else:
                found |= picture_names(item)
        return found
    return set().union(*map(picture_names, value)) if isinstance(value, list) else set()


def draw_head(rng: np.random.Generator, size: int, lesion: bool, heat: bool) -> Image.Image:
    scale = 4 * size
    image = Image.new("L", (scale, scale), 4)
    draw = ImageDraw.Draw(image)

    def ellipse(cx: float, cy: float, rx: float, ry: float, grey: int) -> None:
        box = [(cx - rx) * scale, (cy - ry) * scale, (cx + rx) * scale, (cy + ry) * scale]
        draw.ellipse(box, fill=grey)

    wide = 0.36 + rng.uniform(-0.02, 0.02)
    ellipse(0.5, 0.5, wide, 0.44, 190)
    ellipse(0.5, 0.5, wide - 0.035, 0.405, 30)
    ellipse(0.5, 0.5, wide - 0.055, 0.385, 105)
    for _ in range(26):
        angle, radius = rng.uniform(0, 2 * np.pi), rng.uniform(0.16, 0.3)
        ellipse(
            0.5 + 0.85 * radius * np.cos(angle),
            0.5 + radius * np.sin(angle),
            rng.uniform(0.02, 0.05),
            rng.uniform(0.02, 0.05),
            int(rng.integers(85, 140)),
        )
    ellipse(0.455, 0.47, 0.03, 0.11, 38)
    ellipse(0.545, 0.47, 0.03, 0.11, 38)
    x, y = 0.5 + rng.choice([-1, 1]) * rng.uniform(0.12, 0.2), rng.uniform(0.34, 0.64)
    if lesion:
        ellipse(x, y, 0.075, 0.065, 215)
        ellipse(x, y, 0.04, 0.035, 150)
    image = image.filter(ImageFilter.GaussianBlur(scale / 90)).resize((size, size))
    pixels = np.asarray(image, dtype=float) + rng.normal(0, 7, (size, size))
    rgb = np.repeat(np.clip(pixels, 0, 255)[..., None], 3, axis=2)
    if heat:
        rows, columns = np.mgrid[0:size, 0:size] / size
        warm = np.exp(-(((columns - x) / 0.14) ** 2 + ((rows - y) / 0.14) ** 2))[..., None]
        rgb = rgb * (1 - 0.6 * warm) + np.array([253.0, 200.0, 30.0]) * 0.6 * warm
    return Image.fromarray(rgb.astype(np.uint8))
