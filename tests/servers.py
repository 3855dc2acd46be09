"""Real MLflow servers, PostgreSQL behind one if it is installed, and ways to disturb them."""

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

POSTGRES = next(iter(sorted(Path("/usr/lib/postgresql").glob("*/bin"))), None)


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def wait_until(condition, seconds: float = 60.0, what: str = "it") -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what} never happened"
        time.sleep(0.1)


def answers(url: str) -> bool:
    try:
        urllib.request.urlopen(url, timeout=2).close()
        return True
    except OSError:
        return False


class Server:
    """``mlflow server`` with one worker, on a port that stays the same when it is restarted.

    With a ``password`` it is MLflow's own that asks for one (``--app-name basic-auth``), of the
    user ann; ``uri`` holds both, ``page`` neither.
    """

    def __init__(
        self, folder: Path, backend: str | None = None, password: str | None = None
    ) -> None:
        self.folder = folder
        self.backend = backend or f"sqlite:///{folder / 'server.db'}"
        self.port = free_port()
        self.page = self.uri = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen | None = None
        self.password = password
        if password:
            self.uri = f"http://ann:{password}@127.0.0.1:{self.port}"
            # The cache because checking a password takes a tenth of a second, at each call.
            (folder / "auth.ini").write_text(
                "[mlflow]\n"
                f"database_uri = sqlite:///{folder / 'auth.db'}\n"
                "admin_username = ann\n"
                "default_permission = READ\n"
                "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
                "auth_cache_ttl_seconds = 600\n",
                encoding="utf-8",
            )

    def start(self) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1"]
        command += ["--port", str(self.port), "--workers", "1"]
        command += ["--backend-store-uri", self.backend]
        command += ["--artifacts-destination", str(self.folder / "artifacts")]
        # Its job runners are seven more processes that nothing here asks for.
        quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        if self.password:
            command += ["--app-name", "basic-auth"]
            quiet |= {
                "MLFLOW_AUTH_CONFIG_PATH": str(self.folder / "auth.ini"),
                "MLFLOW_AUTH_ADMIN_PASSWORD": self.password,
                "MLFLOW_FLASK_SERVER_SECRET_KEY": "of the tests",
            }
        with open(self.folder / "server.log", "ab") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=log, start_new_session=True,
                env={**os.environ, **quiet},
            )  # fmt: skip
        self.wait()

    def wait(self) -> None:
        process = self.process

        def up() -> bool:
            assert process.poll() is None, "the server ended by itself"
            return answers(f"{self.page}/health")

        wait_until(up, 180, f"an answer from {self.page}")

    def kill(self) -> None:
        if self.process is not None and self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


@contextlib.contextmanager
def postgres() -> Iterator[str | None]:
    """A PostgreSQL of our own; yields its SQLAlchemy URI, or None where it cannot be had."""
    # It refuses to run as root; Debian's package brings a user.
    user = None
    if POSTGRES is not None and os.getuid() == 0:
        with contextlib.suppress(KeyError):
            user = pwd.getpwnam("postgres").pw_name
    try:
        import psycopg2
    except ImportError:
        psycopg2 = None
    if POSTGRES is None or psycopg2 is None or (os.getuid() == 0 and user is None):
        yield None
        return
    # pytest's own folders are closed to other users, and a socket's path must be short.
    home = Path(f"/tmp/automl-postgres-{os.getpid()}")
    home.mkdir()
    if user:
        shutil.chown(home, user, user)
    port = free_port()
    data = home / "data"
    who = {"user": user, "group": user, "extra_groups": []} if user else {}
    place = {"cwd": home, **who}
    try:
        subprocess.run(
            [POSTGRES / "initdb", "-D", data, "-U", "automl", "-A", "trust", "--no-sync"],
            check=True, capture_output=True, **place,
        )  # fmt: skip
        process = subprocess.Popen(
            [POSTGRES / "postgres", "-D", data, "-h", "127.0.0.1", "-p", str(port), "-k", home],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **place,
        )  # fmt: skip

        def accepts() -> bool:
            assert process.poll() is None, "PostgreSQL ended by itself"
            with contextlib.suppress(psycopg2.OperationalError):
                options = {"host": "127.0.0.1", "port": port, "user": "automl"}
                psycopg2.connect(dbname="postgres", **options).close()
                return True
            return False

        try:
            wait_until(accepts, 60, "PostgreSQL")
            yield f"postgresql+psycopg2://automl@127.0.0.1:{port}/postgres"
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(timeout=20)
    finally:
        shutil.rmtree(home, ignore_errors=True)
