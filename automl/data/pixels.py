"""One pass over all image files: facts, thumbnails and resized pixels, kept for the next time.

A scan is stored under ``CACHE/scans/CONTENT/`` (``scan.json``, ``thumbnails.npy``, ``pixels.npy``),
where CONTENT is a digest of the files' names and bytes. Beside it a small index for each root
folder remembers size and time of every file, so that a second call reads no image. A file whose
time changed is hashed; if its bytes are the same the scan is still good.
"""

import hashlib
import json
import os
import shutil
import tempfile
import warnings
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from automl.data.arrays import (
    THUMBNAIL_SIDE,
    describe_pixels,
    drop_colour,
    resize_pixels,
)
from automl.data.images import ImageError, open_image, read_bytes
from automl.errors import DataError, StorageError
from automl.records import Dataset, Finding, Sample, Scan
from automl.writing import write_text

__all__ = ["resize_pixels", "scan_images"]

# Raise it whenever decoding, resizing, thumbnails or facts change.
VERSION = 1
THREADS = 2
MAX_UNREADABLE = 0.2
MIN_CLASS_IMAGES = 3
Progress = Callable[[str, int, int], None]
Row = tuple[dict[str, Any], np.ndarray | None, np.ndarray | None]

TITLES = {
    "missing": ("do not exist any more", "Restore the files, or run again without them."),
    "not_a_file": ("are not regular files", "Replace them by the image files themselves."),
    "unreadable": ("cannot be read", "Check permissions, and copy the files again."),
    "zero_bytes": ("are empty (0 bytes)", "Copy the files again from their source."),
    "too_large": ("are too large to be read safely", "Scale them down before the search."),
    "too_small": ("are too small to show anything", "Leave thumbnails and icons out."),
    "wrong_format": ("are not images of a supported format", "Convert them to PNG or JPEG."),
    "truncated": ("are damaged or cut off", "Copy the files again from their source."),
    "not_finite": ("hold NaN or infinite values", "Export them again without such values."),
    "dicom_support": (
        "are DICOM files that cannot be decoded here",
        "pip install 'automl[dicom]'",
    ),
}


def scan_images(
    dataset: Dataset,
    image_size: int | None,
    cache_dir: Path,
    progress: Progress | None = None,
) -> Scan:
    """Open every image once.

    Args:
        dataset: what to read.
        image_size: side of the resized pixels, or None for facts and thumbnails alone.
        cache_dir: where scans are kept; made if need be.
        progress: called as progress("reading images", done, total).

    Raises:
        DataError: more than a fifth of the images, or most of a class, cannot be read.
        StorageError: the cache cannot be written.
    """
    folder = Path(cache_dir) / "scans"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        index_path = folder / f"{index_key(dataset, image_size)}.json"
        stored = find_stored(dataset, image_size, index_path)
        if stored is None:
            stored = read_all(dataset, image_size, folder, index_path, progress)
        # The cache lets go of what was used longest ago.
        os.utime(stored)
    except OSError as error:
        raise StorageError(
            f"Cannot use the cache {folder}: {error.strerror or error}. Choose another with "
            "--cache-dir, or free some space."
        ) from error
    return make_scan(dataset, image_size, stored)


def make_scan(dataset: Dataset, image_size: int | None, stored: Path) -> Scan:
    """The stored scan with the data set's present labels."""
    records = json.loads((stored / "scan.json").read_text("utf-8"))
    kept = [s for s, record in zip(dataset.samples, records, strict=True) if "error" not in record]
    facts = tuple(record for record in records if "error" not in record)
    findings = list_problems(dataset.samples, records)
    check_enough(dataset, kept, findings)
    digest = hashlib.sha256()
    for sample, fact in zip(kept, facts, strict=True):
        row = json.dumps([sample.image, sample.label, fact["pixel_sha256"]])
        digest.update(row.encode())
    pixels_path = stored / "pixels.npy" if image_size is not None else None
    return Scan(
        dataset=replace(dataset, samples=tuple(kept)),
        facts=facts,
        thumbnails=np.load(stored / "thumbnails.npy"),
        pixels=np.load(pixels_path, mmap_mode="r") if pixels_path else None,
        pixels_path=pixels_path,
        digest=digest.hexdigest(),
        findings=tuple(findings),
    )


def read_all(
    dataset: Dataset,
    image_size: int | None,
    folder: Path,
    index_path: Path,
    progress: Progress | None,
) -> Path:
    """Decode all files into a new folder, and put it in place when it is whole and on disk."""
    stats = [read_stat(sample.path) for sample in dataset.samples]
    total = len(dataset.samples)
    work = Path(tempfile.mkdtemp(prefix="scan-", dir=folder))
    try:
        records: list[dict[str, Any]] = []
        thumbnails = np.zeros((total, THUMBNAIL_SIDE, THUMBNAIL_SIDE), np.float32)
        kept = 0
        with open(work / "pixels.npy", "wb") as file:
            if image_size is not None:
                write_header(file, total, image_size)
            for record, thumbnail, pixels in iter_rows(dataset.samples, image_size):
                records.append(record)
                if thumbnail is not None:
                    thumbnails[kept] = thumbnail
                    kept += 1
                if pixels is not None:
                    file.write(pixels.data)
                if progress is not None and (len(records) % 50 == 0 or len(records) == total):
                    progress("reading images", len(records), total)
            if image_size is not None:
                # The header has room for any number of rows: correct it in place.
                file.seek(0)
                write_header(file, kept, image_size)
            sync(file)
        with open(work / "thumbnails.npy", "wb") as file:
            np.save(file, thumbnails[:kept])
            sync(file)
        with open(work / "scan.json", "w", encoding="utf-8") as file:
            json.dump(records, file, allow_nan=False)
            sync(file)
        hashes = [record.get("sha256", record.get("error")) for record in records]
        names = [sample.image for sample in dataset.samples]
        target = folder / digest_json([VERSION, image_size, names, hashes])
        if is_whole(target, image_size):
            shutil.rmtree(work)
        else:
            shutil.rmtree(target, ignore_errors=True)
            os.rename(work, target)
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise
    write_index(index_path, stats, hashes, target)
    return target


def iter_rows(samples: tuple[Sample, ...], image_size: int | None) -> Iterator[Row]:
    """Rows in the samples' order, made by a few threads with only a few images in memory."""
    # One filter around all threads: changing filters inside a thread is not safe.
    with warnings.catch_warnings(), ThreadPoolExecutor(THREADS) as pool:
        warnings.simplefilter("ignore")
        waiting: deque[Any] = deque()
        for sample in samples:
            waiting.append(pool.submit(read_row, sample.path, image_size))
            if len(waiting) >= 8 * THREADS:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def read_row(path: Path, image_size: int | None) -> Row:
    """Facts, thumbnail and resized pixels of one file; {"error", "message"} if it has none."""
    try:
        pixels, facts = open_image(path)
    except ImageError as error:
        return {"error": error.check, "message": error.message}, None, None
    lean = drop_colour(pixels)
    thumbnail, more = describe_pixels(lean)
    shape = f"{pixels.shape[0]}x{pixels.shape[1]}:".encode()
    facts["pixel_sha256"] = hashlib.sha256(shape + repeat_grey(lean).data).hexdigest()
    facts.update(more)
    resized = None if image_size is None else repeat_grey(resize_pixels(lean, image_size))
    return facts, thumbnail, resized


def repeat_grey(lean: np.ndarray) -> np.ndarray:
    """What ``drop_colour`` gave, with its three channels."""
    return np.repeat(lean, 3, axis=2) if lean.shape[2] == 1 else np.ascontiguousarray(lean)


def find_stored(dataset: Dataset, image_size: int | None, index_path: Path) -> Path | None:
    """The folder of an earlier scan of these very files, or None."""
    try:
        index = json.loads(index_path.read_text("utf-8"))
        stored = index_path.parent / index["content"]
        if not is_whole(stored, image_size):
            return None
        entries = index["files"]
        stats = [read_stat(sample.path) for sample in dataset.samples]
        changed = False
        for sample, stat, (size, time, digest) in zip(dataset.samples, stats, entries, strict=True):
            if stat == (size, time) and stat is not None:
                continue
            changed = True
            if hashlib.sha256(read_bytes(sample.path)).hexdigest() != digest:
                return None
        if changed:
            write_index(index_path, stats, [entry[2] for entry in entries], stored)
        return stored
    except (OSError, ValueError, KeyError, TypeError, ImageError):
        # No index, a torn one, or a file that is gone: read everything again.
        return None


def is_whole(stored: Path, image_size: int | None) -> bool:
    """Whether all parts of a stored scan are there and fit one another."""
    try:
        records = json.loads((stored / "scan.json").read_text("utf-8"))
        kept = sum("error" not in record for record in records)
        if np.load(stored / "thumbnails.npy", mmap_mode="r").shape[0] != kept:
            return False
        if image_size is None or kept == 0:
            return True
        pixels = np.load(stored / "pixels.npy", mmap_mode="r")
        return pixels.shape == (kept, image_size, image_size, 3)
    except (OSError, ValueError, TypeError):
        return False


def list_problems(samples: tuple[Sample, ...], records: list[dict[str, Any]]) -> list[Finding]:
    """Findings for what was left out, and for what was read but looks wrong."""
    left_out: dict[str, list[int]] = {}
    noted: dict[str, list[int]] = {}
    for row, record in enumerate(records):
        if "error" in record:
            left_out.setdefault(record["error"], []).append(row)
        for note in record.get("notes", ()):
            noted.setdefault(note, []).append(row)
    findings = []
    for check, rows in sorted(left_out.items()):
        what, remedy = TITLES[check]
        findings.append(
            Finding(
                check,
                "error",
                f"{len(rows):,} {plural(len(rows))} {what}; left out.",
                len(rows),
                tuple(samples[row].image for row in rows[:12]),
                remedy,
                {"messages": {samples[row].image: records[row]["message"] for row in rows[:12]}},
            )
        )
    for note, (severity, what, remedy) in NOTES.items():
        rows = noted.get(note, [])
        if rows:
            names = tuple(samples[row].image for row in rows[:12])
            title = f"{len(rows):,} {plural(len(rows))} {what}."
            findings.append(Finding(note, severity, title, len(rows), names, remedy))
    return findings


NOTES = {
    "wrong_extension": (
        "warning",
        "have a file name that does not fit their format",
        "They were read by their content. Rename them, so that other programs read them too.",
    ),
    "blank": (
        "warning",
        "show a single colour only",
        "Look at them: an empty slice, or an export that went wrong. Leave them out if so.",
    ),
    "animated": (
        "warning",
        "hold several frames; only the first was read",
        "Save each frame that matters as an image of its own.",
    ),
    "transparent": ("info", "are partly transparent; put on black", ""),
    "stretched": (
        "info",
        "have more than 8 bits; each was stretched from its 0.5th to its 99.5th percentile",
        "Export 8-bit images with a fixed window if absolute brightness matters.",
    ),
    "burned_in": (
        "warning",
        "may show patient data in their pixels (DICOM BurnedInAnnotation)",
        "Blacken the text before the images are shared or learned from.",
    ),
}


def check_enough(dataset: Dataset, kept: list[Sample], findings: list[Finding]) -> None:
    """Raise DataError if what could be read is too little."""
    lost = len(dataset.samples) - len(kept)
    if lost == 0:
        return
    listed = "; ".join(
        f"{f.count} {TITLES[f.check][0]} ({', '.join(repr(n) for n in f.examples[:3])})"
        for f in findings
        if f.check in TITLES
    )
    advice = next((f.remedy for f in findings if f.check in TITLES), "")
    if lost > MAX_UNREADABLE * len(dataset.samples):
        raise DataError(
            f"{lost} of {len(dataset.samples)} images cannot be read, more than the "
            f"{MAX_UNREADABLE:.0%} that may be left out: {listed}. {advice}"
        )
    counts = Counter(sample.label for sample in kept)
    for name in dataset.classes:
        if counts[name] < MIN_CLASS_IMAGES:
            raise DataError(
                f"Of class {name!r} only {counts[name]} images can be read; training, validation "
                f"and test need at least one each. Left out: {listed}. {advice}"
            )


def index_key(dataset: Dataset, image_size: int | None) -> str:
    names = [sample.image for sample in dataset.samples]
    return digest_json([VERSION, image_size, os.fsencode(dataset.root).hex(), names])


def read_stat(path: Path) -> tuple[int, int] | None:
    """Size in bytes and time in nanoseconds; None if there is no such file."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    return status.st_size, status.st_mtime_ns


def write_index(path: Path, stats: list[Any], hashes: list[str], target: Path) -> None:
    files = [[*(stat or (None, None)), digest] for stat, digest in zip(stats, hashes, strict=True)]
    write_text(path, json.dumps({"content": target.name, "files": files}))


def write_header(file: Any, rows: int, size: int) -> None:
    header = {"descr": "|u1", "fortran_order": False, "shape": (rows, size, size, 3)}
    np.lib.format.write_array_header_1_0(file, header)


def sync(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())


def digest_json(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:32]


def plural(count: int) -> str:
    return "image" if count == 1 else "images"
