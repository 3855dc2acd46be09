"""A trial's checkpoint: what training changed, the optimizer, and the best epoch's weights."""

import json
import os
import uuid
from pathlib import Path
from typing import Any

import numpy as np


def write_checkpoint(
    path: Path, last: dict[str, np.ndarray], best: dict[str, np.ndarray], meta: dict[str, Any]
) -> None:
    """Write both states to one ``.npz``, whole or not at all; no pickle is involved."""
    arrays = {f"last/{name}": array for name, array in last.items()}
    arrays |= {f"best/{name}": array for name, array in best.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    # Processes of several machines may share the folder.
    part = path.with_suffix(f".{uuid.uuid4().hex}.part")
    try:
        with open(part, "wb") as file:
            np.savez(file, meta=np.frombuffer(json.dumps(meta).encode(), np.uint8), **arrays)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def read_checkpoint(
    path: Path,
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], dict[str, Any]]:
    """(last, best, meta) as they were written."""
    with np.load(path, allow_pickle=False) as file:
        meta = json.loads(file["meta"].tobytes())
        last = {name[5:]: file[name] for name in file.files if name.startswith("last/")}
        best = {name[5:]: file[name] for name in file.files if name.startswith("best/")}
    return last, best, meta
