"""What each label rests on, painted over the image: ``automl predict --saliency``."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from automl.data.images import open_image
from automl.data.pictures import write_picture
from automl.data.pixels import resize_pixels
from automl.errors import ModelError, StorageError, UsageError
from automl.evaluation.heatmaps import overlay
from automl.evaluation.saliency import grad_cam
from automl.records import ModelInfo, Prediction
from automl.serving.export import load_keras_model
from automl.serving.manifest import find_model_folder

BATCH = 32
# Differences between runtimes stay below a tenth of this; another model's do not.
SAME_MODEL = 1e-3


def write_overlays(
    model: Path,
    info: ModelInfo,
    answers: Sequence[tuple[Path | None, Prediction]],
    out: Path,
    progress: Callable[[str, int, int], None] | None = None,
) -> dict[int, Path]:
    """Grad-CAM for the predicted class of each readable image, as PNG at the model's own size.

    Heat maps are no explanations; the report says how far this model's can be believed.

    Args:
        model: a run folder. A model/ folder alone will not do: gradients need model.keras.
        answers: files with what ``Predictor.iterate`` said of them, in its order.
        out: made if need be; files are named ROW_STEM.png, rows counted from 1.

    Returns:
        Row, counted from 0, → file.

    Raises:
        UsageError: there is no model.keras.
        ModelError: it is not the model that gave ``answers``.
        StorageError: ``out`` cannot be written.
    """
    file = find_model_folder(model).parent / "model.keras"
    if not file.is_file():
        raise UsageError(
            f"--saliency needs {file}, which lies in a run folder and is not there. Name the run "
            "folder, such as reports/NAME, or leave --saliency out."
        )
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"Cannot write into {out}: {error.strerror}.") from error
    network = load_keras_model(file)
    readable = [(row, path, p) for row, (path, p) in enumerate(answers) if p.label is not None]
    written: dict[int, Path] = {}
    for start in range(0, len(readable), BATCH):
        part = readable[start : start + BATCH]
        pixels = np.stack(
            [resize_pixels(open_image(path)[0], info.image_size) for _, path, _ in part]
        )
        found = network(pixels.astype(np.float32), training=False).numpy()
        said = np.array([[p.probabilities[name] for name in info.classes] for _, _, p in part])
        if np.abs(found - said).max() > SAME_MODEL:
            raise ModelError(
                f"{file} is not the model that gave the predictions: it says something else to "
                "the same images. Copy the whole run folder again."
            )
        indices = np.array([info.classes.index(p.label) for _, _, p in part])
        for (row, path, _), image, heat in zip(
            part, pixels, grad_cam(network, pixels, indices, batch_size=BATCH), strict=True
        ):
            name = f"{row + 1:05d}_{safe_name(path.stem)}.png"
            written[row] = write_picture(overlay(image, heat), out / name)
        if progress is not None:
            progress("painting what labels rest on", len(written), len(readable))
    return written


def safe_name(stem: str) -> str:
    """A file name's stem in letters that every file system and page can hold."""
    kept = "".join(c if c.isascii() and (c.isalnum() or c in "-_") else "_" for c in stem)
    return kept[:60]
