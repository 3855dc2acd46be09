"""Figures: the numbers first, then that drawing them is repeatable, small and clean."""

import re
from copy import deepcopy
from functools import cache
from xml.etree import ElementTree

import matplotlib
import pytest
import report_fixture

from automl.reporting import figures_curves, figures_data, figures_intervals, figures_search, view
from automl.reporting.page import complete
from automl.reporting.plots import VARIABLES, draw_figure

FIGURES = view.make_figures(complete(report_fixture.full_report()))


@cache
def drawn(name):
    return draw_figure(FIGURES[name])


@pytest.fixture(params=FIGURES)
def figure(request):
    return FIGURES[request.param]


def full():
    return complete(report_fixture.full_report())


def test_the_full_report_has_every_figure():
    assert len(FIGURES) == len(view.FIGURES)


def test_a_report_with_little_has_few_figures_and_no_error():
    assert set(view.make_figures(complete(report_fixture.minimal_report()))) == set()


def test_many_classes_draw_macro_curves_and_no_thresholds():
    figures = view.make_figures(complete(report_fixture.four_class_report()))
    assert "macro" in figures["roc"].title
    assert not {"prevalence", "decision"} & set(figures)


def test_best_so_far_never_falls_and_ends_at_the_best_score():
    points, best = figures_search.progress_figure(full()).panels[0].series
    assert best.y == sorted(best.y)
    assert best.y[-1] == max(points.y) == full()["search"]["best"]["score"]


def test_best_so_far_falls_for_log_loss():
    report = full()
    report["search"]["objective"] = "log_loss"
    best = figures_search.progress_figure(report).panels[0].series[1]
    assert best.y == sorted(best.y, reverse=True)


def test_the_winner_is_the_last_path_and_failed_trials_have_none():
    rows = figures_search.last_rungs(full())
    assert rows[-1]["number"] == full()["search"]["best"]["number"]
    assert len(rows) == 16  # 17 configurations, one of which failed before its first score


def test_axis_positions_follow_the_sampling():
    log = {"values": [], "low": 1e-4, "high": 1e-2, "sampling": "log"}
    linear = {"values": [], "low": 0.0, "high": 0.5, "sampling": "linear"}
    choice = {"values": [0, 64, 128], "low": None, "high": None, "sampling": None}
    assert figures_search.axis_position(log, 1e-3) == pytest.approx(0.5)
    assert figures_search.axis_position(linear, 0.25) == pytest.approx(0.5)
    assert figures_search.axis_position(choice, 64) == 0.5
    assert figures_search.axis_position(choice, 7) is None


def test_learning_curves_mark_where_the_refinement_began():
    report = deepcopy(full())
    last = report["search"]["curves"][-1]["epoch"]
    report["search"]["curves"] += [
        {**report["search"]["curves"][-1], "epoch": last + more, "round": 9} for more in (1, 2)
    ]
    refinement = {"number": 9, "parent": 8, "epochs": 2, "score": 0.9, "score_before": 0.8}
    for used, label in ((True, "refined"), (False, "promoted")):
        report["search"]["refinement"] = {**refinement, "used": used}
        figure = figures_search.learning_figure(report)
        assert figure.panels[0].marks[-1] == (last, label)
        assert ("refinement" in figure.caption) == used


def test_learning_curves_mark_where_the_configuration_was_promoted():
    panel = figures_search.learning_figure(full()).panels[0]
    assert [place for place, _ in panel.marks] == [3.0]


def test_marks_close_together_are_not_named_over_one_another():
    report = deepcopy(full())
    row = report["search"]["curves"][0]
    rounds = [0, 1, 2, 2, 2, 2, 2, 2, 3, 3]
    report["search"]["curves"] = [{**row, "epoch": n + 1, "round": r} for n, r in enumerate(rounds)]
    figure = figures_search.learning_figure(report)
    assert [place for place, _ in figure.panels[0].marks] == [1, 2, 8]
    words = [element.text for element in ElementTree.fromstring(draw_figure(figure)).iter("text")]
    assert words.count("promoted") == 2 * len(figure.panels)


def test_shortcuts_are_listed_strongest_first_after_all_together():
    panel = figures_data.shortcut_figure(full()).panels[0]
    assert panel.labels[0] == "all together"
    assert list(panel.series[0].x[1:]) == sorted(panel.series[0].x[1:], reverse=True)


def test_an_interval_that_begins_at_zero_is_drawn_from_zero():
    report = full()
    report["evaluation"]["robustness"][0]["metric"] |= {"value": 0.2, "low": 0.0, "high": 0.5}
    series = figures_intervals.robustness_figure(report).panels[0].series[0]
    assert (series.low[0], series.y[0], series.high[0]) == (0.0, 0.2, 0.5)


def test_curve_tables_are_short_and_keep_the_ends():
    x = [i / 999 for i in range(1000)]
    rows = figures_curves.table_of(x, x)
    assert len(rows) == figures_curves.MAX_TABLE_ROWS
    assert (rows[0][0], rows[-1][0]) == ("0.000", "1.000")


def test_every_figure_says_what_it_shows_and_lists_its_numbers(figure):
    assert len(figure.alt) > 20
    assert figure.rows and all(len(row) == len(figure.columns) for row in figure.rows)
    assert all(isinstance(cell, str) for row in figure.rows for cell in row)


def test_drawing_is_repeatable_small_and_free_of_styles(figure):
    svg = drawn(figure.name)
    assert svg == draw_figure(figure)
    assert len(svg) < 60_000
    root = ElementTree.fromstring(svg)
    assert root.attrib["role"] == "img" and root.attrib["aria-label"] == figure.alt
    assert not re.search(r"style=|<style|<metadata|<script|http", svg)
    assert not any(f'"{colour}"' in svg for colour in VARIABLES)


def test_no_two_figures_share_an_id():
    ids = [found for name in FIGURES for found in re.findall(r' id="([^"]+)"', drawn(name))]
    assert len(ids) == len(set(ids))


def test_every_reference_inside_a_figure_is_answered(figure):
    svg = drawn(figure.name)
    ids = set(re.findall(r' id="([^"]+)"', svg))
    assert set(re.findall(r'(?:url\(|href=")#([^")]+)', svg)) <= ids


def test_names_are_text_and_never_mathematics_or_markup():
    report = report_fixture.full_report()
    evil = "$x_1$ <script>alert(1)</script>"
    report["evaluation"]["subgroups"][0]["value"] = evil
    svg = draw_figure(figures_intervals.subgroup_figure(complete(report)))
    assert "<script" not in svg
    drawn_text = [element.text for element in ElementTree.fromstring(svg).iter("text")]
    assert any(text.startswith(f"scanner: {evil[:20]}") for text in drawn_text)


def test_drawing_leaves_matplotlib_settings_alone():
    before = dict(matplotlib.rcParams)
    draw_figure(next(iter(FIGURES.values())))
    assert dict(matplotlib.rcParams) == before
