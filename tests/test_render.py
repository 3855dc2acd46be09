"""report.html as a file: whole, repeatable, small, closed, and true to report.json."""

import base64
import copy
import csv
import hashlib
import html
import json
import re
import time
from datetime import UTC, datetime
from html.parser import HTMLParser

import pytest
import report_fixture

from automl.errors import StorageError, UsageError
from automl.reporting import formats, render
from automl.reporting.compare import compare_runs, write_index
from automl.reporting.model_card import make_model_card
from automl.reporting.page import build_report, read_schema

NOON = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
REPORTS = {
    "full": report_fixture.full_report,
    "four_classes": report_fixture.four_class_report,
    "minimal": report_fixture.minimal_report,
}
VOID = {"meta", "link", "img", "input", "br"}


class Page(HTMLParser):
    """The parts of a page that the tests ask for; also checks that tags are closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open, self.ids, self.links, self.sources, self.marked = [], [], [], [], {}
        self.text, self.images_without_alt, self.attributes = [], 0, []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        named = dict(attributes)
        self.attributes += [name for name, _ in attributes]
        if tag not in VOID:
            self.open.append((tag, named))
        self.ids += [named["id"]] if "id" in named else []
        self.links += [named["href"]] if tag == "a" else []
        self.sources += [named[key] for key in ("src", "srcset", "poster", "data") if key in named]
        self.images_without_alt += tag == "img" and not named.get("alt")

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        if self.open and self.open[-1][0] not in ("style", "script"):
            self.text.append(data)
            if "data-report" in self.open[-1][1]:
                self.marked[self.open[-1][1]["data-report"]] = data.strip()


def rendered(tmp_path, name="full"):
    report = build_report(REPORTS[name]())
    report_fixture.draw_pictures(tmp_path, report)
    return report, render.render_report(report, tmp_path, NOON).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    folder = tmp_path_factory.mktemp("full")
    report, text = rendered(folder)
    return report, text, Page(text), folder


@pytest.mark.parametrize(
    ("score", "loss", "used", "text"),
    [
        (0.99, 0.11, True, "goes on from trial 8, the best of the schedule (0.9800), for 2 epochs"),
        (
            0.97,
            0.09,
            True,
            "validation was 0.100 before and 0.090 after. It would not have been used",
        ),
        (0.97, 0.11, False, "reached 0.9700 on validation (before: 0.9800) with a loss of 0.110"),
        (None, None, False, "failed (trial 9) and was not used"),
    ],
)
def test_the_winner_says_what_became_of_its_refinement(score, loss, used, text, tmp_path):
    report = report_fixture.full_report()
    report["search"]["refinement"] = {
        "number": 9, "parent": 8, "epochs": 2, "score": score, "score_before": 0.98,
        "loss": loss, "loss_before": 0.1, "seconds": 3.0, "used": used,
    }  # fmt: skip
    page, card = fill_without_figures(report, tmp_path), make_model_card(report)
    assert text in page
    assert ("<dd>7, until the refinement" in page) == used
    assert ("- fine tune depth: 7, until the refinement" in card) == used
    plain = fill_without_figures(report_fixture.full_report(), tmp_path)
    assert 'id="refinement"' not in plain


@pytest.mark.parametrize(("count", "said"), [(1, False), (2, True)])
def test_one_configuration_is_not_called_a_search(count, said, tmp_path):
    report = report_fixture.full_report()
    report["search"]["configurations"] = count
    page, card = fill_without_figures(report, tmp_path), make_model_card(report)
    assert ("Hyperband: <span" in page) == ("found by a Hyperband search" in card) == said
    assert ("compared with no other" in page) == ("compared with no other" in card) != said


@pytest.mark.slow
@pytest.mark.parametrize("name", REPORTS)
def test_every_kind_of_report_renders_into_a_well_formed_page(name, tmp_path):
    _, text = rendered(tmp_path, name)
    page = Page(text)
    assert len(page.ids) == len(set(page.ids))
    assert {link[1:] for link in page.links} <= set(page.ids)
    assert page.images_without_alt == 0


def test_every_optional_part_may_be_absent_by_itself(tmp_path):
    full = report_fixture.full_report()
    for part in ("audit", "search", "evaluation", "dataset", "split", "cost", "run"):
        required = read_schema()["properties"][part].get("required", [])
        for key in set(full[part]) - set(required):
            report = report_fixture.full_report()
            del report[part][key]
            # Drawing is not what is tested here, and takes most of the time.
            text = fill_without_figures(report, tmp_path)
            assert "Reproduce" in text, f"{part}.{key}"


def fill_without_figures(report, folder):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(render, "draw_figure", lambda figure: "")
        return render.render_report(build_report(report), folder, NOON).read_text()


def test_rendering_twice_gives_the_same_bytes_but_for_the_timestamp(full):
    report, first, _, folder = full
    later = render.render_report(report, folder, datetime(2030, 1, 1, tzinfo=UTC)).read_text()
    different = [
        pair
        for pair in zip(first.splitlines(), later.splitlines(), strict=True)
        if pair[0] != pair[1]
    ]
    assert len(different) == 1 and "2030-01-01 00:00 UTC" in different[0][1]


def test_the_page_is_small_and_its_script_is_smaller(full):
    text = full[1]
    # With as many pictures as it takes in, which base64 makes larger by a third.
    words = re.sub(r'src="data:image[^"]+"', "", text)
    assert len(words.encode()) + render.PICTURE_BYTES * 4 / 3 < 2_000_000
    script = re.search(r"<script>(.*?)</script>", text, re.S)[1]
    assert len(script.encode()) < 15_000


def test_the_policy_allows_our_style_and_script_and_nothing_else(full):
    _, text, page, _ = full
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', text)[1].replace("&#39;", "'")
    assert policy.startswith("default-src 'none'; img-src data:;") and "unsafe" not in policy
    for tag in ("style", "script"):
        body = re.search(rf"<{tag}>(.*?)</{tag}>", text, re.S)[1]
        digest = base64.b64encode(hashlib.sha256(body.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    assert not [name for name in page.attributes if name.startswith("on") or name == "style"]


def test_nothing_on_the_page_is_fetched(full):
    _, text, page, _ = full
    assert all(source.startswith("data:image/") for source in page.sources)
    assert all(link.startswith("#") for link in page.links)
    assert not re.search(r"@import|url\((?!#)", text)


def test_marked_numbers_are_those_of_report_json(full):
    report, _, page, _ = full
    assert len(page.marked) >= 10
    for path, shown in page.marked.items():
        value = report
        for key in path.split("."):
            value = value[key]
        digits = len(shown.partition(".")[2])
        assert float(shown.replace(",", "")) == pytest.approx(round(value, digits), abs=1e-9), path


NUMBER = r"\d+(?:,\d{3})*(?:\.\d+)?"


def leaves(value):
    if isinstance(value, dict):
        yield from (leaf for item in value.items() for part in item for leaf in leaves(part))
    elif isinstance(value, list):
        yield len(value)
        yield from (leaf for item in value for leaf in leaves(item))
    elif value is not None and not isinstance(value, bool):
        yield value


def spellings(value):
    """Every way in which the page may write a text or number of report.json."""
    if isinstance(value, str):
        return {value}
    ways = {formats.brief(value), formats.duration(value), formats.size(value), str(round(value))}
    ways |= {formats.megabytes(value), formats.large(value), formats.scientific(value)}
    ways |= {formats.number(value, digits) for digits in range(5)}
    ways |= {formats.number(float(value), 0), formats.points(value)}
    return ways | {formats.percent(value, digits) for digits in (0, 1)}


def numbers_without_source(report, text):
    """Numbers in the page's words and tables that neither report.json nor a template holds."""
    test = report["evaluation"]["test"]
    counted = [{len(report["dataset"]["classes"])}]
    for row in test["confusion"]:
        counted.append({sum(row), *(count / sum(row) for count in row)})
    natural = report["evaluation"]["natural"].values()
    counted.append({100 - round(item["value"]) for item in natural})
    # What the checklists count, and items' numbers.
    counted.append(set(range(1, 45)))
    known = {text for value in leaves(report) for text in spellings(value)}
    known |= {text for values in counted for value in values for text in spellings(value)}
    sources = [path.read_text() for path in (render.PACKAGE.parent / "templates").glob("*.html")]
    known |= {re.sub(r"{{.*?}}|{%.*?%}", " ", source) for source in sources}
    known |= set(formats.METRIC_NAMES.values()) | set(formats.BASELINE_NAMES.values())
    known.add("TRIPOD+AI 2024, CLAIM 2024, ROC AUC 0.5, 95 %, 255, 100, F1, 1-NN")
    allowed = {found for part in known for found in re.findall(NUMBER, part)}
    return sorted(set(re.findall(NUMBER, text)) - allowed)


def test_every_number_on_the_page_is_in_report_json(full):
    report, text, _, _ = full
    main = text[text.index("<main") : text.index("<footer>")]
    main = re.sub(r"<svg.*?</svg>", " ", main, flags=re.S)
    words = html.unescape(re.sub(r"<[^>]+>", " ", main))
    assert len(re.findall(NUMBER, words)) > 1500
    assert numbers_without_source(report, words) == []
    # Without the curves, whose tables are folded away: few enough numbers that one can be missed.
    folded = re.sub(r"<details>.*?</details>", " ", main, flags=re.S)
    words = html.unescape(re.sub(r"<[^>]+>", " ", folded))
    plain = copy.deepcopy(report)
    for key in ("roc", "pr"):
        plain["evaluation"]["test"]["curves"][key] = None
    plain["evaluation"]["decision_curve"] = plain["search"]["curves"] = []
    assert numbers_without_source(plain, words) == []
    for item in plain["evaluation"]["test"]["metrics"].values():
        item["value"] += 0.0317
    assert "0.104" in numbers_without_source(plain, words)


def test_every_metric_with_its_interval_is_on_the_page(full):
    report, _, page, _ = full
    words = " ".join(page.text)
    for name, item in report["evaluation"]["test"]["metrics"].items():
        assert f"{item['value']:.3f}" in words, name
        assert f"{item['low']:.3f}–{item['high']:.3f}" in words, name
    for row in report["search"]["rows"]:
        if row["score"] is not None:
            assert f"{row['score']:.4f}" in words
    for row in report["evaluation"]["test"]["confusion"]:
        assert all(str(count) in words for count in row)


def test_every_verdict_condition_is_printed_with_a_link_that_leads_somewhere(full):
    report, _, page, _ = full
    words = " ".join(page.text)
    for condition in report["verdict"]["conditions"]:
        assert condition["text"] in words
        assert f"#{condition['anchor']}" in page.links


def test_synthetic_images_and_random_weights_are_said_at_the_top(tmp_path):
    _, text = rendered(tmp_path, "minimal")
    head = text[: text.index("<h1>")]
    assert "Synthetic drawn heads" in head and "Demonstration" in head


def test_missing_pictures_and_foreign_names_are_said_not_followed(tmp_path):
    report = report_fixture.full_report()
    (tmp_path / "pictures").mkdir()
    (tmp_path / "secret.jpg").write_bytes(b"secret")
    report["evaluation"]["mistakes"][0]["picture"] = "../secret.jpg"
    text = fill_without_figures(report, tmp_path)
    assert base64.b64encode(b"secret").decode() not in text
    assert "picture not kept" in text


def test_too_many_pictures_are_cut_and_the_page_says_how_many(tmp_path, monkeypatch):
    report = build_report(report_fixture.full_report())
    report_fixture.draw_pictures(tmp_path, report)
    monkeypatch.setattr(render, "PICTURE_BYTES", 60_000)
    monkeypatch.setattr(render, "draw_figure", lambda figure: "")
    text = render.render_report(report, tmp_path, NOON).read_text()
    left_out = int(re.search(r"(\d+) pictures were left out", text)[1])
    assert left_out + len(set(re.findall(r'src="(data:image[^"]+)"', text))) <= 68
    assert left_out > 20


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"report\.html"):
        fill_without_figures(report_fixture.minimal_report(), tmp_path / "file")


def test_a_failed_write_leaves_the_old_page_and_no_rest(tmp_path, monkeypatch):
    page = tmp_path / "report.html"
    page.write_text("old")

    def refuse(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("automl.writing.os.fsync", refuse)
    with pytest.raises(StorageError, match="No space left"):
        render.write_text(page, "new")
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
    assert page.read_text() == "old"


@pytest.mark.slow
def test_rendering_takes_a_few_seconds_at_most(tmp_path):
    report = build_report(report_fixture.full_report())
    report_fixture.draw_pictures(tmp_path, report)
    render.render_report(report, tmp_path)
    # Of this thread alone: others may still be at work for an earlier test.
    start = time.thread_time()
    render.render_report(report, tmp_path)
    assert time.thread_time() - start < 8


def test_the_same_configuration_is_shown_on_both_splits(full):
    _, _, page, _ = full
    words = " ".join(" ".join(page.text).split())
    start = words.index("The same configuration on another split")
    grouped, random = words.index("Grouped (this report)", start), words.index("Random", start)
    assert grouped < words.index("0.963", grouped) < random < words.index("0.979", random)


def test_a_comparison_that_failed_says_so(tmp_path):
    report = report_fixture.full_report()
    report["split"]["comparison"][1] |= {"metrics": {}, "message": "Out of memory."}
    assert "Out of memory." in fill_without_figures(report, tmp_path)


def test_the_audit_page_shows_findings_and_near_copies(tmp_path):
    document = report_fixture.audit_document()
    page = Page(
        render.render_audit(document, "scans", tmp_path / "audit.html", tmp_path, NOON).read_text()
    )
    words = " ".join(page.text)
    assert "1,354 images (36 %) have a near-copy" in words and "95.5" in words
    different = words.index("Near-copies with different labels")
    alike = words.index("Near-copies with the same label")
    conflict, same = (
        words.index(pair) for pair in ("Image18.jpg, Image19", "Image19.jpg, Image20")
    )
    assert different < conflict < alike < same


def write_run(folder, seed, noise):
    import numpy as np

    folder.mkdir()
    report = report_fixture.full_report()
    report["run"]["name"] = folder.name
    report["run"]["seed"] = seed
    (folder / "report.json").write_text(json.dumps(build_report(report)))
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 120)
    scores = np.clip(0.25 + labels * 0.5 + rng.normal(0, noise, 120), 0.01, 0.99)
    with open(folder / "predictions.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(
            ["image", "label", "predicted", "probability_no tumour", "probability_tumour"]
        )
        for i, (label, score) in enumerate(zip(labels, scores, strict=True)):
            name = ("no tumour", "tumour")[label]
            writer.writerow([f"{i}.png", name, name, 1 - score, score])
    return folder


def test_runs_of_the_same_images_are_compared_with_paired_intervals(tmp_path):
    first, second = write_run(tmp_path / "good", 1, 0.05), write_run(tmp_path / "bad", 2, 0.6)
    text = compare_runs([first, second]).read_text()
    words = " ".join(Page(text).text)
    assert "not tested on the same images" not in words
    assert re.search(r"\u22120\.\d{3} \(\u22120\.\d{3} to \u22120\.\d{3}\), worse", words)
    assert 'href="bad/report.html"' in text


def test_runs_of_other_images_are_not_subtracted(tmp_path):
    first, second = write_run(tmp_path / "a", 1, 0.1), write_run(tmp_path / "b", 2, 0.1)
    lines = (second / "predictions.csv").read_text().splitlines()
    (second / "predictions.csv").write_text("\n".join(lines[:-1]) + "\n")
    words = " ".join(Page(compare_runs([first, second]).read_text()).text)
    assert "b was not tested on the same images as a" in words and ", worse" not in words


def test_one_run_is_no_comparison(tmp_path):
    with pytest.raises(UsageError, match="two or more"):
        compare_runs([tmp_path])


def test_the_index_lists_runs_and_says_which_have_no_report(tmp_path):
    write_run(tmp_path / "one run", 1, 0.1)
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "report.json").write_text("{")
    (tmp_path / "busy").mkdir()
    (tmp_path / "busy" / "journal.jsonl").write_text("")
    page = Page(write_index(tmp_path).read_text())
    assert page.links.count("one%20run/report.html") == 1
    words = " ".join(page.text)
    assert "has not finished" in words and "not JSON" in words


def test_a_share_of_a_few_images_is_not_given(tmp_path):
    report = report_fixture.full_report()
    item = report["evaluation"]["test"]["curves"]["reliability"]["after"]["bins"][8]
    for count, said in ((33, "Of the 33 test images to which it gave about 85"), (2, "to only 2 ")):
        item["count"] = count
        text = render.render_report(build_report(report), tmp_path, NOON).read_text()
        assert (said in text, f"to only {count}" in text) == (True, count == 2)
