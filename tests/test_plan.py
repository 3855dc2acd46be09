"""What a search is expected to cost, from made-up speeds."""

import math
from types import SimpleNamespace

import pytest
from test_study import make_study

from automl.config import make_config
from automl.errors import SearchError
from automl.search.engine import each
from automl.search.plan import (
    REFINE_START_SECONDS,
    TRIAL_SECONDS,
    Network,
    Speeds,
    describe_schedule,
    estimate_bytes,
    estimate_seconds,
    fit_refinement,
    hang_seconds,
    mean_speeds,
    share_out,
)
from automl.search.worker import MAX_WORKERS, WorkerError, count_workers
from automl.stages import searching

SPEEDS = {1.0: Speeds({0: 0.0, 2: 0.1, 4: 1.0}, {0: 0.0, 2: 0.0, 4: 0.0})}
SHALLOW = {"width": 1.0, "fine_tune_depth": 2}
DEEP = {"width": 1.0, "fine_tune_depth": 4}


def test_an_estimate_adds_up_the_rungs(tmp_path):
    spec = make_study(tmp_path).spec
    # Six training images: an epoch is 0.6 s at depth 2 and 6 s at depth 4.
    seconds = estimate_seconds(SPEEDS, spec, [[(3, 1), (1, 3)]], [[SHALLOW] * 3], workers=1)
    assert seconds == pytest.approx(3 * 0.6 + 2 * 0.6 + 4 * TRIAL_SECONDS)
    mixed = estimate_seconds(SPEEDS, spec, [[(2, 1)]], [[SHALLOW, DEEP]], workers=1)
    assert mixed == pytest.approx(0.6 + 6.0 + 2 * TRIAL_SECONDS)


def test_the_dearest_are_assumed_to_be_promoted(tmp_path):
    spec = make_study(tmp_path).spec
    seconds = estimate_seconds(SPEEDS, spec, [[(2, 1), (1, 3)]], [[SHALLOW, DEEP]], workers=1)
    assert seconds == pytest.approx(0.6 + 6.0 + 2 * 6.0 + 3 * TRIAL_SECONDS)


def test_workers_share_the_work_but_not_one_trial(tmp_path):
    spec = make_study(tmp_path).spec
    alone, two, many = (
        estimate_seconds(SPEEDS, spec, [[(4, 2)]], [[DEEP] * 4], workers=n) for n in (1, 2, 99)
    )
    one = 2 * 6.0 + TRIAL_SECONDS
    assert alone == pytest.approx(4 * one)
    assert two == pytest.approx(alone / 2 + one / 2), "the last one may be alone"
    assert many == pytest.approx(one, rel=0.05), "one trial's own time is the least"


def test_a_trial_is_given_up_only_long_after_its_time(tmp_path):
    spec = make_study(tmp_path).spec
    assert hang_seconds(SPEEDS, spec, [[(3, 1), (1, 3)]]) == 900
    seconds = hang_seconds(SPEEDS, spec, [[(3, 1), (1, 27)]])
    assert seconds == pytest.approx(20 * (27 * 6.0 + TRIAL_SECONDS))
    assert hang_seconds(SPEEDS, spec, [[(3, 1), (1, 3)]], refinement=60.0) == 1200


def test_a_refinement_has_what_it_was_asked_for_or_what_fits_or_none():
    assert fit_refinement(4, math.inf, 50.0) == 4
    assert fit_refinement(9, REFINE_START_SECONDS + 251, 50.0) == 5
    assert fit_refinement(9, REFINE_START_SECONDS + 50, 50.0) == 1
    assert fit_refinement(9, REFINE_START_SECONDS + 49, 50.0) == 0
    assert fit_refinement(9, -1.0, 50.0) == 0


def test_a_short_budget_goes_to_the_refinement_a_long_one_is_shared():
    """20 s for the cheapest schedule, 30 s for an epoch."""
    short, long = (57, 80, 90, 155), (300, 600, 3000)
    epochs = [share_out(left, 20.0, 30.0, 12) for left in short]
    assert epochs == [0, 1, 2, 4]
    assert all(20 + REFINE_START_SECONDS + 30 * n <= s for n, s in zip(epochs, short, strict=True))
    assert [share_out(left, 20.0, 30.0, 12) for left in long] == [5, 11, 12]
    assert share_out(600.0, 20.0, 30.0, 0) == 0, "none was asked for"


def test_bytes_grow_with_views_and_workers(tmp_path):
    spec = make_study(tmp_path).spec
    network = Network("d", {0: (10,), 2: (4, 4, 5)}, {0: 100, 2: 1000})
    bytes_ = estimate_bytes([network], spec, [[(3, 1), (1, 3)]], workers=1)
    assert bytes_["cache"] == 0, "without a folder nothing is kept"
    assert bytes_["checkpoints"] == (3 + 2) * 20 * 1000
    more = estimate_bytes([network], spec, [[(3, 1), (1, 3)]], workers=3)
    assert more["checkpoints"] == (3 + 4) * 20 * 1000


def test_speeds_are_the_mean_over_workers():
    one, other = Speeds({0: 1.0}, {0: 3.0}), Speeds({0: 2.0}, {0: 5.0})
    assert mean_speeds([one, other]) == Speeds({0: 1.5}, {0: 4.0})


def test_speeds_are_remembered_for_the_same_machine_and_network(tmp_path):
    path = tmp_path / "speeds.json"
    network = Network("d", {0: (10,), 2: (4, 4, 5), 4: (4, 4, 5)}, {})
    assert searching.read_speeds(path, "here", network) is None
    searching.write_speeds(path, "there", Speeds({0: 9.0}, {0: 9.0}))
    searching.write_speeds(path, "here", SPEEDS[1.0])
    assert searching.read_speeds(path, "here", network) == SPEEDS[1.0]
    assert searching.read_speeds(path, "there", network) is None, "depths are missing"
    assert searching.read_speeds(None, "here", network) is None
    path.write_text('{"here": {"tra')
    assert searching.read_speeds(path, "here", network) is None, "a torn file is measured anew"
    searching.write_speeds(path, "here", SPEEDS[1.0])
    assert searching.read_speeds(path, "here", network) == SPEEDS[1.0]


def test_each_reaches_every_item_and_tells_the_first_error():
    seen = []
    each(seen.append, range(50))
    assert sorted(seen) == list(range(50))
    with pytest.raises(ZeroDivisionError):
        each(lambda n: 1 // (n - 3), range(5))


def test_workers_by_default_fit_the_machine(monkeypatch):
    monkeypatch.setattr("automl.search.worker.os", SimpleNamespace(cpu_count=lambda: 64))
    assert 1 <= count_workers() <= MAX_WORKERS
    monkeypatch.setattr("automl.search.worker.os", SimpleNamespace(cpu_count=lambda: 1))
    assert count_workers() == 1


def test_a_worker_that_dies_while_it_prepares_is_asked_again():
    tries = []

    def ask(times):
        tries.append(1)
        if len(tries) <= times:
            raise WorkerError("crash", "The worker process ended with signal SIGKILL.")
        return "ready"

    assert searching.insist(ask, 2) == "ready"
    tries.clear()
    with pytest.raises(SearchError, match="SIGKILL"):
        searching.insist(ask, 9)
    assert len(tries) == 3


def test_a_budget_keeps_back_what_follows_the_search_on_this_machine():
    def reserve(budget, images, loading, **settings):
        config = make_config({"data": "x", "budget": budget, **settings})
        return config.budget - searching.share_of_search(config, images, loading)

    quick = {"width": (1.0,), "image_size": 160}
    assert reserve("4m", 0, 3.0, **quick) == 40, "a small data set on an idle machine"
    assert reserve("1h", 400, 3.0, **quick) == 0.15 * 3600
    assert reserve("10m", 480, 14.0, **quick) > 3 * 40, "a busy machine finishes late"
    assert reserve("20m", 20_000, 3.5, **quick) == pytest.approx(40 + 0.016 * 20_000)
    assert reserve("20m", 20_000, 1.0, **quick) == pytest.approx(40 + 0.016 * 20_000)
    assert reserve("1m", 20_000, 14.0, **quick) == 36, "two fifths are searched in any case"


def test_a_plan_says_what_a_budget_is_not_used_for(tmp_path):
    study = make_study(tmp_path)
    description = describe_schedule(study.schedule) | {
        "bytes": {"cache": 0, "checkpoints": 0, "worker": 0}, "workers": 2,
        "training_images": 6, "refine_epochs": 0,
    }  # fmt: skip
    plan = searching.SearchPlan(study, {}, {}, 600.0, 0.0, description)

    def text(budget: str | None) -> str:
        return searching.plan_text(plan, make_config({"budget": budget}))

    assert "about 10 min" in text("45m")
    assert "will not be used" in text("45m")
    assert "will not be used" not in text("15m") and "will not be used" not in text(None)
