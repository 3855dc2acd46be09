"""The whole path, by its command, on small real images: what a user gets, and what survives."""

import csv
import json
import os
import signal
import subprocess
import sys
import sysconfig
import time
import venv
import zipfile
from pathlib import Path

import numpy as np
import pytest
from conftest import draw_picture
from PIL import Image

import automl
from automl.errors import ResumeError
from automl.pipeline import load_run

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
# Who imports one of these learns that it is not there.
OPTIONAL = [
    "ai_edge_litert", "dask", "distributed", "kagglehub", "onnx", "onnxruntime", "pydicom",
    "tensorboard", "tf2onnx",
]  # fmt: skip
QUICK = [
    "--preset", "smoke", "--weights", "none", "--image-size", "64", "--max-epochs", "4",
    "--factor", "2", "--refine-epochs", "2", "--no-tracking", "--quiet",
]  # fmt: skip


def write_scans(root: Path, classes: tuple[str, ...] = ("healthy", "tumour"), per_class: int = 24):
    """Class folders; brightness and spots differ between classes, so that there is something."""
    for number, label in enumerate(classes):
        (root / label).mkdir(parents=True)
        for i in range(per_class):
            picture = draw_picture(i + 1000 * number, bright=number > 0)
            picture = np.clip(picture.astype(int) + 12 * number, 0, 255).astype(np.uint8)
            Image.fromarray(picture).save(root / label / f"{label}{i:02d}.png")
    return root


def run(arguments, cwd, python=sys.executable, **options):
    command = [python, str(ROOT / "run_search.py"), *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(cwd / "cache")}
    environment["TMPDIR"] = str(cwd / "temporary")
    # Where it is set, files left behind would not be seen.
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    (cwd / "temporary").mkdir(exist_ok=True)
    return subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300, **options
    )


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    folder = tmp_path_factory.mktemp("work")
    write_scans(folder / "scans")
    return folder


@pytest.fixture(scope="module")
def plain_python(tmp_path_factory):
    """A Python without the optional libraries, as `make search` installs it."""
    folder = tmp_path_factory.mktemp("plain")
    venv.create(folder, symlinks=True)
    paths = {"base": str(folder), "platbase": str(folder)}
    # A .pth file is read even by a Python that is told to ignore its environment.
    lines = [
        sysconfig.get_path("purelib"),
        f"import sys; sys.modules.update(dict.fromkeys({OPTIONAL}))",
    ]
    Path(sysconfig.get_path("purelib", vars=paths), "plain.pth").write_text("\n".join(lines))
    python = folder / "bin" / "python"
    command = [python, "-I", "-c", "import numpy, tf2onnx"]
    asked = subprocess.run(command, capture_output=True, text=True)
    assert "No module named 'tf2onnx'" in asked.stderr or "import of tf2onnx" in asked.stderr
    return python


@pytest.fixture(scope="module")
def finished(work, plain_python):
    result = run(["--data", "scans", "--name", "first", *QUICK], work, plain_python)
    assert result.returncode == 0, result.stderr
    assert not list((work / "temporary").iterdir()), "files were left behind"
    return work / "reports" / "first"


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_a_run_folder_holds_what_the_contract_says(finished):
    names = {path.name for path in finished.iterdir()}
    assert names >= {
        "config.yaml", "journal.jsonl", "audit.json", "split.csv", "trials.csv", "predictions.csv",
        "report.json", "report.html", "model", "model.keras", ".gitignore", "model_card.md",
    }  # fmt: skip
    assert (finished / ".gitignore").read_text() == "*\n"
    report = load_run(finished).report
    assert report["search"]["trials"] == len(rows(finished / "trials.csv")) == 15
    refinement = report["search"]["refinement"]
    assert refinement["epochs"] == 2
    better = refinement["score"] > refinement["score_before"]
    limit = refinement["loss_limit"]
    assert limit > refinement["loss_before"]
    assert refinement["used"] == (better or refinement["loss"] <= limit)
    assert report["evaluation"]["test"]["test_evaluations"] == 1
    assert report["split"]["leaking_pairs"] == 0
    split = rows(finished / "split.csv")
    test = {row["image"] for row in split if row["split"] == "test"}
    predictions = rows(finished / "predictions.csv")
    assert {row["image"] for row in predictions} == test
    right = np.mean([row["label"] == row["predicted"] for row in predictions])
    shown = report["evaluation"]["test"]["metrics"]["accuracy"]["value"]
    assert right == pytest.approx(shown, abs=1e-6)
    parity = report["cost"]["exports"][0]["parity"]
    assert parity["max_difference"] < 1e-5
    assert parity["agreement"] == 1
    spent = report["cost"]["stages"]
    assert {"reading images", "trials", "evaluation", "export", "robustness", "saliency"} <= set(
        spent
    )
    assert 0.7 * report["cost"]["total_seconds"] < sum(spent.values())
    assert sum(spent.values()) <= report["cost"]["total_seconds"] + 1
    assert (finished.parent / "index.html").exists()
    assert len(list((finished / "checkpoints").iterdir())) == 1


def test_the_saved_model_alone_predicts_what_was_evaluated(finished, work):
    script = """
import csv, json, sys
import numpy as np, tensorflow as tf
folder, scans = sys.argv[1:3]
encoded = tf.saved_model.load(folder + "/model").signatures["encoded"]
rows = list(csv.DictReader(open(folder + "/predictions.csv")))
data = [open(f"{scans}/{row['image']}", "rb").read() for row in rows]
p = encoded(encoded=tf.constant(data))["probabilities"].numpy()
columns = [k for k in rows[0] if k.startswith("probability_")]
expected = np.array([[float(row[k]) for k in columns] for row in rows])
assert not [name for name in sys.modules if name.startswith("automl")]
print(json.dumps(float(np.abs(p - expected).max())))
"""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    result = subprocess.run(
        [sys.executable, "-I", "-c", script, str(finished), str(work / "scans")],
        cwd="/", env=environment, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert float(result.stdout) <= 1e-3


def test_a_run_that_exists_is_neither_lost_nor_mixed_up(finished, work):
    again = run(["--data", "scans", "--name", "first", *QUICK], work)
    assert again.returncode == 2
    assert "--resume" in again.stderr and "--overwrite" in again.stderr
    done = run(["--data", "scans", "--name", "first", "--resume", *QUICK], work)
    assert done.returncode == 0
    assert load_run(finished).report["run"]["resumed"] == 0


def test_a_search_killed_and_interrupted_ends_as_if_nothing_had_been(finished, work):
    """The short version of benchmarks/kills.py, with Ctrl-C and a second search besides."""
    folder = work / "reports" / "second"
    arguments = ["--data", "scans", "--name", "second", *QUICK]

    def start(*more):
        command = [sys.executable, str(ROOT / "run_search.py"), *arguments, *more]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(work / "cache")}
        return subprocess.Popen(
            command, cwd=work, env=environment, stderr=subprocess.PIPE, text=True,
            # A shell's background jobs, and what they start, ignore Ctrl-C.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )  # fmt: skip

    def ended():
        path = folder / "journal.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return [json.loads(line)["trial"] for line in lines if '"event":"trial_ended"' in line]

    def wait_for(process, trials):
        while len(ended()) < trials and process.poll() is None:
            time.sleep(0.02)
        assert process.poll() is None

    process = start()
    wait_for(process, 1)
    other = run([*arguments, "--resume"], work)
    assert other.returncode == 2
    assert "Another process" in other.stderr
    os.kill(children(process.pid)[-1], signal.SIGKILL)
    wait_for(process, 3)
    process.send_signal(signal.SIGINT)
    _, text = process.communicate(timeout=60)
    assert process.returncode == 130, text
    assert "--name second" in text and "--resume" in text
    process = start("--resume")
    wait_for(process, len(ended()) + 2)
    process.kill()
    process.communicate()
    assert 5 <= len(ended()) < 15
    result = run([*arguments, "--resume"], work)
    assert result.returncode == 0, result.stderr
    names = ended()
    assert sorted(set(names)) == sorted(names), "no trial ended twice"

    def without_seconds(path):
        return [{k: v for k, v in row.items() if k != "seconds"} for row in rows(path)]

    assert without_seconds(folder / "trials.csv") == without_seconds(finished / "trials.csv")
    for name in ("predictions.csv", "split.csv"):
        assert (folder / name).read_text() == (finished / name).read_text()
    assert load_run(folder).report["run"]["resumed"] == 2


def test_another_search_is_not_taken_for_the_one_that_was_begun(finished, work, monkeypatch):
    monkeypatch.chdir(work)
    (finished / "report.json").rename(finished / "report.away")
    settings = {
        "preset": "smoke", "weights": "none", "image_size": 64, "max_epochs": 4, "factor": 2,
        "refine_epochs": 2, "tracking": False,
    }  # fmt: skip
    try:
        with pytest.raises(ResumeError, match="seed was 0 and is 1"):
            from automl.config import make_config
            from automl.pipeline import run_search

            cache = str(work / "cache" / "automl")
            config = {**settings, "data": "scans", "name": "first", "seed": 1, "cache_dir": cache}
            run_search(make_config(config), resume=True)
    finally:
        (finished / "report.away").rename(finished / "report.json")


def test_a_budget_is_spent_and_kept(work):
    options = [*QUICK, "--fine-tune-depths", "0", "--factor", "3"]
    began = time.monotonic()
    result = run(["--data", "scans", "--name", "hurried", "--budget", "110s", *options], work)
    seconds = time.monotonic() - began
    assert result.returncode == 0, result.stderr
    assert seconds < 110
    journal = (work / "reports" / "hurried" / "journal.jsonl").read_text().splitlines()
    events = [json.loads(line) for line in journal]
    plan = next(event["plan"] for event in events if event["event"] == "search_started")
    longest = max(rung["epochs"] for bracket in plan["brackets"] for rung in bracket["rungs"])
    trained = max(event["epochs"] for event in events if event["event"] == "trial_started")
    assert trained == longest, "the schedule was one that fits"
    assert longest > 9, "nine epochs would leave most of the time"
    # Where the machine gets slower than it was measured, the clock takes the last trials.
    ended = sum(event["event"] == "trial_ended" for event in events)
    last = max(event["elapsed"] for event in events if event["event"] == "trial_ended")
    assert ended == plan["trials"] or last > 0.3 * seconds
    assert events[-1]["event"] == "session_ended"
    assert (events[-1]["reason"] == "done") == (ended == plan["trials"])


@pytest.fixture(scope="module")
def four(tmp_path_factory):
    """Four classes of DICOM files, eight patients each, in three lines of Python."""
    pytest.importorskip("pydicom")
    from dicom_files import SECRETS, make_dicom

    folder = tmp_path_factory.mktemp("four")
    for number, label in enumerate("abcd"):
        (folder / "scans" / label).mkdir(parents=True)
        for i in range(16):
            picture = draw_picture(i + 1000 * number, bright=number > 0).astype(np.uint16) * 9
            data = make_dicom(picture + 100 * number, f"{SECRETS[1]}-{label}{i // 2}")
            (folder / "scans" / label / f"{label}{i:02d}.dcm").write_bytes(data)
    return automl.search(
        str(folder / "scans"), preset="smoke", weights="none", image_size=64, quiet=True,
        fine_tune_depths=(0,), workers=1, compare_splits=True,
        out=str(folder / "reports"), cache_dir=str(folder / "cache"),
    )  # fmt: skip


def test_four_classes_and_three_lines_of_python(four):
    test = four.evaluation["test"]
    assert test["threshold"] is None
    assert len(test["confusion"]) == 4
    assert set(test["per_class"]) == set("abcd")
    scans = four.folder.parents[1] / "scans"
    answers = automl.load(four.model_dir).predict([scans / "a" / "a00.dcm"])
    assert set(answers[0].probabilities) == set("abcd")
    assert sum(answers[0].probabilities.values()) == pytest.approx(1, abs=1e-5)
    assert "seen-in-training" in answers[0].flags or answers[0].label in set("abcd")


def test_the_winner_is_scored_on_the_other_split_too(four):
    mine, other = four.report["split"]["comparison"]
    assert (mine["kind"], other["kind"], mine["touched"]) == ("grouped", "random", 0)
    assert mine["test"] == other["test"] == four.evaluation["test"]["images"]
    assert mine["metrics"]["roc_auc"] == four.evaluation["test"]["metrics"]["roc_auc"]
    assert other["touched"] > 0 and other["metrics"]["roc_auc"]["low"] is not None
    assert "on another split" in four.report_path.read_text()
    assert len(list((four.folder / "checkpoints").iterdir())) == 1


def test_no_word_of_a_patient_is_in_any_file_of_a_run(four):
    from dicom_files import SECRETS

    work = four.folder.parents[1]
    written = {path for path in work.rglob("*") if path.is_file()} - {*work.glob("scans/*/*.dcm")}
    names = {path.name for path in written}
    assert names >= {"journal.jsonl", "report.html", "model.keras", "split.csv", "mlflow.db"}
    assert names >= {"saved_model.pb", "scan.json", "worker.log", "audit.json", "predictions.csv"}
    assert "patients" in four.report["dataset"]["group_kind"]
    secrets = [secret.encode() for secret in (*SECRETS, "JANE", "Jane", "1970-01-31")]
    for path in written:
        texts = [path.read_bytes()]
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                texts += [archive.read(name) for name in archive.namelist()]
        for secret in secrets:
            assert not any(secret in text for text in texts), (path, secret)


def test_outside_images_join_the_report(finished, work):
    write_scans(work / "outside", ("normal", "glioma"), 12)
    command = [sys.executable, "-m", "automl", "evaluate", "reports/first", "outside"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(work / "cache")}
    result = subprocess.run(
        [*command, "--map", "normal=healthy,glioma=tumour", "--quiet"],
        cwd=work, env=environment, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    external = load_run(finished).report["evaluation"]["external"]
    assert [(part["name"], part["images"]) for part in external] == [("outside", 24)]
    change = external[0]["change"]["accuracy"]
    assert change["low"] <= change["value"] <= change["high"]
    internal = load_run(finished).report["evaluation"]["test"]["metrics"]["accuracy"]["value"]
    outside = external[0]["metrics"]["accuracy"]["value"]
    assert change["value"] == pytest.approx(outside - internal, abs=1e-5)
    page = (finished / "report.html").read_text()
    assert "outside" in page and "change from the test set above" in page


def test_a_plan_is_printed_without_training(work):
    result = run(["--data", "scans", "--dry-run", "--json", *QUICK[:-1]], work)
    assert result.returncode == 0, result.stderr
    plan = json.loads(result.stdout)
    assert (plan["trials"], plan["refine_epochs"]) == (14, 2)
    assert plan["seconds"] > 0
    assert plan["bytes"]["checkpoints"] > 0
