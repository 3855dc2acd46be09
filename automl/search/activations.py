"""The activation cache: the frozen prefix is computed once for each image and view.

One file for each cut and view, a NumPy array on disk that is mapped into memory, under a
key of everything it depends on. Trials, workers, rungs and later searches on the same data
share it. Files appear whole or not at all, so a crash leaves nothing to repair; a lock
lets a second process wait for the first one's result instead of computing it again.
"""

import errno
import hashlib
import json
import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np

from automl.errors import StorageError
from automl.search.engine import choose_engine, each, engine_name
from automl.search.model import cut_layer, cut_prefix
from automl.search.spec import PixelSource
from automl.search.views import make_view
from automl.tracking.journal import locked, sync_folder
from automl.writing import delete_parts

Progress = Callable[[str, int, int], None]
# Part of every key: changes when the same inputs would give other numbers.
FORMAT = 1
BLOCK = 64


class Activations:
    """The cut points' outputs, read by row.

    View 0 holds every image, the others the training images only.

    Args:
        backbone: with its weights; ``weights_digest`` is theirs.
        train_rows: rows that views above 0 are made for.
        folder: the cache's folder, or None to compute anew at every read.
        limit: bytes that the cache may hold, decoded images included; what was used longest
            ago goes first.
    """

    def __init__(
        self,
        backbone: keras.Model,
        weights_digest: str,
        source: PixelSource,
        depths: tuple[int, ...],
        *,
        views: int,
        seed: int,
        train_rows: np.ndarray,
        folder: Path | None,
        limit: float = 20 * 2**30,
    ) -> None:
        self.backbone = backbone
        self.depths = tuple(sorted(set(depths) | {0}))
        self.views = views
        self.seed = seed
        self.source = source
        self.pixels = source.open()
        self.folder = folder
        self.limit = limit
        self.progress: Progress = lambda what, done, total: None
        self.hits = self.misses = self.bytes = 0
        self.seconds = 0.0
        self.images = 0
        self.engine = "tensorflow"
        n = len(self.pixels)
        everyone = np.arange(n)
        self._rows = {view: everyone if view == 0 else np.sort(train_rows) for view in range(views)}
        self._position = {view: invert(rows, n) for view, rows in self._rows.items()}
        self._prefix: dict[int, Any] = {}
        self._files: dict[tuple[int, int], np.ndarray] = {}
        if folder is not None:
            self.engine = engine_name(n + (views - 1) * len(train_rows))
            self._keys = {
                (depth, view): self._key(weights_digest, source.digest, depth, view)
                for depth in self.depths
                for view in range(views)
            }

    def fill(
        self, progress: Progress | None = None, only: set[tuple[int, int]] | None = None
    ) -> None:
        """Compute what is missing, or wait for the process that does, and open the files.

        Args:
            only: the (depth, view) pairs to fill; None for all.

        Raises:
            StorageError: the folder cannot be written, or the disk is full.
        """
        if self.folder is not None:
            self.progress = progress or self.progress
            self._fill([key for key in self._keys if only is None or key in only])

    def is_filled(self) -> bool:
        """Whether nothing would have to be computed."""
        return self.folder is not None and all(self._path(*key).exists() for key in self._keys)

    def shape(self, depth: int) -> tuple[int, ...]:
        """Shape of one image's activation at the cut of ``depth``."""
        return tuple(self.backbone.get_layer(cut_layer(depth)).output.shape[1:])

    def read(self, depth: int, view: int, rows: np.ndarray) -> np.ndarray:
        """float32 (len(rows), …): the activations of some images, in the order asked for.

        Depths and views that the cache is not for are computed.
        """
        if self.folder is not None and (depth, view) in self._keys:
            return self._files[depth, view][self._position[view][rows]]
        if depth not in self._prefix:
            self._prefix[depth] = choose_engine("tensorflow", cut_prefix(self.backbone, (depth,)))
        blocks = [
            self._prefix[depth](make_view(self.pixels[part], part, view, self.seed))[0]
            for part in np.array_split(rows, max(1, len(rows) // BLOCK))
        ]
        return np.concatenate(blocks)

    def _key(self, weights: str, pixels: str, depth: int, view: int) -> str:
        parts = {
            "format": FORMAT,
            "weights": weights,
            "size": self.pixels.shape[1],
            "preprocessing": "x/127.5-1",
            "cut": cut_layer(depth),
            "dtype": "float32",
            "engine": self.engine,
            "view": [view, self.seed, digest_rows(self._rows[view])] if view else 0,
            "pixels": pixels,
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:40]

    def _path(self, depth: int, view: int) -> Path:
        assert self.folder is not None
        return self.folder / f"{self._keys[depth, view]}.npy"

    def _fill(self, keys: list[tuple[int, int]]) -> None:
        assert self.folder is not None
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with locked(self.folder / "lock"):
                missing = [key for key in keys if not self._path(*key).exists()]
                self.hits, self.misses = len(keys) - len(missing), len(missing)
                if missing:
                    delete_parts(self.folder)
                    try:
                        self._extract(missing)
                    except OSError:
                        # Where the disk is full, what cannot be used should not fill it.
                        delete_parts(self.folder)
                        raise
                for key in keys:
                    path = self._path(*key)
                    os.utime(path)
                    self._files[key] = np.load(path, mmap_mode="r")
                    self.bytes += path.stat().st_size
                used = {self._path(*key) for key in self._keys}
                evict(self.folder, self.limit, keep=used | {self.source.path.parent})
        except OSError as error:
            hint = (
                "Free some space, choose another folder with --cache-dir, or fewer --views."
                if error.errno == errno.ENOSPC
                else "Choose a writable folder with --cache-dir."
            )
            raise StorageError(
                f"The activation cache in {self.folder} cannot be written: {error.strerror}. {hint}"
            ) from error

    def _extract(self, missing: list[tuple[int, int]]) -> None:
        started = time.monotonic()
        depths = tuple(depth for depth in self.depths if any(key[0] == depth for key in missing))
        run = choose_engine(self.engine, cut_prefix(self.backbone, depths))
        views = sorted({view for _, view in missing})
        total = sum(len(self._rows[view]) for view in views)
        done = 0
        lock = threading.Lock()
        for view in views:
            rows = self._rows[view]
            targets = {
                i: self._path(depth, view)
                for i, depth in enumerate(depths)
                if (depth, view) in missing
            }
            files = {
                i: open_reserved(path.with_suffix(".part"), (len(rows), *self.shape(depths[i])))
                for i, path in targets.items()
            }

            def compute(start: int, rows: Any = rows, view: int = view, files: Any = files) -> None:
                nonlocal done
                part = rows[start : start + BLOCK]
                outputs = run(make_view(self.pixels[part], part, view, self.seed))
                for i, file in files.items():
                    file[start : start + len(part)] = outputs[i]
                with lock:
                    done += len(part)
                    self.progress("computing activations", done, total)

            each(compute, range(0, len(rows), BLOCK))
            for i, path in targets.items():
                files[i].flush()
                commit(path.with_suffix(".part"), path)
        self.images = total
        self.seconds = time.monotonic() - started


def invert(rows: np.ndarray, n: int) -> np.ndarray:
    """Where each of n rows stands in ``rows``; -1 where it does not."""
    position = np.full(n, -1, np.int64)
    position[rows] = np.arange(len(rows))
    return position


def digest_rows(rows: np.ndarray) -> str:
    return hashlib.sha256(rows.astype("<i8").tobytes()).hexdigest()[:16]


def open_reserved(path: Path, shape: tuple[int, ...]) -> np.memmap:
    """A new float32 .npy file to be written through memory, whose room on the disk is its own.

    Without that a disk that fills up ends the process by SIGBUS instead of an error.
    """
    array = np.lib.format.open_memmap(path, "w+", np.float32, shape)
    if hasattr(os, "posix_fallocate"):
        with open(path, "rb+") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return array


def commit(part: Path, path: Path) -> None:
    """Make a finished temporary file durable and give it its name."""
    with open(part, "rb+") as file:
        os.fsync(file.fileno())
    os.replace(part, path)
    sync_folder(path.parent)


def evict(folder: Path, limit: float, keep: set[Path]) -> None:
    """Delete what was used longest ago until the cache is within ``limit`` bytes.

    The cache is this folder's arrays and, beside it, the folders of decoded images.
    """
    found = [*folder.glob("*.npy"), *folder.parent.glob("scans/*/")]
    sizes = {path: sum(p.stat().st_size for p in [path, *path.glob("*")]) for path in found}
    total = sum(sizes.values())
    for path in sorted(found, key=lambda path: path.stat().st_mtime):
        if total <= limit:
            return
        if path not in keep:
            total -= sizes[path]
            shutil.rmtree(path) if path.is_dir() else path.unlink()
