"""The verdict, the schema, and what is derived from a report before it is drawn."""

import copy
import json

import pytest
import report_fixture

from automl.errors import StorageError
from automl.reporting import formats, view
from automl.reporting.checklist import fill_checklists
from automl.reporting.model_card import make_model_card
from automl.reporting.page import build_report, check_report, complete, read_report
from automl.reporting.verdict import judge

REPORTS = {
    "full": report_fixture.full_report,
    "four_classes": report_fixture.four_class_report,
    "minimal": report_fixture.minimal_report,
}


@pytest.fixture(params=REPORTS)
def parts(request):
    return REPORTS[request.param]()


def condition(report, check):
    conditions = judge(complete(report))["conditions"]
    return next(item for item in conditions if item["check"] == check)


def trustworthy():
    """The full report without its three reservations."""
    report = report_fixture.full_report()
    report["audit"]["shortcuts"]["auc"] = 0.55
    report["dataset"]["group_kind"] = "patients"
    report["search"]["edges"] = []
    return report


def test_a_built_report_satisfies_the_schema_and_survives_json(parts):
    before = copy.deepcopy(parts)
    report = build_report(parts)
    assert parts == before
    assert check_report(json.loads(json.dumps(report, allow_nan=False))) == []


def test_the_schema_names_the_part_that_is_wrong():
    report = report_fixture.full_report()
    report["split"]["leaking_pairs"] = -1
    assert check_report(report) and check_report(report)[0].startswith("$.split.leaking_pairs")
    with pytest.raises(AssertionError, match="leaking_pairs"):
        build_report(report)


def test_everything_in_order_is_a_pass():
    verdict = judge(complete(trustworthy()))
    assert verdict["level"] == "pass"
    assert "All 13 checks passed" in verdict["sentence"]


@pytest.mark.parametrize(
    ("check", "path", "value", "level"),
    [
        ("leaks", "split.leaking_pairs", 3, "fail"),
        ("beats_copying", "baselines.difference_to_1nn.accuracy.low", -0.01, "caution"),
        ("beats_copying", "baselines.difference_to_1nn", None, "caution"),
        ("better_than_chance", "evaluation.test.metrics.roc_auc.low", 0.49, "fail"),
        ("shortcuts", "audit.shortcuts.auc", 0.75, "caution"),
        ("shortcuts", "audit.shortcuts.high", 0.99, "fail"),
        ("precise_enough", "evaluation.test.metrics.recall.low", 0.8, "caution"),
        ("precise_enough", "evaluation.test.metrics.recall.low", 0.5, "fail"),
        ("calibrated", "evaluation.test.metrics.ece.value", 0.08, "caution"),
        ("calibrated", "evaluation.test.metrics.ece.value", 0.3, "fail"),
        ("tested_once", "evaluation.test.test_evaluations", 4, "caution"),
        ("patients_known", "dataset.group_kind", "near-duplicates", "caution"),
        ("inside_the_space", "search.edges", [{"name": "a", "value": 1, "edge": "low"}], "caution"),
        ("trials_completed", "search.failed", 9, "caution"),
        ("pretrained", "run.weights", "none", "caution"),
        ("real_images", "run.synthetic", True, "caution"),
        ("export_equal", "cost.exports.0.parity.max_difference", 0.2, "fail"),
    ],
)
def test_each_condition_changes_the_verdict(check, path, value, level):
    report = trustworthy()
    *way, last = path.split(".")
    place = report
    for key in way:
        place = place[int(key) if key.isdigit() else key]
    if value is None:
        del place[last]
    else:
        place[last] = value
    found = condition(report, check)
    assert found["level"] == level
    assert judge(complete(report))["level"] == level
    anchors = {"baselines", "shortcuts", "failures"}
    assert found["anchor"] in anchors | {anchor for anchor, _ in view.SECTIONS}


def test_a_difference_to_copying_below_zero_fails():
    report = trustworthy()
    report["baselines"]["difference_to_1nn"]["accuracy"] = {
        "value": -0.02,
        "low": -0.05,
        "high": 0.01,
    }
    assert condition(report, "beats_copying")["level"] == "fail"


def test_an_audit_error_is_a_reservation():
    report = trustworthy()
    report["audit"]["findings"][0]["severity"] = "error"
    assert condition(report, "data_sound")["level"] == "caution"


def test_conditions_come_worst_first():
    report = report_fixture.full_report()
    report["split"]["leaking_pairs"] = 3
    levels = [item["level"] for item in judge(complete(report))["conditions"]]
    assert levels == sorted(levels, key=["fail", "caution", "pass"].index)


def test_what_is_absent_is_filled_by_the_shape_of_the_schema():
    report = complete(report_fixture.minimal_report())
    assert report["audit"]["twins"] is None
    assert report["search"]["rows"] == []
    assert report["dataset"]["sizes"] == {}
    assert report["evaluation"]["test"]["curves"] is None


def test_natural_frequencies_are_a_hundred_dots():
    found, alarms = view.natural_groups(complete(report_fixture.full_report()))
    assert (found["count"], found["rest"]) == (95, 5)
    assert found["dots"].count("found") == 95 and len(found["dots"]) == 100
    assert alarms["dots"].count("alarm") == alarms["count"] == 3


def test_the_most_telling_pictures_come_first_and_classes_take_turns():
    names = view.importance_of_picture(complete(report_fixture.full_report()))
    assert names[:2] == ["right_0.jpg", "right_0_heat.jpg"]
    assert names[-2:] == ["grid_0_7.jpg", "grid_1_7.jpg"]
    assert len(names) == len(set(names))


def test_without_authors_claim_has_twenty_filled_and_eight_touched_items():
    report = report_fixture.full_report()
    report["evaluation"]["external"] = [{"name": "other", "metrics": {}}]
    claim, tripod = fill_checklists(complete(report))
    assert claim["counts"] == {"filled": 20, "partly": 8, "author": 0, "missing": 16}
    assert claim["total"] == 44 and tripod["total"] == 27


def test_a_checklist_item_without_its_part_is_printed_as_missing_until_the_author_answers():
    report = report_fixture.full_report()
    report["evaluation"]["robustness"] = []
    report["study"] = {"claim_44": "Grant 17"}
    items = {item["number"]: item for item in fill_checklists(complete(report))[0]["items"]}
    assert items[30]["status"] == "missing"
    assert (items[44]["status"], items[44]["answer"]) == ("author", "Grant 17")


def test_read_report_says_what_is_wrong(tmp_path):
    path = tmp_path / "report.json"
    with pytest.raises(StorageError, match="--resume"):
        read_report(path)
    path.write_text("{")
    with pytest.raises(StorageError, match="not JSON"):
        read_report(path)
    path.write_text("[]")
    with pytest.raises(StorageError, match="not an object"):
        read_report(path)
    path.write_text(json.dumps(report_fixture.full_report()))
    assert read_report(path)["run"]["name"] == "brain-tumor-fast"


def test_percentages_never_round_to_certainty():
    assert formats.percent(0.99981) == ">99.9\u202f%"
    assert formats.percent(0.0002) == "<0.1\u202f%"
    assert (formats.percent(1.0), formats.percent(0.0)) == ("100.0\u202f%", "0.0\u202f%")
    assert formats.percent(None) == formats.interval(None) == "–"


def test_numbers_read_as_people_write_them():
    assert formats.duration(431.2) == "7\u202fmin 11\u202fs"
    assert formats.duration(7500) == "2\u202fh 05\u202fmin"
    assert formats.duration(59.97) == "60.0\u202fs"
    assert formats.size(811_000_000) == "811.0\u202fMB"
    assert formats.large(29_800_000) == "29.8 million"
    assert (
        formats.interval({"value": 0.9916, "low": 0.9862, "high": 0.9958}) == "0.992 (0.986–0.996)"
    )
    assert formats.listing(["a", "b", "c"]) == "“a”, “b” and “c”"


def test_a_page_that_is_passed_on_names_nobodys_folders():
    assert formats.store("http://server:5000") == "http://server:5000"
    for local in ("sqlite:////home/someone/reports/mlflow.db", "/home/someone/mlflow.db"):
        assert formats.store(local) == "mlflow.db on the computer that searched"


def test_the_model_card_has_the_same_numbers_and_neutral_names():
    report = report_fixture.full_report()
    report["run"]["name"] = "a\n---\nevil: 1 <script>alert(1)</script> | [x](javascript:1)"
    card = make_model_card(report)
    head = card.split("---\n")[1]
    assert head.count("\n") == 6 and 'model_name: "a\\n---\\nevil' in card
    assert "<script>" not in card.split("---\n", 2)[2].split("# ", 1)[1]
    assert "| ROC AUC | 0.992 (0.986–0.996) | 0.862 (0.829–0.892) |" in card
