"""What a model knows of its training data, so that it can say when not to rely on it.

Three warnings: an image that is unlike the training data, one that was (nearly) in it, and
one for which the conformal set at 90 % does not hold exactly one class. All come from
``assets.extra/guards.npz``: plain arrays, read without pickle. The thumbnails in it are 32 x 32
pictures of training images; treat the file as carefully as those images.
"""

import zipfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from automl.data.neighbours import best_columns, find_basis, shorten
from automl.errors import ModelError
from automl.serving.manifest import MANIFEST_FILE, read_info, read_json, write_info
from automl.serving.novelty import fit_novelty, score_novelty
from automl.writing import replace_file

GUARDS_FILE = "assets.extra/guards.npz"
COVERAGE = 0.90
# Above the audit's .98 since resizing makes images more alike. Of all pairs of 3,762 brain MRI at
# 160 pixels it finds 91 % of those that the audit links, and 98 % of what it finds are such.
TWIN_THRESHOLD = 0.982
# With fewer training images than this the whole product is quick.
FEWEST = 500


@dataclass(frozen=True)
class Guards:
    """Arrays behind the flags.

    ``novelty`` is what ``fit_novelty`` returns; ``thumbnails`` float32 (n, 1024), zero mean
    and unit norm, and ``basis`` a few directions that hold most of them, or None;
    ``sha256`` the training files' hashes; ``least`` the lowest probability with which a class
    enters the conformal set.
    """

    novelty: dict[str, np.ndarray]
    thumbnails: np.ndarray
    basis: np.ndarray | None
    sha256: frozenset[bytes]
    least: float

    @cached_property
    def short(self) -> np.ndarray:
        """``thumbnails`` for upper bounds of correlations, see ``automl.data.neighbours``."""
        return shorten(self.thumbnails, self.basis)

    def correlate(self, thumbnails: np.ndarray) -> np.ndarray:
        """Correlation of each of (m, 32, 32) with the training image that is most like it, (m,)."""
        flat = thumbnails.reshape(len(thumbnails), -1)
        return best_columns(flat, self.thumbnails, shorten(flat, self.basis) @ self.short.T)[1]

    def save(self, path: Path) -> None:
        """Write an .npz, whole or not at all."""
        hashes = np.frombuffer(b"".join(sorted(self.sha256)), np.uint8).reshape(-1, 32)
        with replace_file(path, "wb") as file:
            np.savez(
                file,
                thumbnails=self.thumbnails.astype(np.float16),
                sha256=hashes,
                least=np.float64(self.least),
                **({} if self.basis is None else {"basis": self.basis}),
                **{f"novelty_{name}": values for name, values in self.novelty.items()},
            )


def load_guards(path: Path) -> Guards:
    """Read what ``Guards.save`` wrote.

    Raises:
        ModelError: the file is damaged or holds something else.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            prefix = "novelty_"
            novelty = {
                name.removeprefix(prefix): arrays[name]
                for name in arrays.files
                if name.startswith(prefix)
            }
            return Guards(
                novelty=novelty,
                thumbnails=arrays["thumbnails"].astype(np.float32),
                basis=arrays["basis"] if "basis" in arrays.files else None,
                sha256=frozenset(row.tobytes() for row in arrays["sha256"]),
                least=float(arrays["least"]),
            )
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise ModelError(
            f"{path} cannot be read ({error}). Export the model again with `automl export RUN`."
        ) from None


def fit_guards(
    features_train: np.ndarray,
    statistics_train: np.ndarray,
    thumbnails_train: np.ndarray,
    sha256_train: list[str],
    p_val: np.ndarray,
    y_val: np.ndarray,
    groups_train: np.ndarray | None = None,
    seed: int = 0,
) -> Guards:
    """Learn from the training set what is familiar, from validation what is certain.

    Args:
        features_train: (n, channels), from ``Predictor.describe``.
        statistics_train: (n, s), from ``Predictor.describe``.
        thumbnails_train: (n, 32, 32), from ``Predictor.describe``: of the pixels that the
            network sees, as those of new images will be.
        sha256_train: hex digests of the training files.
        p_val: (m, classes), calibrated probabilities.
        y_val: (m,), class indices.
        groups_train: (n,), patients or near-duplicate groups; keeps near-copies from making
            the training data look denser than it is.
    """
    flat = thumbnails_train.reshape(len(thumbnails_train), -1).astype(np.float32)
    return Guards(
        novelty=fit_novelty(features_train, statistics_train, thumbnails_train, groups_train, seed),
        thumbnails=flat,
        basis=find_basis(flat, FEWEST),
        sha256=frozenset(bytes.fromhex(digest) for digest in sha256_train),
        least=fit_conformal(p_val, y_val),
    )


def add_guards(folder: Path, guards: Guards) -> None:
    """Put guards into an exported model folder and bring its hashes up to date."""
    guards.save(folder / GUARDS_FILE)
    write_info(folder, read_info(folder), read_json(folder / MANIFEST_FILE)["kind"])


def fit_conformal(p_val: np.ndarray, y_val: np.ndarray, coverage: float = COVERAGE) -> float:
    """The lowest probability that puts a class into the conformal set.

    Split conformal prediction with the score 1 - p(true class) (LAC: Sadinle, Lei and
    Wasserman 2019), with the finite-sample quantile of Vovk: sets hold the true class for at
    least ``coverage`` of new images from the same source. Validation also chose the model,
    so the true coverage may be slightly lower.
    """
    scores = np.sort(1 - p_val[np.arange(len(y_val)), y_val].astype(np.float64))
    rank = int(np.ceil((len(scores) + 1) * coverage))
    return 0.0 if rank > len(scores) else float(1 - scores[rank - 1])


def find_set(probabilities: np.ndarray, least: float) -> np.ndarray:
    """Which classes are in each image's conformal set: bool (n, classes)."""
    # Rounding may put a probability just below itself; the tolerance keeps the guarantee.
    return probabilities >= least - 1e-6


def find_flags(
    guards: Guards,
    probabilities: np.ndarray,
    features: np.ndarray,
    statistics: np.ndarray,
    thumbnails: np.ndarray,
    sha256: list[str | None],
) -> list[tuple[str, ...]]:
    """The flags of each image, in the order unlike-training, seen-in-training, uncertain."""
    correlation = guards.correlate(thumbnails)
    unlike = score_novelty(guards.novelty, features, statistics, correlation) > 1
    same = [digest is not None and bytes.fromhex(digest) in guards.sha256 for digest in sha256]
    seen = (correlation >= TWIN_THRESHOLD) | np.array(same, bool)
    uncertain = find_set(probabilities, guards.least).sum(axis=1) != 1
    names = ("unlike-training", "seen-in-training", "uncertain")
    return [
        tuple(name for name, on in zip(names, row, strict=True) if on)
        for row in zip(unlike, seen, uncertain, strict=True)
    ]
