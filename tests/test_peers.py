"""The comparison with other tools is fair: no peer sees a test label, all are scored alike."""

import csv
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def peers() -> ModuleType:
    pytest.importorskip("psutil", reason="measures the peers' memory")
    path = ROOT / "benchmarks" / "peers.py"
    spec = importlib.util.spec_from_file_location("benchmark_peers", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def images(peers):
    part = np.array(["train", "val", "test", "test", "test", "test"], dtype=object)
    return peers.Images(
        names=[f"{row}.jpg" for row in range(6)],
        paths=[f"/data/{row}.jpg" for row in range(6)],
        labels=np.array([0, 1, 0, 1, 0, 1]),
        groups=np.arange(6),
        parts={"rows": part},
        alone={"rows": np.array([2, 3])},
        leaking_pairs={"rows": 2},
    )


def test_a_peer_gets_every_image_and_no_label_of_a_test_image(peers, images, tmp_path):
    peers.write_job(tmp_path, images, "rows", 60.0, 0, tmp_path / "backbone.npz")
    with open(tmp_path / "images.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["path"] for row in rows] == images.paths
    assert [row["label"] for row in rows] == ["0", "1", "", "", "", ""]


def test_answers_come_back_as_they_were_given_and_are_scored(peers, images, tmp_path):
    given = {"2.jpg": 0.1, "3.jpg": 0.9, "4.jpg": 0.6, "5.jpg": 0.7}
    peers.write_answers(tmp_path / "rows-nearest-any-0.csv", images, "rows", given)
    notes = {"peer": "nearest", "minutes": 5.0, "seed": 0}
    (tmp_path / "rows-nearest-any-0.json").write_text(json.dumps(notes), encoding="utf-8")
    (result,) = peers.read_results(tmp_path, images, "rows")
    assert result.probabilities.tolist() == list(given.values())
    scores = peers.score(result, images)
    assert (scores["roc_auc"]["value"], scores["accuracy"]["value"]) == (1.0, 0.75)
    assert scores["sensitivity_at_95"]["value"] == 1.0
    assert peers.score(result, images, images.alone["rows"])["accuracy"]["value"] == 1.0


def test_folds_are_pooled_with_the_threshold_that_each_has(peers, images):
    def answer(name, rows, probabilities, threshold):
        notes = {"threshold": threshold}
        return peers.Result(peers.PEERS[name], notes, np.array(rows), np.array(probabilities))

    pairs = [
        (answer("balanced", [2, 3], [0.1, 0.3], 0.2), answer("student", [2, 3], [0.1, 0.3], None)),
        (answer("balanced", [4, 5], [0.7, 0.9], 0.8), answer("student", [4, 5], [0.7, 0.9], None)),
    ]
    difference = peers.pool_differences(pairs, images)
    assert difference["accuracy"]["value"] == 0.5
    assert difference["brier"]["value"] == 0.0


def test_what_a_peer_says_of_leaks_is_told_from_its_progress(peers):
    said = peers.told(
        "looking for twins: 9 of 9\rerror: 4 pairs of twins are on two sides\nepoch 1"
    )
    assert said["about_leaks"] == ["error: 4 pairs of twins are on two sides"]


@pytest.mark.slow
def test_a_peer_that_does_not_end_is_ended(peers, tmp_path):
    command = [sys.executable, "-c", "import time; print('here', flush=True); time.sleep(60)"]
    taken = peers.measure(command, tmp_path, tmp_path / "log", patience=0.5)
    assert (taken["exit_code"], (tmp_path / "log").read_text()) == (-9, "here\n")
    assert taken["seconds"] < 30 and taken["peak_mb"] > 1
