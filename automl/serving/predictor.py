"""From image files to labels with warnings, by a model folder that was verified first."""

import os
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import islice
from operator import length_hint
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits

from automl.data.arrays import drop_colour, resize_pixels
from automl.data.files import printable_name
from automl.data.images import ImageError, open_image
from automl.errors import ModelError
from automl.records import ModelInfo, Prediction
from automl.search.worker import WorkerError, WorkerPool
from automl.serving.engines import (
    Engine,
    LiteEngine,
    SavedModelEngine,
    choose_classes,
    count_workers,
)
from automl.serving.guards import GUARDS_FILE, Guards, find_flags, find_set, load_guards
from automl.serving.inputs import find_images, refuse
from automl.serving.manifest import FAST_FILE, find_changes, find_model_folder, read_info
from automl.serving.novelty import measure_pixels

Progress = Callable[[str, int, int], None]
Image = str | Path | Prediction
Submit = Callable[[list[Image]], Future[list[Prediction]]]

CHUNK = 64
# Chunks being worked on or waiting to be handed out, for each worker: memory stays bounded.
WAITING = 3
# From so many images on each worker is a process: threads get in each other's way at whatever is
# Python, but start at once.
MANY = 1000
MAX_PROCESSES = 16


def load(path: str | Path, trust: bool = False, engine: str = "auto") -> "Predictor":
    """Open a run folder or a model folder for prediction.

    Args:
        path: such as reports/NAME or reports/NAME/model.
        trust: also load a folder whose files are not those that were exported.
        engine: litert, saved_model, or auto: LiteRT where the folder has it.

    Raises:
        ModelError: not a model folder, altered, or broken.
    """
    folder = find_model_folder(Path(path))
    info = read_info(folder)
    changes = find_changes(folder, info)
    if not info.hashes:
        changes = ["its description holds no hashes"]
    if changes and not trust:
        raise ModelError(
            f"{folder} is not as it was exported: {'; '.join(changes[:3])}. Copy the whole folder "
            "again or export it anew; --trust loads it all the same."
        )
    fast = folder / FAST_FILE
    known = FAST_FILE in info.hashes and fast.is_file()
    if engine == "litert" and not known:
        raise ModelError(f"{folder} has no {FAST_FILE}. Choose the saved_model engine.")
    running = (
        LiteEngine(fast)
        if known and engine != "saved_model"
        else SavedModelEngine(folder, trust=trust)
    )
    guarded = GUARDS_FILE in info.hashes and (folder / GUARDS_FILE).is_file()
    guards = load_guards(folder / GUARDS_FILE) if guarded else None
    return Predictor(info, running, guards, folder if not changes else None)


@dataclass(frozen=True)
class Description:
    """What a model sees in images that are in memory; rows are images."""

    probabilities: np.ndarray
    features: np.ndarray
    statistics: np.ndarray
    thumbnails: np.ndarray


class Predictor:
    """A model with its description and, if it has them, its guards.

    ``folder`` is where further processes find it; None keeps all work in this one.
    """

    def __init__(
        self, info: ModelInfo, engine: Engine, guards: Guards | None, folder: Path | None = None
    ) -> None:
        self.info = info
        self.engine = engine
        self.guards = guards
        self.folder = folder

    def predict(
        self, paths: Iterable[str | Path] | str | Path, progress: Progress | None = None
    ) -> list[Prediction]:
        """One Prediction for each image, in the order given; folders are walked.

        Raises:
            UsageError: a folder holds no image.
        """
        images = list(find_images(paths))
        done: list[Prediction] = []
        for prediction in self.iterate(images):
            done.append(prediction)
            if progress is not None:
                progress("predicting", len(done), len(images))
        return done

    def iterate(self, images: Iterable[Image]) -> Iterator[Prediction]:
        """Predictions in order for any number of files, with bounded memory.

        Each worker takes a chunk from the files to the flags, so that no stage can wait
        for another, and at most WAITING chunks for each worker are in memory. What is a
        Prediction already, such as a name that leads to no file, is handed on in its place.
        """
        rest = iter(images)
        waiting: deque[tuple[list[Image], Future[list[Prediction]]]] = deque()
        with self.hire(length_hint(images)) as (workers, submit):
            try:
                for chunk in iter(lambda: list(islice(rest, CHUNK)), []):
                    waiting.append((chunk, submit(chunk)))
                    if len(waiting) >= WAITING * workers:
                        yield from collect(*waiting.popleft(), submit)
                while waiting:
                    yield from collect(*waiting.popleft(), submit)
            finally:
                for _, future in waiting:
                    future.cancel()

    @contextmanager
    def hire(self, count: int) -> Iterator[tuple[int, Submit]]:
        """How many workers there are for ``count`` images, and what gives one a chunk."""
        workers = count_workers()
        if count >= MANY and workers > 1 and self.folder and isinstance(self.engine, LiteEngine):
            workers, folder = min(workers, MAX_PROCESSES), self.folder.resolve()
            pool = WorkerPool(workers, Path(os.devnull), threads=1, framework=False)
            try:
                yield workers, lambda chunk: pool.submit(predict_elsewhere, folder, chunk)
            finally:
                pool.shutdown()
            return
        # The workers share the processor; threads of the linear algebra would be in their way.
        # One filter around all threads: changing filters inside a thread is not safe.
        with (
            warnings.catch_warnings(),
            threadpool_limits(1, "blas"),
            ThreadPoolExecutor(workers) as threads,
        ):
            warnings.simplefilter("ignore")
            yield workers, lambda chunk: threads.submit(self.predict_chunk, chunk)

    def predict_chunk(self, images: list[Image]) -> list[Prediction]:
        """A few files → their predictions, in one thread."""
        pixels, hashes = [], []
        answers: list[Prediction | None] = []
        for image in images:
            if isinstance(image, Prediction):
                answers.append(image)
                continue
            try:
                array, about = open_image(image)
            except ImageError as error:
                answers.append(refuse(str(image), error.message))
                continue
            pixels.append(resize_pixels(drop_colour(array), self.info.image_size))
            hashes.append(about["sha256"])
            answers.append(None)
        if hashes:
            readable = self.judge(pixels, hashes)
        return [
            answer or replace(next(readable), image=printable_name(str(image)))
            for image, answer in zip(images, answers, strict=True)
        ]

    def judge(self, pixels: Sequence[np.ndarray], hashes: list[str]) -> Iterator[Prediction]:
        """The answers, still without a name, to images in memory, as ``Engine.run`` takes them."""
        probabilities, features = self.engine.run(pixels)
        chosen = choose_classes(probabilities, self.info)
        classes = self.info.classes
        flags: list[tuple[str, ...]] = [()] * len(pixels)
        inside = None
        if self.guards is not None:
            inside = find_set(probabilities, self.guards.least)
            flags = find_flags(
                self.guards,
                probabilities,
                features,
                *measure_pixels(pixels),
                hashes,
            )
        for row, values in enumerate(probabilities.tolist()):
            found = None
            if inside is not None:
                found = tuple(c for c, on in zip(classes, inside[row], strict=True) if on)
            index = chosen[row]
            yield Prediction(
                "",
                classes[index],
                values[index],
                dict(zip(classes, values, strict=True)),
                flags[row],
                explain(flags[row], found),
                found,
            )

    def describe(self, pixels: np.ndarray, progress: Progress | None = None) -> Description:
        """What the model sees in uint8 (n, size, size, 3), a memory map perhaps."""

        def work(chunk: np.ndarray) -> tuple[np.ndarray, ...]:
            return *self.engine.run(chunk), *measure_pixels(chunk)

        return Description(*self.share_out(work, pixels, progress))

    def classify(self, pixels: np.ndarray) -> np.ndarray:
        """The probabilities alone of ``describe``."""
        return self.share_out(self.engine.run, pixels)[0]

    def share_out(
        self,
        work: Callable[[np.ndarray], tuple[np.ndarray, ...]],
        pixels: np.ndarray,
        progress: Progress | None = None,
    ) -> list[np.ndarray]:
        """The arrays that ``work`` makes of chunks of ``pixels``, by all workers, in order."""

        # Read where it is worked on, so that never more than a chunk for each worker is in memory.
        def work_at(start: int) -> tuple[np.ndarray, ...]:
            return work(np.asarray(pixels[start : start + CHUNK]))

        parts = []
        with ThreadPoolExecutor(count_workers()) as pool:
            for number, part in enumerate(pool.map(work_at, range(0, len(pixels), CHUNK)), 1):
                parts.append(part)
                if progress is not None:
                    progress("describing images", min(number * CHUNK, len(pixels)), len(pixels))
        return [np.concatenate(column) for column in zip(*parts, strict=True)]


def collect(
    chunk: list[Image], future: Future[list[Prediction]], submit: Submit
) -> list[Prediction]:
    """A worker's answers; a file that ends the process that reads it gets the row that says so.

    Raises:
        ModelError: every file does, so it is not the files.
    """
    try:
        return future.result()
    except WorkerError:
        answers, failed = [], []
        for image in chunk:
            try:
                answers += submit([image]).result()
            except WorkerError as error:
                failed.append(error)
                answers.append(refuse(str(image), f"ended its reader: {error.message}"))
        if len(failed) == len(chunk) > 1:
            raise ModelError(
                f"The processes that predict cannot work: {failed[0].message} Free some memory, or "
                f"predict fewer than {MANY:,} images at a time, which needs no further processes."
            ) from failed[0]
        return answers


def predict_elsewhere(folder: Path, chunk: list[Image]) -> list[Prediction]:
    """``Predictor.predict_chunk`` in a worker's process."""
    return load_once(folder).predict_chunk(chunk)


@lru_cache(maxsize=1)
def load_once(folder: Path) -> Predictor:
    return load(folder, engine="litert")


def explain(flags: tuple[str, ...], found: tuple[str, ...] | None) -> str:
    """The flags in words, for the message column; empty without flags."""
    parts = []
    if "unlike-training" in flags:
        parts.append("unlike the training images: do not rely on the label")
    if "seen-in-training" in flags:
        parts.append("is or nearly is a training image")
    if "uncertain" in flags:
        parts.append(f"90 % set: {', '.join(found) if found else 'empty'}")
    return "; ".join(parts)
