"""Charts as SVG images inside the page, drawn by Matplotlib."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import matplotlib
from matplotlib.figure import Figure

from tmt_d2.experiments.statistics import Difference
from tmt_d2.projects.report.elements import Block

COLORS = ("#2f6fde", "#e07b24", "#2a9d6f", "#b13fa8", "#c43d3d", "#6b7280", "#0e8fa6", "#8a6d1f", "#5b4bd6")
GOOD, BAD, UNCLEAR = "#1f8a5d", "#c0392b", "#8793a3"
SIZES = {"lines": (4.8, 2.9), "small": (2.7, 1.7), "points": (4.0, 2.9)}  # inches
STYLE: Any = {
    "svg.fonttype": "none",  # letters stay text
    "svg.hashsalt": "report",  # equal results give equal files
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#8793a3",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e8ecf0",
}


def color_of(index: int) -> str:
    return COLORS[index % len(COLORS)]


class Series(NamedTuple):
    """Points of one color. x, y: of equal length. band: (low, high) of each point, or empty."""

    name: str
    color: str
    x: Sequence[float]
    y: Sequence[float]
    band: Sequence[tuple[float, float]] = ()


@dataclass(frozen=True)
class Chart(Block):
    """Series as lines with markers and bands, as small lines, or as points. x_ticks: (value, text)."""

    kind = "chart"
    series: Sequence[Series]
    x_label: str
    y_label: str
    style: Literal["lines", "small", "points"] = "lines"
    x_ticks: Sequence[tuple[float, str]] = ()
    has_legend: bool = False

    @property
    def title(self) -> str:
        return f"{self.y_label} against {self.x_label}"

    @matplotlib.rc_context(STYLE)
    def svg(self) -> str:
        """Data URI of the chart."""
        figure = Figure(SIZES[self.style], layout="constrained")
        axes = figure.subplots()
        line = {"lines": "-o", "small": "-", "points": "o"}[self.style]
        for each in self.series:
            axes.plot(each.x, each.y, line, color=each.color, label=each.name, markersize=5, alpha=0.85)
            if each.band:
                low, high = zip(*each.band)
                axes.fill_between(each.x, low, high, color=each.color, alpha=0.15, linewidth=0)
        if self.x_ticks:
            axes.set_xticks(*map(list, zip(*self.x_ticks)))
        if self.style != "small":
            axes.set(xlabel=self.x_label, ylabel=self.y_label)
        if self.has_legend:
            axes.legend(frameon=False)
        return _data_uri(figure)


@dataclass(frozen=True)
class IntervalChart(Block):
    """Differences by name around a line at 0: single values, their interval and their mean."""

    kind = "chart"
    rows: Sequence[tuple[str, Difference]]
    title: str

    @matplotlib.rc_context(STYLE)
    def svg(self) -> str:
        """Data URI of the chart."""
        figure = Figure((6.6, 0.7 + 0.34 * len(self.rows)), layout="constrained")
        axes = figure.subplots()
        axes.axvline(0, color="#8793a3", linewidth=1)
        for y, (_, row) in enumerate(self.rows):
            color = UNCLEAR if not row.is_clear else GOOD if row.mean > 0 else BAD
            if row.low is not None and row.high is not None:
                axes.hlines(y, row.low, row.high, color, linewidth=6, alpha=0.55)
            axes.plot(row.values, [y] * len(row.values), "o", color="#1c2430", markersize=4, markeredgecolor="white")
            axes.plot(row.mean, y, "o", color=color, markersize=7, markeredgecolor="white")
        axes.set_yticks(range(len(self.rows)), [name for name, _ in self.rows])
        axes.set(xlabel=self.title, ylim=(len(self.rows) - 0.5, -0.5))
        return _data_uri(figure)


def _data_uri(figure: Figure) -> str:
    file = io.BytesIO()
    figure.savefig(file, format="svg", metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(file.getvalue()).decode()
