"""Figure (numbers) → SVG text: one visual language for the whole page. Computes nothing.

Drawn with matplotlib's Figure, never pyplot, so nothing global is left behind. Colours
become CSS variables, so one drawing serves light, dark and print; text stays text, in the
page's font; styles become attributes, so the page's policy need not allow inline styles.
"""

import io
import math
import re
from collections.abc import Callable
from typing import Any
from xml.etree import ElementTree

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter, NullLocator

from automl.reporting.figure import Figure, Panel, Series

# Okabe & Ito's palette, told apart with any colour vision. The hex values drawn here are
# only names: VARIABLES turns them into the style sheet's colours, light or dark.
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
INK, MUTED, LINE, PAPER = "#101112", "#606162", "#d0d1d2", "#fefdfc"
VARIABLES = {
    **{colour: f"var(--plot-{index})" for index, colour in enumerate(PALETTE)},
    INK: "var(--ink)",
    MUTED: "var(--muted)",
    LINE: "var(--line)",
    PAPER: "var(--paper)",
}
NARROW, WIDE = 430, 880
SETTINGS = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "axes.unicode_minus": True,
    "font.family": "DejaVu Sans",
    "font.size": 11.5,
    "axes.titlesize": 12,
    "axes.edgecolor": MUTED,
    "axes.linewidth": 0.8,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "legend.fontsize": 11,
    "legend.labelcolor": INK,
    "lines.linewidth": 2,
    "path.simplify_threshold": 0.3,
}
MARKERS = ("o", "s", "^", "D", "v", "P")
# What a word beside a mark takes of the width.
WORD_SHARE = 0.15


def draw_figure(figure: Figure) -> str:
    """An <svg> element as text, the same bytes for the same numbers."""
    with matplotlib.rc_context({**SETTINGS, "svg.hashsalt": figure.name}):
        columns = len(figure.panels) if len(figure.panels) <= 4 else 3
        rows = -(-len(figure.panels) // columns)
        width = WIDE if figure.wide else NARROW
        canvas = Canvas(figsize=(width / 72, figure.height * rows / 72), layout="constrained")
        canvas.patch.set_visible(False)
        grid = canvas.subplots(rows, columns, squeeze=False)
        for axes, panel in zip(grid.flat, figure.panels, strict=False):
            axes.patch.set_visible(False)
            axes.set_title(panel.title)
            axes.set_xlabel(panel.x_label)
            axes.set_ylabel(panel.y_label)
            PAINTERS[panel.kind](axes, panel)
        for axes in grid.flat[len(figure.panels) :]:
            axes.set_axis_off()
        target = io.StringIO()
        # Not savefig: it draws everything one more time to find out the size.
        FigureCanvasSVG(canvas).print_svg(target, metadata={"Date": None, "Creator": None})
    return clean_svg(target.getvalue(), figure.alt, figure.name)


def paint_lines(axes: Axes, panel: Panel) -> None:
    if panel.x_log:
        axes.set_xscale("log")
    if panel.diagonal:
        axes.plot([0, 1], [0, 1], color=MUTED, linestyle=(0, (4, 3)), linewidth=1)
    if panel.reference is not None:
        axes.axhline(panel.reference, color=MUTED, linestyle=(0, (4, 3)), linewidth=1)
    for series in panel.series:
        paint_series(axes, series)
    if panel.x_range:
        axes.set_xlim(*panel.x_range)
    if panel.y_range:
        axes.set_ylim(*panel.y_range)
    low, high = axes.get_xlim()
    following = [*(place for place, _ in panel.marks), math.inf][1:]
    for (place, word), after in zip(panel.marks, following, strict=True):
        axes.axvline(place, color=MUTED, linestyle=":", linewidth=1)
        if after - place < WORD_SHARE * (high - low):
            continue  # the next word would be printed over this one
        axes.annotate(
            word,
            (place, 1),
            xycoords=("data", "axes fraction"),
            xytext=(4, -2),
            textcoords="offset points",
            color=MUTED,
            fontsize=9.5,
            va="top",
        )
    if panel.ticks:
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xticks(*map(list, zip(*panel.ticks[0], strict=True)))
    elif panel.x_percent:
        axes.xaxis.set_major_formatter(FuncFormatter(percent_tick))
        axes.xaxis.set_minor_formatter(NullFormatter())
    elif "epoch" in panel.x_label:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if panel.y_percent:
        axes.yaxis.set_major_formatter(FuncFormatter(percent_tick))
    if any(series.label for series in panel.series):
        # Above the axes, where it can hide nothing.
        axes.legend(
            loc="lower left",
            bbox_to_anchor=(-0.02, 0.99),
            ncols=3,
            borderpad=0.2,
            columnspacing=1.2,
            handlelength=1.6,
        )


def paint_series(axes: Axes, series: Series) -> None:
    colour = PALETTE[series.colour]
    label = series.label or None
    if series.style == "points":
        axes.plot(
            series.x,
            series.y,
            MARKERS[series.colour],
            color=colour,
            markersize=5,
            alpha=0.85,
            label=label,
        )
        if series.low is not None and series.high is not None:
            axes.vlines(series.x, series.low, series.high, color=colour, linewidth=1.3)
        return
    if series.low is not None and series.high is not None:
        axes.fill_between(series.x, series.low, series.high, color=colour, alpha=0.22, linewidth=0)
    look: dict[str, Any] = {
        "line": {"linewidth": 2, "marker": MARKERS[series.colour] if len(series.x) < 12 else None},
        "dashed": {"linestyle": (0, (5, 2)), "linewidth": 1.5},
        "step": {"drawstyle": "steps-post"},
        "faint": {"linewidth": 1, "alpha": 0.45, "marker": "o", "markersize": 3},
    }[series.style]
    axes.plot(series.x, series.y, color=colour, label=label, **{"markersize": 4, **look})


def paint_intervals(axes: Axes, panel: Panel) -> None:
    (series,) = panel.series
    places = list(range(len(panel.labels)))
    colours = [PALETTE[0]] * len(places)
    if panel.first_is_ours:
        colours[0] = PALETTE[1]
    axes.hlines(places, series.low, series.high, color=colours, linewidth=2.2, alpha=0.55)
    axes.scatter(series.x, places, c=colours, s=34, zorder=3)
    if panel.reference is not None:
        axes.axvline(panel.reference, color=MUTED, linestyle=(0, (4, 3)), linewidth=1)
    name_rows(axes, panel)
    if panel.x_percent:
        axes.xaxis.set_major_formatter(FuncFormatter(percent_tick))


def paint_bars(axes: Axes, panel: Panel) -> None:
    count = len(panel.series)
    thick = 0.78 / count
    for index, series in enumerate(panel.series):
        places = [row + (index - (count - 1) / 2) * thick for row in range(len(panel.labels))]
        bars = axes.barh(
            places, series.x, height=thick * 0.92, color=PALETTE[series.colour], label=series.label
        )
        axes.bar_label(bars, fmt="{:,.4g}", padding=3, fontsize=10.5, color=INK)
    name_rows(axes, panel)
    axes.margins(x=0.14)
    if count > 1:
        axes.legend(
            loc="upper center", bbox_to_anchor=(0.5, 1.0 + 0.34 / len(panel.labels)), ncols=count
        )


def name_rows(axes: Axes, panel: Panel) -> None:
    """Labels from top to bottom, and no horizontal grid lines through them."""
    axes.set_yticks(range(len(panel.labels)), [shorten(label) for label in panel.labels])
    axes.set_ylim(len(panel.labels) - 0.4, -0.6)
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)


def paint_parallel(axes: Axes, panel: Panel) -> None:
    last = len(panel.series) - 1
    for index, series in enumerate(panel.series):
        strong = index == last
        axes.plot(
            series.x,
            series.y,
            color=PALETTE[1 if strong else 0],
            linewidth=2.8 if strong else 1.3,
            alpha=1 if strong else 0.15 + 0.65 * series.y[-1],
        )
    for place, ticks in enumerate(panel.ticks):
        axes.axvline(place, color=MUTED, linewidth=0.9)
        for height, text in ticks:
            axes.annotate(
                text,
                (place, height),
                xytext=(5, 0),
                textcoords="offset points",
                va="center",
                fontsize=10,
                color=INK,
                zorder=5,
                bbox={"facecolor": PAPER, "edgecolor": "none", "pad": 1, "alpha": 0.85},
            )
    axes.set_xticks(range(len(panel.labels)), panel.labels)
    axes.set_xlim(-0.1, len(panel.labels) - 0.7)
    axes.set_ylim(-0.06, 1.06)
    axes.set_yticks([])
    axes.grid(visible=False)
    axes.spines[["left", "bottom"]].set_visible(False)
    axes.tick_params(axis="x", length=0)


PAINTERS: dict[str, Callable[[Axes, Panel], None]] = {
    "lines": paint_lines,
    "intervals": paint_intervals,
    "bars": paint_bars,
    "parallel": paint_parallel,
}


def percent_tick(value: float, _: int) -> str:
    return f"{100 * value:.3g}\u202f%"


def shorten(label: str, limit: int = 38) -> str:
    return label if len(label) <= limit else label[: limit - 1] + "…"


def clean_svg(text: str, alt: str, name: str) -> str:
    """Make matplotlib's file fit to stand inside a page.

    Metadata and its style element go, ids that nothing refers to go and the others are
    made unique by ``name``, style="a: b" becomes a="b", colours become variables, and
    coordinates keep one decimal.
    """
    root = ElementTree.fromstring(text)
    used = set(re.findall(r"#([\w.-]+)", text))
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag.endswith(("}metadata", "}style")):
                parent.remove(child)
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        for key, value in list(element.attrib.items()):
            del element.attrib[key]
            if key == "id" and value not in used:
                continue
            if key == "style":
                element.attrib.update(style_attributes(value))
            else:
                element.attrib[key.rpartition("}")[2]] = clean_value(key, value, name)
    size = {"width": root.attrib["width"][:-2], "height": root.attrib["height"][:-2]}
    root.attrib.update(size, role="img", **{"aria-label": alt})
    for useless in ("version", "xmlns"):
        root.attrib.pop(useless, None)
    return ElementTree.tostring(root, encoding="unicode")


def clean_value(key: str, value: str, name: str) -> str:
    if key == "id":
        return f"{name}-{value}"
    if value.startswith("#"):
        return VARIABLES.get(value, f"#{name}-{value[1:]}")
    value = re.sub(r"url\(#", f"url(#{name}-", value)
    if key in ("d", "x", "y", "transform", "points", "width", "height"):
        value = re.sub(r"-?\d+\.\d{2,}", lambda match: f"{float(match[0]):.1f}", value)
    return re.sub(r"\s*\n\s*", " ", value).strip()


def style_attributes(style: str) -> dict[str, str]:
    """``font: 10px 'X'; fill: #101112`` → font-size and fill as SVG attributes."""
    result = {}
    for part in style.split(";"):
        key, _, value = (piece.strip() for piece in part.partition(":"))
        if key == "font":
            found = re.search(r"([\d.]+)px", value)
            result["font-size"] = found[1] if found else "10"
        elif key:
            result[key] = VARIABLES.get(value, value)
    return result
