"""What the search optimises, computed from validation logits after every epoch."""

import math
from collections.abc import Iterable, Mapping

import numpy as np
from sklearn.metrics import average_precision_score, balanced_accuracy_score, roc_auc_score

MINIMISED = ("log_loss",)


def direction(objective: str) -> str:
    """ "min" or "max", as KerasTuner says it."""
    return "min" if objective in MINIMISED else "max"


def better(objective: str, score: float, than: float) -> bool:
    return score < than if objective in MINIMISED else score > than


def best_epoch(epochs: Iterable[Mapping[str, float]], objective: str) -> Mapping[str, float]:
    """The row of a history with the best ``val_objective``; the first among equals."""
    sign = 1 if direction(objective) == "max" else -1
    return max(epochs, key=lambda row: sign * row[f"val_{objective}"])


def is_no_worse(objective: str, after: Mapping[str, float], before: Mapping[str, float]) -> bool:
    """Whether a refinement's last epoch may take the place of the best before it.

    ``before`` is the best of many epochs of many trials, which flatters it, ``after`` one that was
    decided on without looking. So it is refused only if the objective is no better and the loss
    is clearly worse.
    """
    key = f"val_{objective}"
    return better(objective, after[key], before[key]) or (
        after["val_loss"] <= loss_limit(after, before)
    )


def loss_limit(after: Mapping[str, float], before: Mapping[str, float]) -> float:
    """The highest loss that is not clearly worse: by two standard errors of the difference.

    The error is that of two different sets of images. Both losses are of the same ones and vary
    together, so it is rather too large, in favour of ``after``.
    """
    # Journals from before these errors were written have none.
    errors = [row.get("val_loss_error", 0.0) for row in (after, before)]
    return before["val_loss"] + 2 * math.hypot(*errors)


def probabilities_of(logits: np.ndarray) -> np.ndarray:
    """float64 (n, k) from logits (n, 1 or k)."""
    logits = logits.astype(np.float64)
    if logits.shape[1] == 1:
        positive = 1 / (1 + np.exp(-np.clip(logits, -500, 500)))
        return np.concatenate([1 - positive, positive], axis=1)
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    return shifted / shifted.sum(axis=1, keepdims=True)


def score_outputs(objective: str, logits: np.ndarray, y: np.ndarray) -> dict[str, float]:
    """Loss, accuracy and the objective on validation.

    Args:
        logits: float (n, 1 or k).
        y: int (n,), every class present.

    Returns:
        ``loss`` (mean cross-entropy), ``loss_error`` (its standard error), ``accuracy`` and
        ``objective``; many classes are averaged one against the rest. NaN logits give NaN,
        which fails the trial.
    """
    if not np.isfinite(logits).all():
        return dict.fromkeys(("loss", "loss_error", "accuracy", objective), float("nan"))
    p = probabilities_of(logits)
    losses = -np.log(np.clip(p[np.arange(len(y)), y], 1e-12, 1))
    loss = float(losses.mean())
    chosen = p.argmax(axis=1)
    scores = {
        "loss": loss,
        "loss_error": float(losses.std() / np.sqrt(len(y))),
        "accuracy": float((chosen == y).mean()),
    }
    binary = p.shape[1] == 2
    if objective == "log_loss":
        scores[objective] = loss
    elif objective == "balanced_accuracy":
        scores[objective] = float(balanced_accuracy_score(y, chosen))
    elif objective == "roc_auc":
        # Logits rank without the ties that saturated probabilities have.
        value = roc_auc_score(y, logits[:, 0]) if binary else roc_auc_score(y, p, multi_class="ovr")
        scores[objective] = float(value)
    else:
        onehot = np.eye(p.shape[1])[y]
        value = (
            average_precision_score(y, p[:, 1]) if binary else average_precision_score(onehot, p)
        )
        scores[objective] = float(value)
    return scores
