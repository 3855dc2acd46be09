"""Proof that an exported model answers as the evaluated one did: run elsewhere, compared here."""

import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from automl.errors import ModelError
from automl.serving.engines import choose_classes
from automl.serving.manifest import MANIFEST_FILE, find_model_folder, read_info, read_json

RUNNER = Path(__file__).with_name("run_export.py")
FILES = {"tflite": "model.tflite", "onnx": "model.onnx"}
TIMEOUT_SECONDS = 1800.0


@dataclass(frozen=True)
class Parity:
    """How far an export's answers are from those expected.

    ``max_difference`` and ``mean_difference`` are of probabilities, over images and classes;
    ``agreement`` is the share of images with the same label at the threshold.
    ``runtime`` names what ran it and ``source`` what it was given: pixels or bytes.
    """

    runtime: str
    source: str
    images: int
    max_difference: float
    mean_difference: float
    agreement: float

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def check_parity(
    path: Path,
    pixels: np.ndarray,
    expected: np.ndarray,
    runtime: str | None = None,
) -> Parity:
    """Run an export on images in memory, by its own runtime in a fresh process.

    Args:
        path: a model folder, or a folder that ``export_model`` wrote.
        pixels: uint8 (n, size, size, 3), already resized.
        expected: (n, classes), the probabilities of the evaluated model.
        runtime: saved_model, tflite or onnx; None: what the folder's manifest says. With
            tflite a SavedModel folder's own model.tflite is run.

    Raises:
        ModelError: the process failed, or gave the wrong number of answers.
    """
    folder = find_model_folder(Path(path))
    kind = runtime or read_json(folder / MANIFEST_FILE)["kind"]
    found = run_elsewhere(kind, folder, np.asarray(pixels))
    return compare(kind, "pixels", found, expected, folder)


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
        ModelError: it failed; the message ends with what it said last.
    """
    target = folder / FILES[kind] if kind in FILES else folder
    with tempfile.TemporaryDirectory() as temporary:
        given, answer = Path(temporary, "inputs.npy"), Path(temporary, "answer.npz")
        np.save(given, inputs)
        # -I: neither the working directory nor PYTHONPATH, so that only packages are found.
        command = [sys.executable, "-I", str(RUNNER), kind, str(target), str(given), str(answer)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_SECONDS)
        if done.returncode != 0:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
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
