"""Against a real MLflow server over HTTP: killed, absent, shared, and asked to serve."""

import base64
import json
import os
import pwd
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tracking_run import (
    make_events,
    read_store,
    write_events,
    write_files,
    write_model,
    write_placeholder_model,
)

from automl.errors import AutomlError
from automl.tracking.mlflow_sink import MlflowSink, read_link, sync_run

pytestmark = [
    pytest.mark.slow,
    # MLflow's own use of SQLAlchemy.
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy"),
]
POSTGRES = next(iter(sorted(Path("/usr/lib/postgresql").glob("*/bin"))), None)


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def wait_for(url: str, process: subprocess.Popen, seconds: float = 180) -> None:
    deadline = time.monotonic() + seconds
    while True:
        try:
            urllib.request.urlopen(url, timeout=2).close()
            return
        except OSError:
            assert process.poll() is None, "the server ended by itself"
            assert time.monotonic() < deadline, f"no answer from {url}"
            time.sleep(0.1)


class Server:
    """``mlflow server`` with one worker, on a port that stays the same when it is restarted."""

    def __init__(self, folder: Path, backend: str | None = None) -> None:
        self.folder = folder
        self.backend = backend or f"sqlite:///{folder / 'server.db'}"
        self.port = free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1"]
        command += ["--port", str(self.port), "--workers", "1"]
        command += ["--backend-store-uri", self.backend]
        command += ["--artifacts-destination", str(self.folder / "artifacts")]
        with open(self.folder / "server.log", "ab") as log:
            self.process = subprocess.Popen(
                command,
                stdout=log,
                stderr=log,
                start_new_session=True,
                # Its job runners are seven more processes that nothing here asks for.
                env={
                    **os.environ,
                    "MLFLOW_DISABLE_TELEMETRY": "true",
                    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
                },
            )
        wait_for(f"{self.uri}/health", self.process)

    def kill(self) -> None:
        if self.process is not None and self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


@pytest.fixture(scope="module")
def template(tmp_path_factory) -> Path:
    """A server's database with its tables: making them takes seconds."""
    from automl.tracking.mlflow_store import open_store

    path = tmp_path_factory.mktemp("template") / "server.db"
    open_store(f"sqlite:///{path}")
    return path


@pytest.fixture(scope="module")
def server(tmp_path_factory, template) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    shutil.copy(template, folder / "server.db")
    server = Server(folder)
    server.start()
    yield server
    server.kill()


@pytest.fixture
def mortal(tmp_path, template) -> Iterator[Server]:
    """A server of this test's own, not started."""
    folder = tmp_path / "server"
    folder.mkdir()
    shutil.copy(template, folder / "server.db")
    server = Server(folder)
    yield server
    server.kill()


def make_run(folder: Path, letter: str) -> Path:
    run = folder / f"run-{letter}"
    write_events(run, make_events(run_id=letter * 32))
    write_files(run)
    write_placeholder_model(run)
    return run


def content(uri: str, letter: str) -> dict:
    """What the store holds of the run, comparable between runs with other letters."""
    held = json.loads(json.dumps(read_store(uri, letter * 32)).replace(letter * 32, "RUN"))
    for key in held.keys() - {"models"}:
        # A digest of all the rest, and so of the letter too.
        assert held[key]["tags"].pop("automl.digest")
    return held


@pytest.fixture(scope="module")
def undisturbed(server, tmp_path_factory) -> dict:
    """What an undisturbed server holds of the run that each test sends in its own way."""
    folder = make_run(tmp_path_factory.mktemp("undisturbed"), "a")
    result = sync_run(folder, server.uri, register="undisturbed")
    assert result.created == 18 and result.model_logged and not result.error
    assert result.ui_hint == f"{server.uri}/#/experiments/1/runs/{result.run_id}"
    return content(server.uri, "a")


def test_a_server_that_dies_again_and_again_ends_with_the_same_content(
    mortal, tmp_path, undisturbed
):
    folder = make_run(tmp_path, "b")
    dice = random.Random(0)
    over = threading.Event()
    kills = []

    def torment() -> None:
        """Kill the server at random moments, and start it again."""
        while len(kills) < 4 and not over.wait(dice.uniform(0.1, 1.2)):
            mortal.kill()
            kills.append(time.monotonic())
            mortal.start()

    mortal.start()
    thread = threading.Thread(target=torment)
    thread.start()
    broken = 0
    try:
        while True:
            try:
                sync_run(folder, mortal.uri, register="tormented", patience=0)
                if len(kills) == 4:
                    break
            except AutomlError as error:
                assert "automl sync" in str(error)
                broken += 1
                time.sleep(0.2)
    finally:
        over.set()
        thread.join()
    assert broken >= 2, "the server died between copies only: nothing was tested"
    sync_run(folder, mortal.uri, register="tormented")
    assert content(mortal.uri, "b") == undisturbed


def test_a_server_that_was_absent_gets_the_whole_search_later(mortal, tmp_path, undisturbed):
    folder = tmp_path / "run-c"
    sink = MlflowSink(folder, mortal.uri)
    sink.start()
    write_events(folder, make_events(run_id="c" * 32))
    write_files(folder)
    write_placeholder_model(folder)
    began = time.monotonic()
    result = sink.stop(timeout=6)
    assert result.error and time.monotonic() - began < 8
    assert read_link(folder) is None
    mortal.start()
    assert not sync_run(folder, mortal.uri).error
    assert content(mortal.uri, "c") == undisturbed


def test_two_searches_at_once_share_a_server(server, tmp_path, undisturbed):
    letters = ("1", "e")
    folders = [tmp_path / f"run-{letter}" for letter in letters]
    sinks = [MlflowSink(folder, server.uri) for folder in folders]
    for sink in sinks:
        sink.start()
    events = [make_events(run_id=letter * 32, pid=os.getpid()) for letter in letters]
    for start in range(0, 50, 10):
        for folder, story in zip(folders, events, strict=True):
            write_events(folder, story[start : start + 10 if start < 40 else None])
        time.sleep(1.0)
    for folder in folders:
        write_files(folder)
        write_placeholder_model(folder)
    for sink, letter in zip(sinks, letters, strict=True):
        assert not sink.stop().error
        assert content(server.uri, letter) == undisturbed


def test_a_sink_that_meets_the_death_of_its_server_catches_up(mortal, tmp_path, undisturbed):
    mortal.start()
    folder = tmp_path / "run-f"
    sink = MlflowSink(folder, mortal.uri)
    sink.start()
    events = make_events(run_id="f" * 32, pid=os.getpid())
    write_events(folder, events[:16])
    deadline = time.monotonic() + 30
    while read_link(folder) is None:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    mortal.kill()
    write_events(folder, events[16:])
    write_files(folder)
    write_placeholder_model(folder)
    time.sleep(6)
    mortal.start()
    assert not sink.stop().error
    assert content(mortal.uri, "f") == undisturbed


@pytest.fixture
def postgres(tmp_path) -> Iterator[str]:
    """A PostgreSQL of this test's own; yields the SQLAlchemy URI."""
    if POSTGRES is None:
        pytest.skip("PostgreSQL is not installed (apt-get install postgresql)")
    pytest.importorskip("psycopg2", reason="needs psycopg2-binary")
    # PostgreSQL refuses to run as root.
    user = None
    if os.getuid() == 0:
        try:
            user = pwd.getpwnam("postgres").pw_name
        except KeyError:
            pytest.skip("PostgreSQL will not run as root, and there is no user postgres")
    # pytest's own folders are closed to other users, and a socket's path must be short.
    home = Path(f"/tmp/automl-postgres-{os.getpid()}")
    home.mkdir()
    if user:
        shutil.chown(home, user, user)
    port = free_port()
    data = home / "data"
    run = {"user": user, "group": user, "extra_groups": []} if user else {}
    try:
        subprocess.run(
            [POSTGRES / "initdb", "-D", data, "-U", "automl", "-A", "trust", "--no-sync"],
            check=True, capture_output=True, cwd=home, **run,
        )  # fmt: skip
        process = subprocess.Popen(
            [POSTGRES / "postgres", "-D", data, "-h", "127.0.0.1", "-p", str(port), "-k", home],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=home, **run,
        )  # fmt: skip
        try:
            wait_until_accepting(port, process)
            yield f"postgresql+psycopg2://automl@127.0.0.1:{port}/postgres"
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(timeout=20)
    finally:
        shutil.rmtree(home, ignore_errors=True)


def wait_until_accepting(port: int, process: subprocess.Popen) -> None:
    import psycopg2

    deadline = time.monotonic() + 30
    while True:
        try:
            psycopg2.connect(host="127.0.0.1", port=port, user="automl", dbname="postgres").close()
            return
        except psycopg2.OperationalError:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.1)


def test_a_server_with_postgresql_behind_it_holds_the_same(postgres, tmp_path, undisturbed):
    folder = tmp_path / "server"
    folder.mkdir()
    server = Server(folder, postgres)
    try:
        server.start()
        run = make_run(tmp_path, "2")
        assert sync_run(run, server.uri, register="tumours").version == "1"
        again = sync_run(run, server.uri, register="tumours")
        assert (again.created, again.updated, again.version) == (0, 0, "1")
        assert content(server.uri, "2") == undisturbed
    finally:
        server.kill()


def post(url: str, body: dict) -> list[dict]:
    request = urllib.request.Request(
        url, json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)["predictions"]


def test_mlflow_serves_the_logged_model_with_the_same_probabilities(server, tmp_path):
    """Files as base64 and pixels as arrays answer what the SavedModel answers here."""
    from PIL import Image

    run = tmp_path / "run"
    write_events(run, make_events(run_id="9" * 32, name="served"))
    write_files(run)
    write_model(run)
    result = sync_run(run, server.uri)
    pixels = np.random.default_rng(0).integers(0, 255, (3, 8, 8, 3), dtype=np.uint8)
    pixels[1] //= 4
    files = []
    for number, image in enumerate(pixels):
        Image.fromarray(image).save(tmp_path / f"{number}.png")
        files.append(base64.b64encode((tmp_path / f"{number}.png").read_bytes()).decode())
    expected = pixels.mean(axis=(1, 2, 3)) / 255

    port = free_port()
    command = [sys.executable, "-m", "mlflow", "models", "serve", "--env-manager", "local"]
    command += ["--model-uri", f"models:/{result.model_id}"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    environment = {
        **os.environ,
        # MLflow starts uvicorn by its name.
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "MLFLOW_TRACKING_URI": server.uri,
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }
    with open(tmp_path / "serve.log", "wb") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, env=environment, start_new_session=True, cwd=tmp_path
        )
    url = f"http://127.0.0.1:{port}/invocations"
    try:
        wait_for(f"http://127.0.0.1:{port}/ping", process)
        bodies: list[dict] = [
            {"instances": [{"b64": text} for text in files]},
            {"dataframe_split": {"columns": ["b64"], "data": [[text] for text in files]}},
            {"dataframe_records": [{"b64": text} for text in files]},
            {"instances": [{"pixels": image.tolist()} for image in pixels]},
            {"dataframe_records": [{"pixels": image.tolist()} for image in pixels]},
        ]
        for body in bodies:
            rows = post(url, body)
            found = [row["probability_tumour"] for row in rows]
            np.testing.assert_allclose(found, expected, atol=1e-6, err_msg=next(iter(body)))
            assert [row["label"] for row in rows] == ["tumour", "healthy", "tumour"]
        with pytest.raises(urllib.error.HTTPError) as refused:
            post(url, {"instances": [{"b64": "no picture"}]})
        assert "not a JPEG or PNG" in refused.value.read().decode()
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(timeout=20)


def test_an_artifact_comes_back_as_it_was_sent(server, tmp_path):
    import mlflow

    folder = make_run(tmp_path, "8")
    result = sync_run(folder, server.uri)
    client = mlflow.MlflowClient(server.uri)
    page = client.download_artifacts(result.run_id, "report.html", str(tmp_path))
    assert Path(page).read_bytes() == (folder / "report.html").read_bytes()
    (folder / "report.html").write_text("<h1>A newer report</h1>", encoding="utf-8")
    assert sync_run(folder, server.uri).artifacts == ("report.html",)
