"""The settings of a search: one flat frozen dataclass, checked when it is made.

Command-line flags and YAML keys are generated from the fields, so a new setting is one
line here. Types must stay real objects: no ``from __future__ import annotations``.
"""

import re
from dataclasses import MISSING, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from automl.errors import UsageError

OBJECTIVES = ("roc_auc", "log_loss", "average_precision", "balanced_accuracy")
BALANCES = ("oversample", "class_weight", "none")
# Keras has ImageNet weights for these widths and square input sizes only.
WIDTHS = (0.35, 0.5, 0.75, 1.0, 1.3, 1.4)
N_BLOCKS = 17

# What a preset changes, and what it costs on two cores without a GPU for 3,762 images.
PRESETS: dict[str, dict[str, Any]] = {
    "smoke": {
        "image_size": 96,
        "width": (0.35,),
        "fine_tune_depths": (0, 1),
        "max_epochs": 3,
        "factor": 3,
        "views": 1,
    },
    "fast": {
        "image_size": 160,
        "width": (0.35,),
        "fine_tune_depths": (0, 4, 7),
        "max_epochs": 9,
        "factor": 3,
        "views": 2,
    },
    "balanced": {
        "image_size": 160,
        "width": (1.0,),
        "fine_tune_depths": (0, 2, 4, 7),
        "max_epochs": 9,
        "factor": 3,
        "views": 4,
    },
    "best": {
        "image_size": 224,
        "width": (1.0,),
        "fine_tune_depths": (0, 2, 4, 7, 10),
        "max_epochs": 27,
        "factor": 3,
        "views": 8,
    },
}


def setting(default: Any, text: str, **rules: Any) -> Any:
    """A field with its help text; ``rules``: choices, low, high, metavar, many (a tuple)."""
    return field(default=default, metadata={"help": text, **rules})


@dataclass(frozen=True)
class SearchConfig:
    """Everything that decides what a search does. Paths are as the user gave them."""

    data: str = setting(
        "sample", "sample, a folder or a CSV file", metavar="sample|FOLDER|FILE.csv"
    )
    image_column: str | None = setting(None, "column of a CSV with the image names")
    label_column: str | None = setting(None, "column of a CSV with the labels")
    group_column: str | None = setting(None, "column with the patient, kept on one side")
    split_column: str | None = setting(None, "column with train, val or test")
    positive: str | None = setting(None, "the class that a positive result means")
    split: str = setting(
        "grouped", "how to divide the images", metavar="grouped|random|FILE.csv"
    )
    val_fraction: float = setting(0.15, "share of images for validation", low=0.01, high=0.8)
    test_fraction: float = setting(0.15, "share of images for the test", low=0.01, high=0.8)
    twin_threshold: float = setting(
        0.98, "correlation of thumbnails above which two images are twins", low=0.5, high=1.0
    )
    balance: str = setting(
        "oversample", "how the training set is balanced", choices=BALANCES
    )
    image_size: int = setting(160, "side of the square input in pixels", low=32, high=512)
    width: tuple[float, ...] = setting((0.35,), "MobileNetV2 width(s)", many=float, choices=WIDTHS)
    weights: str | None = setting(
        None, "backbone weights; default none for the sample, else imagenet",
        metavar="imagenet|none|PATH",
    )
    fine_tune_depths: tuple[int, ...] = setting(
        (0, 1, 2, 4, 7), "inverted-residual blocks that may be trained, from the end",
        many=int, low=0, high=N_BLOCKS,
    )
    max_epochs: int = setting(27, "epochs of the longest trial (R)", low=1, high=1000)
    min_epochs: int = setting(1, "epochs of the shortest trial", low=1, high=1000)
    factor: int = setting(3, "one in FACTOR trials is promoted (eta)", low=2, high=10)
    budget: float | None = setting(
        None, "wall-clock limit such as 10m or 1h30m; the schedule is chosen to fit",
        metavar="TIME",
    )
    objective: str = setting("roc_auc", "what the search optimises", choices=OBJECTIVES)
    views: int = setting(1, "fixed augmented views of each training image", low=1, high=64)
    batch_size: int = setting(32, "training images per step", low=1, high=1024)
    seed: int = setting(0, "makes the whole search repeatable", low=0, high=2**31 - 1)
    workers: int = setting(1, "trials that run at the same time", low=1, high=256)
    trial_timeout: float | None = setting(
        None, "a trial that takes longer has failed, such as 20m", metavar="TIME"
    )
    cache: bool = setting(True, "keep the frozen layers' outputs (--no-cache for proof)")
    cache_dir: str | None = setting(
        None, "where pixels and activations are kept; default ~/.cache/automl", metavar="FOLDER"
    )
    cache_limit: float = setting(20.0, "GiB that the cache may use", low=0.1, high=100000)
    tracking: bool = setting(True, "send the search to MLflow")
    tracking_uri: str | None = setting(
        None, "MLflow server or store; default sqlite under the reports folder", metavar="URI"
    )
    experiment: str = setting("automl", "MLflow experiment")
    register: str | None = setting(None, "register the best model under this name", metavar="NAME")
    promote: bool = setting(False, "make the registered model champion if it is better")
    preset: str = setting("fast", "smoke, fast, balanced or best", choices=tuple(PRESETS))
    name: str | None = setting(None, "name of the run folder; default data set and date")
    out: str = setting("reports", "folder of the run folders", metavar="FOLDER")

    def __post_init__(self) -> None:
        for item in fields(self):
            check_value(item.name, getattr(self, item.name), item.metadata)
        if self.val_fraction + self.test_fraction > 0.9:
            raise UsageError(
                f"--val-fraction {self.val_fraction} and --test-fraction {self.test_fraction} leave "
                "less than a tenth of the images for training. Make their sum at most 0.9."
            )
        if self.min_epochs > self.max_epochs:
            raise UsageError(
                f"--min-epochs {self.min_epochs} is more than --max-epochs {self.max_epochs}."
            )
        if self.name is not None and not re.fullmatch(r"[\w][\w .+-]{0,119}", self.name):
            raise UsageError(
                f"--name {self.name!r} cannot be a folder name. Use letters, digits, '-', '_' and '.'."
            )

    @property
    def weights_used(self) -> str:
        """``weights``, or the default for the data: none for the sample, else imagenet."""
        if self.weights is not None:
            return self.weights
        return "none" if self.data == "sample" else "imagenet"

    def to_json(self) -> dict[str, Any]:
        """A plain dict; tuples become lists."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}


def make_config(settings: dict[str, Any]) -> SearchConfig:
    """Defaults, then the preset, then ``settings`` (a YAML file's keys or the flags given).

    Raises:
        UsageError: a key that does not exist, or a value that is not allowed.
    """
    known = {item.name: item for item in fields(SearchConfig)}
    for key in settings:
        if key not in known:
            raise UsageError(
                f"There is no setting {key!r}. Known settings: {', '.join(sorted(known))}."
            )
    preset = settings.get("preset", known["preset"].default)
    if preset not in PRESETS:
        raise UsageError(f"--preset {preset!r} is not known. Allowed: {', '.join(PRESETS)}.")
    merged = {**PRESETS[preset], **{k: parse_value(known[k], v) for k, v in settings.items()}}
    return replace(SearchConfig(), **merged)


def parse_value(item: Any, value: Any) -> Any:
    """Turn what a flag or a YAML file holds into the field's type."""
    if value is None:
        return None
    many = item.metadata.get("many")
    try:
        if many:
            parts = value.split(",") if isinstance(value, str) else value
            parts = parts if isinstance(parts, (list, tuple)) else [parts]
            return tuple(many(part) for part in parts)
        if item.metadata.get("metavar") == "TIME":
            return parse_seconds(value)
        kind = item.type if isinstance(item.type, type) else None
        if kind is bool:
            if not isinstance(value, bool):
                raise ValueError
            return value
        if kind in (int, float):
            number = kind(value)
            if isinstance(value, bool) or number != float(value):
                raise ValueError
            return number
        return str(value) if not isinstance(value, Path) else str(value)
    except (TypeError, ValueError):
        raise UsageError(f"{flag(item.name)} cannot be {value!r}: {item.metadata['help']}.") from None


def parse_seconds(value: Any) -> float:
    """``90``, ``"90s"``, ``"10m"``, ``"1h30m"`` → seconds."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    match = re.fullmatch(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s?)?", value.strip())
    if not value.strip() or match is None:
        raise UsageError(f"{value!r} is not a time. Write it as 90s, 10m or 1h30m.")
    hours, minutes, seconds = (float(part or 0) for part in match.groups())
    return hours * 3600 + minutes * 60 + seconds


def check_value(name: str, value: Any, rules: Any) -> None:
    """Hold one value against its field's rules."""
    if value is None:
        return
    for part in value if rules.get("many") else (value,):
        if "choices" in rules and part not in rules["choices"]:
            allowed = ", ".join(str(choice) for choice in rules["choices"])
            raise UsageError(f"{flag(name)} {part!r} is not known. Allowed: {allowed}.")
        if "low" in rules and not rules["low"] <= part <= rules["high"]:
            raise UsageError(
                f"{flag(name)} must be between {rules['low']} and {rules['high']}, not {part}."
            )
    if rules.get("metavar") == "TIME" and value <= 0:
        raise UsageError(f"{flag(name)} must be longer than nothing, such as 10m.")
    if rules.get("many") and (not value or len(set(value)) != len(value)):
        raise UsageError(f"{flag(name)} needs one or more different values, not {value!r}.")


def flag(name: str) -> str:
    """``fine_tune_depths`` → ``--fine-tune-depths``."""
    return "--" + name.replace("_", "-")


assert all(item.default is not MISSING for item in fields(SearchConfig))
