"""From files to labels: verified folders, kept order, bounded memory, rows for everything."""

import csv
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from automl.errors import ModelError, UsageError
from automl.records import Prediction
from automl.serving.tables import map_classes, write_predictions

ROWS = [
    Prediction(
        *("a.png", "tumour", 0.75, {"healthy": 0.25, "tumour": 0.75}, ("uncertain",), "x"),
        ("healthy", "tumour"),
    ),
    Prediction("=1+2.png", None, None, {}, ("unreadable",), "=1+2.png is empty"),
]


def test_csv_has_the_columns_of_the_contract_and_no_formulas(tmp_path):
    assert write_predictions(iter(ROWS), ["healthy", "tumour"], tmp_path / "out.csv") == 2
    with open(tmp_path / "out.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    assert rows[0] == [
        "image", "label", "probability", "probability_healthy", "probability_tumour", "set_90",
        "flags", "message",
    ]  # fmt: skip
    assert rows[1] == [
        "a.png",
        "tumour",
        "0.75",
        "0.25",
        "0.75",
        "healthy;tumour",
        "uncertain",
        "x",
    ]
    assert rows[2] == ["'=1+2.png", "", "", "", "", "", "unreadable", "'=1+2.png is empty"]


def test_json_is_a_list_of_predictions(tmp_path):
    write_predictions(iter(ROWS), ["healthy", "tumour"], tmp_path / "out.json")
    rows = json.loads((tmp_path / "out.json").read_text())
    assert [row["image"] for row in rows] == ["a.png", "=1+2.png"]
    assert rows[0]["probabilities"] == {"healthy": 0.25, "tumour": 0.75}


def test_a_failure_while_predicting_leaves_the_old_file(tmp_path):
    (tmp_path / "out.csv").write_text("old")

    def fail():
        yield ROWS[0]
        raise ModelError("broken")

    with pytest.raises(ModelError):
        write_predictions(fail(), ["healthy", "tumour"], tmp_path / "out.csv")
    assert [path.name for path in tmp_path.iterdir()] == ["out.csv"]
    assert (tmp_path / "out.csv").read_text() == "old"


def test_other_endings_are_refused(tmp_path):
    with pytest.raises(UsageError, match=r"\.csv or \.json"):
        write_predictions(ROWS, ["healthy", "tumour"], tmp_path / "out.xlsx")


def test_labels_are_matched_by_name_and_by_map():
    classes = ("healthy", "Tumour")
    assert map_classes(["tumour", "HEALTHY"], classes) == {"tumour": 1, "HEALTHY": 0}
    mapped = map_classes(["glioma", "healthy", "blurred"], classes, "glioma=tumour, blurred=")
    assert mapped == {"glioma": 1, "healthy": 0, "blurred": None}
    assert map_classes(["No Tumour"], ("no_tumour", "tumour")) == {"No Tumour": 0}
    called = {"0": "no finding", "1": "lesion"}
    assert map_classes(["lesion", "0"], ("0", "1"), None, called) == {"lesion": 1, "0": 0}


@pytest.mark.parametrize(
    ("labels", "text", "message"),
    [
        (
            ["glioma", "notumor", "x-ray"],
            None,
            r"check .* words\): --map 'glioma=tumour,notumor=healthy,x-ray=\?'$",
        ),
        (["a", "b"], "a=healthy", r"does not know b; .* --map 'a=healthy,b=\?'$"),
        (["glioma"], "glioma=cat", "healthy, tumour"),
        (["glioma"], "meningioma=tumour", "the labels are glioma"),
        (["glioma"], "glioma", "LABEL=CLASS"),
        (["a"], "a=?", "LABEL=CLASS"),
    ],
)
def test_a_label_without_a_class_is_explained(labels, text, message):
    with pytest.raises(UsageError, match=message):
        map_classes(labels, ("healthy", "tumour"), text)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    from serving_model import prepare_run

    return prepare_run(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="module")
def predictor(run):
    from automl.serving.predictor import load

    return load(run)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    from serving_model import draw_images

    folder = tmp_path_factory.mktemp("images")
    for number, image in enumerate(draw_images(60, 120, seed=9)):
        image[..., 2] //= 1 + (number % 10 == 0)  # some are not grey
        Image.fromarray(image).save(folder / f"{number:03}.png")
    return folder


slow = pytest.mark.slow
quiet = pytest.mark.filterwarnings("ignore:__array__ implementation")


@slow
@quiet
def test_both_engines_give_the_same_answers(run, predictor, images):
    from automl.serving.predictor import load

    assert predictor.engine.name == "litert"
    other = load(run / "model", engine="saved_model")
    assert other.engine.name == "saved_model"
    first, second = predictor.predict(images), other.predict(images)
    assert len(first) == 60
    for one, two in zip(first, second, strict=True):
        assert one.label == two.label
        assert one.probability == pytest.approx(two.probability, abs=1e-4)


@slow
@quiet
def test_every_file_has_its_row_in_order(predictor, images, tmp_path):
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.png").write_text("not an image")
    (tmp_path / "cut.jpg").write_bytes(b"\xff\xd8\xff\xe0" + bytes(50))
    good = sorted(images.iterdir())
    paths = [
        tmp_path / "empty.png", *good[:20], tmp_path / "missing.png", tmp_path / "text.png",
        *good[20:40], tmp_path / "cut.jpg", tmp_path,
    ]  # fmt: skip
    found = predictor.predict(paths[:-1])
    assert [row.image for row in found] == [str(path) for path in paths[:-1]]
    bad = [row for row in found if "unreadable" in row.flags]
    assert len(bad) == 4
    assert all(row.label is None and row.message for row in bad)


@slow
@quiet
def test_a_huge_list_is_read_only_as_far_as_needed(predictor, images):
    from automl.serving.predictor import CHUNK, WAITING, count_workers

    pulled = 0

    def endless():
        nonlocal pulled
        file = next(iter(sorted(images.iterdir())))
        while True:
            pulled += 1
            yield file

    answers = predictor.iterate(endless())
    assert next(answers).label is not None
    answers.close()
    assert pulled <= CHUNK * WAITING * count_workers()


class Deadly(type(Path())):
    """A file that ends whatever process it is handed to."""

    def __reduce__(self):
        return os._exit, (7,)


@slow
@quiet
def test_many_files_are_read_by_processes_that_a_file_may_kill(
    predictor, images, tmp_path, monkeypatch
):
    from automl.errors import ModelError
    from automl.serving import predictor as module

    files = [*sorted(images.iterdir())[:40], tmp_path / "gone.png"]
    expected = predictor.predict(files)
    monkeypatch.setattr(module, "MANY", 10)
    monkeypatch.setattr(module, "CHUNK", 8)
    monkeypatch.setattr(module, "count_workers", lambda: 2)
    # Whoever works here is caught: only further processes may.
    monkeypatch.setattr(module.Predictor, "predict_chunk", None)
    assert predictor.predict(files) == expected
    found = list(predictor.iterate([*files[:3], Deadly(tmp_path / "x.png"), *files[3:]]))
    assert found.pop(3).flags == ("unreadable",) and found == expected
    with pytest.raises(ModelError, match=r"exit code 7.*fewer than 10 images"):
        list(predictor.iterate([Deadly(tmp_path / f"{number}.png") for number in range(12)]))


@slow
@quiet
def test_noise_is_unlike_training_and_training_images_are_recognised(predictor, tmp_path):
    from serving_model import draw_images

    noise = np.random.default_rng(0).integers(0, 256, (96, 96, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    for number, image in enumerate(draw_images(200, 96, seed=1)[10:20]):
        Image.fromarray(image).save(tmp_path / f"seen_{number}.png")
    noisy, *seen = predictor.predict([tmp_path / "noise.png", *tmp_path.glob("seen_*.png")])
    assert "unlike-training" in noisy.flags
    assert "do not rely" in noisy.message
    assert all("seen-in-training" in row.flags for row in seen)
    assert sum("unlike-training" in row.flags for row in seen) <= 1


@slow
@quiet
@pytest.mark.parametrize("name", ["saved_model.pb", "model.tflite", "assets.extra/guards.npz"])
def test_an_altered_folder_is_refused(run, tmp_path, name):
    from automl.serving.predictor import load

    copy = tmp_path / "model"
    shutil.copytree(run / "model", copy)
    with open(copy / name, "r+b") as file:
        file.seek(100)
        file.write(b"\x00\x01")
    with pytest.raises(ModelError, match=f"{name} was altered.*--trust"):
        load(copy)
    if name == "saved_model.pb":
        assert load(copy, trust=True).engine.name == "litert"


@slow
@quiet
def test_a_folder_without_our_description_is_refused(tmp_path):
    from automl.serving.predictor import load

    with pytest.raises(ModelError, match="does not exist"):
        load(tmp_path / "nowhere")
    with pytest.raises(ModelError, match="not a model folder"):
        load(tmp_path)
    with pytest.raises(ModelError, match="not a model folder"):
        load(tmp_path, trust=True)


@slow
@quiet
def test_a_model_that_reads_files_is_refused(tmp_path):
    import tensorflow as tf
    from serving_model import make_info

    from automl.serving.manifest import write_info
    from automl.serving.predictor import load

    class Spy(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec((None, None, None, 3), tf.float32, "images")])
        def steal(self, images):
            secret = tf.strings.length(tf.io.read_file("/etc/hostname"))
            return {
                "probabilities": tf.reduce_mean(images, (1, 2))[:, :2] + tf.cast(secret, tf.float32)
            }

    spy = Spy()
    folder = tmp_path / "model"
    tf.saved_model.save(spy, str(folder), {"serving_default": spy.steal, "embed": spy.steal})
    write_info(folder, make_info(), "saved_model")
    with pytest.raises(ModelError, match="ReadFile"):
        load(folder)


@slow
@quiet
def test_a_folder_without_images_says_what_was_expected(predictor, tmp_path):
    with pytest.raises(UsageError, match="No images under"):
        predictor.predict(tmp_path)
