"""What a model folder says of itself, and whether it is still what was written.

``automl.json`` is the ModelInfo that programs read; ``manifest.json`` says the same to a
person who finds the folder. The hashes show damage and later changes. They are not a
signature: whoever can write the folder can write new hashes, so take models only from
people you trust.
"""

import hashlib
import json
import platform
from collections.abc import Iterable
from dataclasses import asdict, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from automl.errors import ModelError
from automl.records import ModelInfo
from automl.writing import write_json

INFO_FILE = "assets.extra/automl.json"
MANIFEST_FILE = "manifest.json"
FAST_FILE = "model.tflite"
SCHEMA_VERSION = 1
PACKAGES = ("tensorflow", "keras", "numpy", "automl")

USE = {
    "saved_model": "tf.saved_model.load(FOLDER).signatures['serving_default'](images=PIXELS): "
    "float32 (n, h, w, 3) in 0-255 of any size; 'encoded' takes the bytes of JPEG or PNG files, "
    "'embed' returns features. TensorFlow alone is enough.",
    "tflite": "LiteRT signature 'serving_default', input 'pixels' float32 (1, size, size, 3) in "
    "0-255, outputs 'probabilities' and 'features'. predict.py shows how, and how to resize: "
    "python predict.py scan.png needs ai-edge-litert, numpy and pillow.",
    "onnx": "ONNX Runtime, input 'pixels' float32 (n, size, size, 3) in 0-255, outputs "
    "'probabilities' and 'features'. predict.py shows how, and how to resize: python predict.py "
    "scan.png needs onnxruntime, numpy and pillow.",
}


def hash_file(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_info(
    folder: Path, info: ModelInfo, kind: str, parity: dict[str, Any] | None = None
) -> ModelInfo:
    """Hash what is in ``folder`` and write automl.json and manifest.json.

    Args:
        folder: holds the finished model.
        info: its hashes are replaced; missing versions are filled in.
        kind: saved_model, tflite or onnx; decides the explanation in the manifest.
        parity: how far what is in the folder is from the evaluated model, by format.

    Returns:
        ``info`` with hashes and versions, as written.
    """
    names = sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and not path.name.startswith(".")
    )
    hashes = {
        name: hash_file(folder / name) for name in names if name not in (INFO_FILE, MANIFEST_FILE)
    }
    info = replace(info, hashes=hashes, versions={**find_versions(PACKAGES), **info.versions})
    write_json(folder / INFO_FILE, {"schema_version": SCHEMA_VERSION, **asdict(info)})
    manifest = {
        "what": "An image classifier trained by automl. For research use, not for diagnosis.",
        "kind": kind,
        "use": USE[kind],
        "label": describe_rule(info),
        "parity": parity,
        **asdict(info),
        "files": {**hashes, INFO_FILE: hash_file(folder / INFO_FILE)},
    }
    del manifest["hashes"]
    write_json(folder / MANIFEST_FILE, manifest)
    return info


def describe_rule(info: ModelInfo) -> str:
    """How probabilities become a label, as a sentence."""
    if len(info.classes) == 2:
        return (
            f"{info.classes[1]} if its probability is at least {info.threshold:.6g}, "
            f"else {info.classes[0]}"
        )
    return "the class with the highest probability"


def find_model_folder(path: Path) -> Path:
    """The model folder that ``path`` is or, as a run folder, holds.

    Raises:
        ModelError: ``path`` does not exist.
    """
    if not path.exists():
        raise ModelError(f"{path} does not exist. Expected a run folder or its model/ folder.")
    return path / "model" if (path / "model").is_dir() else path


def read_info(folder: Path) -> ModelInfo:
    """The ModelInfo of a model folder, not yet verified.

    Raises:
        ModelError: there is none, it is not readable, or a newer automl wrote it.
    """
    path = folder / INFO_FILE
    try:
        values = json.loads(path.read_text("utf-8"))
        schema = values.pop("schema_version")
        if schema > SCHEMA_VERSION:
            raise ModelError(
                f"{folder} was written by a newer automl (schema {schema}; this one reads "
                f"{SCHEMA_VERSION}). Update automl to use this model."
            )
        info = ModelInfo(**{**values, "classes": tuple(values["classes"])})
        if len(info.classes) < 2 or not 0 < int(info.image_size) <= 4096:
            raise ValueError("its classes or its image size make no sense")
        return info
    except FileNotFoundError:
        raise ModelError(
            f"{folder} is not a model folder of automl: it has no {INFO_FILE}. Expected a run "
            "folder such as reports/NAME, or its model/ folder."
        ) from None
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ModelError(
            f"{path} cannot be read ({error}). Export the model again with `automl export RUN`."
        ) from None


def find_changes(folder: Path, info: ModelInfo) -> list[str]:
    """Files that are missing or differ from their hash, with what is wrong; [] is good."""
    root = folder.resolve()
    changes = []
    for name, expected in info.hashes.items():
        path = folder / name
        if not path.resolve().is_relative_to(root):
            changes.append(f"{name} points outside the folder")
        elif not path.is_file():
            changes.append(f"{name} is missing")
        elif hash_file(path) != expected:
            changes.append(f"{name} was altered")
    return changes


def find_versions(packages: Iterable[str]) -> dict[str, str]:
    """Versions of Python and of those packages that are installed."""
    versions = {"python": platform.python_version()}
    for package in packages:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a model folder.

    Raises:
        ModelError: it is missing or damaged.
    """
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read ({error}).") from None
