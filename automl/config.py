"""The settings of a search: one flat frozen dataclass, checked when it is made.

Command-line flags and YAML keys are generated from the fields, so a new setting is one
line here. Types must stay real objects: no ``from __future__ import annotations``.
"""

import difflib
import math
import re
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

from automl.errors import UsageError

OBJECTIVES = ("roc_auc", "log_loss", "average_precision", "balanced_accuracy")
BALANCES = ("oversample", "class_weight", "none")
# Keras has ImageNet weights for these widths and square input sizes only.
WIDTHS = (0.35, 0.5, 0.75, 1.0, 1.3, 1.4)
N_BLOCKS = 17
# Nine ranked better than four or six, twelve no better than six: by then the images are known
# by heart.
REFINE_IN_BUDGET = 9

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
        "width": (1.0,),
        "fine_tune_depths": (0, 4, 7),
        "max_epochs": 3,
        "factor": 3,
        "views": 2,
        "refine_epochs": 4,
    },
    "balanced": {
        "image_size": 160,
        "width": (1.0,),
        "fine_tune_depths": (0, 4, 7),
        "max_epochs": 4,
        "factor": 3,
        "views": 2,
        "refine_epochs": 9,
    },
    "best": {
        "image_size": 160,
        "width": (1.0,),
        "fine_tune_depths": (0, 4, 7),
        "max_epochs": 6,
        "factor": 2,
        "views": 4,
        "refine_epochs": 9,
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
    split: str = setting("grouped", "how to divide the images", metavar="grouped|random|FILE.csv")
    val_fraction: float = setting(0.15, "share of images for validation", low=0.01, high=0.8)
    test_fraction: float = setting(0.15, "share of images for the test", low=0.01, high=0.8)
    twin_threshold: float = setting(
        0.98, "correlation of thumbnails above which two images are twins", low=0.5, high=1.0
    )
    compare_splits: bool = setting(
        False,
        "train the winner on a random split, too (on a grouped one if --split is another), to "
        "show what near-copies add; one trial more, outside of --budget",
    )
    balance: str = setting("oversample", "how the training set is balanced", choices=BALANCES)
    image_size: int = setting(160, "side of the square input in pixels", low=32, high=512)
    width: tuple[float, ...] = setting((0.35,), "MobileNetV2 width(s)", many=float, choices=WIDTHS)
    weights: str | None = setting(
        None,
        "backbone weights; default none for the sample, else imagenet",
        metavar="imagenet|none|PATH",
    )
    fine_tune_depths: tuple[int, ...] = setting(
        (0, 1, 2, 4, 7),
        "inverted-residual blocks that may be trained, from the end",
        many=int,
        low=0,
        high=N_BLOCKS,
    )
    max_epochs: int = setting(27, "epochs of the longest trial (R)", low=1, high=1000)
    min_epochs: int = setting(1, "epochs of the shortest trial", low=1, high=1000)
    refine_epochs: int | None = setting(
        None,
        "epochs that the winner is trained on after the search, nearly all of the network on "
        "images changed anew in every epoch, kept unless validation says no; default none, or "
        f"as many as --budget has time for, at most {REFINE_IN_BUDGET}",
        low=0,
        high=1000,
    )
    factor: int = setting(3, "one in FACTOR trials is promoted (eta)", low=2, high=10)
    budget: float | None = setting(
        None,
        "wall-clock limit such as 10m or 1h30m; the schedule is chosen to fit",
        metavar="TIME",
    )
    objective: str = setting("roc_auc", "what the search optimises", choices=OBJECTIVES)
    views: int = setting(1, "fixed augmented views of each training image", low=1, high=64)
    batch_size: int = setting(32, "training images per step", low=1, high=1024)
    seed: int = setting(0, "makes the whole search repeatable", low=0, high=2**31 - 1)
    workers: int | None = setting(
        None,
        "trials that run at the same time; default one for each processor, at most 4",
        low=1,
        high=256,
    )
    threads: int | None = setting(
        None,
        "threads of each trial; default a worker's share, all for the second and a refinement",
        low=1,
        high=1024,
    )
    scheduler: str | None = setting(
        None, "Dask scheduler whose workers run the trials, or its file", metavar="ADDRESS|FILE"
    )
    trial_timeout: float | None = setting(
        None,
        "a trial that takes longer has failed; default 20 times its estimate, at least 15m",
        metavar="TIME",
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
    study: str | None = setting(
        None,
        "the authors' answers for report and model card; kept as study.yaml in the run folder",
        metavar="FILE.yaml",
    )
    name: str | None = setting(None, "name of the run folder; default data set and date")
    out: str = setting("reports", "folder of the run folders", metavar="FOLDER")

    def __post_init__(self) -> None:
        for item in fields(self):
            value = parse_value(item, getattr(self, item.name))
            check_value(item.name, value, item.metadata)
            object.__setattr__(self, item.name, value)
        if self.val_fraction + self.test_fraction > 0.9:
            raise UsageError(
                f"--val-fraction {self.val_fraction} and --test-fraction {self.test_fraction} "
                "leave less than a tenth of the images for training. Make their sum at most 0.9."
            )
        if self.scheduler is not None and self.workers is not None:
            raise UsageError(
                f"--workers {self.workers} starts workers on this machine and --scheduler "
                f"{self.scheduler} uses a cluster's: choose one."
            )
        if self.min_epochs > self.max_epochs:
            raise UsageError(
                f"--min-epochs {self.min_epochs} is more than --max-epochs {self.max_epochs}."
            )
        if self.name is not None and not is_folder_name(self.name):
            raise UsageError(
                f"--name {self.name!r} cannot be a folder name. Use letters, digits, '-', '_' and "
                "'.', at most 120 of them, the first a letter or a digit."
            )

    @property
    def weights_used(self) -> str:
        """``weights``, or the default for the data: none for the sample, else imagenet."""
        if self.weights is not None:
            return self.weights
        return "none" if self.data == "sample" else "imagenet"

    @property
    def most_refine_epochs(self) -> int:
        """``refine_epochs``, or what a budget may choose; none where no block is trained."""
        # Who wants heads on frozen layers alone gets no trained layers by a side door.
        if not max(self.fine_tune_depths):
            return 0
        if self.refine_epochs is None:
            return REFINE_IN_BUDGET if self.budget else 0
        return self.refine_epochs

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
            close = difflib.get_close_matches(str(key), known, n=1)
            hint = f"Did you mean {close[0]!r}?" if close else f"Known: {', '.join(sorted(known))}."
            raise UsageError(f"There is no setting {key!r}. {hint}")
    preset = parse_value(known["preset"], settings.get("preset", known["preset"].default))
    check_value("preset", preset, known["preset"].metadata)
    values = dict(PRESETS[preset])
    if settings.get("budget") is not None:
        # Which schedule and how much refinement is then what there is time for.
        values.pop("refine_epochs", None)
    return SearchConfig(**{**values, **settings})


def parse_value(item: Any, value: Any) -> Any:
    """Turn what a flag, a YAML file or a Python call holds into the field's type.

    Raises:
        UsageError: the value is of another kind, such as a list for a number.
    """
    many = item.metadata.get("many")
    try:
        if value is None:
            if item.default is not None:
                raise ValueError
            return None
        if many:
            parts = value.split(",") if isinstance(value, str) else value
            parts = parts if isinstance(parts, (list, tuple)) else [parts]
            return tuple(parse_number(many, part) for part in parts)
        if item.metadata.get("metavar") == "TIME":
            return parse_seconds(value)
        if item.type is bool:
            if not isinstance(value, bool):
                raise ValueError
            return value
        for kind in (int, float):
            if item.type in (kind, kind | None):
                return parse_number(kind, value)
        return parse_text(value)
    except (TypeError, ValueError, OverflowError) as error:
        reason = f" {error}" if type(error) is Unreadable else ""
        raise UsageError(
            f"{flag(item.name)} cannot be {value!r}: {item.metadata['help']}.{reason}"
        ) from None


class Unreadable(ValueError):
    """A value that has an explanation of its own."""


def parse_number(kind: type, value: Any) -> Any:
    """``"3"`` or 3.0 → 3 for an int; truth values, NaN and fractions of an int are refused."""
    number = kind(value)
    if isinstance(value, bool) or number != float(value) or not math.isfinite(number):
        raise ValueError
    return number


def parse_text(value: Any) -> str:
    """Text, a path or a number as text. YAML reads a bare yes, no, on or off as a truth value."""
    if isinstance(value, bool):
        raise Unreadable("Put yes, no, on, off, true and false in quotes when they are text.")
    if not isinstance(value, (str, Path, int, float)) or not str(value).strip():
        raise ValueError
    return str(value)


def parse_seconds(value: Any) -> float:
    """``90``, ``"90s"``, ``"10m"``, ``"1h30m"`` → seconds, finite and above 0."""
    if isinstance(value, str):
        number = r"(\d+(?:\.\d+)?)"
        match = re.fullmatch(rf"(?:{number}h)?(?:{number}m)?(?:{number}s?)?", value.strip().lower())
        hours, minutes, seconds = (
            (float(part or 0) for part in match.groups()) if match else [0] * 3
        )
        value = hours * 3600 + minutes * 60 + seconds
    elif isinstance(value, bool) or not isinstance(value, (int, float)):
        value = 0
    if not 0 < value < math.inf:
        raise Unreadable("Write a time as 90s, 10m or 1h30m.")
    return float(value)


def is_folder_name(name: str) -> bool:
    """Whether ``name`` is one folder on every file system (255 bytes), and not hidden."""
    return re.fullmatch(r"\w[\w .+-]{0,119}", name) is not None and len(name.encode()) <= 240


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
    if rules.get("many") and (not value or len(set(value)) != len(value)):
        raise UsageError(f"{flag(name)} needs one or more different values, not {value!r}.")


def flag(name: str) -> str:
    """``fine_tune_depths`` → ``--fine-tune-depths``."""
    return "--" + name.replace("_", "-")


assert all(item.default is not MISSING for item in fields(SearchConfig))
