"""An export's proof runs in another process and notices what differs."""

import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from automl.errors import ModelError

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:__array__ implementation")]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    from serving_model import prepare_run

    return prepare_run(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="module")
def case(run):
    """Images and what the Keras model says to them."""
    from serving_model import draw_images

    from automl.serving.export import load_keras_model
    from automl.serving.parity import TestSet

    pixels = draw_images(24, 96, seed=4)
    model = load_keras_model(run / "model.keras")
    return TestSet(pixels, model(pixels.astype(np.float32), training=False).numpy())


def test_the_saved_model_is_equal_from_pixels_and_from_bytes(run, case, tmp_path):
    from automl.serving.parity import check_parity, check_parity_of_files

    files = []
    for number, image in enumerate(case.pixels):
        files.append(tmp_path / f"{number}.png")
        Image.fromarray(image).save(files[-1])
    for parity in (check_parity(run, case), check_parity_of_files(run, files, case.expected)):
        assert parity.images == 24
        assert parity.max_difference <= 1e-5
        assert parity.agreement == 1.0 and parity.equal
        assert json.loads(json.dumps(parity.to_json()))["runtime"] == "saved_model"


def test_the_fast_file_is_equal(run, case):
    from automl.serving.parity import check_parity

    parity = check_parity(run / "model", case, runtime="tflite")
    assert parity.max_difference <= 1e-4
    assert parity.agreement == 1.0


def test_a_difference_is_found(run, case):
    from automl.serving.parity import TestSet, check_parity

    # Whoever was called ill by the model is ill: it is perfect, and its opposite is not.
    y_true = (case.expected[:, 1] > np.median(case.expected[:, 1])).astype(int)
    wrong = TestSet(case.pixels, case.expected[:, ::-1], 1 - y_true)
    parity = check_parity(run, wrong, runtime="tflite")
    assert parity.max_difference > 0.1
    assert parity.agreement < 1 and not parity.equal
    change = parity.auc_change
    assert change["value"] == pytest.approx(-1, abs=0.01) and change["high"] < -0.5


def test_not_a_number_is_the_worst_difference(run, case):
    from automl.serving.parity import compare

    broken = case.expected.copy()
    broken[0] = np.nan
    parity = compare("tflite", "pixels", broken, case.expected, run / "model")
    assert parity.max_difference == 1.0


def test_a_model_that_does_not_run_is_an_error_with_its_reason(run, case, tmp_path):
    from automl.serving.parity import run_elsewhere

    (tmp_path / "model.tflite").write_bytes(b"nothing")
    with pytest.raises(ModelError, match=r"could not be run by its own runtime \(tflite\)"):
        run_elsewhere("tflite", tmp_path, case.pixels)


def test_the_process_that_runs_it_has_neither_automl_nor_tensorflow(run, case, tmp_path):
    pytest.importorskip("ai_edge_litert")
    from automl.serving.parity import RUNNER

    np.save(tmp_path / "pixels.npy", case.pixels[:2])
    model = run / "model" / "model.tflite"
    command = [sys.executable, "-I", RUNNER, "--arrays", "tflite", model]
    command += ["pixels.npy", "answer.npz"]
    subprocess.run(command, check=True, capture_output=True, cwd=tmp_path)
    with np.load(tmp_path / "answer.npz") as answer:
        assert answer["loaded"].tolist() == []


@pytest.mark.parametrize("kills", [1, 3])
def test_a_process_that_is_killed_is_begun_again_twice(kills, tmp_path, monkeypatch):
    from automl.serving import parity

    script = tmp_path / "runner.py"
    script.write_text(
        "import os, signal, sys; import numpy as np\n"
        f"seen = {str(tmp_path / 'seen')!r}\n"
        "with open(seen, 'a') as file: file.write('x')\n"
        f"if os.path.getsize(seen) <= {kills}: os.kill(os.getpid(), signal.SIGKILL)\n"
        "np.savez(sys.argv[-1], probabilities=np.load(sys.argv[-2]) + 1)\n"
    )
    monkeypatch.setattr(parity, "RUNNER", script)
    if kills == 3:
        with pytest.raises(ModelError, match="SIGKILL ended it 3 times"):
            parity.run_elsewhere("tflite", tmp_path, np.zeros(2))
    else:
        assert parity.run_elsewhere("tflite", tmp_path, np.zeros(2)).tolist() == [1, 1]


def test_the_runner_takes_tensorflows_interpreter_where_there_is_no_other(run, case, tmp_path):
    from automl.serving.manifest import FAST_FILE
    from automl.serving.parity import RUNNER

    np.save(tmp_path / "pixels.npy", case.pixels[:2])
    code = (
        "import runpy, sys; sys.modules['ai_edge_litert'] = None; "
        f"runner = runpy.run_path({str(RUNNER)!r}); "
        f"runner['run_arrays']('tflite', {str(run / 'model' / FAST_FILE)!r}, "
        f"{str(tmp_path / 'pixels.npy')!r}, {str(tmp_path / 'answer.npz')!r})"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, capture_output=True)
    found = np.load(tmp_path / "answer.npz")["probabilities"]
    np.testing.assert_allclose(found, case.expected[:2], atol=1e-4)
