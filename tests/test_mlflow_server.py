"""Against real MLflow servers over HTTP: whole searches, deaths, promotion, serving."""

import base64
import contextlib
import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from servers import Server, answers, free_port, postgres, wait_until
from test_mlflow_sink import check_promotions, make_rival
from test_pipeline import write_scans
from tracking_run import (
    make_events,
    read_store,
    write_events,
    write_files,
    write_placeholder_model,
)

from automl.errors import AutomlError
from automl.tracking.mlflow_sink import MlflowSink
from automl.tracking.mlflow_store import mlflow_environment
from automl.tracking.mlflow_sync import read_link, sync_run

pytestmark = [
    pytest.mark.slow,
    # MLflow's own use of SQLAlchemy.
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy"),
]
ROOT = Path(__file__).parents[1]
# Typed by nobody: whatever shows it has leaked it.
PASSWORD = "pl4nted-s3cret"
CREDENTIALS = {"MLFLOW_TRACKING_USERNAME": "ann", "MLFLOW_TRACKING_PASSWORD": PASSWORD}


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory) -> Path:
    """A database with MLflow's tables: making them takes seconds."""
    from automl.tracking.mlflow_store import open_store

    path = tmp_path_factory.mktemp("store") / "server.db"
    open_store(f"sqlite:///{path}")
    return path


@pytest.fixture(scope="module")
def server(tmp_path_factory, empty_store) -> Iterator[Server]:
    """A server that stays, with PostgreSQL behind it if that can be had."""
    folder = tmp_path_factory.mktemp("server")
    with postgres() as backend:
        shutil.copy(empty_store, folder / "server.db")
        server = Server(folder, backend)
        try:
            server.start()
            yield server
        finally:
            server.kill()


@pytest.fixture(scope="module")
def mortal(tmp_path_factory, empty_store) -> Iterator[Server]:
    """A server on sqlite that asks for a password and that tests kill; not started."""
    folder = tmp_path_factory.mktemp("mortal")
    shutil.copy(empty_store, folder / "server.db")
    server = Server(folder, password=PASSWORD)
    yield server
    server.kill()


def content(uri: str, search: str) -> dict:
    """What the store holds of the search, comparable with searches of another id."""
    held = json.loads(json.dumps(read(uri, search)).replace(search, "RUN"))
    for key in held.keys() - {"models", "versions"}:
        # A digest of all the rest, and so of the id too.
        assert held[key]["tags"].pop("automl.digest")
    return held


def read(uri: str, search: str) -> dict:
    with mlflow_environment(uri, 60) as clean:
        return read_store(clean, search)


def undisturbed(folder: Path, empty_store: Path, tmp_path: Path, **options) -> dict:
    """What one quiet copy of the run makes of a fresh store."""
    shutil.copy(empty_store, tmp_path / "undisturbed.db")
    uri = f"sqlite:///{tmp_path / 'undisturbed.db'}"
    assert sync_run(folder, uri, **options).model_logged
    return content(uri, search_id(folder))


def search_id(folder: Path) -> str:
    first = (folder / "journal.jsonl").read_text().split("\n", 1)[0]
    return json.loads(first)["run_id"]


class Search:
    """``automl search`` on small real images, its output kept, its children's commands watched."""

    def __init__(self, work: Path) -> None:
        self.work = work
        self.folder = work / "reports" / "heads"
        self.output = ""
        self.commands: set[str] = set()

    def begin(self, *options: str) -> None:
        # So short a search would be copied at its end only, to spare its time.
        code = (
            "import sys; from automl.tracking import mlflow_sink; mlflow_sink.SHARE = 1.0\n"
            "from automl.__main__ import main; sys.exit(main(['search', *sys.argv[1:]]))"
        )
        command = [sys.executable, "-c", code, "--config", "settings.yaml", "-v", *options]
        self.process = subprocess.Popen(
            command, cwd=self.work, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(self.work / "cache")},
            # A shell's background jobs, and what they start, ignore Ctrl-C.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )  # fmt: skip

    def events(self, kind: str) -> list[dict]:
        path = self.folder / "journal.jsonl"
        lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
        return [event for event in map(json.loads, lines) if event["event"] == kind]

    def reach(self, kind: str, count: int) -> None:
        """Wait until the journal holds so many events of a kind."""

        def reached() -> bool:
            self.watch()
            assert self.process.poll() is None, self.process.communicate()[0]
            return len(self.events(kind)) >= count

        wait_until(reached, 240, f"{count} {kind}")

    def watch(self) -> None:
        """What `ps` shows of processes that belong to the search, their environments too."""
        for path in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if os.readlink(path / "cwd") == str(self.work):
                    shown = (path / "cmdline").read_bytes() + (path / "environ").read_bytes()
                    self.commands.add(shown.replace(b"\0", b" ").decode(errors="replace"))

    def end(self) -> int:
        output, _ = self.process.communicate(timeout=240)
        self.output += output
        return self.process.returncode


@pytest.fixture(scope="module")
def searched(mortal, tmp_path_factory) -> Iterator[Search]:
    """A whole search whose driver is killed, interrupted and resumed, and whose server comes
    late, dies under the last copy and comes back; sent in full by the command in the end."""
    work = tmp_path_factory.mktemp("searched")
    write_scans(work / "scans")
    settings = {
        "data": "scans", "name": "heads", "preset": "smoke", "weights": "none", "image_size": 64,
        "fine_tune_depths": [0], "workers": 1,
        "tracking_uri": mortal.uri, "register": "heads", "promote": True,
    }  # fmt: skip
    (work / "settings.yaml").write_text(json.dumps(settings), encoding="utf-8")
    search = Search(work)

    search.begin()
    starting = threading.Thread(target=mortal.start)
    starting.start()
    search.reach("trial_ended", 1)
    starting.join()
    search.process.kill()
    search.end()
    statuses = lambda: {part["status"] for part in runs(mortal.uri, search)}  # noqa: E731
    wait_until(lambda: "KILLED" in statuses() and "RUNNING" not in statuses())

    search.begin("--resume")
    search.reach("trial_ended", 3)
    search.process.send_signal(signal.SIGINT)
    assert search.end() == 130, search.output
    mortal.kill()

    search.begin("--resume")
    search.reach("search_ended", 1)
    mortal.start()
    # At once: a quick machine has sent the last copy within a second.
    search.reach("session_ended", 2)
    mortal.kill()
    assert search.end() == 0, search.output
    mortal.start()
    result = subprocess.run(
        [sys.executable, "-m", "automl", "sync", str(search.folder)],
        cwd=work, capture_output=True, text=True, timeout=240,
        env={**os.environ, "PYTHONPATH": str(ROOT), **CREDENTIALS},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    search.output += result.stdout + result.stderr
    yield search


def runs(uri: str, search: Search) -> list[dict]:
    """The runs in the store, [] before the first."""
    try:
        held = read(uri, search_id(search.folder))
    except AttributeError:  # there is no experiment yet
        return []
    return [part for key, part in held.items() if key not in ("models", "versions")]


def test_a_search_and_a_server_that_die_again_and_again_leave_what_quiet_ones_leave(
    searched, mortal, empty_store, tmp_path
):
    found = content(mortal.uri, search_id(searched.folder))
    assert found == undisturbed(searched.folder, empty_store, tmp_path)
    assert {part["status"] for part in runs(mortal.uri, searched)} == {"FINISHED"}
    assert found["search"]["tags"]["automl.sessions"] == "3"
    assert found["versions"][0]["aliases"] == ["challenger", "champion"]
    assert {"report.html", "predictions.csv"} <= {name for name, _ in found["search"]["files"]}
    assert "automl sync" in searched.output, "the server did not die under the last copy"


def test_a_password_is_nowhere_but_where_the_user_put_it(searched, mortal):
    secret = PASSWORD.encode()
    # What goes over the wire: user:password in base64.
    coded = base64.b64encode(f"ann:{PASSWORD}".encode())
    places = [path for path in searched.work.rglob("*") if path.is_file()]
    places += [path for path in mortal.folder.rglob("*") if path.is_file()]
    assert len(places) > 50
    holders = [path.name for path in places if any(s in path.read_bytes() for s in (secret, coded))]
    assert holders == ["settings.yaml"]
    assert PASSWORD not in searched.output and "***@127.0.0.1" in searched.output
    assert any("mlflow_sink" in command for command in searched.commands)
    assert not [command for command in searched.commands if PASSWORD in command]
    wrong = mortal.uri.replace(PASSWORD, "another-s3cret")
    with pytest.raises(AutomlError, match=r"refuses this user or password \(401\)") as caught:
        sync_run(searched.folder, wrong, patience=0)
    assert "s3cret" not in str(caught.value)


def make_run(folder: Path, letter: str) -> Path:
    run = folder / f"run-{letter}"
    write_events(run, make_events(run_id=letter * 32))
    write_files(run)
    write_placeholder_model(run)
    return run


def test_postgresql_holds_what_sqlite_holds(server, empty_store, tmp_path):
    if not server.backend.startswith("postgresql"):
        pytest.skip("needs PostgreSQL (apt-get install postgresql) and psycopg2-binary")
    run = make_run(tmp_path, "2")
    result = sync_run(run, server.uri, register="postgres")
    assert result.created == 18 and result.ui_hint.endswith(f"/runs/{result.run_id}")
    again = sync_run(run, server.uri, register="postgres")
    assert (again.created, again.updated, again.artifacts, again.version) == (0, 0, (), "1")
    expected = undisturbed(run, empty_store, tmp_path, register="postgres")
    assert content(server.uri, "2" * 32) == expected


def test_two_searches_at_once_follow_a_server_that_dies_and_comes_back(
    mortal, empty_store, tmp_path
):
    if not answers(f"{mortal.page}/health"):
        mortal.start()
    folders = [tmp_path / f"run-{letter}" for letter in "1e"]
    stories = [make_events(run_id=letter * 32, pid=os.getpid()) for letter in "1e"]
    with contextlib.ExitStack() as stack:
        sinks = [stack.enter_context(MlflowSink(folder, mortal.uri)) for folder in folders]
        for sink, folder, story in zip(sinks, folders, stories, strict=True):
            sink.start()
            write_events(folder, story[:16])
        for folder in folders:
            wait_until(lambda folder=folder: read_link(folder) is not None)
        mortal.kill()
        for folder, story in zip(folders, stories, strict=True):
            write_events(folder, story[16:])
            write_files(folder)
            write_placeholder_model(folder)
        time.sleep(3)
        mortal.start()
        for sink in sinks:
            assert not sink.stop().error
    expected = undisturbed(folders[0], empty_store, tmp_path)
    for letter in "1e":
        assert content(mortal.uri, letter * 32) == expected


def test_only_a_proven_better_model_becomes_champion_on_a_server(server, tmp_path):
    check_promotions(tmp_path / "x", server.uri, "in-turn")


def test_of_models_promoted_at_once_the_best_is_champion(server, tmp_path):
    """Three searches end together: each is compared with whoever is champion by then."""
    skills = {"b": 1.0, "c": 2.0, "d": 5.0}
    folders = [make_rival(tmp_path / "x", letter, skill) for letter, skill in skills.items()]
    sync_run(make_rival(tmp_path / "x", "a", 0.5), server.uri, register="race", promote=True)
    # The worse think longer: were they let, they would speak last.
    code = (
        "import sys, time; from pathlib import Path; from automl.tracking import compare\n"
        "from automl.tracking.mlflow_sync import sync_run\n"
        "folder = Path(sys.argv[1])\n"
        "def slow(*paths):\n"
        "    time.sleep(0 if folder.name.endswith('d') else 1.5)\n"
        "    return compare.auc_difference(*paths)\n"
        "options = dict(register='race', promote=True, difference=slow)\n"
        "print(*sync_run(folder, sys.argv[2], **options).notes)"
    )
    copies = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(folder), server.uri],
            stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        for folder in folders
    ]  # fmt: skip
    notes = [copy.communicate(timeout=240)[0] for copy in copies]
    assert "new champion" in notes[2], notes

    import mlflow

    client = mlflow.MlflowClient(server.uri)
    version = lambda alias: client.get_model_version_by_alias("race", alias)  # noqa: E731
    assert version("champion").tags["automl.run_id"] == "d" * 32
    assert version("challenger").tags["automl.run_id"] == "d" * 32
    names = [model.name for model in client.search_registered_models("name LIKE 'race%'")]
    assert names == ["race"], "the name that stood for the decision is gone"


def ask(url: str, body: object) -> tuple[int, dict]:
    """Status and answer to ``body``, sent as JSON."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


@pytest.fixture(scope="module")
def served(searched, mortal) -> Iterator[str]:
    """Where MLflow serves the champion of the real search."""
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "models", "serve", "--env-manager", "local"]
    command += ["--model-uri", "models:/heads@champion", "--workers", "1"]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    environment = {
        **os.environ,
        # MLflow starts uvicorn by its name.
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "MLFLOW_TRACKING_URI": mortal.page,
        **CREDENTIALS,
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }
    # Nothing of automl: a server that has MLflow, TensorFlow and pandas is enough.
    environment.pop("PYTHONPATH", None)
    with open(searched.work / "serve.log", "wb") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, env=environment, start_new_session=True,
            cwd=searched.work,
        )  # fmt: skip

    def up() -> bool:
        assert process.poll() is None, (searched.work / "serve.log").read_text()
        return answers(f"http://127.0.0.1:{port}/ping")

    try:
        wait_until(up, 180, "an answer")
        yield f"http://127.0.0.1:{port}/invocations"
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(timeout=20)


def test_mlflow_serves_the_probabilities_of_predictions_csv(searched, served):
    import numpy as np
    from PIL import Image

    with open(searched.folder / "predictions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    paths = [searched.work / "scans" / row["image"] for row in rows]
    files = [base64.b64encode(path.read_bytes()).decode() for path in paths]
    arrays = [np.asarray(Image.open(path)).tolist() for path in paths]
    columns = [name for name in rows[0] if name.startswith("probability_")]
    expected = [[float(row[name]) for name in columns] for row in rows]
    bodies: list[dict] = [
        {"instances": [{"b64": text} for text in files]},
        {"dataframe_split": {"columns": ["b64"], "data": [[text] for text in files]}},
        {"dataframe_records": [{"b64": text} for text in files]},
        {"instances": [{"pixels": array} for array in arrays]},
        {"dataframe_records": [{"pixels": array} for array in arrays]},
    ]
    for body in bodies:
        status, answer = ask(served, body)
        assert status == 200, answer
        found = [[row[name] for name in columns] for row in answer["predictions"]]
        np.testing.assert_allclose(found, expected, atol=1e-6, err_msg=next(iter(body)))
        labels = [row["label"] for row in answer["predictions"]]
        assert labels == [row["predicted"] for row in rows]


PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNoAAAAggCBd81ytgAAAABJRU5ErkJggg=="


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"instances": [{"b64": "no picture"}]}, "Row 0: b64 is not a JPEG or PNG"),
        ({"instances": [{"b64": PNG}, {"b64": PNG[:44]}]}, "damaged or cut off"),
        ({"instances": [{"b64": 5}]}, "b64"),
        ({"instances": [{"picture": PNG}]}, "Expected one column: b64"),
        ({"instances": [PNG]}, "b64"),
        ({"instances": [{"pixels": [1, 2, 3]}]}, "Expected (h, w, 3) or (h, w)"),
        ({"instances": [{"pixels": [[[1, 2]]]}]}, "Expected (h, w, 3) or (h, w)"),
        ({"instances": [{"pixels": [[1, 2], [3]]}]}, "inhomogeneous"),
        ({"instances": [{"pixels": [[300, 0]]}]}, "outside 0-255"),
        ({"instances": [{"pixels": "text"}]}, "pixels are not numbers"),
        ({"images": []}, "instances"),
        (b"{not json", "JSON"),
    ],
)
def test_a_mistaken_request_is_told_what_was_expected(served, body, message):
    status, answer = ask(served, body)
    assert 400 <= status < 500 and message in answer["message"], (status, answer)
    assert "Traceback" not in json.dumps(answer)


def test_an_artifact_comes_back_as_it_was_sent(server, tmp_path):
    import mlflow

    folder = make_run(tmp_path, "8")
    result = sync_run(folder, server.uri)
    client = mlflow.MlflowClient(server.uri)
    page = client.download_artifacts(result.run_id, "report.html", str(tmp_path))
    assert Path(page).read_bytes() == (folder / "report.html").read_bytes()
    (folder / "report.html").write_text("<h1>A newer report</h1>", encoding="utf-8")
    assert sync_run(folder, server.uri).artifacts == ("report.html",)
