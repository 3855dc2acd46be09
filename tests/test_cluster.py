"""A cluster's workers: what they share, what they keep, and that a search survives losing them."""

import hashlib
import importlib.util
import os
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from test_pipeline import QUICK, write_scans
from test_study import make_study

from automl.errors import ClusterError, StorageError, UsageError, WeightsError
from automl.search import host
from automl.search.spec import PixelSource

ROOT = Path(__file__).parents[1]


@pytest.fixture
def pixels(tmp_path):
    """The driver's file: 4 images of 8×8."""
    path = tmp_path / "driver" / "pixels.npy"
    path.parent.mkdir()
    np.save(path, np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3)).astype(np.uint8))
    return PixelSource(path, (4, 8, 8, 3), "d" * 64)


def question(pixels: PixelSource) -> host.Question:
    run = pixels.path.parent / "config.yaml"
    run.write_text("seed: 0\n")
    return host.Question(pixels, host.Mark.of(pixels.path), pixels.path.parent, host.Mark.of(run))


def send(pixels: PixelSource, data: bytes, upload: str = "u", digest: str | None = None) -> None:
    for offset in range(0, len(data), 100):
        host.receive_pixels(pixels, upload, offset, data[offset : offset + 100])
    host.accept_pixels(pixels, upload, digest or hashlib.sha256(data).hexdigest())


def test_a_worker_that_sees_the_drivers_files_makes_none_of_its_own(pixels):
    report = host.examine(question(pixels))
    assert report["shares_cache"] and report["shares_run"] and report["has_pixels"]


def test_a_file_of_the_same_name_is_not_taken_for_the_drivers(pixels):
    asked = question(pixels)
    os.utime(pixels.path, (1, 1))
    os.utime(asked.run.path, (1, 1))
    report = host.examine(asked)
    assert not report["shares_cache"] and not report["shares_run"]


def test_a_worker_apart_keeps_the_pixels_that_it_is_sent(pixels, tmp_path, monkeypatch):
    monkeypatch.setenv(host.CACHE_VARIABLE, str(tmp_path / "own"))
    asked = question(pixels)
    before = host.examine(asked)
    assert not before["shares_cache"] and not before["has_pixels"]
    # The torn rest of an earlier attempt is cleared away.
    host.receive_pixels(pixels, "old", 0, b"half")
    send(pixels, pixels.path.read_bytes())
    after = host.examine(asked)
    assert after["has_pixels"] and after["folder"] == before["folder"]
    copy = replace(pixels, path=host.pixels_path(pixels))
    np.testing.assert_array_equal(copy.open(), pixels.open())
    assert [path.suffix for path in copy.path.parent.iterdir()].count(".part") == 0


def test_pixels_that_were_altered_on_the_way_are_refused(pixels, tmp_path, monkeypatch):
    monkeypatch.setenv(host.CACHE_VARIABLE, str(tmp_path / "own"))
    asked = question(pixels)
    host.examine(asked)
    with pytest.raises(StorageError, match="not received as it was sent"):
        send(pixels, pixels.path.read_bytes(), digest="0" * 64)
    assert not host.examine(asked)["has_pixels"]


def test_a_worker_without_room_says_which_folder(pixels, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(host.CACHE_VARIABLE, str(tmp_path / "file"))
    with pytest.raises(StorageError, match=r"file cannot be written.*AUTOML_WORKER_CACHE"):
        host.examine(question(pixels))


def test_workers_that_start_together_agree_on_their_folders_id(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        ids = set(pool.map(host.identify_folder, [tmp_path / "own"] * 32))
    assert len(ids) == 1 and len(ids.pop()) == 32


def test_a_worker_that_differs_is_refused_with_every_difference():
    host.check_versions(host.versions())
    other = host.versions() | {"keras": "2.15.0", "code": "0" * 12}
    with pytest.raises(ClusterError, match=r"keras 2\.15\.0 \(here .*code 000000000000 \(here"):
        host.check_versions(other)
    with pytest.raises(ClusterError, match="TensorFlow is not installed there"):
        host.check_versions(host.versions() | {"tensorflow": None})


def test_a_search_says_which_package_a_cluster_needs(monkeypatch, tmp_path):
    from automl.config import make_config
    from automl.pipeline import make_pool

    monkeypatch.setitem(sys.modules, "automl.search.cluster", None)
    config = make_config({"scheduler": "tcp://nowhere:1"})
    with pytest.raises(UsageError, match=r"pip install 'automl\[distributed\]'"):
        make_pool(config, None, tmp_path, None, tmp_path / "log", None)


# With real schedulers, workers and searches.


def load_benchmark():
    """benchmarks/cluster.py, of which the search below is the short version."""
    pytest.importorskip("distributed", reason="needs the extra distributed")
    spec = importlib.util.spec_from_file_location("bench", ROOT / "benchmarks" / "cluster.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def bench():
    return load_benchmark()


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cluster")
    write_scans(folder / "scans")
    return folder


@pytest.fixture(scope="module")
def cluster(bench, work):
    """Two workers; one begins on the driver's folders, both are later apart."""
    cluster = bench.Cluster(work / "cluster", bench.Here(work), workers=1)
    cluster.net = bench.Here(work, apart=True)
    cluster.workers.append(None)
    yield cluster
    cluster.close()


def search(bench, work, name, *extra):
    words = [sys.executable, str(ROOT / "run_search.py"), "--data", str(work / "scans"), *QUICK]
    words += ["--out", str(work / "out"), "--cache-dir", str(work / "cache"), "--name", name]
    words += ["--max-epochs", "3", "--factor", "3"]
    return bench.Search([*words, *extra], work / "out" / name)


def wait_for(bench, running, started: int) -> None:
    while running.running() and bench.count(running.run, "trial_started") < started:
        time.sleep(0.1)


def trial_processes(bench, cluster) -> list[int]:
    return [child for worker in cluster.workers for child in bench.children(worker.pid)]


@pytest.mark.slow
def test_ctrl_c_ends_the_trials_of_the_cluster_too(bench, work, cluster):
    running = search(bench, work, "stopped", "--scheduler", cluster.address, "--max-epochs", "81")
    wait_for(bench, running, 2)
    assert trial_processes(bench, cluster)
    running.process.send_signal(signal.SIGINT)
    assert running.process.wait(30) == 130
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and trial_processes(bench, cluster):
        time.sleep(0.1)
    assert not trial_processes(bench, cluster)
    assert all(worker.poll() is None for worker in cluster.workers), "workers stay for others"


@pytest.mark.slow
def test_a_cluster_that_is_killed_and_restarted_finds_what_one_worker_finds(bench, work, cluster):
    one = search(bench, work, "one", "--workers", "1", "--threads", "1")
    one.finish()
    expected = bench.trials(one.run)
    assert len(expected) == 7, "six rungs and the refinement"
    many = search(bench, work, "many", "--scheduler", cluster.address)
    wait_for(bench, many, 2)
    cluster.kill_worker(0)
    cluster.kill_trial(1)
    wait_for(bench, many, 4)
    cluster.restart_scheduler(1.0)
    many.finish()
    assert bench.trials(many.run) == expected
    ended = [e["trial"] for e in bench.events(many.run) if e["event"] == "trial_ended"]
    assert sorted(ended) == sorted(set(ended))
    assert list((many.run / "checkpoints").glob("*.npz"))
    assert list((work / "cluster" / "worker1" / "cache").glob("scans/*/pixels.npy"))


# The pool alone, on a real cluster inside this process; the calls are stand-ins for trials.


@pytest.fixture
def open_pool(bench, pixels, tmp_path, monkeypatch):
    """A function: pool for ``run(parcel, name of the worker)`` on two workers, and what it said."""
    import distributed

    from automl.search import cluster

    # Not this machine's own cache, should the driver's not be seen.
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    local = distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=False, protocol="tcp", dashboard_address=":0"
    )
    pools, said = [], []

    def open_it(run):
        def stand_in(parcel, folder, is_wanted, listener):
            return run(parcel, str(distributed.get_worker().name))

        monkeypatch.setattr(host, "run_parcel", stand_in)
        pool = cluster.ClusterPool(
            local.scheduler_address, pixels, pixels.path.parent, None, say=said.append
        )
        deadline = time.monotonic() + 30
        while pool.size < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        pools.append(pool)
        return pool, said

    yield open_it
    for pool in pools:
        pool.shutdown()
    local.close()


def call(pool, pixels, word):
    spec = replace(make_study(pixels.path.parent).spec, pixels=pixels)
    return pool.submit(call, spec, word)


@pytest.mark.slow
def test_a_slow_workers_trial_is_given_to_an_idle_one_too(open_pool, pixels, monkeypatch):
    from automl.search import cluster

    monkeypatch.setattr(cluster, "BACKUP_SECONDS", 0.5)
    released, began = threading.Event(), []

    def run(parcel, name):
        began.append((parcel.arguments[0], name))
        if parcel.arguments[0] == "slow" and len(began) == 3:
            released.wait(60)
        return host.Reply(name)

    pool, _ = open_pool(run)
    assert {call(pool, pixels, "quick").result(30), call(pool, pixels, "quick").result(30)}
    answer = call(pool, pixels, "slow").result(30)
    released.set()
    first, second = (name for word, name in began if word == "slow")
    assert answer == second != first


@pytest.mark.slow
def test_a_worker_without_weights_gets_no_more_trials(open_pool, pixels):
    def run(parcel, name):
        broken = name == "0" or parcel.arguments[0] == "everywhere"
        return host.Reply(error=WeightsError("No weights here.")) if broken else host.Reply(name)

    pool, said = open_pool(run)
    answers = [call(pool, pixels, "here") for _ in range(4)]
    assert [answer.result(30) for answer in answers] == ["1"] * 4
    assert pool.size == 1
    assert len(said) == 1 and "gets no trials. No weights here." in said[0]
    with pytest.raises(ClusterError, match=r"No worker .* can run trials.*No weights here"):
        call(pool, pixels, "everywhere").result(30)


@pytest.mark.slow
def test_a_scheduler_that_does_not_answer_is_said_so(bench, pixels, monkeypatch):
    from automl.search import cluster, dask_link

    monkeypatch.setattr(dask_link, "CONNECT_SECONDS", 1.0)
    for address in ("tcp://127.0.0.1:9", "nonsense", str(pixels.path.parent / "none.json")):
        with pytest.raises(ClusterError, match=f"No Dask scheduler answers at {address}: ..."):
            cluster.ClusterPool(address, pixels, pixels.path.parent, None, say=print)
