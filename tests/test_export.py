"""The SavedModel and the flat formats answer as the Keras model does, with nothing of ours."""

import io
import json
import subprocess
import sys

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
from automl.serving import export
from automl.serving.engines import list_operations
from automl.serving.formats import convert_tflite
from automl.serving.manifest import hash_file, read_info

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
    answer = served.signatures["embed"](images=tf.constant(pixels, tf.float32))["features"]
    np.testing.assert_allclose(answer.numpy(), predict(layer, pixels), atol=1e-4)


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


def test_formats_are_written_and_proved(run, model, tmp_path):
    pytest.importorskip("tf2onnx")
    pytest.importorskip("onnxruntime")
    pixels = draw_images(20, 96, seed=5)
    results = export.export_model(
        run,
        ["tflite", "onnx"],
        pixels=pixels,
        expected=predict(model, pixels),
        out=tmp_path,
    )
    assert [result["format"] for result in results] == ["tflite", "onnx"]
    for result in results:
        assert result["parity"]["max_difference"] <= 1e-4
        assert result["parity"]["agreement"] == 1.0
        assert (tmp_path / result["format"] / "manifest.json").is_file()


def test_an_unknown_format_is_named_with_those_allowed(run):
    with pytest.raises(UsageError, match="saved_model, tflite"):
        export.export_model(run, ["pickle"])


def test_other_files_are_not_taken_for_keras_models(tmp_path):
    (tmp_path / "model.h5").write_bytes(b"\x89HDF")
    with pytest.raises(ModelError, match=r"model\.keras"):
        export.load_keras_model(tmp_path / "model.h5")
