"""From image files to labels with warnings, by a model folder that was verified first."""

import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits

from automl.data.arrays import drop_colour, make_thumbnail, resize_pixels
from automl.data.files import printable_name
from automl.data.images import ImageError, open_image
from automl.errors import ModelError
from automl.records import ModelInfo, Prediction
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

CHUNK = 32
# Chunks being worked on or waiting to be handed out, for each worker: memory stays bounded.
WAITING = 3


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
    return Predictor(info, running, load_guards(folder / GUARDS_FILE) if guarded else None)


@dataclass(frozen=True)
class Description:
    """What a model sees in images that are in memory; rows are images."""

    probabilities: np.ndarray
    features: np.ndarray
    statistics: np.ndarray


class Predictor:
    """A verified model with its description and, if it has them, its guards."""

    def __init__(self, info: ModelInfo, engine: Engine, guards: Guards | None) -> None:
        self.info = info
        self.engine = engine
        self.guards = guards

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

    def iterate(self, images: Iterable[str | Path | Prediction]) -> Iterator[Prediction]:
        """Predictions in order for any number of files, with bounded memory.

        Each worker takes a chunk from the files to the flags, so that no stage can wait
        for another, and at most WAITING chunks for each worker are in memory. What is a
        Prediction already, such as a name that leads to no file, is handed on in its place.
        """
        workers = count_workers()
        rest = iter(images)
        waiting: deque[Future[list[Prediction]]] = deque()
        # The workers share the processor; threads of the linear algebra would be in their way.
        # One filter around all threads: changing filters inside a thread is not safe.
        with (
            warnings.catch_warnings(),
            threadpool_limits(1, "blas"),
            ThreadPoolExecutor(workers) as pool,
        ):
            warnings.simplefilter("ignore")
            try:
                for chunk in iter(lambda: list(islice(rest, CHUNK)), []):
                    waiting.append(pool.submit(self.predict_chunk, chunk))
                    if len(waiting) >= WAITING * workers:
                        yield from waiting.popleft().result()
                while waiting:
                    yield from waiting.popleft().result()
            finally:
                for future in waiting:
                    future.cancel()

    def predict_chunk(self, images: list[str | Path | Prediction]) -> list[Prediction]:
        """A few files → their predictions, in one thread."""
        size = self.info.image_size
        pixels = np.empty((len(images), size, size, 3), np.uint8)
        thumbnails, hashes = [], []
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
            lean = drop_colour(array)
            pixels[len(hashes)] = resize_pixels(lean, size)
            if self.guards is not None:
                thumbnails.append(make_thumbnail(lean))
            hashes.append(about["sha256"])
            answers.append(None)
        if hashes:
            readable = self.judge(pixels[: len(hashes)], thumbnails, hashes)
        return [
            answer or replace(next(readable), image=printable_name(str(image)))
            for image, answer in zip(images, answers, strict=True)
        ]

    def judge(
        self, pixels: np.ndarray, thumbnails: list[np.ndarray], hashes: list[str]
    ) -> Iterator[Prediction]:
        """The answers, still without a name, to images in memory."""
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
                measure_pixels(pixels),
                np.stack(thumbnails),
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
        """Run the model on uint8 (n, size, size, 3), a memory map perhaps, by all workers."""
        chunks = [pixels[start : start + CHUNK] for start in range(0, len(pixels), CHUNK)]

        def work(chunk: np.ndarray) -> tuple[np.ndarray, ...]:
            return *self.engine.run(np.asarray(chunk)), measure_pixels(chunk)

        parts = []
        with ThreadPoolExecutor(count_workers()) as pool:
            for number, part in enumerate(pool.map(work, chunks), 1):
                parts.append(part)
                if progress is not None:
                    progress("describing images", min(number * CHUNK, len(pixels)), len(pixels))
        return Description(*(np.concatenate(column) for column in zip(*parts, strict=True)))


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
