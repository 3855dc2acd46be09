"""report.html in a real Chromium without a network: what a reader sees and can do.

Needs playwright (pip), Chromium (CHROMIUM or on the PATH) and, for accessibility, axe-core
(npm): AXE names axe.min.js, or `npm pack axe-core` unpacked under ~/.cache/axe-core.
"""

import copy
import csv
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import report_fixture
from conftest import draw_picture
from PIL import Image

from automl.reporting.compare import compare_runs, write_index
from automl.reporting.page import build_report
from automl.reporting.render import render_audit, render_report

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = os.environ.get("CHROMIUM") or next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
AXE = Path(os.environ.get("AXE") or Path.home() / ".cache/axe-core/package/axe.min.js")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on the PATH; set CHROMIUM"),
]
VIEWS = {
    "desktop": {"viewport": {"width": 1280, "height": 900}},
    "dark": {"viewport": {"width": 1280, "height": 900}, "color_scheme": "dark"},
    "phone": {"viewport": {"width": 360, "height": 740}},
    "phone_dark": {"viewport": {"width": 360, "height": 740}, "color_scheme": "dark"},
    "no_script": {"viewport": {"width": 1280, "height": 900}, "java_script_enabled": False},
}
ROOT = Path(__file__).parents[1]
EVIL = "<img src=x onerror=\"alert('evil')\"><script>alert('evil')</script>"


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        options = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=options)
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    report = build_report(report_fixture.full_report())
    report_fixture.draw_pictures(folder, report)
    (folder / "report.json").write_text(json.dumps(report), encoding="utf-8")
    return render_report(report, folder)


class Visit:
    """A page opened offline, with everything that went wrong and all it asked for."""

    def __init__(self, browser, path: Path, view: str = "desktop") -> None:
        context = browser.new_context(offline=True, **VIEWS[view])
        self.page = context.new_page()
        self.complaints, self.requests, self.dialogs = [], [], []
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("dialog", self.refuse)
        self.page.goto(path.as_uri())

    def refuse(self, dialog) -> None:
        self.dialogs.append(dialog.message)
        dialog.dismiss()

    def outside(self) -> list[str]:
        """Requests for anything but the file itself and what is inside it."""
        return [url for url in self.requests[1:] if not url.startswith("data:")]


@pytest.mark.parametrize("view", VIEWS)
def test_no_view_complains_asks_for_anything_or_overflows(browser, run, view):
    visit = Visit(browser, run, view)
    assert visit.complaints == [] and visit.outside() == []
    page = visit.page
    widths = page.locator("html").bounding_box()["width"], page.viewport_size["width"]
    assert widths[0] <= widths[1]
    if view != "no_script":
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        wide = page.evaluate(
            "[...document.querySelectorAll('main *')]"
            ".filter(e => !e.closest('.scroll, .canvas, .unseen'))"
            ".filter(e => e.getBoundingClientRect().right > innerWidth + 1)"
            ".map(e => e.outerHTML.slice(0, 80))"
        )
        assert wide == []


def test_every_section_is_there_with_and_without_script(browser, run):
    for view in ("desktop", "no_script"):
        page = Visit(browser, run, view).page
        for link in page.locator(".toc a").all():
            assert page.locator(link.get_attribute("href")).is_visible()
        assert page.locator(".toc a").count() == 18
        assert page.locator("figure svg").count() == 19
        assert page.locator("#trials tbody tr").count() == 22
        assert page.locator("#prevalence-table").is_visible()


def test_without_script_no_control_is_shown_that_does_nothing(browser, run):
    page = Visit(browser, run, "no_script").page
    assert not page.locator(".slider").is_visible()
    assert page.locator("button").count() == 0


def test_a_table_sorts_both_ways_by_value_and_keeps_blanks_last(browser, run):
    page = Visit(browser, run).page
    head = page.locator("#trials th", has_text="Score")
    button = head.locator("button")
    button.focus()
    page.keyboard.press("Enter")
    assert head.get_attribute("aria-sort") == "ascending"
    cells = page.locator("#trials tbody tr td:nth-child(5)")
    rising = cells.all_inner_texts()
    assert rising[-1] == "–" and rising[:-1] == sorted(rising[:-1])
    page.keyboard.press("Enter")
    assert head.get_attribute("aria-sort") == "descending"
    falling = cells.all_inner_texts()
    assert falling[-1] == "–" and falling[:-1] == sorted(falling[:-1], reverse=True)


def test_the_slider_says_what_its_table_says(browser, run):
    page = Visit(browser, run).page
    slider = page.locator("#prevalence")
    slider.focus()
    page.keyboard.press("Home")
    row = page.locator("#prevalence-table tbody tr").first.locator("td").all_inner_texts()
    assert page.locator("[data-show=ppv]").inner_text() == row[0]
    assert page.locator("[data-show=npv]").inner_text() == row[1]
    page.keyboard.press("ArrowRight")
    assert page.locator("[data-show=ppv]").inner_text() != row[0]
    assert (
        slider.get_attribute("aria-valuetext")
        == page.locator("[data-show=prevalence]").inner_text()
    )


def test_the_table_of_contents_follows(browser, run):
    page = Visit(browser, run).page
    page.locator("#winner").evaluate("e => e.scrollIntoView({behavior: 'instant'})")
    page.wait_for_function(
        "document.querySelector('.toc [aria-current]').hash === '#winner'", timeout=3000
    )
    assert page.locator(".toc [aria-current]").count() == 1


def test_the_keyboard_reaches_the_skip_link_first(browser, run):
    page = Visit(browser, run).page
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"


def test_the_page_loads_within_two_seconds(browser, run):
    page = Visit(browser, run).page
    timing = "performance.getEntriesByType('navigation')[0].loadEventEnd"
    page.wait_for_function(f"{timing} > 0")
    assert page.evaluate(timing) < 2000


def test_it_prints_on_a4_with_the_plain_words_on_one_sheet(browser, run):
    page = Visit(browser, run).page
    page.emulate_media(media="print")
    page.set_viewport_size({"width": 688, "height": 1024})  # A4 less margins at 96 dots an inch
    assert page.locator("#clinic").bounding_box()["height"] < 1024
    tallest = max(box.bounding_box()["height"] for box in page.locator("figure").all())
    assert tallest < 1024
    assert page.evaluate("document.documentElement.scrollWidth") <= 688
    assert page.pdf(prefer_css_page_size=True).startswith(b"%PDF")


@pytest.mark.parametrize("view", ["desktop", "dark", "phone"])
@pytest.mark.parametrize("kind", ["report", "audit", "compare", "index"])
def test_axe_finds_no_serious_violation(browser, run, view, kind):
    if not AXE.is_file():
        pytest.skip(f"axe-core is not at {AXE}; set AXE")
    make = {
        "report": lambda: run,
        "audit": lambda: render_audit(
            report_fixture.audit_document(),
            "scans",
            run.with_name("audit.html"),
            run.with_name("pictures"),
        ),
        "compare": lambda: compare_runs([run.parent, run.parent]),
        "index": lambda: write_index(run.parent.parent),
    }
    path = make[kind]()
    page = Visit(browser, path, view).page
    # Through the debugging protocol, which the page's policy does not stop.
    page.evaluate(AXE.read_text(encoding="utf-8"))
    found = page.evaluate("axe.run().then(result => result.violations)")
    serious = [item for item in found if item["impact"] in ("serious", "critical")]
    assert [(item["id"], item["nodes"][0]["html"][:200]) for item in serious] == []


def poisoned(value, skip=("picture", "saliency", "picture_a", "picture_b", "severity", "created")):
    """Every text of a report replaced by markup that would run."""
    if isinstance(value, dict):
        return {key: item if key in skip else poisoned(item) for key, item in value.items()}
    if isinstance(value, list):
        return [poisoned(item) for item in value]
    return EVIL + value if isinstance(value, str) else value


def test_markup_in_any_text_is_shown_and_never_run(browser, tmp_path):
    clean = report_fixture.full_report()
    report = poisoned(copy.deepcopy(clean))
    for edge, item in zip(clean["search"]["edges"], report["search"]["edges"], strict=True):
        item["edge"] = edge["edge"]
    names = {name: f"{EVIL}{i}" for i, name in enumerate(clean["dataset"]["classes"])}
    report["dataset"]["classes"] = {names[n]: c for n, c in clean["dataset"]["classes"].items()}
    report["dataset"]["positive"] = list(names.values())[-1]
    report["dataset"]["grid"] = {EVIL: [EVIL, f"../{EVIL}.jpg"]}
    report["search"]["best"]["params"] = {EVIL: EVIL, "dropout": 0.1}
    report["search"]["stages"] = {EVIL: 3.0}
    report["run"]["config"] = {EVIL: EVIL}
    report["environment"]["packages"] = {EVIL: EVIL}
    report["split"]["classes"]["train"] = dict.fromkeys(names.values(), 7)
    report["evaluation"]["test"]["per_class"] = {
        names[n]: row for n, row in clean["evaluation"]["test"]["per_class"].items()
    }
    report["baselines"][EVIL] = clean["baselines"]["uniform"]
    report["study"] = {"claim_3": EVIL}
    path = render_report(build_report(report), tmp_path)
    visit = Visit(browser, path)
    visit.page.wait_for_timeout(300)
    assert visit.dialogs == [] and visit.complaints == [] and visit.outside() == []
    assert visit.page.locator("script").count() == 1
    assert visit.page.locator("[onerror]").count() == 0
    assert "<script>alert('evil')</script>" in visit.page.locator("main").inner_text()


def write_hostile_data(folder: Path) -> Path:
    """A table of scans in which every text that a stranger chooses is markup or a formula."""
    pydicom = pytest.importorskip("pydicom", reason="pydicom is not installed")
    from test_dicom import make_dicom

    assert pydicom
    run = "<img src=x onerror=alert('{}')>"
    exif = Image.Exif()
    # ImageDescription, Make, Software, Artist.
    for tag in (0x010E, 0x010F, 0x0131, 0x013B):
        exif[tag] = run.format(f"exif {tag}")
    site = run.format("column")
    rows = [["image", "label", site, "=SUM(A1)", "patient"]]
    for i in range(64):
        ill = i % 2 == 1
        pixels = draw_picture(i, ill)
        pixels = np.clip(pixels.astype(int) + 12 * ill, 0, 255).astype(np.uint8)
        name = f"{run.format('file')} {i:02d}"
        if i < 8:
            name = f"=cmd{i}.dcm"
            tags = {"Manufacturer": run.format("dicom"), "SeriesDescription": run.format("dicom")}
            data = make_dicom(pixels.astype(np.uint16), run.format(f"patient {i}"), **tags)
            (folder / name).write_bytes(data)
        elif i % 3:
            name += ".jpg"
            Image.fromarray(pixels).save(folder / name, exif=exif, quality=95)
        else:
            name += ".png"
            Image.fromarray(pixels).save(folder / name)
        label = run.format("label") if ill else "=1+1"
        rows.append(
            [name, label, run.format(f"value {i % 4 // 2}"), ("-1", "+2")[i % 2], f"@{i // 2}"]
        )
    with open(folder / "labels.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    return folder / "labels.csv"


@pytest.fixture(scope="module")
def hostile_run(tmp_path_factory):
    """A real search on hostile data, by its command, with the authors' answers hostile too."""
    work = tmp_path_factory.mktemp("hostile")
    (work / "scans").mkdir()
    table = write_hostile_data(work / "scans")
    evil = "<img src=x onerror=alert('study')><script>alert('study')</script>"
    answers = {
        "intended_use": evil,
        "contact": evil,
        "claim_6": evil,
        "ethics": "[x](javascript:1)",
    }
    (work / "study.yaml").write_text(json.dumps(answers), encoding="utf-8")
    command = [
        *(sys.executable, str(ROOT / "run_search.py"), "--data", str(table), "--name", "hostile"),
        *("--positive", "<img src=x onerror=alert('label')>", "--study", "study.yaml"),
        *("--label-column", "label", "--preset", "smoke", "--weights", "none", "--no-tracking"),
        *("--image-size", "64", "--max-epochs", "1", "--fine-tune-depths", "0", "--workers", "1"),
        *("--test-fraction", "0.4", "--experiment", "<img src=x onerror=alert('experiment')>"),
        "--quiet",
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(work / "cache")}
    result = subprocess.run(
        command, cwd=work, env=environment, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr
    return work / "reports" / "hostile"


@pytest.mark.parametrize("kind", ["report", "compare", "index"])
def test_markup_in_data_and_answers_is_shown_and_never_run(browser, hostile_run, kind):
    pages = {
        "report": lambda: hostile_run / "report.html",
        "compare": lambda: compare_runs([hostile_run, hostile_run]),
        "index": lambda: write_index(hostile_run.parent),
    }
    visit = Visit(browser, pages[kind]())
    visit.page.wait_for_timeout(200)
    assert visit.dialogs == [] and visit.complaints == [] and visit.outside() == []
    assert visit.page.locator("script").count() == 1
    assert visit.page.locator("[onerror], a[href^=javascript]").count() == 0
    if kind == "report":
        text = visit.page.locator("main").evaluate("e => e.textContent")
        # What came from files' headers is not on the page at all.
        for place in ("file", "label", "column", "value 0", "study", "experiment"):
            assert f"<img src=x onerror=alert('{place}')>" in text, place
        assert "onerror=alert('dicom')" not in text and "onerror=alert('exif" not in text


def test_tables_of_hostile_data_hold_no_formula(hostile_run):
    for name in ("predictions.csv", "predictions_val.csv", "split.csv", "trials.csv"):
        with open(hostile_run / name, newline="", encoding="utf-8") as file:
            cells = [cell for row in csv.reader(file) for cell in row]
        assert any(cell.startswith("'=") for cell in cells) or name == "trials.csv"
        for cell in cells:
            if cell.startswith(("=", "+", "-", "@", "\t", "\r")):
                float(cell)


def test_the_card_of_hostile_data_holds_no_markup(hostile_run):
    card = (hostile_run / "model_card.md").read_text(encoding="utf-8")
    body = card.split("---\n", 2)[2]
    commands = [line for line in body.splitlines() if line.startswith("    ")]
    prose = "\n".join(line for line in body.splitlines() if line not in commands)
    assert "\\<img src=x onerror=alert('label')\\>" in prose
    assert not re.search(r"(?<!\\)[<\[]", prose.replace("\n> ", "\n"))
