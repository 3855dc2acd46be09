"""Kaggle data sets through the real kagglehub, against a real server that stands in for Kaggle."""

import io
import json
import socket
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from automl.config import SearchConfig
from automl.data.kaggle import download_dataset
from automl.data.sources import load_dataset
from automl.errors import AutomlError, UsageError

pytest.importorskip("kagglehub")
# Where kagglehub looks with KAGGLE_API_ENVIRONMENT=TEST; it offers no other address.
PORT = 7777


class Kaggle(BaseHTTPRequestHandler):
    """Two calls of Kaggle's API: the current version, and the archive."""

    archive = b""
    asked: list[str]

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        call = self.path.rsplit("/", 1)[-1]
        self.asked.append(call)
        status = {"absent": 404, "private": 403, "down": 503}.get(body["datasetSlug"], 200)
        if status != 200:
            self.answer(status, "application/json", b'{"code": %d, "message": "no"}' % status)
        elif call == "GetDataset":
            self.answer(200, "application/json", b'{"currentVersionNumber": 3}')
        else:
            self.answer(200, "application/zip", self.archive)

    def answer(self, status, kind, data):
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


@pytest.fixture
def kaggle(monkeypatch, tmp_path):
    """kagglehub with a cache of its own, and a server that ends when asked to."""
    monkeypatch.setenv("KAGGLE_API_ENVIRONMENT", "TEST")
    monkeypatch.setenv("KAGGLEHUB_CACHE", str(tmp_path / "kagglehub"))
    monkeypatch.setenv("KAGGLE_CONFIG_DIR", str(tmp_path))
    monkeypatch.setenv("NO_PROXY", "localhost")
    for name in ("KAGGLE_USERNAME", "KAGGLE_KEY", "KAGGLE_API_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    handler = type("Handler", (Kaggle,), {"asked": []})
    try:
        server = ThreadingHTTPServer(("localhost", PORT), handler)
    except OSError:
        pytest.skip(f"port {PORT} is taken")
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    handler.stop = lambda: (server.shutdown(), server.server_close(), thread.join())
    yield handler
    if thread.is_alive():
        handler.stop()


def pack(folder: Path) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for path in sorted(folder.rglob("*.png")):
            archive.write(path, f"Brain Tumor/{path.relative_to(folder)}")
    return buffer.getvalue()


def test_a_data_set_is_downloaded_once_and_read(kaggle, class_folders, capsys):
    kaggle.archive = pack(class_folders)
    config = SearchConfig(data="kaggle:owner/brain-tumor")
    dataset = load_dataset(config)
    assert len(dataset.samples) == 24 and dataset.classes == ("healthy", "tumour")
    assert dataset.name == "brain-tumor"
    assert load_dataset(config).samples == dataset.samples
    assert kaggle.asked == ["GetDataset", "DownloadDataset", "GetDataset"]
    assert capsys.readouterr().out == "", "standard output is for results"
    kaggle.stop()
    with pytest.raises(
        AutomlError, match=r"cannot be reached.*kaggle:owner/brain-tumor/versions/3"
    ):
        load_dataset(config)
    again = load_dataset(SearchConfig(data="kaggle:owner/brain-tumor/versions/3"))
    assert again.samples == dataset.samples


@pytest.mark.parametrize(
    ("name", "error", "words"),
    [
        ("absent", UsageError, "no data set owner/absent"),
        ("private", AutomlError, "KAGGLE_USERNAME and KAGGLE_KEY"),
        ("down", AutomlError, "answered 503"),
    ],
)
def test_what_kaggle_refuses_is_explained(kaggle, name, error, words):
    with pytest.raises(error, match=words) as caught:
        download_dataset(f"kaggle:owner/{name}")
    assert type(caught.value) is error


def test_an_archive_that_is_none_is_an_error_and_not_kept(kaggle):
    kaggle.archive = b"PK\x03\x04 cut off"
    for _ in range(2):
        with pytest.raises(AutomlError, match="did not deliver owner/broken"):
            download_dataset("kaggle:owner/broken")
    assert kaggle.asked.count("DownloadDataset") == 2


def test_without_a_network_the_way_by_hand_is_named(kaggle):
    kaggle.stop()
    with socket.socket() as probe:
        assert probe.connect_ex(("localhost", PORT)) != 0
    with pytest.raises(AutomlError, match=r"cannot be reached.*download it by hand"):
        download_dataset("kaggle:owner/brain-tumor")
