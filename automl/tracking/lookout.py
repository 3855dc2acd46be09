"""Whether a server answers, found out without MLflow and without anybody waiting for it.

MLflow waits for minutes for a server that is not there, and takes 1.7 s to be imported
before it can. One small request here costs a millisecond of processor time.
"""

import contextlib
import http.client
import socket
import ssl
import threading
import time
import urllib.request
from urllib.parse import urlsplit

from automl.errors import UsageError
from automl.tracking.replay import redact

# Seconds until a server counts as one that does not answer.
PATIENCE = 5.0
# Seconds between two questions; after each without an answer twice as long.
INTERVAL, LONGEST_INTERVAL = 5.0, 300.0
# Seconds for which it is believed that nobody answers, and for which an answer is waited for then:
# enough for one who has come back to say so.
RECENT, GLANCE = 20.0, 0.2
PORTS = {"http": 80, "https": 443, "postgresql": 5432, "mysql": 3306, "mssql": 1433}


def check_uri(uri: str) -> str:
    """``uri``, if it can be one of a store.

    Raises:
        UsageError: it is a folder, or cannot be read.
    """
    try:
        parts = urlsplit(uri)
        _ = parts.port
    except ValueError:
        raise UsageError(
            f"The MLflow address {redact(uri)} cannot be read. Write it as http://HOST:PORT or "
            "sqlite:////absolute/path/mlflow.db. What is not a letter or digit in a user or "
            "password must be percent-encoded, such as %2F for a slash; or give them in "
            "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD."
        ) from None
    if parts.scheme in ("", "file"):
        raise UsageError(
            f"--tracking-uri {redact(uri)} is a folder, which MLflow no longer writes to. Use a "
            "server (http://127.0.0.1:5000) or a database (sqlite:////absolute/path/mlflow.db)."
        )
    if parts.username == "***" and parts.scheme not in ("http", "https"):
        raise UsageError(
            f"The user and password of {uri} were not kept. Give the whole address again, with "
            "--tracking-uri or in MLFLOW_TRACKING_URI."
        )
    return uri


def probe(uri: str, timeout: float = PATIENCE) -> str:
    """Why the store at ``uri`` cannot be reached, in one sentence; "" if it answers.

    Any answer counts that is not a server's own failure: what a store says to a user without
    a password is between it and MLflow, which sends one. No password is sent from here.
    """
    parts = urlsplit(uri)
    host, kind = parts.hostname, parts.scheme.partition("+")[0]
    port = parts.port or PORTS.get(kind)
    if not host or not port:
        return ""  # a file, or an address that only MLflow understands
    try:
        if kind not in ("http", "https"):
            socket.create_connection((host, port), timeout).close()
            return ""
        if kind in urllib.request.getproxies() and not urllib.request.proxy_bypass(host):
            return ""  # only the proxy can tell
        status = _ask_health(kind, host, port, parts.path, timeout)
    except TimeoutError:
        return f"no answer within {timeout:g} s."
    except ConnectionRefusedError:
        return "nothing listens there (connection refused)."
    except (OSError, http.client.HTTPException) as error:
        return f"no answer ({getattr(error, 'strerror', None) or type(error).__name__})."
    return f"it answers with the error {status}." if status >= 500 else ""


def _ask_health(kind: str, host: str, port: int, path: str, timeout: float) -> int:
    connection: http.client.HTTPConnection
    if kind == "https":
        # Whether the certificate can be trusted is MLflow's to decide, which has settings for it.
        trusting = ssl._create_unverified_context()
        connection = http.client.HTTPSConnection(host, port, timeout=timeout, context=trusting)
    else:
        connection = http.client.HTTPConnection(host, port, timeout=timeout)
    with contextlib.closing(connection):
        connection.request("GET", path.rstrip("/") + "/health")
        return connection.getresponse().status


class Lookout(threading.Thread):
    """Asks again and again; ``problem`` is None until the first reply, then as of ``probe``.

    A thread, because even a name can take longer to look up than anybody should wait.
    """

    def __init__(self, uri: str) -> None:
        super().__init__(daemon=True)
        self.uri = uri
        self.problem: str | None = None
        self._replies, self._replied = 0, -RECENT
        self._longest = LONGEST_INTERVAL
        self._told = threading.Condition()
        self._ask = threading.Event()

    def run(self) -> None:
        pause = INTERVAL
        while True:
            problem = probe(self.uri)
            with self._told:
                self.problem = problem
                self._replies, self._replied = self._replies + 1, time.monotonic()
                self._told.notify_all()
            self._ask.wait(min(pause, self._longest))
            pause = min(2 * pause, LONGEST_INTERVAL) if problem else INTERVAL
            self._ask.clear()

    def hurry(self) -> None:
        """Ask at once and often from here on: somebody will soon want the last word."""
        self._longest = INTERVAL
        self._ask.set()

    def last_word(self, seconds: float) -> str:
        """The problem now; a store that did not answer is asked again, for ``seconds`` at most.

        One that gave no answer a moment ago is hardly waited for.
        """
        with self._told:
            if self.problem != "":
                if self.problem and time.monotonic() - self._replied < RECENT:
                    seconds = min(seconds, GLANCE)
                before = self._replies
                self._ask.set()
                self._told.wait_for(lambda: self._replies > before, seconds)
            return "it has not answered yet." if self.problem is None else self.problem
