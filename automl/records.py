"""The nouns that travel between stages. All are frozen; none knows how it was made.

Arrays are NumPy, paths are ``pathlib.Path``, and everything else is plain Python, so that
a record can be written as JSON, sent to a worker process, or compared in a test.
"""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

SPLITS = ("train", "val", "test")
SEVERITIES = ("error", "warning", "info")


@dataclass(frozen=True)
class Finding:
    """One thing an audit check has to say.

    ``check`` is a stable snake_case name, ``severity`` one of SEVERITIES (an error makes
    the evaluation unfair or drops data), ``title`` one sentence with its number,
    ``remedy`` what the reader should do, ``examples`` at most a dozen image names.
    """

    check: str
    severity: str
    title: str
    count: int = 0
    examples: tuple[str, ...] = ()
    remedy: str = ""
    detail: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Sample:
    """One image and what is known of it before it is opened.

    ``image`` is the path relative to the data set's root with forward slashes: unique,
    and the name under which it appears in every output. ``group`` is the patient, if
    known; ``split`` the official split, if the source has one; ``attributes`` the other
    columns that may serve as subgroups.
    """

    image: str
    path: Path
    label: str
    group: str | None = None
    split: str | None = None
    attributes: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Dataset:
    """Samples in a fixed order, sorted by ``image``.

    ``classes`` are sorted; with two classes the positive one is last and ``positive``
    names it, with more ``positive`` is None. ``findings`` are those of reading the
    source (missing, unlisted, refused). ``kind`` is csv, folders, split_folders or sample.
    """

    name: str
    root: Path
    kind: str
    samples: tuple[Sample, ...]
    classes: tuple[str, ...]
    positive: str | None = None
    synthetic: bool = False
    findings: tuple[Finding, ...] = ()

    @property
    def targets(self) -> np.ndarray:
        """Class indices, int64 (n,)."""
        index = {name: i for i, name in enumerate(self.classes)}
        return np.array([index[sample.label] for sample in self.samples], dtype=np.int64)


@dataclass(frozen=True)
class Scan:
    """What one pass over the files found; row i belongs to ``dataset.samples[i]``.

    Unreadable files are gone: ``dataset`` is the readable part, and ``findings`` name
    what was left out. ``facts`` has a dict for each image: width, height, mode, format,
    bytes, sha256, pixel_sha256, mean, std, foreground (share of pixels), exif (bool) …
    ``thumbnails`` is float32 (n, 32, 32), cropped to the foreground, zero mean, unit norm.
    ``pixels`` is uint8 (n, size, size, 3), a memory map, or None for an audit alone.
    ``digest`` is a SHA-256 over names, labels and pixels in order.
    """

    dataset: Dataset
    facts: tuple[dict[str, Any], ...]
    thumbnails: np.ndarray
    pixels: np.ndarray | None
    pixels_path: Path | None
    digest: str
    findings: tuple[Finding, ...] = ()


@dataclass(frozen=True)
class Twins:
    """Near-duplicate groups: ``group`` int64 (n,), equal numbers are one group.

    ``pairs`` are the links (i, j, correlation, kind) with kind one of bytes, pixels,
    near, flipped, rotated; ``neighbours`` counts pairs between the neighbour and the
    twin threshold.
    """

    group: np.ndarray
    pairs: tuple[tuple[int, int, float, str], ...]
    threshold: float
    neighbours: int = 0
    findings: tuple[Finding, ...] = ()


@dataclass(frozen=True)
class Split:
    """Who is in train, val and test; ``part`` is an array of those words, (n,).

    ``group`` int64 (n,) is the unit that was kept whole and that intervals resample.
    ``kind`` is grouped, random, official or file; ``leaking_pairs`` counts twin pairs
    across parts (0 for a grouped split, the truth for any other).
    """

    part: np.ndarray
    group: np.ndarray
    kind: str
    seed: int
    leaking_pairs: int
    digest: str
    findings: tuple[Finding, ...] = ()

    def rows(self, name: str) -> np.ndarray:
        """Indices of the samples in part ``name``, ascending."""
        return np.flatnonzero(self.part == name)


@dataclass(frozen=True)
class Audit:
    """All findings, most severe first, and the numbers behind the report's data section."""

    findings: tuple[Finding, ...]
    summary: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        return {"findings": [asdict(finding) for finding in self.findings], **self.summary}


@dataclass(frozen=True)
class Trial:
    """One configuration trained for one rung, as the journal tells it.

    ``trial`` is its id, "CONFIGURATION-ROUND"; ``epochs`` the epoch it is trained to,
    counted from the configuration's start; ``history`` one dict for each epoch it ran.
    ``refines`` counts the epochs of the winner's refinement, the search's last trial; 0 is a rung.
    """

    trial: str
    configuration: int
    bracket: int
    round: int
    initial_epoch: int
    epochs: int
    params: dict[str, Any]
    parent: str | None = None
    status: str = "running"
    score: float | None = None
    seconds: float = 0.0
    reason: str | None = None
    message: str | None = None
    history: tuple[dict[str, float], ...] = ()
    finished_at: float | None = None
    refines: int = 0


@dataclass(frozen=True)
class Study:
    """A finished search: trials sorted by (bracket descending, round, configuration)."""

    trials: tuple[Trial, ...]
    best: Trial
    objective: str
    checkpoint: Path
    wall_seconds: float
    detail: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ModelInfo:
    """What a model folder says of itself, ``assets.extra/automl.json``."""

    name: str
    classes: tuple[str, ...]
    positive: str | None
    threshold: float
    temperature: float
    image_size: int
    hashes: dict[str, str] = field(default_factory=dict)
    headline: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    detail: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Prediction:
    """One image's answer. ``label`` is None where ``flags`` has "unreadable".

    ``set_90`` are the classes that may be true: it holds the right one for nine of ten new
    images like those of the search. None where the model has no such set.
    """

    image: str
    label: str | None
    probability: float | None
    probabilities: dict[str, float]
    flags: tuple[str, ...] = ()
    message: str = ""
    set_90: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Run:
    """A run folder: where its parts are, and its report as numbers."""

    folder: Path
    report: dict[str, Any]

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def report_path(self) -> Path:
        return self.folder / "report.html"

    @property
    def model_dir(self) -> Path:
        return self.folder / "model"

    @property
    def evaluation(self) -> dict[str, Any]:
        return self.report["evaluation"]
