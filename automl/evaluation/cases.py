"""Single images worth looking at: mistakes, examples, and labels that may be wrong.

A case is a dict as report.json has it: image, label, predicted, probability (of the predicted
class), picture and saliency (file names, filled in by whoever writes the pictures).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

MAX_MISTAKES = 24
MAX_SUSPECTS = 24
# In probability; below it both classes are plausible and a second look would find nothing.
SUSPECT_MARGIN = 0.5
EXAMPLES = 3

Case = dict[str, Any]


def make_cases(
    rows: np.ndarray,
    images: Sequence[str],
    classes: Sequence[str],
    y_true: np.ndarray,
    predicted: np.ndarray,
    probabilities: np.ndarray,
) -> list[Case]:
    """The images in ``rows`` as cases, in that order."""
    return [
        {
            "image": images[row],
            "label": classes[y_true[row]],
            "predicted": classes[predicted[row]],
            "probability": float(probabilities[row, predicted[row]]),
            "picture": None,
            "saliency": None,
        }
        for row in rows
    ]


def worst_mistakes(
    y_true: np.ndarray, predicted: np.ndarray, probabilities: np.ndarray, limit: int = MAX_MISTAKES
) -> np.ndarray:
    """Rows of wrong predictions, the least probable true class first, int (≤ limit,)."""
    wrong = np.flatnonzero(predicted != y_true)
    given = probabilities[wrong, y_true[wrong]]
    return wrong[np.argsort(given, kind="stable")][:limit]


def example_rows(
    y_true: np.ndarray, predicted: np.ndarray, probabilities: np.ndarray, positive_index: int | None
) -> dict[str, np.ndarray]:
    """Rows that show how the model does, at most three of each kind, without picking by eye.

    Each kind's images are ordered by the true class' probability, and one is taken a tenth from
    the lowest, one from the middle, one a tenth from the top: easy and hard are shown alike.
    ``right`` are hits among the positives (with more than two classes, any hit); ``missed`` and
    ``false_alarm`` are the two kinds of mistake (with more than two classes all are ``missed``).
    """
    right, wrong = predicted == y_true, predicted != y_true
    if positive_index is None:
        kinds = {"right": right, "missed": wrong, "false_alarm": np.zeros_like(wrong)}
    else:
        positive = y_true == positive_index
        kinds = {
            "right": right & positive,
            "missed": wrong & positive,
            "false_alarm": wrong & ~positive,
        }
    chosen = {}
    for name, mask in kinds.items():
        rows = np.flatnonzero(mask)
        rows = rows[np.argsort(probabilities[rows, y_true[rows]], kind="stable")]
        places = np.round(np.linspace(0.1, 0.9, EXAMPLES) * (len(rows) - 1)).astype(int)
        chosen[name] = rows[np.unique(places)] if len(rows) else rows
    return chosen


def label_suspects(y_true: np.ndarray, probabilities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows whose label may be wrong, int (m,), and how much surer of another class, float (m,).

    Confident learning (Northcutt, Jiang & Chuang 2021, doi 10.1613/jair.1.12125): an image is
    suspect if the model is as sure of another class as it usually is for images of that class,
    and surer of it than of the given one by SUSPECT_MARGIN. Most suspect first.

    Args:
        y_true: given labels, int (n,).
        probabilities: of images the model was not trained on, float (n, k).
    """
    n_classes = probabilities.shape[1]
    usual = np.array(
        [
            probabilities[y_true == index, index].mean() if (y_true == index).any() else np.inf
            for index in range(n_classes)
        ]
    )
    reaches = np.where(probabilities >= usual, probabilities, -1.0)
    given = probabilities[np.arange(len(y_true)), y_true]
    other = reaches.argmax(axis=1)
    margin = reaches.max(axis=1) - given
    suspects = np.flatnonzero((margin >= SUSPECT_MARGIN) & (other != y_true))
    suspects = suspects[np.argsort(-margin[suspects], kind="stable")]
    return suspects, margin[suspects]
