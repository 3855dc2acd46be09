"""``automl predict --html``: predictions as one page, the doubtful ones first."""

import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path

from automl.data.images import ImageError, open_image
from automl.data.pictures import write_picture
from automl.records import ModelInfo, Prediction
from automl.reporting.render import embed_pictures, render_page, stamp
from automl.writing import write_text

# Rows that the page shows; more would make it slow to open. The CSV has them all.
MAX_ROWS = 1000
MAX_PICTURES = 300
PICTURE_SIDE = 112

# Most serious first; rows are sorted by the first that they have.
FLAGS = {
    "unreadable": "The file could not be opened; its message says why.",
    "unlike-training": "The image differs from the training images more than nearly all of them "
    "do from one another. Do not rely on its label.",
    "uncertain": "The set at 90 % does not hold exactly one class.",
    "seen-in-training": "It is, or nearly is, a training image: the answer proves nothing.",
}


def write_answers_page(
    info: ModelInfo,
    answers: Sequence[tuple[Path | None, Prediction]],
    path: Path,
    overlays: Mapping[int, Path] | None = None,
    now: datetime | None = None,
) -> Path:
    """Write one HTML file that needs nothing else.

    Args:
        info: of the model that was asked.
        answers: files with their predictions, in order.
        path: the HTML file, replaced once complete.
        overlays: row → picture to show instead of the image, see ``write_overlays``.
        now: the time printed at the foot; the current one if None.

    Raises:
        StorageError: the file cannot be written.
    """
    overlays = overlays or {}
    order = sorted(range(len(answers)), key=lambda row: rank(answers[row][1]))
    shown = order[:MAX_ROWS]
    with tempfile.TemporaryDirectory() as temporary:
        names = []
        for row in shown[:MAX_PICTURES]:
            file = overlays.get(row) or answers[row][0]
            if answers[row][1].label is None or file is None:
                continue
            try:
                pixels = open_image(file)[0]
            except ImageError:  # gone since; the row stays without a picture
                continue
            names.append(f"{row}.jpg")
            write_picture(pixels, Path(temporary, names[-1]), PICTURE_SIDE)
        pictures, _ = embed_pictures(names, Path(temporary))
    found = [prediction for _, prediction in answers]
    flags = Counter(flag for prediction in found for flag in prediction.flags)
    labels = Counter(prediction.label for prediction in found if prediction.label is not None)
    page = render_page(
        "answers.html",
        title=f"{info.name}: predictions",
        info=info,
        total=len(found),
        labels={name: labels[name] for name in info.classes},
        flags=[(name, flags[name], text) for name, text in FLAGS.items()],
        plain=sum(not prediction.flags for prediction in found),
        rows=[(answers[row][1], f"{row}.jpg") for row in shown],
        pictures=pictures,
        painted=bool(overlays),
        rendered_at=stamp(now),
    )
    return write_text(path, page)


def rank(prediction: Prediction) -> int:
    """Place of the most serious flag; rows without one come last."""
    names = list(FLAGS)
    return min(
        (names.index(flag) for flag in prediction.flags if flag in FLAGS), default=len(names)
    )
