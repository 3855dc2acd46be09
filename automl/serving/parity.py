"""Proof that an exported model answers as the evaluated one did: run elsewhere, compared here."""

import signal
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from automl.errors import ModelError
from automl.evaluation.intervals import bootstrap_difference
from automl.serving.engines import choose_classes
from automl.serving.manifest import MANIFEST_FILE, find_model_folder, read_info, read_json

RUNNER = Path(__file__).with_name("run_export.py")
FILES = {"tflite": "model.tflite", "onnx": "model.onnx"}
TIMEOUT_SECONDS = 1800.0
# A process that a signal ended (most often: no memory was left for a moment) is begun again.
ATTEMPTS = 3
# Largest difference in probability that two runtimes of the same numbers may show.
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Parity:
    """How far an export's answers are from those expected.

    ``max_difference`` and ``mean_difference`` are of probabilities, over images and classes;
    ``agreement`` is the share of images with the same label at the threshold.
    ``runtime`` names what ran it and ``source`` what it was given: pixels or bytes.
    ``auc_change`` is the export's ROC AUC minus the model's, {value, low, high} at 95 %, where
    the true classes were given.
    """

    runtime: str
    source: str
    images: int
    max_difference: float
    mean_difference: float
    agreement: float
    auc_change: dict[str, float] | None = None

    @property
    def equal(self) -> bool:
        """Whether the export may stand for the evaluated model without another word."""
        return self.max_difference <= TOLERANCE and self.agreement == 1.0

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class TestSet:
    """Images with what the evaluated model said of them; row i is image i.

    ``pixels`` uint8 (n, size, size, 3), already resized; ``expected`` (n, classes);
    ``y_true`` int (n,); ``groups`` int (n,), whose equal numbers belong together.
    """

    __test__ = False  # for pytest: a noun, no test

    pixels: np.ndarray
    expected: np.ndarray
    y_true: np.ndarray | None = None
    groups: np.ndarray | None = None


def check_parity(path: Path, images: TestSet, runtime: str | None = None) -> Parity:
    """Run an export on images in memory, by its own runtime in a fresh process.

    Args:
        path: a model folder, or a folder that ``export_model`` wrote.
        images: with ``y_true`` the change of ROC AUC is stated as well.
        runtime: saved_model, tflite or onnx; None: what the folder's manifest says. With
            tflite a SavedModel folder's own model.tflite is run.

    Raises:
        ModelError: the process failed, or gave the wrong number of answers.
    """
    folder = find_model_folder(Path(path))
    kind = runtime or read_json(folder / MANIFEST_FILE)["kind"]
    found = run_elsewhere(kind, folder, np.asarray(images.pixels))
    parity = compare(kind, "pixels", found, images.expected, folder)
    if images.y_true is None:
        return parity
    threshold = read_info(folder).threshold if images.expected.shape[1] == 2 else None
    change = bootstrap_difference(
        images.y_true, found, images.expected, (threshold, threshold), images.groups
    )["roc_auc"]
    return replace(parity, auc_change={key: change[key] for key in ("value", "low", "high")})


def check_parity_of_files(path: Path, files: list[Path], expected: np.ndarray) -> Parity:
    """Like ``check_parity``, for the signature ``encoded`` on the bytes of JPEG or PNG files."""
    folder = find_model_folder(Path(path))
    # A trailing marker keeps NumPy from cutting zero bytes off the end of an item.
    inputs = np.array([file.read_bytes() + b"\x01" for file in files])
    return compare(
        "saved_model", "bytes", run_elsewhere("encoded", folder, inputs), expected, folder
    )


def run_elsewhere(kind: str, folder: Path, inputs: np.ndarray) -> np.ndarray:
    """Probabilities (n, classes) from a fresh process that cannot import automl.

    Raises:
        ModelError: it failed; the message ends with what it said last, or with the signal.
    """
    target = folder / FILES[kind] if kind in FILES else folder
    with tempfile.TemporaryDirectory() as temporary:
        given, answer = Path(temporary, "inputs.npy"), Path(temporary, "answer.npz")
        np.save(given, inputs)
        # -I: neither the working directory nor PYTHONPATH, so that only packages are found.
        command = [
            *(sys.executable, "-I", str(RUNNER), "--arrays"),
            *(kind, str(target), str(given), str(answer)),
        ]
        for _ in range(ATTEMPTS):
            done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_SECONDS)
            if done.returncode >= 0:
                break
        if done.returncode != 0:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            if done.returncode < 0:
                name = signal.Signals(-done.returncode).name
                last = f"{name} ended it {ATTEMPTS} times. Is there enough memory?"
            raise ModelError(f"{target} could not be run by its own runtime ({kind}): {last}")
        with np.load(answer, allow_pickle=False) as arrays:
            return arrays["probabilities"]


def compare(
    runtime: str, source: str, found: np.ndarray, expected: np.ndarray, folder: Path
) -> Parity:
    """Differences of two arrays of probabilities (n, classes).

    Raises:
        ModelError: their shapes differ.
    """
    if found.shape != expected.shape:
        raise ModelError(f"{folder} gave answers of shape {found.shape}, not {expected.shape}.")
    info = read_info(folder)
    difference = np.abs(found.astype(np.float64) - expected)
    # NaN would compare as equal in a maximum that ignores it; it is the worst difference.
    difference = np.where(np.isfinite(difference), difference, 1.0)
    same = choose_classes(found, info) == choose_classes(expected, info)
    return Parity(
        runtime,
        source,
        len(found),
        float(difference.max(initial=0.0)),
        float(difference.mean()) if len(found) else 0.0,
        float(same.mean()) if len(found) else 1.0,
    )
