"""A figure as numbers: what is drawn, what a screen reader says, what the table lists.

``figures_*.py`` fill these from report.json, ``plots.py`` draws them and computes nothing.
"""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Series:
    """One line, step or set of points. ``low`` and ``high`` make a band or error bars.

    ``style`` is line, dashed, step, points or faint; ``colour`` an index of the palette.
    """

    label: str
    x: list[float]
    y: list[float]
    low: list[float] | None = None
    high: list[float] | None = None
    style: str = "line"
    colour: int = 0


@dataclass(frozen=True)
class Panel:
    """One pair of axes; ``kind`` is lines, intervals, bars or parallel.

    lines: ``series`` with optional ``marks`` (vertical lines with a word each).
    intervals and bars: ``labels`` from top to bottom, and series whose ``x`` are the values.
    parallel: ``labels`` are the axes, ``ticks`` (0–1, text) of each, ``series`` the paths
    with y in 0–1, worst first; the last one is drawn strong.
    ``first_is_ours`` gives the first row of intervals a colour of its own.
    """

    kind: str
    title: str = ""
    x_label: str = ""
    y_label: str = ""
    series: tuple[Series, ...] = ()
    labels: tuple[str, ...] = ()
    ticks: tuple[tuple[tuple[float, str], ...], ...] = ()
    marks: tuple[tuple[float, str], ...] = ()
    x_range: tuple[float, float] | None = None
    y_range: tuple[float, float] | None = None
    x_log: bool = False
    x_percent: bool = False
    y_percent: bool = False
    reference: float | None = None
    diagonal: bool = False
    first_is_ours: bool = False


@dataclass(frozen=True)
class Figure:
    """Panels side by side, with words for those who do not see them.

    ``alt`` says what the picture shows, ``columns`` and ``rows`` (text) what is drawn;
    ``wide`` figures take the whole width of the page. ``height`` is in pixels of a page
    on which a panel is about 400 wide.
    """

    name: str
    title: str
    alt: str
    panels: tuple[Panel, ...]
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    caption: str = ""
    wide: bool = False
    height: int = 280
    detail: dict[str, Any] = field(default_factory=dict)


def limits(rates: list[dict[str, Any]]) -> tuple[list[float], list[float]]:
    """Lower and upper ends of intervals; the value itself where there is none."""
    low, high = (
        [rate["value"] if rate[side] is None else rate[side] for rate in rates]
        for side in ("low", "high")
    )
    return low, high
