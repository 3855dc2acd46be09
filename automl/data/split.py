"""Who trains, who validates, who tests: no patient and no twin on two sides.

The unit that is kept whole is the union of patients and twin groups. Which part a unit goes
to depends on image names, labels, groups and the seed only, not on the order of the rows.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from automl.config import SearchConfig
from automl.data.assign import MINIMUM, assign_units
from automl.data.split_file import LEFT_OUT, read_parts, write_split
from automl.data.twins import connect
from automl.errors import DataError, UsageError
from automl.records import SPLITS, Dataset, Finding, Scan, Split, Twins

__all__ = ["make_split", "read_split", "write_split"]


def make_split(scan: Scan, twins: Twins, config: SearchConfig) -> Split:
    """Divide the images as ``config.split`` says: grouped, random or by a file.

    ``grouped`` respects an official test set where the source has one (kind "official"):
    only the missing parts are carved from its training images. Images that a file does not
    list are left out: their part is "".

    Raises:
        DataError: a class cannot have MINIMUM images in every part.
        UsageError: the split file is wrong.
    """
    dataset = scan.dataset
    if len(dataset.classes) < 2:
        raise DataError(
            f"All images of {dataset.name} have the label {', '.join(dataset.classes)!r}. A "
            "classifier needs at least two classes."
        )
    group = merge_groups(dataset, twins)
    test, val = config.test_fraction, config.val_fraction
    shares = {"train": 1 - val - test, "val": val, "test": test}
    findings: list[Finding] = []
    if config.split == "grouped":
        fixed, findings = official_parts(dataset)
        kind = "grouped" if fixed is None else "official"
        part = divide(dataset, group, fixed, shares, config.seed)
    elif config.split == "random":
        kind = "random"
        part = divide(dataset, np.arange(len(group)), None, shares, config.seed)
    else:
        kind = "file"
        part, findings = read_parts(Path(config.split), dataset)
    check_classes(dataset, group, part, kind)
    return finish_split(dataset, twins, part, group, kind, config.seed, findings)


def divide_otherwise(dataset: Dataset, twins: Twins, split: Split, seed: int) -> Split:
    """The same images in parts of the same sizes: at random if ``split`` is grouped, else grouped.

    Whole groups fill the parts as closely as they can; images that ``split`` leaves out stay
    out.

    Raises:
        DataError: a class cannot have MINIMUM images in every part.
    """
    kind = "random" if split.kind == "grouped" else "grouped"
    used = np.flatnonzero(split.part != LEFT_OUT)
    group = merge_groups(dataset, twins)
    unit = np.arange(len(used)) if kind == "random" else group[used]
    some = replace(dataset, samples=tuple(dataset.samples[row] for row in used))
    shares = {name: len(split.rows(name)) / len(used) for name in SPLITS}
    part = np.full(len(dataset.samples), LEFT_OUT, dtype=object)
    part[used] = divide(some, unit, None, shares, seed)
    check_classes(dataset, group, part, kind)
    return finish_split(dataset, twins, part, group, kind, seed)


def finish_split(
    dataset: Dataset,
    twins: Twins,
    part: np.ndarray,
    group: np.ndarray,
    kind: str,
    seed: int,
    findings: Iterable[Finding] = (),
) -> Split:
    """Count the leaks and seal the split."""
    return Split(
        part=part,
        group=group,
        kind=kind,
        seed=seed,
        leaking_pairs=len(leaking_pairs(part, twins)),
        digest=digest_parts(dataset, part),
        findings=tuple(findings),
    )


def merge_groups(dataset: Dataset, twins: Twins) -> np.ndarray:
    """Patients and twin groups merged, int64 (n,), numbered by first member."""
    first: dict[str, int] = {}
    links = [
        (first.setdefault(sample.group, i), i)
        for i, sample in enumerate(dataset.samples)
        if sample.group is not None
    ]
    i, j = np.array(links, dtype=np.int64).reshape(-1, 2).T
    return connect(twins.group, i, j)


def describe_groups(dataset: Dataset, twins: Twins) -> str:
    """What a group is: images, twins, patients or patients and twins."""
    words = []
    if any(sample.group is not None for sample in dataset.samples):
        words.append("patients")
    if len(twins.group) and np.bincount(twins.group).max() > 1:
        words.append("twins")
    return " and ".join(words) or "images"


def official_parts(dataset: Dataset) -> tuple[np.ndarray | None, list[Finding]]:
    """The source's own split, str (n,), or None if it has no parts besides train.

    Images without a part count as training images.
    """
    given = [sample.split for sample in dataset.samples]
    for sample in dataset.samples:
        if sample.split is not None and sample.split not in SPLITS:
            raise UsageError(
                f"{sample.image} is in the split {sample.split!r}. Use train, val or test."
            )
    if not {"val", "test"} & set(given):
        return None, []
    without = [s.image for s in dataset.samples if s.split is None]
    findings = []
    if without:
        findings.append(
            Finding(
                "split_incomplete",
                "warning",
                f"{len(without):,} images are in no part of the official split; they train.",
                count=len(without),
                examples=tuple(without[:12]),
                remedy="Fill the split column for all images, or leave it empty for all.",
            )
        )
    return np.array([part or "train" for part in given], dtype=object), findings


def divide(
    dataset: Dataset,
    group: np.ndarray,
    fixed: np.ndarray | None,
    shares: Mapping[str, float],
    seed: int,
) -> np.ndarray:
    """Assign whole groups to parts in ``shares``, stratified by class; str (n,).

    Of a fixed split only the training images are divided, among train and the parts that it
    lacks. Groups that reach into a fixed part stay in train: in a carved part they would leak.
    """
    if fixed is None:
        part = np.full(len(group), "train", dtype=object)
        free = np.ones(len(group), dtype=bool)
    else:
        part = fixed.copy()
        shares = {name: s for name, s in shares.items() if name == "train" or name not in fixed}
        free = (part == "train") & ~np.isin(group, group[part != "train"])
    if len(shares) == 1:
        return part
    bound = np.bincount(dataset.targets[(part == "train") & ~free], minlength=len(dataset.classes))
    names = [sample.image for sample in dataset.samples]
    rows = np.flatnonzero(free)
    units: dict[int, list[int]] = defaultdict(list)
    for row in rows:
        units[int(group[row])].append(int(row))
    chosen = assign_units(
        [(min(names[row] for row in members), members) for members in units.values()],
        dataset.targets,
        len(dataset.classes),
        shares,
        {"train": bound},
        seed,
    )
    for members, name in chosen:
        part[members] = name
    return part


def check_classes(dataset: Dataset, group: np.ndarray, part: np.ndarray, kind: str) -> None:
    """Every class needs MINIMUM images in every part.

    Raises:
        DataError: says which class lacks how many, and what it would take.
    """
    targets = dataset.targets
    for name in SPLITS:
        for index, label in enumerate(dataset.classes):
            count = int(np.sum((part == name) & (targets == index)))
            if count >= MINIMUM:
                continue
            mine = targets == index
            n_groups = len(np.unique(group[mine]))
            need = MINIMUM * len(SPLITS)
            how = {
                "grouped": f"It has {mine.sum():,} images in {n_groups:,} groups of patients or "
                f"twins that stay together, and needs at least {need} images in at least "
                f"{len(SPLITS)} groups. Add images of other patients, or leave the class out.",
                "random": f"It has {mine.sum():,} images and needs at least {need}.",
            }.get(
                kind,
                "Change the given split, or leave it out to have the images divided by groups.",
            )
            raise DataError(
                f"Class {label!r} has {count} images in the {name} part; a fair evaluation needs "
                f"at least {MINIMUM} of every class in train, val and test. {how}"
            )


def leaking_pairs(part: np.ndarray, twins: Twins) -> list[tuple[int, int, float, str]]:
    """Twin pairs whose two images are in different parts."""
    return [
        pair
        for pair in twins.pairs
        if part[pair[0]] != part[pair[1]] and LEFT_OUT not in (part[pair[0]], part[pair[1]])
    ]


def rows_without_twins(split: Split) -> np.ndarray:
    """Test rows whose group (patient or twins) has no member in train or val, ascending."""
    seen = split.group[np.isin(split.part, ("train", "val"))]
    return np.flatnonzero((split.part == "test") & ~np.isin(split.group, seen))


def digest_parts(dataset: Dataset, part: np.ndarray) -> str:
    """SHA-256 over image names and parts, independent of the row order."""
    pairs = sorted((sample.image, str(p)) for sample, p in zip(dataset.samples, part, strict=True))
    text = "".join(f"{image}\0{name}\n" for image, name in pairs)
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def summarise_split(split: Split, dataset: Dataset) -> dict[str, Any]:
    """The "split" part of report.json, without the balance that the search applies."""
    targets = dataset.targets
    classes, groups = {}, {}
    for name in SPLITS:
        rows = split.rows(name)
        counts = Counter(dataset.classes[t] for t in targets[rows])
        classes[name] = {label: counts[label] for label in dataset.classes}
        groups[name] = len(np.unique(split.group[rows]))
    return {
        "kind": split.kind,
        "seed": split.seed,
        **{name: len(split.rows(name)) for name in SPLITS},
        "classes": classes,
        "groups": groups,
        "leaking_pairs": split.leaking_pairs,
        "digest": split.digest,
    }


def read_split(path: Path, dataset: Dataset, twins: Twins | None = None, seed: int = 0) -> Split:
    """The split that a file describes; kind "file".

    Groups are those of patients and twins, or of patients alone without ``twins``.

    Raises:
        UsageError: see :func:`read_parts`.
    """
    if twins is None:
        twins = Twins(np.arange(len(dataset.samples)), (), 1.0)
    part, findings = read_parts(path, dataset)
    return finish_split(dataset, twins, part, merge_groups(dataset, twins), "file", seed, findings)
