"""What a label means: spellings that are one class, and which of two classes is positive."""

import re
from collections import Counter
from collections.abc import Iterable

from automl.data.files import fold
from automl.errors import UsageError
from automl.records import Finding

MISSING = {"", "nan", "na", "n/a", "<na>", "null", "?"}
TRUE_WORDS = {"yes", "y", "true", "t"}
FALSE_WORDS = {"no", "n", "false", "f"}
# Words for "nothing found"; the other of two classes is then the positive one.
NEGATIVE = {
    *FALSE_WORDS,
    *("0", "neg", "negative", "normal", "healthy", "benign", "control", "controls", "none"),
    *("clear", "absent", "clean", "hc", "cn", "background"),
}
POSITIVE = {
    *TRUE_WORDS,
    *("1", "pos", "positive", "tumor", "tumour", "malignant", "abnormal", "cancer", "lesion"),
    *("disease", "diseased", "sick", "pathological", "pathology", "present", "case", "patient"),
    *("glioma", "pneumonia", "covid", "melanoma", "infected", "fracture", "hemorrhage", "stroke"),
}
NEGATED = re.compile(
    r"^(no|non|not|without)[ _-]|^(notumou?r|uninfected|unaffected|healthy|normal)"
)


def label_key(text: str) -> str:
    """The form in which labels are compared: ``" Tumor "`` → ``tumor``, ``"0.0"`` → ``0``."""
    key = fold(text)
    if re.fullmatch(r"[+-]?\d+(\.0*)?", key):
        return str(int(float(key)))
    return re.sub(r"[ _-]+", " ", key).strip()


def merge_labels(labels: Iterable[str]) -> tuple[dict[str, str], list[Finding]]:
    """Spelling → class name, for all spellings in ``labels``.

    Spellings with one key are one class, named as most often written. Numbers and words for true
    and false are one pair of classes (0 and 1) only where a column mixes them.
    """
    counts = Counter(labels)
    keys = {spelling: label_key(spelling) for spelling in counts}
    distinct = set(keys.values())
    words = distinct & (TRUE_WORDS | FALSE_WORDS)
    if words and distinct & {"0", "1"} and distinct <= TRUE_WORDS | FALSE_WORDS | {"0", "1"}:
        number = {**dict.fromkeys(TRUE_WORDS, "1"), **dict.fromkeys(FALSE_WORDS, "0")}
        keys = {spelling: number.get(key, key) for spelling, key in keys.items()}
    spellings: dict[str, list[str]] = {}
    for spelling in sorted(counts, key=lambda s: (-counts[s], s)):
        spellings.setdefault(keys[spelling], []).append(spelling)
    names = {
        # A number is written plainly; a word as most people wrote it.
        key: key if re.fullmatch(r"-?\d+", key) else " ".join(written[0].split())
        for key, written in spellings.items()
    }
    merged = {names[key]: written for key, written in spellings.items() if len(written) > 1}
    findings = []
    if merged:
        listed = "; ".join(
            f"{', '.join(repr(w) for w in written[:6])} are {name!r}"
            for name, written in sorted(merged.items())
        )
        findings.append(
            Finding(
                "labels_merged",
                "info",
                f"Different spellings of a label were taken as one class: {listed}.",
                sum(len(written) for written in merged.values()),
                remedy="Write each class in one way if this is not what you meant.",
            )
        )
    return {spelling: names[key] for spelling, key in keys.items()}, findings


def order_classes(names: Iterable[str], wanted: str | None) -> tuple[tuple[str, ...], str | None]:
    """Classes sorted, with two the positive one last; and the positive one.

    Raises:
        UsageError: ``wanted`` (--positive) is no class, or there are more than two.
    """
    classes = sorted(names, key=lambda name: (not name.lstrip("-").isdigit(), sort_key(name)))
    if wanted is not None:
        found = [name for name in classes if label_key(name) == label_key(wanted)]
        if not found:
            raise UsageError(
                f"--positive {wanted!r} is not a class of this data. Classes: {', '.join(classes)}."
            )
        if len(classes) != 2:
            raise UsageError(
                f"--positive is for two classes; this data has {len(classes)}: "
                f"{', '.join(classes)}. Leave it out."
            )
        positive = found[0]
    elif len(classes) != 2:
        return tuple(classes), None
    else:
        positive = guess_positive(classes)
    return tuple(sorted(classes, key=lambda name: name == positive)), positive


def guess_positive(classes: list[str]) -> str:
    """The class of two that a positive result means: by its words, else the last."""
    keys = [label_key(name) for name in classes]
    negative = [sounds_negative(key) for key in keys]
    if negative[0] != negative[1]:
        return classes[negative.index(False)]
    for i in (1, 0):
        words = set(keys[i].split())
        if words & POSITIVE and not set(keys[1 - i].split()) & POSITIVE:
            return classes[i]
    return classes[-1]


def sounds_negative(key: str) -> bool:
    """Whether a ``label_key`` is a word for "nothing found"."""
    return key in NEGATIVE or bool(NEGATED.search(key))


def guess_class(label: str, classes: tuple[str, ...]) -> str | None:
    """Which of two classes, the positive one last, a foreign label probably means."""
    if len(classes) != 2 or not sounds_negative(label_key(classes[0])):
        return None
    key = label_key(label)
    if sounds_negative(key):
        return classes[0]
    return classes[1] if set(key.split()) & POSITIVE else None


def sort_key(name: str) -> tuple[int, str]:
    return (int(name), "") if re.fullmatch(r"-?\d+", name) else (0, name)
