"""study.yaml: the authors' answers on the page, in the checklists and on the card."""

import json

import pytest
import report_fixture

from automl.cli import run_command
from automl.config import make_config
from automl.errors import UsageError
from automl.pipeline import run_search, write_report
from automl.reporting import render
from automl.reporting.checklist import GUIDELINES, fill_checklists
from automl.reporting.model_card import make_model_card
from automl.reporting.page import build_report, complete
from automl.reporting.study_file import FIELDS, ITEMS, read_study
from automl.reporting.view import name_classes

TEXT = """
intended_use: >
  to sort scans
  for teaching
population: [adults, one hospital]
ethics: 2024-05-01
claim_18: kappa 0.8
class_names: {0: healthy, 1: tumour}
"""


def write(tmp_path, text):
    (tmp_path / "study.yaml").write_text(text, encoding="utf-8")
    return tmp_path / "study.yaml"


def test_answers_are_one_line_of_text_each(tmp_path):
    assert read_study(write(tmp_path, TEXT), ["0", "1"]) == {
        "intended_use": "to sort scans for teaching",
        "population": "adults; one hospital",
        "ethics": "2024-05-01",
        "claim_18": "kappa 0.8",
        "class_names": {"0": "healthy", "1": "tumour"},
    }
    assert read_study(write(tmp_path, "")) == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("intended_usage: x", "no question 'intended_usage'. Did you mean 'intended_use'"),
        ("claim_45: x", "no question 'claim_45'"),
        ("qqq: x", "Known: intended_use, .* claim_1 to claim_44"),
        ("1: x", "no question 1"),
        ("ethics: yes", "ethics must be text, not True. Put yes"),
        ("ethics: {a: b}", "ethics must be text"),
        ("- a", "one answer a line"),
        ("a: [", "line 2 is not YAML|line 1 is not YAML"),
        ("class_names: tumour", "must name labels"),
        ("class_names: {2: x}", "no label '2' to name. The labels are: 0, 1"),
        ("class_names: {0: x, 1: x}", "a name of its own"),
        ("class_names: {0: '1'}", "a name of its own"),
    ],
)
def test_mistakes_are_named_with_their_way_out(tmp_path, text, message):
    with pytest.raises(UsageError, match=message):
        read_study(write(tmp_path, text), ["0", "1"])


def test_a_file_that_cannot_be_read_is_said_before_anything_is_searched(tmp_path):
    (tmp_path / "study.yaml").write_bytes(b"\xff\xfe\x00")
    for name, message in (("study.yaml", "not text in UTF-8"), ("none.yaml", "No such file")):
        config = make_config(
            {
                "study": str(tmp_path / name),
                "out": str(tmp_path / "out"),
                "cache_dir": str(tmp_path),
            }
        )
        with pytest.raises(UsageError, match=message):
            run_search(config)
    assert not (tmp_path / "out").exists()


def test_every_item_that_is_the_authors_alone_has_a_question():
    asked = {item for field in FIELDS.values() for item in field.items}
    assert asked <= ITEMS
    alone = {
        f"{prefix}_{item[0]}"
        for prefix, items in GUIDELINES.values()
        for item in items
        if item[2] == "author"
    }
    assert alone <= asked


def test_answers_fill_the_items_they_are_for_and_the_items_own_key_wins():
    report = report_fixture.full_report()
    report["study"] = {"limitations": "one site", "claim_40": "two readers"}
    claim, tripod = fill_checklists(complete(report))
    found = {
        (list_["name"], i["number"]): i["answer"]
        for list_ in (claim, tripod)
        for i in list_["items"]
    }
    assert found["CLAIM 2024", 40] == "two readers"
    assert found["TRIPOD+AI 2024", 26] == "one site"
    assert claim["counts"]["author"] == tripod["counts"]["author"] == 1


def test_what_is_absent_is_printed_as_not_provided():
    card = make_model_card(report_fixture.full_report())
    assert "## Intended use\n\nnot provided" in card and "Ethical approval: not provided" in card


def test_labels_get_their_names_everywhere_and_the_report_keeps_the_labels():
    report = report_fixture.full_report()
    report["study"] = {"class_names": {"tumour": "glioma", "no tumour": "none seen"}}
    report = complete(build_report(report))
    shown = name_classes(report)
    shown.pop("verdict")
    text = json.dumps({**shown, "study": {}, "audit": {}})
    assert '"glioma"' in text and '"tumour"' not in text and '"no tumour"' not in text
    assert list(report["dataset"]["classes"]) == ["no tumour", "tumour"]


def test_report_reads_the_answers_anew_and_rewrites_page_and_card(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(render, "draw_figure", lambda figure: "")
    folder = tmp_path / "run"
    folder.mkdir()
    report = report_fixture.full_report()
    outside = {"name": "other", "metrics": {}, "lacking": ["tumour"], "undefined": ["roc_auc"]}
    report["evaluation"]["external"] = [outside]
    write_report(folder, report)
    assert "not provided" in (folder / "model_card.md").read_text()
    write(folder, "intended_use: to sort <b>scans</b>\nclass_names: {tumour: glioma}")
    assert run_command(["report", str(folder)]) == 0
    page, card = (folder / "report.html").read_text(), (folder / "model_card.md").read_text()
    assert "to sort &lt;b&gt;scans&lt;/b&gt;" in page and "<b>scans" not in page
    assert "“glioma”" in page and "is glioma" in page
    assert "It holds no images, or one, of “glioma”: only what is shown can be measured" in page
    assert "to sort \\<b\\>scans" in card and "glioma" in card
    assert json.loads((folder / "report.json").read_text())["study"]["intended_use"]
    write(folder, "intended_usage: x")
    assert run_command(["report", str(folder)]) == 2
    assert "Did you mean 'intended_use'" in capsys.readouterr().err
