"""From image files to labels with warnings, by a model folder that was verified first."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from automl.data.images import ALL_EXTENSIONS, ImageError, open_image
from automl.data.pixels import make_thumbnail, resize_pixels
from automl.errors import ModelError, UsageError
from automl.records import ModelInfo, Prediction
from automl.serving.engines import (
    Engine,
    LiteEngine,
    SavedModelEngine,
    choose_classes,
    count_workers,
)
from automl.serving.guards import GUARDS_FILE, Guards, find_flags, load_guards
from automl.serving.manifest import FAST_FILE, find_changes, find_model_folder, read_info
from automl.serving.novelty import measure_pixels

Progress = Callable[[str, int, int], None]

CHUNK = 16
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
        done = []
        for prediction in self.iterate(images):
            done.append(prediction)
            if progress is not None:
                progress("predicting", len(done), len(images))
        return done

    def iterate(self, images: Iterable[str | Path]) -> Iterator[Prediction]:
        """Predictions in order for any number of files, with bounded memory.

        Each worker takes a chunk from the files to the flags, so that no stage can wait
        for another, and at most WAITING chunks for each worker are in memory.
        """
        workers = count_workers()
        rest = iter(images)
        waiting: deque[Future[list[Prediction]]] = deque()
        with ThreadPoolExecutor(workers) as pool:
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

    def predict_chunk(self, images: list[str | Path]) -> list[Prediction]:
        """A few files → their predictions, in one thread."""
        answers: list[Prediction | None] = []
        pixels, thumbnails, facts = [], [], []
        for image in images:
            try:
                array, about = open_image(Path(image))
                pixels.append(resize_pixels(array, self.info.image_size))
                thumbnails.append(make_thumbnail(array) if self.guards else None)
                facts.append(about)
                answers.append(None)
            except ImageError as error:
                answers.append(refuse(str(image), error.message))
        if pixels:
            readable = iter(self.judge(np.stack(pixels), thumbnails, facts))
        done = []
        for image, answer in zip(images, answers, strict=True):
            if answer is None:
                label, probabilities, flags, message = next(readable)
                answer = Prediction(
                    str(image), label, probabilities[label], probabilities, flags, message
                )
            done.append(answer)
        return done

    def judge(
        self, pixels: np.ndarray, thumbnails: list[np.ndarray | None], facts: list[dict]
    ) -> Iterator[tuple[str, dict[str, float], tuple[str, ...], str]]:
        """Label, probabilities, flags and message of each image in memory."""
        probabilities, features = self.engine.run(pixels)
        flags: list[tuple[str, ...]] = [()] * len(pixels)
        if self.guards is not None:
            flags = find_flags(
                self.guards,
                probabilities,
                features,
                measure_pixels(pixels),
                np.stack(thumbnails),
                [about.get("sha256") for about in facts],
            )
        for row, index, on in zip(
            probabilities, choose_classes(probabilities, self.info), flags, strict=True
        ):
            named = {name: float(value) for name, value in zip(self.info.classes, row, strict=True)}
            yield self.info.classes[index], named, on, explain(on, named, self.guards)

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


def refuse(image: str, reason: str) -> Prediction:
    """The row of an image that cannot be read."""
    return Prediction(image, None, None, {}, ("unreadable",), f"{image} {reason}")


def explain(flags: tuple[str, ...], probabilities: dict[str, float], guards: Guards | None) -> str:
    """The flags in words, for the message column; empty without flags."""
    parts = []
    if "unlike-training" in flags:
        parts.append("unlike the training images: do not rely on the label")
    if "seen-in-training" in flags:
        parts.append("is or nearly is a training image")
    if "uncertain" in flags:
        inside = [name for name, value in probabilities.items() if value >= guards.least - 1e-6]
        parts.append(f"90 % set: {', '.join(inside) if inside else 'empty'}")
    return "; ".join(parts)


def find_images(paths: Iterable[str | Path] | str | Path) -> Iterator[Path]:
    """Files as given, whatever they are; folders walked for images, sorted.

    Raises:
        UsageError: a folder holds no image.
    """
    for given in [paths] if isinstance(paths, (str, Path)) else paths:
        path = Path(given)
        if not path.is_dir():
            yield path
            continue
        found = sorted(
            file
            for file in path.rglob("*")
            if file.suffix.lower() in ALL_EXTENSIONS
            and not any(part.startswith(".") for part in file.relative_to(path).parts)
            and not file.is_dir()
        )
        if not found:
            raise UsageError(
                f"No images under {path}. Expected files with one of the endings "
                f"{' '.join(sorted(ALL_EXTENSIONS))}."
            )
        yield from found
