"""The copy of a run in MLflow: complete, repeatable, and never ahead of the truth."""

import contextlib
import http.server
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from servers import wait_until
from tracking_run import (
    CLASSES,
    FAILED,
    make_events,
    read_store,
    write_events,
    write_files,
    write_placeholder_model,
)

from automl.errors import AutomlError, UsageError
from automl.tracking import compare, mlflow_sink
from automl.tracking.lookout import RECENT, Lookout, probe
from automl.tracking.mlflow_sink import MlflowSink
from automl.tracking.mlflow_sync import (
    choose_uri,
    default_uri,
    describe,
    own_address,
    read_link,
    sync_run,
)
from automl.tracking.replay import redact, replay

DEAD_PID = 2**22 + 1
WRITING_CALLS = (
    "create_run",
    "log_batch",
    "set_tag",
    "set_terminated",
    "log_artifact",
    "log_inputs",
    "log_outputs",
    "create_logged_model",
    "log_model_artifacts",
    "finalize_logged_model",
    "create_registered_model",
    "create_model_version",
    "set_registered_model_alias",
    "delete_registered_model",
)
# MLflow's own use of SQLAlchemy.
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory) -> Path:
    """A database with MLflow's tables, copied by each test: making one takes seconds."""
    from automl.tracking.mlflow_store import open_store

    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    open_store(f"sqlite:///{path}")
    return path


@pytest.fixture(scope="module")
def sent(tmp_path_factory, empty_store) -> tuple:
    """A finished run that was sent once, and what the store then holds; only to be read."""
    folder = tmp_path_factory.mktemp("sent") / "heads"
    shutil.copy(empty_store, folder.parent / "mlflow.db")
    write_events(folder, make_events())
    write_files(folder)
    result = sync_run(folder)
    return folder, result, read(folder)


@pytest.fixture
def folder(tmp_path, empty_store) -> Path:
    """A finished run without its model, beside a fresh default store."""
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    write_events(tmp_path / "heads", make_events())
    write_files(tmp_path / "heads")
    return tmp_path / "heads"


def read(folder: Path, search: str = "a" * 32) -> dict:
    return read_store(default_uri(folder.parent), search)


def client_of(folder: Path):
    import mlflow

    return mlflow.MlflowClient(default_uri(folder.parent))


def test_a_search_is_a_parent_and_one_child_for_each_configuration(sent):
    _, result, content = sent
    assert result.created == 18 and not result.error
    numbers = [str(n) for n in range(17)]
    assert sorted(content) == sorted(["models", "versions", "search", *numbers])
    parent = content["search"]
    assert parent["name"] == "heads" and parent["status"] == "FINISHED"
    assert parent["params"]["preset"] == "fast" and parent["params"]["plan_trials"] == "22"
    assert parent["data"] == [("scans", "d" * 36)]
    assert "9 × 1 → 3 × 3 → 1 × 9" in parent["tags"]["mlflow.note.content"]
    assert ("test/roc_auc_low", 1, 0.88) in [(k, s, v) for k, s, _, v in parent["points"]]
    assert parent["tags"]["automl.progress"] == "22 of 22 trials"
    assert parent["tags"]["automl.machine.cpu"] == "Drawn CPU"
    assert {"report.html", "audit.json", "predictions.csv"} <= set(dict(parent["files"]))
    children = [content[str(n)] for n in range(17)]
    assert {child["tags"]["mlflow.parentRunId"] for child in children} == {"search"}
    assert children[7]["name"].startswith("07 depth=2 head=128 lr=")
    assert [child["tags"]["automl.best"] for child in children].count("true") == 1


def test_rungs_of_a_configuration_lie_on_one_axis_of_epochs(sent):
    content = sent[2]
    promoted = [content[str(n)] for n in range(9) if content[str(n)]["tags"]["automl.round"] == "2"]
    assert len(promoted) == 1
    points = promoted[0]["points"]
    assert [s for k, s, _, _ in points if k == "val_loss"] == list(range(1, 10))
    assert [v for k, _, _, v in points if k == "round"] == [0, 1, 1, 2, 2, 2, 2, 2, 2]
    assert [s for k, s, _, _ in points if k == "score"] == [1, 3, 9]
    times = [t for k, _, t, _ in points if k == "loss"]
    assert times == sorted(times) and len(set(times)) == 9


def test_a_failed_configuration_says_why(sent):
    failed = sent[2][str(int(FAILED.split("-")[0]))]
    assert failed["status"] == "FAILED"
    assert failed["tags"]["automl.reason"] == "nan"
    assert "The loss became NaN." in failed["tags"]["mlflow.note.content"]


def test_runs_are_found_by_their_params_and_tags(sent):
    client = client_of(sent[0])
    experiment = client.get_experiment_by_name("automl").experiment_id
    deep = client.search_runs([experiment], "params.fine_tune_depth = '2'")
    assert len(deep) == 6
    promoted = client.search_runs([experiment], "tags.\"automl.round\" = '2'")
    assert len(promoted) == 1
    failed = client.search_runs([experiment], "attributes.status = 'FAILED'")
    assert len(failed) == 1


def test_a_second_sync_writes_nothing(folder):
    write_placeholder_model(folder)
    first = sync_run(folder, register="tumours")
    before = read(folder)
    second = sync_run(folder, register="tumours")
    assert (second.created, second.updated, second.artifacts) == (0, 0, ())
    assert first.model_logged and not second.model_logged
    assert first.run_id == second.run_id and first.version == second.version == "1"
    assert read(folder) == before


def test_points_of_a_run_only_grow_at_the_end_as_the_journal_grows():
    events = make_events()
    before = {}
    for count in range(1, len(events) + 1):
        now = {run.key: run for run in replay(events[:count], alive=True)}
        assert set(before) <= set(now)
        for key, run in before.items():
            assert now[key].points[: len(run.points)] == run.points
            assert now[key].params.items() >= run.params.items()
            assert now[key].name == run.name and now[key].start_time == run.start_time
        before = now


@pytest.mark.slow
def test_a_copy_made_step_by_step_equals_one_made_at_the_end(sent, tmp_path, empty_store):
    events = make_events()
    other = tmp_path / "other" / "heads"
    other.parent.mkdir()
    shutil.copy(empty_store, other.parent / "mlflow.db")
    for start in range(0, len(events), 17):
        write_events(other, events[start : start + 17])
        if start + 17 >= len(events):
            write_files(other)
        sync_run(other)
    assert read(other) == sent[2]


def test_a_killed_search_is_not_running_and_goes_on_when_reopened(tmp_path, empty_store):
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    folder = tmp_path / "heads"
    whole = make_events(pid=os.getpid())
    middle = next(i for i, e in enumerate(whole) if e.get("trial") == "0005-0") + 1
    write_events(folder, whole[:middle])
    sync_run(folder)
    content = read(folder)
    assert content["search"]["status"] == content["5"]["status"] == "RUNNING"
    assert content["search"]["end"] is None and content["4"]["status"] == "FINISHED"

    dead = [{**e, "pid": DEAD_PID} if e["event"] == "session_started" else e for e in whole]
    shutil.rmtree(folder)
    write_events(folder, dead[:middle])
    sync_run(folder)
    content = read(folder)
    assert content["search"]["status"] == content["5"]["status"] == "KILLED"

    again = {**whole[1], "session": 1, "time": whole[middle - 1]["time"] + 60}
    later = [{**e, "time": e["time"] + 60} for e in whole[middle:]]
    retried = {**whole[middle - 1], "attempt": 1, "time": again["time"] + 1}
    later[0] = {**later[0], "attempt": 1}
    write_events(folder, [again, retried])
    sync_run(folder)
    content = read(folder)
    assert content["search"]["status"] == content["5"]["status"] == "RUNNING"
    write_events(folder, later)
    sync_run(folder)
    content = read(folder)
    assert content["search"]["status"] == content["5"]["status"] == "FINISHED"
    assert content["search"]["tags"]["automl.sessions"] == "2"
    assert content["search"]["end"] == round(later[-1]["time"] * 1000)
    assert len(content) == 20


def test_a_session_of_another_host_does_not_stay_running():
    events = make_events(pid=os.getpid())[:4]
    assert replay(events)[0].status == "RUNNING"
    events[1]["host"] = socket.gethostname() + "-elsewhere"
    assert [run.status for run in replay(events)] == ["KILLED", "FINISHED"]


def test_a_failure_that_a_retry_mends_leaves_no_trace():
    events = make_events()
    end = next(i for i, e in enumerate(events) if e["event"] == "trial_ended")
    start = events[end - 1]
    failed = {**events[end], "status": "failed", "reason": "crash", "message": "gone"}
    failed["score"] = None
    retried = [{**start, "attempt": 1}, {**events[end], "attempt": 1}]
    story = [*events[:end], failed, *retried]
    first = replay(story[:-2], alive=True)[1]
    assert (first.status, first.tags["automl.reason"], first.points) == ("FAILED", "crash", ())
    mended = replay(story, alive=True)[1]
    assert mended.status == "FINISHED" and "automl.reason" not in mended.tags


def test_tags_that_no_longer_hold_are_taken_away(tmp_path, empty_store):
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    folder = tmp_path / "heads"
    events = make_events(pid=os.getpid())
    end = next(i for i, e in enumerate(events) if e["event"] == "trial_ended")
    failed = {**events[end], "status": "failed", "reason": "crash", "score": None}
    write_events(folder, [*events[:end], failed])
    sync_run(folder)
    assert read(folder)["0"]["tags"]["automl.reason"] == "crash"
    write_events(folder, [{**events[end - 1], "attempt": 1}, {**events[end], "attempt": 1}])
    sync_run(folder)
    tags = read(folder)["0"]["tags"]
    assert "automl.reason" not in tags and "Failed" not in tags.get("mlflow.note.content", "")


@pytest.mark.slow
@pytest.mark.parametrize("lost", ["request", "answer"])
def test_a_copy_that_breaks_at_any_call_is_finished_by_the_next(
    tmp_path, empty_store, monkeypatch, lost
):
    import mlflow

    calls = {"count": 0, "break": -1}

    def break_once(inner):
        def call(self, *arguments, **named):
            calls["count"] += 1
            if calls["count"] == calls["break"] and lost == "request":
                raise ConnectionError("refused")
            result = inner(self, *arguments, **named)
            if calls["count"] == calls["break"]:
                raise ConnectionError("reset")
            return result

        return call

    for name in WRITING_CALLS:
        inner = getattr(mlflow.MlflowClient, name)
        monkeypatch.setattr(mlflow.MlflowClient, name, break_once(inner))

    def make(name):
        folder = tmp_path / name / "heads"
        # Two configurations will do: every kind of call is made for them.
        story = [e for e in make_events() if e.get("trial") in (None, "0000-0", FAILED)]
        write_events(folder, story)
        write_files(folder)
        write_placeholder_model(folder)
        shutil.copy(empty_store, folder.parent / "mlflow.db")
        return folder

    whole = make("whole")
    sync_run(whole, register="tumours")
    expected, total = read(whole), calls["count"]
    assert total > 25
    for place in range(1 + (lost == "answer"), total + 1, 2):
        other = make(f"other{place}")
        calls.update({"count": 0, "break": place})
        with pytest.raises(AutomlError, match="does not have the whole run"):
            sync_run(other, register="tumours", patience=0)
        sync_run(other, register="tumours")
        assert read(other) == expected, f"broken at call {place}"
        versions = client_of(other).search_model_versions("name = 'tumours'")
        assert len(versions) == 1 and aliases(default_uri(other.parent)) == {"challenger": "1"}
        names = [model.name for model in client_of(other).search_registered_models()]
        assert names == ["tumours"]


def test_an_older_copy_of_the_journal_does_not_overwrite_a_newer_one(folder):
    sync_run(folder)
    before = read(folder)
    shutil.rmtree(folder)
    write_events(folder, make_events()[:-10])
    with pytest.raises(UsageError, match="newer state"):
        sync_run(folder)
    assert read(folder) == before


def test_the_model_is_logged_with_all_that_serving_needs(folder):
    import mlflow

    write_placeholder_model(folder)
    result = sync_run(folder)
    content = read(folder)
    assert [model[:2] for model in content["models"]] == [("heads", "READY")]
    client = client_of(folder)
    model = client.get_logged_model(result.model_id)
    files = Path(model.artifact_location.removeprefix("file://"))
    info = mlflow.models.Model.load(str(files))
    assert info.metadata["threshold"] == 0.4 and info.metadata["classes"] == list(CLASSES)
    assert len(info.metadata["saved_model_sha256"]) == 64
    assert [spec.name for spec in info.signature.inputs] == ["b64", "pixels"]
    assert "probability_tumour" in info.signature.outputs.input_names()
    needs = (files / "requirements.txt").read_text().split()
    assert [need.split("==")[0] for need in needs] == ["mlflow", "tensorflow", "pandas"]
    assert (files / "input_example.json").exists()
    assert not [path for path in files.rglob("*") if path.suffix in (".pkl", ".pickle")]
    assert client.get_run(result.run_id).outputs.model_outputs[0].model_id == result.model_id


def make_rival(folder: Path, letter: str, skill: float, **files) -> Path:
    """Another search of the same data in the same store; later letters are newer."""
    other = folder.parent / f"rival-{letter}"
    created = f"2026-09-2{ord(letter) - ord('a') + 1}T10:00:00"
    # Its trials do not matter here, and take time.
    events = [e for e in make_events(run_id=letter * 32) if not e["event"].startswith("trial")]
    events[0]["created"] = created
    write_events(other, events)
    write_files(other, skill=skill, **files)
    write_placeholder_model(other)
    (other / "model" / "saved_model.pb").write_text(letter)
    return other


def aliases(uri: str, name: str = "tumours") -> dict:
    import mlflow

    model = mlflow.MlflowClient(uri).get_registered_model(name)
    return {alias: str(version) for alias, version in model.aliases.items()}


def check_promotions(folder: Path, uri: str, name: str) -> None:
    """Seven searches of one model's name, one after the other."""

    def send(letter, skill, **files):
        other = make_rival(folder, letter, skill, **files)
        note = sync_run(other, uri, register=name, promote=True).notes[0]
        return note, aliases(uri, name)

    note, now = send("b", 1.0)
    assert "the first" in note and now == {"challenger": "1", "champion": "1"}
    note, now = send("c", 1.0)
    assert "not proved better" in note and now == {"challenger": "2", "champion": "1"}, "equal"
    note, now = send("d", 4.0, split="t" * 64)
    assert "another test set" in note and now == {"challenger": "3", "champion": "1"}
    note, now = send("e", 4.0)
    assert "new champion" in note and now == {"challenger": "4", "champion": "4"}
    note, now = send("f", 0.5)
    assert "not proved better" in note and now == {"challenger": "5", "champion": "4"}, "worse"
    note, now = send("a", 9.0)
    assert "older search" in note and now == {"challenger": "5", "champion": "4"}
    again = sync_run(folder.parent / "rival-e", uri, register=name, promote=True)
    assert "champion already" in again.notes[0] and again.version == "4"
    assert aliases(uri, name) == {"challenger": "5", "champion": "4"}


def test_without_promote_the_champion_is_left_alone(folder):
    result = sync_run(make_rival(folder, "b", 1.0), register="tumours")
    assert result.notes == () and aliases(default_uri(folder.parent)) == {"challenger": "1"}
    tags = client_of(folder).get_model_version("tumours", "1").tags
    assert tags["test.roc_auc"] == "0.9300 [0.8800, 0.9700]" and tags["automl.split"] == "s" * 64


def test_the_difference_of_a_model_with_itself_is_nought(tmp_path):
    write_files(tmp_path / "a", skill=1.0)
    write_files(tmp_path / "b", skill=3.0)
    one, two = tmp_path / "a" / "predictions.csv", tmp_path / "b" / "predictions.csv"
    same = compare.auc_difference(one, one, tmp_path / "a" / "split.csv")
    assert same == {"value": 0.0, "low": 0.0, "high": 0.0}
    better = compare.auc_difference(one, two, tmp_path / "a" / "split.csv")
    worse = compare.auc_difference(two, one, tmp_path / "a" / "split.csv")
    assert 0 < better["low"] < better["value"] < better["high"]
    assert better["value"] == -worse["value"]


def test_auc_agrees_with_scikit_learn():
    import numpy as np
    from sklearn.metrics import roc_auc_score

    random = np.random.default_rng(0)
    truth = random.random(80) > 0.6
    score = np.round(random.random(80) + 0.2 * truth, 1)
    assert compare._auc(truth, score) == pytest.approx(roc_auc_score(truth, score))


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("http://ann:pw@host:5000/x", "http://***@host:5000/x"),
        ("postgresql://ann:p%2Fw@h/db", "postgresql://***@h/db"),
        ("postgresql://ann:p/w@h/db", "postgresql://***@h/db"),
        ("http://ann:p@ss@host", "http://***@host"),
        ("https://token@host/", "https://***@host/"),
        ("see postgresql://h/db?user=ann&password=pw now", None),
        ("http://host:5000/a@b", "http://host:5000/a@b"),
        ("sqlite:////tmp/mlflow.db", "sqlite:////tmp/mlflow.db"),
    ],
)
def test_credentials_of_a_uri_are_taken_out(text, clean):
    expected = clean or "see postgresql://h/db?user=ann&password=*** now"
    assert redact(text) == expected


def test_credentials_are_neither_stored_nor_printed(tmp_path, empty_store):
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    folder = tmp_path / "heads"
    secret = "http://ann:s3cr3t@127.0.0.1:9"
    events = make_events(tracking_uri=secret)
    events[0]["command"] += f" --tracking-uri {secret}"
    write_events(folder, events)
    write_files(folder)
    sync_run(folder, default_uri(tmp_path))
    with pytest.raises(AutomlError) as caught:
        sync_run(folder, patience=0)
    assert "s3cr3t" not in str(caught.value) and "***@127.0.0.1:9" in str(caught.value)
    assert "MLFLOW_TRACKING_PASSWORD" not in os.environ
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    holders = [path.name for path in files if b"s3cr3t" in path.read_bytes()]
    assert holders == ["journal.jsonl"], "only the journal that this test wrote itself"


def test_stores_that_cannot_be_used_are_named(folder):
    with pytest.raises(UsageError, match="sqlite:////"):
        sync_run(folder, str(folder.parent / "mlruns"))
    with pytest.raises(UsageError, match=r"no journal\.jsonl"):
        sync_run(folder.parent)
    sync_run(folder)
    client = client_of(folder)
    client.delete_experiment(client.get_experiment_by_name("automl").experiment_id)
    with pytest.raises(UsageError, match="was deleted"):
        sync_run(folder)


PAGE = "<html><body>Sign in, s3cr3t</body></html>"


@contextlib.contextmanager
def stranger(status: int, body: str, health: int = 200):
    """A web server that gives one answer to every call; yields its URI, with a password."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def answer(self):
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self.send_response(health if self.path.endswith("/health") else status)
            self.send_header("Location", "/login")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body.encode())

        do_GET = do_POST = answer

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://ann:s3cr3t@127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        ((401, PAGE), "refuses this user or password (401)"),
        ((403, '{"error_code": "PERMISSION_DENIED", "message": "no"}'), "may not write"),
        ((404, PAGE), "since version 3 (404)"),
        ((404, '{"error_code": "ENDPOINT_NOT_FOUND", "message": "no"}'), "since version 3 (404)"),
        ((404, '{"detail": "Not Found"}'), "not an MLflow server"),
        ((200, PAGE), "not an MLflow server"),
        ((302, ""), "not an MLflow server"),
        ((500, PAGE), "answers with the error 500"),
        ((503, PAGE, 503), "answers with the error 503"),
    ],
)
def test_what_is_no_mlflow_server_is_named_in_one_line(sent, answer, says):
    with stranger(*answer) as uri, pytest.raises(AutomlError) as caught:
        sync_run(sent[0], uri, patience=0)
    text = str(caught.value)
    assert says in text and "***@127.0.0.1" in text
    assert "s3cr3t" not in text and "\n" not in text and len(text) < 400


def test_a_server_of_version_2_is_told_apart():
    from mlflow.exceptions import MlflowException
    from mlflow.protos.databricks_pb2 import ENDPOINT_NOT_FOUND

    from automl.tracking.mlflow_store import explain

    # As MLflow 3.17 says it of a server of 2.22.
    text = "API request to endpoint /api/2.0/mlflow/{} failed with error code 404 != 200."
    error = MlflowException(text.format("logged-models/search"), error_code=ENDPOINT_NOT_FOUND)
    assert "it has the runs and files" in explain(error)
    error = MlflowException(text.format("runs/log-inputs"), error_code=ENDPOINT_NOT_FOUND)
    assert "lacks a call" in explain(error)


def test_a_server_is_asked_without_mlflow_and_never_for_long(tmp_path):
    with stranger(401, PAGE) as uri:
        assert probe(uri) == "", "a server that wants a password is there"
    with stranger(200, PAGE, 502) as uri:
        assert "error 502" in probe(uri)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        assert "refused" in probe(f"http://127.0.0.1:{port}")
        assert "refused" in probe(f"postgresql+psycopg2://ann:pw@127.0.0.1:{port}/db")
        taken.listen(0)
        # The first waits in the queue for ever; it is full then, and drops the second, as a
        # firewall does.
        for _ in range(2):
            assert "no answer" in probe(f"http://127.0.0.1:{port}", timeout=0.05)
    assert probe(default_uri(tmp_path)) == ""


def test_the_address_may_come_from_where_mlflow_looks_for_it(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    assert choose_uri(None, tmp_path) == "http://127.0.0.1:5000"
    monkeypatch.chdir(tmp_path)
    assert choose_uri("sqlite:///x.db", tmp_path) == f"sqlite:///{tmp_path / 'x.db'}"
    with pytest.raises(UsageError, match="percent-encoded") as caught:
        choose_uri("http://ann:s3/cr3t@host:5000", tmp_path)
    assert "s3/cr3t" not in str(caught.value)
    with pytest.raises(UsageError, match="were not kept"):
        choose_uri("postgresql+psycopg2://***@host/mlflow", tmp_path)


def test_a_password_that_was_not_kept_is_looked_for_where_the_search_had_it(monkeypatch):
    kept = {"tracking_uri": "http://***@host:5000"}
    assert own_address(kept) == "http://***@host:5000"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://ann:s3cr3t@host:5000")
    assert own_address(kept) == "http://ann:s3cr3t@host:5000"
    assert own_address({"tracking_uri": "http://***@other"}) == "http://***@other"
    assert own_address({"tracking_uri": None}) is None


def test_the_sink_spends_a_hundredth_of_what_the_search_is_expected_to_take():
    events = make_events()
    assert events[0]["plan"]["seconds"] == 1000
    assert mlflow_sink._expected_seconds(events[:1]) == 500, "plans are guesses"
    assert mlflow_sink._expected_seconds([{**events[0], "plan": {}}]) == 0
    later = {"event": "trial_ended", "elapsed": 600.0}
    assert mlflow_sink._expected_seconds([events[0], later]) == 200


def test_the_sink_sees_in_what_is_added_whether_the_trials_are_over(tmp_path):
    watch = mlflow_sink._Watch(tmp_path / "heads" / "journal.jsonl")
    assert watch.look() == 0
    events = make_events()
    seen = []
    for start in range(0, len(events), 10):
        write_events(tmp_path / "heads", events[start : start + 10])
        assert watch.look() == watch.path.stat().st_size
        seen.append(watch.over)
    assert seen == [False] * (len(seen) - 1) + [True]
    write_events(tmp_path / "heads", events[1:2])
    watch.look()
    assert not watch.over, "a session that goes on after its end trains again"


def test_a_server_that_never_answers_is_hardly_waited_for_twice():
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen(8)
        lookout = Lookout(f"http://127.0.0.1:{deaf.getsockname()[1]}")
        lookout.start()
        began = time.monotonic()
        assert lookout.last_word(0.3) == "it has not answered yet."
        assert 0.3 <= time.monotonic() - began < 2
        lookout.problem, lookout._replied = "no answer", time.monotonic()
        began = time.monotonic()
        assert lookout.last_word(30) == "no answer"
        assert time.monotonic() - began < 2
        lookout._replied -= RECENT
        began = time.monotonic()
        assert lookout.last_word(0.3) == "no answer"
        assert time.monotonic() - began >= 0.3, "that was long ago"


def test_the_sink_loads_no_mlflow_into_the_search():
    code = "import sys, automl.tracking.mlflow_sink; print('mlflow' in sys.modules)"
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True,
        cwd=Path(__file__).parents[1],
    )  # fmt: skip
    assert answer.stdout.strip() == "False"


def stat(task: Path) -> list[str]:
    """What Linux says of a thread, from its state on; 16 is its nice value."""
    return (task / "stat").read_text().rpartition(")")[2].split()


def niceness(pid: int) -> set[int]:
    """Of a process' threads other than its first, which must not give way."""
    tasks = Path(f"/proc/{pid}/task")
    nice = {path.name: int(stat(path)[16]) for path in tasks.iterdir()}
    assert nice.pop(str(pid)) == 0, "for the last copy somebody waits"
    return set(nice.values())


@pytest.mark.slow
def test_a_short_search_is_copied_beside_its_evaluation_and_finished_at_its_end(
    sent, tmp_path, empty_store
):
    other = tmp_path / "live" / "heads"
    other.mkdir(parents=True)
    shutil.copy(empty_store, other.parent / "mlflow.db")
    events = make_events(pid=os.getpid())
    # A hundredth of it is less than loading MLflow takes.
    events[0]["plan"]["seconds"] = 100.0
    sink = MlflowSink(other)
    sink.start()
    after = next(i for i, e in enumerate(events) if e["event"] == "search_ended")
    write_events(other, events[:after])
    wait_until(lambda: mlflow_sink.NICE in niceness(sink._process.pid))
    time.sleep(1)
    assert read_link(other) is None, "beside its trials there was no time for it"
    write_events(other, events[after : after + 1])
    wait_until(lambda: read_link(other) is not None)
    assert read(other)["search"]["status"] == "RUNNING"
    assert mlflow_sink.NICE_AFTER in niceness(sink._process.pid)
    write_events(other, events[after + 1 :])
    write_files(other)
    result = sink.stop()
    assert not result.error and result.run_id == read_link(other).run_id
    assert "mlflow ui" in describe(result, other)
    assert read(other) == sent[2]


@pytest.mark.slow
def test_when_the_search_is_killed_its_runs_are(tmp_path, empty_store):
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    folder = tmp_path / "heads"
    code = (
        "import sys, os, time; from pathlib import Path; sys.path[:0] = sys.argv[2:]\n"
        "from tracking_run import *; from automl.tracking.mlflow_sink import MlflowSink\n"
        "folder = Path(sys.argv[1]); sink = MlflowSink(folder); sink.start()\n"
        "print(sink._process.pid, flush=True)\n"
        "write_events(folder, make_events(pid=os.getpid())[:15]); time.sleep(60)"
    )
    here = Path(__file__).parent
    search = subprocess.Popen(
        [sys.executable, "-c", code, str(folder), str(here), str(here.parent)],
        stdout=subprocess.PIPE,
    )
    try:
        wait_until(lambda: read_link(folder) is not None)
        assert read(folder)["search"]["status"] == "RUNNING"
        sink = int(search.stdout.readline())
        assert mlflow_sink.NICE in niceness(sink), "beside the trials copies give way"
    finally:
        search.kill()
        search.communicate()
    wait_until(lambda: read(folder)["search"]["status"] == "KILLED")


@pytest.mark.slow
def test_a_search_without_a_server_is_told_how_to_send_it_later(tmp_path):
    folder = tmp_path / "heads"
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        uri = f"http://ann:s3cr3t@127.0.0.1:{taken.getsockname()[1]}"
        sink = MlflowSink(folder, uri)
        sink.start()
        write_events(folder, make_events())
        began = time.monotonic()
        result = sink.stop(timeout=8)
    assert time.monotonic() - began < 10
    text = describe(result, folder)
    assert f"automl sync {folder}" in text and "s3cr3t" not in text and "\n" not in text
