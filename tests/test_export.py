"""The SavedModel and the flat formats answer as the Keras model does, with nothing of ours."""

import csv
import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from serving_model import draw_images, make_info, make_model, prepare_run
from tensorflow.core.protobuf.saved_model_pb2 import SavedModel

from automl.data.images import decode_bytes
from automl.data.pixels import resize_pixels
from automl.errors import ModelError, UsageError
from automl.search.litert import make_interpreter
from automl.search.model import Head, cut_head, join, mirror_backbone
from automl.search.trial import VARIANCE_FLOOR
from automl.search.weights import load_backbone
from automl.serving import export, formats
from automl.serving.engines import list_operations
from automl.serving.formats import convert_tflite
from automl.serving.manifest import hash_file, read_info
from automl.serving.parity import Parity, TestSet
from automl.serving.predictor import load
from automl.stages.evaluating import is_not_worse

# Keras 3.15 with NumPy 2.4: a warning of theirs about theirs.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:__array__ implementation")]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return prepare_run(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="module")
def model(run):
    return export.load_keras_model(run / "model.keras")


@pytest.fixture(scope="module")
def served(run):
    return tf.saved_model.load(str(run / "model"))


def predict(model, pixels):
    return model(pixels.astype(np.float32), training=False).numpy()


def test_same_pixels_give_the_same_probabilities(model, served):
    pixels = draw_images(20, 96)
    expected = predict(model, pixels)
    serve = served.signatures["serving_default"]
    first = serve(images=tf.constant(pixels, tf.float32))["probabilities"].numpy()
    second = serve(images=tf.constant(pixels, tf.float32))["probabilities"].numpy()
    assert expected[:, 1].std() > 0.01
    np.testing.assert_allclose(first, expected, atol=1e-5)
    np.testing.assert_array_equal(first, second)


def test_any_size_is_resized_as_the_search_resizes(model, served):
    images = np.stack([image[:70, :] for image in draw_images(4, 131)])
    pixels = np.stack([resize_pixels(image, 96) for image in images])
    answer = served.signatures["serving_default"](images=tf.constant(images, tf.float32))
    np.testing.assert_allclose(answer["probabilities"].numpy(), predict(model, pixels), atol=1e-5)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_bytes_of_files_are_decoded_as_the_search_decodes(model, served, kind, mode):
    files = []
    for image in (*draw_images(3, 120), *draw_images(2, 77, seed=3)):
        buffer = io.BytesIO()
        Image.fromarray(image).convert(mode).save(buffer, kind)
        files.append(buffer.getvalue())
    pixels = np.stack([resize_pixels(decode_bytes(data)[0], 96) for data in files])
    answer = served.signatures["encoded"](encoded=tf.constant(files))
    np.testing.assert_allclose(answer["probabilities"].numpy(), predict(model, pixels), atol=1e-5)


def test_tensorflow_serving_can_be_sent_files_in_base64(run):
    """As its json_tensor.cc reads requests: an instance {"b64": ...} is a value, which goes to the
    only input if that is a string; every output has a row for each instance; a string output
    comes back as text unless its name ends in _bytes. TensorFlow Serving itself is not run."""
    saved = SavedModel.FromString((run / "model" / "saved_model.pb").read_bytes())
    signature = saved.meta_graphs[0].signature_def["encoded"]
    assert signature.method_name == "tensorflow/serving/predict"
    (given,) = signature.inputs.values()
    assert given.dtype == tf.string.as_datatype_enum
    assert [dimension.size for dimension in given.tensor_shape.dim] == [-1]
    assert set(signature.outputs) == {"probabilities", "class_index", "label"}
    assert {output.tensor_shape.dim[0].size for output in signature.outputs.values()} == {-1}


def test_embed_gives_the_layer_named_features(model, served):
    pixels = draw_images(3, 96)
    layer = keras.Model(model.inputs[0], model.get_layer("features").output)
    answer = served.signatures["embed"](images=tf.constant(pixels, tf.float32))
    np.testing.assert_allclose(answer["features"].numpy(), predict(layer, pixels), atol=1e-4)
    np.testing.assert_allclose(answer["probabilities"].numpy(), predict(model, pixels), atol=1e-5)


def test_two_classes_are_told_apart_by_the_threshold(served):
    images = tf.constant(draw_images(40, 96), tf.float32)
    answer = served.signatures["serving_default"](images=images)
    positive = answer["probabilities"].numpy()[:, 1]
    between = (positive >= 0.4) & (positive < 0.5)
    assert between.any(), "no image tells the threshold 0.4 from 0.5"
    np.testing.assert_array_equal(answer["class_index"].numpy(), positive >= 0.4)
    assert set(answer["label"].numpy()[between]) == {b"tumour"}


def test_four_classes_get_the_most_probable_label(tmp_path):
    names = ("a", "b", "c", "d")
    model = make_model(classes=4)
    export.export_saved_model(model, make_info(names), tmp_path / "model")
    pixels = draw_images(12, 96)
    served = tf.saved_model.load(str(tmp_path / "model"))
    answer = served.signatures["serving_default"](images=tf.constant(pixels, tf.float32))
    expected = predict(model, pixels)
    np.testing.assert_allclose(answer["probabilities"].numpy(), expected, atol=1e-5)
    labels = [label.decode() for label in answer["label"].numpy()]
    assert labels == [names[index] for index in expected.argmax(axis=1)]


def test_a_random_layer_is_silent_when_served(tmp_path):
    plain = make_model()
    pixels = keras.Input((96, 96, 3), name="pixels")
    # A layer that flips and adds noise in training, and would in Model.export's graph.
    values = keras.layers.RandomFlip(name="flip")(keras.layers.GaussianNoise(0.9)(pixels))
    for layer in plain.layers[1:3]:
        values = layer(values)
    values = keras.layers.GlobalAveragePooling2D(name="features")(values)
    output = keras.layers.Dense(2, activation="softmax", name="probabilities")(values)
    export.export_saved_model(keras.Model(pixels, output), make_info(), tmp_path / "model")
    saved = SavedModel()
    saved.ParseFromString((tmp_path / "model" / "saved_model.pb").read_bytes())
    operations = set(list_operations(saved))
    assert "Conv2D" in operations
    assert not [name for name in operations if "Random" in name]


def test_the_model_runs_where_automl_cannot_be_imported(run, model, tmp_path):
    pixels = draw_images(3, 96)
    np.save(tmp_path / "pixels.npy", pixels)
    code = """
import sys
class Refuse:
    def find_spec(self, name, *rest):
        if name.split(".")[0] == "automl":
            raise ImportError(name)
sys.meta_path.insert(0, Refuse())
import numpy as np, tensorflow as tf
serve = tf.saved_model.load(sys.argv[1]).signatures["serving_default"]
answer = serve(images=tf.constant(np.load(sys.argv[2]), tf.float32))
print(answer["probabilities"].numpy().tolist())
"""
    done = subprocess.run(
        [sys.executable, "-I", "-c", code, str(run / "model"), str(tmp_path / "pixels.npy")],
        capture_output=True,
        text=True,
        check=True,
    )
    answer = np.array(json.loads(done.stdout.strip().splitlines()[-1]))
    np.testing.assert_allclose(answer, predict(model, pixels), atol=1e-5)


def test_a_model_folder_explains_itself(run):
    manifest = json.loads((run / "model" / "manifest.json").read_text())
    assert manifest["classes"] == ["healthy", "tumour"]
    assert manifest["label"].startswith("tumour if its probability is at least 0.4")
    assert {"saved_model.pb", "model.tflite", "assets.extra/automl.json"} <= set(manifest["files"])
    for name, digest in manifest["files"].items():
        assert hash_file(run / "model" / name) == digest
    assert read_info(run / "model").versions["tensorflow"] == tf.__version__


def test_a_failed_export_leaves_the_old_model(tmp_path, monkeypatch):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "old").write_text("still here")

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(export, "convert_tflite", fail)
    with pytest.raises(OSError, match="No space"):
        export.export_saved_model(make_model(), make_info(), folder)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert (folder / "old").read_text() == "still here"


def test_a_description_that_does_not_fit_is_refused(model, tmp_path):
    with pytest.raises(ModelError, match="3 classes"):
        export.export_saved_model(model, make_info(("a", "b", "c")), tmp_path / "model")


def test_lite_models_need_no_operations_of_tensorflow(model):
    from ai_edge_litert.interpreter import Interpreter

    data = convert_tflite(model, make_info(), "float32")
    interpreter = Interpreter(model_content=data)
    names = {entry["op_name"] for entry in interpreter._get_ops_details()}
    assert "CONV_2D" in names
    assert not [name for name in names if name.startswith("Flex")]
    image = draw_images(1, 96)
    answer = interpreter.get_signature_runner("serving_default")(pixels=image.astype(np.float32))
    np.testing.assert_allclose(answer["probabilities"], predict(model, image), atol=1e-4)


def test_int8_asks_for_calibration_images(model):
    with pytest.raises(UsageError, match="calibration"):
        convert_tflite(model, make_info(), "int8")


def test_int8_features_are_brought_back_to_what_the_head_expects(model):
    pixels = draw_images(24, 96, seed=6)
    drawn = draw_images(32, 96, seed=7)
    expected = predict(model, pixels)
    differences = []
    for data in (
        formats.flatten(model, make_info(), "int8"),
        convert_tflite(model, make_info(), "int8", drawn),
    ):
        assert len(data) < 1.2e6, "weights are not in 8 bits"
        classify = make_interpreter(data).get_signature_runner("serving_default")
        found = [classify(pixels=p[np.newaxis].astype(np.float32)) for p in pixels]
        found = np.concatenate([answer["probabilities"] for answer in found])
        differences.append(np.abs(found - expected).mean())
    assert differences[1] < 0.95 * differences[0]


def test_formats_are_written_and_proved(run, model, tmp_path):
    pytest.importorskip("tf2onnx")
    pytest.importorskip("onnxruntime")
    pixels = draw_images(20, 96, seed=5)
    expected = predict(model, pixels)
    images = TestSet(pixels, expected, (expected[:, 1] > 0.5).astype(int))
    formats = ["tflite", "onnx", "tflite_float16"]
    results = export.export_model(run, formats, images=images, out=tmp_path)
    assert [result["format"] for result in results] == formats
    for result in results:
        name, parity = result["format"], result["parity"]
        assert parity["agreement"] == 1.0
        manifest = json.loads((tmp_path / name / "manifest.json").read_text())
        assert manifest["parity"] == {name: parity}
        if name in export.ROUNDED:
            assert parity["auc_change"]["low"] <= 0 <= parity["auc_change"]["high"]
        else:
            assert parity["max_difference"] <= 1e-4


RUNTIMES = {
    "tflite": ("ai_edge_litert", "backports", "flatbuffers", "tqdm", "ml_dtypes"),
    "onnx": ("onnxruntime", "flatbuffers", "packaging"),
}


@pytest.mark.parametrize("name", RUNTIMES)
def test_an_export_answers_where_nothing_but_its_runtime_is_installed(run, model, name, tmp_path):
    runtime = RUNTIMES[name][0]
    home = Path(pytest.importorskip(runtime).__file__).parents[1]
    if name == "onnx":
        pytest.importorskip("tf2onnx")
    export.export_model(run, [name], out=tmp_path)
    image = draw_images(1, 120, seed=5)[0]
    Image.fromarray(image).save(tmp_path / "scan.png")
    packages = tmp_path / "packages"
    packages.mkdir()
    wanted = ("numpy", "numpy.libs", "PIL", "pillow.libs", "google", "typing_extensions.py")
    for part in (*wanted, *RUNTIMES[name]):
        if (home / part).exists():
            (packages / part).symlink_to(home / part)
    # -S and -I: no site-packages, no PYTHONPATH; then these packages alone.
    code = (
        "import runpy, sys; sys.path.append(sys.argv[1]); sys.argv = sys.argv[2:];"
        "runpy.run_path(sys.argv[0], run_name='__main__');"
        "assert not {'automl', 'tensorflow', 'keras'} & set(sys.modules)"
    )
    script = tmp_path / name / "predict.py"
    done = subprocess.run(
        [sys.executable, "-S", "-I", "-c", code, packages, script, tmp_path / "scan.png"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    header, row = csv.reader(done.stdout.splitlines())
    assert header == ["image", "label", "probability_healthy", "probability_tumour"]
    expected = predict(model, resize_pixels(image, 96)[np.newaxis])[0]
    np.testing.assert_allclose(np.array(row[2:], float), expected, atol=1e-4)
    assert row[1] == ("tumour" if expected[1] >= 0.4 else "healthy")


def test_a_format_with_other_answers_is_not_kept(run, model, tmp_path):
    pixels = draw_images(4, 96, seed=5)
    (tmp_path / "tflite").mkdir()
    (tmp_path / "tflite" / "old").write_text("still here")
    images = TestSet(pixels, np.clip(predict(model, pixels) + 1e-3, 0, 1))
    with pytest.raises(ModelError, match=r"not kept: on 4 test images 100\.0% of the labels"):
        export.export_model(run, ["tflite"], images=images, out=tmp_path)
    assert [path.name for path in tmp_path.rglob("*")] == ["tflite", "old"]


@pytest.mark.parametrize(
    ("name", "largest", "agreement", "kept"),
    [
        ("onnx", 9e-5, 1.0, True),
        ("onnx", 2e-4, 1.0, False),
        ("onnx", 9e-5, 0.99, False),
        ("tflite_int8", 0.2, 0.98, True),
        ("tflite_int8", 0.01, 0.97, False),
    ],
)
def test_what_a_proof_must_show(name, largest, agreement, kept):
    change = {"value": -0.02, "low": -0.03, "high": -0.01} if name == "tflite_int8" else None
    parity = Parity("", "pixels", 100, largest, largest, agreement, change)
    if kept:
        export.refuse_different(name, parity)
    else:
        text = "100 test images" + (r".*changes by -0\.0200 \(-0\.0300" if change else "")
        with pytest.raises(ModelError, match=text):
            export.refuse_different(name, parity)


def test_a_fast_file_that_is_not_equal_is_removed(run, model, tmp_path):
    folder = shutil.copytree(run / "model", tmp_path / "model")
    pixels = draw_images(4, 96, seed=5)
    other = TestSet(pixels, np.clip(predict(model, pixels) + 1e-3, 0, 1))
    assert set(export.prove_model(folder, other)) == {"saved_model"}
    assert not (folder / "model.tflite").exists()
    assert load(folder).engine.name == "saved_model"


def test_an_unknown_format_is_named_with_those_allowed(run):
    with pytest.raises(UsageError, match="saved_model, tflite"):
        export.export_model(run, ["pickle"])


def test_other_files_are_not_taken_for_keras_models(tmp_path):
    (tmp_path / "model.h5").write_bytes(b"\x89HDF")
    with pytest.raises(ModelError, match=r"model\.keras"):
        export.load_keras_model(tmp_path / "model.h5")


def test_code_inside_a_keras_file_is_not_run(tmp_path):
    pixels = keras.Input((8, 8, 3))
    hidden = keras.layers.Lambda(lambda x: x * 2)(pixels)
    keras.Model(pixels, hidden).save(tmp_path / "model.keras")
    with pytest.raises(ModelError, match="Lambda"):
        export.load_keras_model(tmp_path / "model.keras")


@pytest.fixture(scope="module")
def mirrored():
    """A model and the same with mirror images."""
    backbone = load_backbone(96, 0.35, "none", 3)
    features = backbone(draw_images(16, 96).astype(np.float32), training=False).numpy()
    mean, variance = features.mean(axis=0), features.var(axis=0)
    variance = np.maximum(variance, VARIANCE_FLOOR * variance.mean())
    kernel = np.random.default_rng(1).normal(0, 0.05, (features.shape[1], 1)).astype(np.float32)
    head = Head(mean, variance, kernel, np.zeros(1, np.float32))
    return join(backbone, head, 2), join(mirror_backbone(backbone, 0.35), head, 2)


def test_a_mirrored_model_gives_the_mean_of_both_sides(mirrored):
    plain, both = mirrored
    pixels = draw_images(7, 96)
    embed = keras.Model(plain.inputs[0], plain.get_layer("features").output)
    sides = predict(embed, pixels), predict(embed, pixels[:, :, ::-1])
    logits = cut_head(plain)(np.mean(sides, axis=0)).numpy()
    found = predict(keras.Model(both.inputs[0], both.get_layer("logits").output), pixels)
    np.testing.assert_allclose(found, logits, atol=1e-5)
    assert np.abs(found - cut_head(plain)(sides[0]).numpy()).max() > 0.01


def test_a_mirrored_model_is_equal_in_every_format(mirrored, tmp_path):
    model = mirrored[1]
    pixels = draw_images(20, 96)
    model.save(tmp_path / "model.keras")
    export.export_saved_model(model, make_info(), tmp_path / "model")
    assert load(tmp_path).engine.name == "litert"
    images = TestSet(pixels, predict(model, pixels))
    names = ["saved_model", "tflite", "onnx"]
    for result in export.export_model(tmp_path, names, images=images):
        assert result["parity"]["max_difference"] <= 1e-4
        assert result["parity"]["agreement"] == 1
    seen = load(tmp_path).describe(pixels)
    layer = keras.Model(model.inputs[0], model.get_layer("features").output)
    np.testing.assert_allclose(seen.features, predict(layer, pixels), rtol=1e-3, atol=1e-4)


def test_validation_refuses_mirror_images_only_if_they_are_clearly_worse():
    without = np.random.default_rng(0).exponential(0.1, 400)
    noise = np.random.default_rng(1).normal(0, 0.1, 400)
    noise -= noise.mean()
    error = noise.std(ddof=1) / np.sqrt(400)
    assert is_not_worse(without + noise + 0.9 * error, without)
    assert not is_not_worse(without + noise + 1.1 * error, without)
    assert is_not_worse(without, without)
