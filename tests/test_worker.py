"""Workers die; the pool does not."""

import os
import signal
import time

import pytest

from automl.search.spec import TrialError
from automl.search.worker import WorkerError, WorkerPool, notify

pytestmark = pytest.mark.slow


def pid() -> int:
    return os.getpid()


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def fail() -> None:
    raise TrialError("nan", "the loss was NaN")


def hang() -> None:
    time.sleep(60)


def tell() -> int:
    notify("progress", "counting", 1, 2)
    return 7


@pytest.fixture
def pool(tmp_path, monkeypatch):
    # The worker imports this module to find the functions.
    monkeypatch.setenv("PYTHONPATH", os.path.dirname(__file__))
    heard = []
    pool = WorkerPool(1, tmp_path / "worker.log", lambda *message: heard.append(message))
    pool.heard = heard
    yield pool
    pool.shutdown()


def test_a_pool_survives_crashes_errors_and_hangs(pool):
    first = pool.submit(pid).result()
    assert first != os.getpid()
    assert pool.submit(pid).result() == first, "one process serves many tasks"
    with pytest.raises(WorkerError) as crash:
        pool.submit(die).result()
    assert crash.value.reason == "crash"
    assert "SIGKILL" in crash.value.message
    second = pool.submit(pid).result()
    assert second != first
    with pytest.raises(TrialError) as failure:
        pool.submit(fail).result()
    assert (failure.value.reason, failure.value.message) == ("nan", "the loss was NaN")
    assert pool.submit(pid).result() == second, "an exception does not cost the process"
    assert pool.submit(tell).result() == 7
    assert pool.heard == [("progress", "counting", 1, 2)]
    pool.timeout = 1.0
    with pytest.raises(WorkerError) as hanging:
        pool.submit(hang).result()
    assert hanging.value.reason == "timeout"


def test_workers_end_with_the_pool_even_in_the_middle_of_a_task(pool):
    worker = pool.submit(pid).result()
    future = pool.submit(hang)
    time.sleep(0.3)
    pool.shutdown()
    with pytest.raises(WorkerError):
        future.result()
    with pytest.raises(ProcessLookupError):
        os.kill(worker, 0)
