"""Numbers as people read them. Pure text in, text out; None is printed as a dash."""

from pathlib import PurePath
from typing import Any

DASH = "–"
MINUS = "\u2212"
METRIC_NAMES = {
    "accuracy": "Accuracy",
    "balanced_accuracy": "Balanced accuracy",
    "precision": "Precision (PPV)",
    "recall": "Recall (sensitivity)",
    "specificity": "Specificity",
    "f1": "F1",
    "mcc": "Matthews correlation",
    "roc_auc": "ROC AUC",
    "average_precision": "Average precision",
    "brier": "Brier score",
    "log_loss": "Log loss",
    "ece": "Calibration error (ECE)",
}
LOWER_IS_BETTER = ("brier", "log_loss", "ece")
BASELINE_NAMES = {
    "majority": "Always the largest class",
    "uniform": "The same probability for every class",
    "one_nearest_neighbour": "Most similar training image (1-NN)",
    "shortcut": "Simple image properties alone",
    "logistic_features": "Logistic regression on frozen features",
}


def words(name: Any) -> str:
    """``fine_tune_depth`` → ``fine tune depth``; known metrics get their usual name."""
    text = str(name)
    return METRIC_NAMES.get(text) or BASELINE_NAMES.get(text) or text.replace("_", " ")


def number(value: float | None, digits: int = 3) -> str:
    """A fixed number of decimals; whole numbers keep thousands separators."""
    if value is None:
        return DASH
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.{digits}f}".replace("-", MINUS)


def brief(value: Any) -> str:
    """A hyperparameter or setting: three significant digits for floats, text as it is."""
    if isinstance(value, float):
        return f"{value:.3g}"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(brief, value))
    return DASH if value is None else str(value)


def percent(value: float | None, digits: int = 1) -> str:
    """A share in [0, 1] as per cent, never rounded to none or all of it."""
    if value is None:
        return DASH
    text = f"{100 * value:.{digits}f}"
    # 99.97 % is not certainty, and 0.02 % is not never.
    smallest = 10.0**-digits
    if value < 1 and float(text) >= 100:
        text = f">{100 - smallest:.{digits}f}"
    elif value > 0 and float(text) == 0:
        text = f"<{smallest:.{digits}f}"
    return f"{text.replace('-', MINUS)}\u202f%"


def points(value: float | None) -> str:
    """A difference or error of shares: ``2.9 percentage points``."""
    return DASH if value is None else f"{number(100 * value, 1)} percentage points"


def policy(name: str) -> str:
    """How a threshold was chosen, in words; see thresholds.choose_threshold."""
    kind, _, target = name.partition(":")
    if kind == "youden":
        return "Most sensitivity + specificity (Youden), by a fitted curve"
    if kind in ("sensitivity", "specificity"):
        return f"At least {percent(float(target), 0)} {kind} on validation"
    if kind == "cost":
        miss, _, alarm = target.partition("/")
        return f"Least cost, a miss being worth {miss} and a false alarm {alarm or 1}"
    return words(name)


def whole_percent(value: float | None) -> str:
    return percent(value, 0)


def interval(item: dict[str, float | None] | None, digits: int = 3) -> str:
    """``0.992 (0.985–0.997)``."""
    if not item or item["value"] is None:
        return DASH
    if item["low"] is None or item["high"] is None:
        return number(item["value"], digits)
    return f"{number(item['value'], digits)} ({span(item, digits)})"


def span(item: dict[str, float | None] | None, digits: int = 3) -> str:
    """The interval alone: ``0.985–0.997``, ``−0.1 to 0.2``; empty if there is none."""
    if not item or item["low"] is None or item["high"] is None:
        return ""
    between = " to " if item["low"] < 0 else "–"
    return f"{number(item['low'], digits)}{between}{number(item['high'], digits)}"


def percent_interval(item: dict[str, float | None] | None, digits: int = 1) -> str:
    """``96.2 % (94.6–97.7)``."""
    if not item or item["value"] is None:
        return DASH
    text = percent(item["value"], digits)
    if item["low"] is None or item["high"] is None:
        return text
    return f"{text} ({100 * item['low']:.{digits}f}–{100 * item['high']:.{digits}f})"


def duration(seconds: float | None) -> str:
    """``8.4 s``, ``7 min 11 s``, ``2 h 05 min``."""
    if seconds is None:
        return DASH
    if seconds < 60:
        return f"{seconds:.1f}\u202fs"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}\u202fmin {rest:02d}\u202fs"
    return f"{minutes // 60}\u202fh {minutes % 60:02d}\u202fmin"


def size(count: float | None) -> str:
    """Bytes in decimal units."""
    if count is None:
        return DASH
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 1000 or unit == "GB":
            return f"{count:.0f}\u202f{unit}" if unit == "B" else f"{count:.1f}\u202f{unit}"
        count /= 1000
    raise AssertionError("unreachable")


def megabytes(count: float | None) -> str:
    return DASH if count is None else size(1e6 * count)


def large(value: float | None) -> str:
    """``412770`` → ``413 thousand``; ``29800000`` → ``29.8 million``."""
    if value is None:
        return DASH
    for limit, unit in ((1e9, "billion"), (1e6, "million"), (1e3, "thousand")):
        if value >= limit:
            return f"{value / limit:.3g} {unit}"
    return f"{value:.0f}"


def scientific(value: float | None) -> str:
    """``9.0 × 10⁻⁸``; nothing is 0."""
    if value is None or value == 0:
        return DASH if value is None else "0"
    digits, exponent = f"{value:.1e}".split("e")
    raised = str(int(exponent)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return f"{digits} × 10{raised}"


def store(address: str | None) -> str:
    """Where MLflow keeps a run: a server's address, or of a local store the name alone.

    Its folders say who ran the search, and nothing to whoever is given the page.
    """
    if not address:
        return "unknown"
    scheme, mark, _ = address.partition("://")
    local = scheme.startswith(("sqlite", "file")) if mark else "/" in address
    return f"{PurePath(address).name} on the computer that searched" if local else address


def times(count: int) -> str:
    return {1: "once", 2: "twice"}.get(count, f"{count:,} times")


def listing(names: Any) -> str:
    """``“healthy” and “lesion”``."""
    quoted = [f"“{name}”" for name in names]
    return (
        " and ".join([", ".join(quoted[:-1]), quoted[-1]]) if len(quoted) > 1 else "".join(quoted)
    )


def grouping(part: dict[str, Any]) -> str:
    """What a data set's or test set's groups are, after "560 images"; "" if single images.

    ``group_kind`` is images, twins (or near-duplicates), patients, or patients and twins.
    """
    groups, kind = part["groups"], part["group_kind"] or ""
    if groups is None or kind == "images":
        return ""
    if "patients" in kind:
        merged = "" if kind == "patients" else " (those with near-copies counted as one)"
        return f" of {plural(groups, 'patient')}{merged}"
    what = "near-copies" if kind in ("twins", "near-duplicates") else kind or "unknown kind"
    return f" in {groups:,} groups ({what} kept together)"


def plural(count: int, noun: str) -> str:
    """``1 trial``, ``22 trials``."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"
