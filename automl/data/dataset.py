"""What every source ends with: class names, the positive class, DICOM patients."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

from automl.config import SearchConfig
from automl.data.dicom import read_patient
from automl.data.files import is_dicom
from automl.data.images import EXTENSIONS
from automl.data.labels import merge_labels, order_classes
from automl.errors import UsageError
from automl.records import Dataset, Finding, Sample

MAX_CLASSES = 200
MAX_LABEL_LENGTH = 100
RASTER_EXTENSIONS = frozenset().union(
    *(extensions for name, extensions in EXTENSIONS.items() if name != "DICOM")
)


def finish_dataset(
    name: str,
    root: Path,
    kind: str,
    samples: list[Sample],
    findings: list[Finding],
    config: SearchConfig,
    where: str,
) -> Dataset:
    """Class names, positive class and DICOM patients."""
    names, merged = merge_labels(sample.label for sample in samples)
    counts = Counter(names[sample.label] for sample in samples)
    if len(counts) > MAX_CLASSES or len(counts) > max(2, len(samples) // 2):
        first = ", ".join(repr(label) for label in sorted(counts)[:5])
        raise UsageError(
            f"{where} gives {len(counts)} different labels for {len(samples)} images ({first} …): "
            "not classes. Name the column of the class with --label-column."
        )
    long = [label for label in counts if len(label) > MAX_LABEL_LENGTH]
    if long:
        raise UsageError(
            f"{where} gives labels of up to {max(map(len, long))} characters ({long[0][:40]!r} …): "
            "text, not classes. Name the column of the class with --label-column."
        )
    classes, positive = order_classes(counts, config.positive)
    samples = sorted(
        (replace(sample, label=names[sample.label]) for sample in samples),
        key=lambda sample: sample.image,
    )
    return Dataset(
        name=name,
        root=root,
        kind=kind,
        samples=tuple(number_patients(samples)),
        classes=classes,
        positive=positive,
        findings=(*findings, *merged),
    )


def number_patients(samples: list[Sample]) -> list[Sample]:
    """Patients of DICOM files as groups: running numbers, for a digest of an id can be guessed."""
    numbers: dict[str, str] = {}
    result = []
    for sample in samples:
        candidate = sample.group is None and sample.path.suffix.lower() not in RASTER_EXTENSIONS
        patient = read_patient(sample.path) if candidate and is_dicom(sample.path) else None
        if patient is not None:
            number = numbers.setdefault(patient, f"patient-{len(numbers) + 1:04d}")
            sample = replace(sample, group=number)
        result.append(sample)
    return result


def list_finding(check: str, severity: str, title: str, names: list[str], remedy: str) -> Finding:
    return Finding(check, severity, title, len(names), tuple(names[:12]), remedy)
