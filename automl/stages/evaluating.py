"""The winner: one calibrated model, its answers, and the test set once."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from automl.config import SearchConfig
from automl.console import Console
from automl.data.split import rows_without_twins
from automl.evaluation.baselines import all_baselines, predict_out_of_fold
from automl.evaluation.calibration import (
    apply_calibration,
    class_mixture,
    fit_temperature,
    prior_shift,
)
from automl.evaluation.evaluate import evaluate_model
from automl.evaluation.metrics import image_losses, predict_classes
from automl.evaluation.robustness import evaluate_robustness
from automl.evaluation.saliency import check_saliency
from automl.evaluation.thresholds import choose_threshold
from automl.folder import (
    count_test_evaluations,
    write_probabilities,
)
from automl.records import Scan, Split, Study
from automl.search.engine import choose_engine, each, engine_name, tensorflow_engine
from automl.search.model import cut_head, join, mirror_backbone
from automl.search.objective import probabilities_of
from automl.search.spec import StudySpec
from automl.search.trial import Trainer
from automl.serving.predictor import Predictor
from automl.tracking.journal import Journal

SALIENCY_IMAGES = 48


@dataclass(frozen=True)
class Winner:
    """The finished model with its answers: probabilities (n, k), ``features`` of every image.

    ``mirror``: whether the model also looks at the mirror image ("used"), and the log loss on
    validation with ("log_loss") and without it ("log_loss_without").
    """

    model: Any
    temperature: float
    threshold: float | None
    mirror: dict[str, Any]
    val: np.ndarray
    test_before: np.ndarray
    test: np.ndarray
    features: np.ndarray


class TakeRows:
    """Some rows of a memory map, read only when they are sliced."""

    def __init__(self, pixels: np.ndarray, rows: np.ndarray) -> None:
        self.pixels, self.rows = pixels, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, part: slice) -> np.ndarray:
        return np.asarray(self.pixels[self.rows[part]])


def finish_model(
    study: Study, spec: StudySpec, scan: Scan, split: Split, console: Console
) -> Winner:
    """The best trial as one whole model, calibrated on validation.

    The logits are first moved from the balanced classes to validation's mixture of them,
    then divided by a temperature; both are part of the model. So is the mean over an image and
    its mirror image, unless that is clearly worse on validation, see ``is_not_worse``.
    """
    width = float(study.best.params["width"])
    trainer = Trainer(spec, width)
    targets = scan.dataset.targets
    counts = np.bincount(targets[spec.train_rows], minlength=spec.n_classes)
    balanced = np.full_like(counts, counts.max()) if spec.balance != "none" else counts
    val, test = split.rows("val"), split.rows("test")
    mixture = class_mixture(counts, np.bincount(targets[val], minlength=spec.n_classes))
    shift = prior_shift(mixture, balanced)
    head_shift = np.array([shift[1] - shift[0]]) if spec.n_classes == 2 else shift
    backbone, head = trainer.best_parts(study.best.params, study.checkpoint)
    head = replace(head, bias=(head.bias + head_shift).astype(np.float32))
    read_head = tensorflow_engine(cut_head(join(backbone, head, spec.n_classes)))
    sides = look_at_both_sides(backbone, scan, np.concatenate([val, test]), console)
    features = {False: sides[0], True: np.mean(sides, axis=0)}
    logits = {mirror: read_head(values)[0] for mirror, values in features.items()}
    on_val = {mirror: values[: len(val)] for mirror, values in logits.items()}
    temperatures = {m: fit_temperature(values, targets[val]) for m, values in on_val.items()}
    losses = {
        m: image_losses(targets[val], apply_calibration(values, temperatures[m]))["log_loss"]
        for m, values in on_val.items()
    }
    mirror = is_not_worse(losses[True], losses[False])
    temperature = temperatures[mirror]
    p_val = apply_calibration(on_val[mirror], temperature)
    on_test = logits[mirror][len(val) :]
    if mirror:
        backbone = mirror_backbone(backbone, width)
    return Winner(
        model=join(backbone, head, spec.n_classes, temperature),
        temperature=temperature,
        threshold=choose_threshold(targets[val] == 1, p_val[:, 1]) if spec.n_classes == 2 else None,
        mirror={
            "used": mirror,
            "log_loss": float(losses[True].mean()),
            "log_loss_without": float(losses[False].mean()),
        },
        val=p_val,
        test_before=probabilities_of(on_test - head_shift),
        test=apply_calibration(on_test, temperature),
        features=trainer.activations.read(0, 0, np.arange(len(targets))),
    )


def is_not_worse(with_it: np.ndarray, without: np.ndarray) -> bool:
    """Whether the mean loss of some images (n,) is higher by at most one standard error.

    Mirror images helped in most trials that were looked at, and at an accuracy of .98 the losses
    of a validation part hang on a handful of images: it may refuse them, but not by chance. The
    rule of one standard error is that of Breiman, Friedman, Olshen and Stone (1984).
    """
    change = with_it - without
    return bool(change.mean() <= change.std(ddof=1) / np.sqrt(len(change)))


def look_at_both_sides(backbone: Any, scan: Scan, rows: np.ndarray, console: Console) -> np.ndarray:
    """Features float32 (2, len(rows), C) of some images and of their mirror images."""
    assert scan.pixels is not None
    run = choose_engine(engine_name(2 * len(rows)), backbone)
    starts = range(0, len(rows), 32)
    features: dict[int, list[np.ndarray]] = {}
    lock = threading.Lock()

    def look(start: int) -> None:
        pixels = np.asarray(scan.pixels[rows[start : start + 32]], np.float32)
        sides = [run(pixels)[0], run(np.ascontiguousarray(pixels[:, :, ::-1]))[0]]
        with lock:
            features[start] = sides
            console.progress("predicting", len(features), len(starts))

    console.progress("predicting", 0, len(starts))
    each(look, starts)
    return np.concatenate([features[start] for start in starts], axis=1)


def evaluate_winner(
    winner: Winner,
    scan: Scan,
    split: Split,
    config: SearchConfig,
    folder: Path,
    journal: Journal,
    group_kind: str,
    console: Console,
) -> dict[str, Any]:
    """The test set, once: the "evaluation" and "baselines" parts, and predictions.csv."""
    dataset = scan.dataset
    test, val = split.rows("test"), split.rows("val")
    targets = dataset.targets
    names = [dataset.samples[row].image for row in test]
    used = count_test_evaluations(folder) + 1
    attributes = sorted({key for row in test for key in dataset.samples[row].attributes})
    without = np.isin(test, rows_without_twins(split))
    console.progress("looking for wrong labels", 0, 1)
    rest, p_rest = predict_out_of_fold(scan, split, winner.features, config.seed)
    console.progress("looking for wrong labels", 1, 1)
    parts = evaluate_model(
        classes=dataset.classes,
        positive=dataset.positive,
        y_val=targets[val],
        p_val=winner.val,
        y_test=targets[test],
        p_test=winner.test,
        p_test_before=winner.test_before,
        images_test=names,
        threshold=winner.threshold,
        groups_test=split.group[test],
        group_kind=group_kind,
        patients_test=patient_codes([dataset.samples[row].group for row in test]),
        temperature=winner.temperature,
        without_twins=without,
        attributes={
            k: [dataset.samples[row].attributes.get(k) for row in test] for k in attributes
        },
        baselines=all_baselines(scan, split, features=winner.features),
        out_of_sample=([dataset.samples[row].image for row in rest], targets[rest], p_rest),
        test_evaluations=used,
        seed=config.seed,
        progress=console.progress,
    )
    parts["evaluation"]["test"]["mirror"] = winner.mirror
    journal.append(
        "evaluated", on="test", images=len(test), metrics=parts["evaluation"]["test"]["metrics"]
    )
    for name, rows, p in (
        ("predictions.csv", test, winner.test),
        ("predictions_val.csv", val, winner.val),
    ):
        guesses = predict_classes(p, winner.threshold, 1)
        write_probabilities(
            folder / name,
            [dataset.samples[row].image for row in rows],
            [dataset.samples[row].label for row in rows],
            [dataset.classes[guess] for guess in guesses],
            p,
            dataset.classes,
        )
    return parts


def patient_codes(patients: Sequence[str | None]) -> np.ndarray | None:
    """Patients as 0 … P-1, int (n,); None if one of them is unknown."""
    known = [patient for patient in patients if patient]
    return np.unique(known, return_inverse=True)[1] if len(known) == len(patients) else None


def probe_winner(
    winner: Winner,
    predictor: Predictor,
    scan: Scan,
    split: Split,
    config: SearchConfig,
    console: Console,
) -> dict[str, Any]:
    """Robustness and saliency: what the model does with worse images, and where it looks."""
    assert scan.pixels is not None
    test = split.rows("test")
    targets = scan.dataset.targets
    pixels = TakeRows(scan.pixels, test)
    robustness = evaluate_robustness(
        predictor.classify,
        pixels,  # type: ignore[arg-type]
        targets[test],
        winner.threshold,
        split.group[test],
        config.seed,
        progress=console.progress,
    )
    console.lap("robustness")
    chosen = np.random.default_rng(config.seed).permutation(test)[:SALIENCY_IMAGES]
    console.progress("looking at what the model looks at", 0, 1)
    saliency = check_saliency(
        winner.model, np.asarray(scan.pixels[np.sort(chosen)]), seed=config.seed
    )
    console.progress("looking at what the model looks at", 1, 1)
    console.lap("saliency")
    return {"robustness": robustness, "saliency": saliency}
