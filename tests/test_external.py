"""A finished model on images from elsewhere, which need not show every class."""

import numpy as np
import pytest

from automl.console import Console
from automl.errors import DataError
from automl.external import evaluate_external, find_undefined
from automl.records import ModelInfo, Prediction, Run


class Model:
    """Answers by the brightness that a file's name tells."""

    def __init__(self, classes):
        self.info = ModelInfo("test", classes, classes[-1], 0.5, 1.0, 96)

    def iterate(self, paths):
        for path in paths:
            if path.stem.startswith("bad"):
                yield Prediction(path.name, None, None, {}, ("unreadable",), "is empty")
                continue
            values = np.full(len(self.info.classes), 0.1)
            values[int(path.stem[0])] += 1 - values.sum()
            said = dict(zip(self.info.classes, values.tolist(), strict=True))
            label = self.info.classes[int(values.argmax())]
            yield Prediction(path.name, label, said[label], said)


@pytest.fixture
def evaluate(tmp_path, monkeypatch):
    """Files "3_0.png" in folders of a label: the digit is the class that the model will say."""
    import automl.serving.predictor

    def run(classes, files, mapping=None):
        for label, said in files.items():
            (tmp_path / "outside" / label).mkdir(parents=True)
            for number, word in enumerate(said):
                (tmp_path / "outside" / label / f"{word}_{number}.png").write_bytes(b"x")
        monkeypatch.setattr(automl.serving.predictor, "load", lambda folder: Model(classes))
        level = {"value": 0.9, "low": 0.85, "high": 0.95}
        metrics = dict.fromkeys(("recall", "specificity", "roc_auc", "accuracy"), level)
        report = {"run": {"seed": 0}, "evaluation": {"test": {"metrics": metrics}}}
        return evaluate_external(
            Run(tmp_path, report), str(tmp_path / "outside"), mapping, Console(quiet=True)
        )

    return run


def defined(section):
    return {name for name, item in section["metrics"].items() if item["value"] is not None}


def test_only_the_positive_class_leaves_sensitivity(evaluate):
    section = evaluate(("healthy", "tumour"), {"glioma": "1" * 18 + "00"}, "glioma=tumour")
    assert defined(section) == {"recall"}
    recall, change = section["metrics"]["recall"], section["change"]["recall"]
    assert recall["value"] == 0.9 and 0.6 < recall["low"] < 0.8 and recall["high"] > 0.95
    assert change["value"] == 0 and change["low"] < -0.1
    assert section["change"]["roc_auc"]["value"] is None
    assert section["lacking"] == ["healthy"] and "roc_auc" in section["undefined"]


def test_one_image_of_a_class_does_not_test_it(evaluate):
    section = evaluate(("healthy", "tumour"), {"healthy": "0000010", "tumour": "1"})
    assert defined(section) == {"specificity"} and section["lacking"] == ["tumour"]
    assert section["images"] == 8


def test_of_several_classes_those_that_occur_are_averaged_but_not_compared(evaluate):
    section = evaluate(("a", "b", "c"), {"a": "0001", "b": "1111"})
    assert section["metrics"]["balanced_accuracy"]["value"] == 0.875
    assert section["metrics"]["roc_auc"]["value"] is not None
    assert (section["lacking"], section["undefined"], section["change"]) == (["c"], [], {})


def test_every_class_lacks_nothing(evaluate):
    section = evaluate(("a", "b"), {"a": "0001", "b": "1101"})
    assert (section["lacking"], section["undefined"]) == ([], [])
    assert len(defined(section)) == 12 and section["change"]["accuracy"]["value"] is not None


def test_nothing_that_can_be_read_cannot_be_tested(evaluate):
    with pytest.raises(DataError, match=r"too few readable images.*healthy 1, tumour 0"):
        evaluate(("healthy", "tumour"), {"healthy": ["0", "bad"], "tumour": ["bad", "bad"]})


def test_one_class_of_several_has_its_own_rate_alone():
    assert "recall" not in find_undefined(np.array([False, True, False]))
    assert "accuracy" in find_undefined(np.array([False, True, False]))
