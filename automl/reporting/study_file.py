"""study.yaml: what only the authors know of a study, for the page, the checklists and the card.

It lies in the run's folder (``--study FILE`` puts it there). One answer a line; each key of
FIELDS answers the items of CLAIM 2024 and TRIPOD+AI beside it, and a single item can be
answered by its own name, such as ``claim_18`` or ``tripod_19``. ``class_names`` says how
labels are called on the page, such as ``{"0": healthy, "1": tumour}``.
"""

import datetime
import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from automl.errors import UsageError

FILE_NAME = "study.yaml"
CLASS_NAMES = "class_names"


@dataclass(frozen=True)
class Field:
    """A question to the authors and the checklist items that its answer is for."""

    title: str
    items: tuple[str, ...] = ()
    on_page: bool = False


FIELDS = {
    "intended_use": Field("Intended use", ("claim_3", "tripod_3"), True),
    "data_source": Field("Source of the data, with dates", ("claim_7", "tripod_5"), True),
    "population": Field("Patients: setting, who was included", ("claim_8", "tripod_6"), True),
    "reference_standard": Field("Reference standard", ("claim_14", "tripod_8"), True),
    "annotators": Field("Who labelled the images", ("claim_16",), True),
    "scanner": Field("Scanners and sequences", ("claim_13", "tripod_9"), True),
    "ethics": Field("Ethical approval", ("tripod_17",), True),
    "limitations": Field("Limitations", ("claim_40", "tripod_26"), True),
    "contact": Field("Contact", (), True),
    "abstract": Field("Abstract", ("claim_2", "tripod_2")),
    "objectives": Field("Aims and hypotheses", ("claim_4", "tripod_4")),
    "design": Field("Prospective or retrospective", ("claim_5",)),
    "deidentification": Field("De-identification", ("claim_11",)),
    "reference_rationale": Field("Why this reference standard", ("claim_15",)),
    "test_annotation": Field("How the test images were labelled", ("claim_17",)),
    "annotator_agreement": Field("Agreement of the annotators", ("claim_18",)),
    "sample_size": Field("Why so many images", ("claim_21", "tripod_10")),
    "fairness": Field("Fairness", ("tripod_14",)),
    "patient_involvement": Field("Patients and public involved", ("tripod_19",)),
    "registration": Field("Trial registration", ("claim_34",)),
    "model_updating": Field("Model updating", ("tripod_24",)),
    "interpretation": Field("Interpretation", ("claim_41", "tripod_25")),
    "protocol": Field("Study protocol", ("claim_42", "tripod_18")),
    "availability": Field("Availability of data and code", ("claim_43", "tripod_18")),
    "funding": Field("Funding", ("claim_44",)),
}
ITEMS = {f"claim_{n}" for n in range(1, 45)} | {f"tripod_{n}" for n in range(1, 28)}


def read_study(path: Path, classes: Iterable[str] | None = None) -> dict[str, Any]:
    """The authors' answers, each one line of text; ``class_names`` is a dict.

    Args:
        classes: the data set's labels, to check ``class_names`` with; None where unknown.

    Raises:
        UsageError: no such file, not YAML, an unknown key or label, an answer that is not text.
    """
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not text in UTF-8"
        raise UsageError(f"Cannot read the study file {path}: {reason}.") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "unreadable"
        raise UsageError(f"{path}{where} is not YAML: {problem}.") from error
    if not isinstance(document, dict | None):
        raise UsageError(
            f"{path} must hold one answer a line, such as 'intended_use: …', "
            f"not a {type(document).__name__}."
        )
    study: dict[str, Any] = {}
    for key, value in (document or {}).items():
        check_key(key, path)
        if key == CLASS_NAMES:
            study[key] = read_class_names(value, classes, path)
        elif value is not None:
            study[key] = read_answer(value, f"{path}: {key}")
    return study


def check_key(key: Any, path: Path) -> None:
    known = [*FIELDS, CLASS_NAMES]
    if key in known or key in ITEMS:
        return
    close = difflib.get_close_matches(str(key), [*known, *ITEMS], n=1)
    hint = (
        f"Did you mean {close[0]!r}?"
        if close
        else f"Known: {', '.join(known)}, claim_1 to claim_44, tripod_1 to tripod_27."
    )
    raise UsageError(f"{path} has no question {key!r}. {hint}")


def read_answer(value: Any, where: str) -> str:
    """Text, a number or a date as one line; a list of them joined by semicolons."""
    parts = value if isinstance(value, list) else [value]
    kinds = (str, int, float, datetime.date)
    if isinstance(value, bool) or not all(
        isinstance(part, kinds) and not isinstance(part, bool) for part in parts
    ):
        raise UsageError(
            f"{where} must be text, not {value!r}. Put yes, no, true and false in quotes."
        )
    return "; ".join(" ".join(str(part).split()) for part in parts)


def read_class_names(value: Any, classes: Iterable[str] | None, path: Path) -> dict[str, str]:
    """Label → name; labels must exist, and names differ."""
    if not isinstance(value, dict) or not value:
        raise UsageError(
            f"{path}: {CLASS_NAMES} must name labels, such as {{'0': healthy, '1': tumour}}, "
            f"not {value!r}."
        )
    names = {
        # YAML reads an unquoted 0 as a number; labels are text.
        str(label): read_answer(name, f"{path}: {CLASS_NAMES}, {label}")
        for label, name in value.items()
    }
    labels = list(names if classes is None else classes)
    unknown = [label for label in names if label not in labels]
    if unknown:
        raise UsageError(
            f"{path}: {CLASS_NAMES} has no label {unknown[0]!r} to name. The labels are: "
            f"{', '.join(labels)}."
        )
    shown = [names.get(label, label) for label in labels]
    if len(set(shown)) < len(shown) or not all(shown):
        raise UsageError(f"{path}: {CLASS_NAMES} must give each label a name of its own.")
    return names


def answer_items(study: dict[str, Any]) -> dict[str, str]:
    """Checklist item → the authors' answer; an item's own key wins over a field's."""
    answers: dict[str, list[str]] = {}
    for key, field in FIELDS.items():
        for item in field.items:
            if study.get(key):
                answers.setdefault(item, []).append(study[key])
    found = {item: " ".join(parts) for item, parts in answers.items()}
    return found | {item: study[item] for item in ITEMS if study.get(item)}


def study_rows(study: dict[str, Any]) -> list[dict[str, str | None]]:
    """The questions that the page always shows, with what the authors said or None."""
    return [
        {"key": key, "title": field.title, "answer": study.get(key)}
        for key, field in FIELDS.items()
        if field.on_page
    ]
