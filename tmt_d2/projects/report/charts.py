"""What the page's charts and coloured tables show, and where; ``templates/charts.html`` draws them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

from tmt_d2.experiments.statistics import Difference

COLOURS = ("#2f6fde", "#e07b24", "#2a9d6f", "#b13fa8", "#c43d3d", "#6b7280", "#0e8fa6", "#8a6d1f", "#5b4bd6")
SIZES = {"lines": (460, 280), "small": (250, 150), "points": (380, 280)}  # width and height
MARGINS = {"lines": (52, 14, 12, 40), "small": (34, 8, 8, 20), "points": (52, 14, 12, 40)}  # left, right, top, bottom
BLUE, GREEN, RED = (64, 128, 232), (42, 157, 111), (208, 68, 68)


def colour_of(index: int) -> str:
    return COLOURS[index % len(COLOURS)]


class Axis(NamedTuple):
    """Values from low to high along pixels from start to end."""

    low: float
    high: float
    start: float
    end: float

    @classmethod
    def around(cls, values: Sequence[float], start: float, end: float, margin: float) -> Axis:
        """margin: share of the values' range that is left free at both ends."""
        free = (max(values) - min(values) or 1) * margin
        return cls(min(values) - free, max(values) + free, start, end)

    def at(self, value: float) -> float:
        return round(self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start), 1)

    def ticks(self, count: int = 5) -> list[float]:
        """About ``count`` round numbers."""
        if self.high <= self.low:
            return [self.low]
        raw = (self.high - self.low) / count
        power = 10 ** math.floor(math.log10(raw))
        step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * 0.999)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [round(i * step, 10) for i in range(first, last + 1)]


class Point(NamedTuple):
    x: float
    y: float
    tip: str = ""


class Series(NamedTuple):
    """band: (x, low, high) around a line, or empty."""

    name: str
    colour: str
    points: Sequence[Point]
    band: Sequence[tuple[float, float, float]] = ()


@dataclass(frozen=True)
class Chart:
    """Series as lines with bands and markers, as small lines without, or as points. x_ticks: (value, text)."""

    series: Sequence[Series]
    x_label: str
    y_label: str
    kind: Literal["lines", "small", "points"] = "lines"
    x_ticks: Sequence[tuple[float, str]] = ()

    @property
    def size(self) -> tuple[int, int]:
        return SIZES[self.kind]

    @property
    def keys(self) -> list[tuple[str, str]]:
        """Names and colours, for a legend."""
        return [(each.name, each.colour) for each in self.series]

    @cached_property
    def x(self) -> Axis:
        left, right, _, _ = MARGINS[self.kind]
        return Axis.around([point.x for each in self.series for point in each.points], left, self.size[0] - right, 0.04)

    @cached_property
    def y(self) -> Axis:
        _, _, top, bottom = MARGINS[self.kind]
        values = [point.y for each in self.series for point in each.points]
        values += [value for each in self.series for _, *ends in each.band for value in ends]
        return Axis.around(values, self.size[1] - bottom, top, 0.08)


@dataclass(frozen=True)
class IntervalChart:
    """Differences by name around a line at 0: single values, their interval and their mean."""

    rows: Sequence[tuple[str, Difference]]
    x_label: str

    def x(self, narrow: bool) -> Axis:
        """narrow: for a telephone, with the names above their bars instead of beside them."""
        numbers = [0.0]
        for _, row in self.rows:
            numbers += [row.mean, *row.values, *(end for end in (row.low, row.high) if end is not None)]
        return Axis.around(numbers, 14 if narrow else 170, 326 if narrow else 706, 0.04)


@dataclass(frozen=True)
class HeatTable:
    """A table coloured by value; a cell without a value stays empty.

    values: by (row, column). full: gains are shown, red below 0 and green above, in full colour from this value on;
    None: values are shown, from pale to blue over ``scale``, which is that of the quantity and not of these values:
    what is nearly equal looks equal.
    """

    rows: Sequence[str]
    columns: Sequence[str]
    values: Mapping[tuple[str, str], float]
    corner: str = ""
    full: float | None = None
    digits: int = 1
    scale: tuple[float, float] = (0.0, 100.0)

    def text(self, value: float) -> str:
        return f"{value:.{self.digits}f}" if self.full is None else f"{value:+.{self.digits}f}"

    def colour(self, value: float) -> str:
        """Of the cell; pale enough for dark text."""
        if self.full is None:
            low, high = self.scale
            strong, share = BLUE, 0.05 + 0.75 * min(1.0, max(0.0, (value - low) / (high - low)))
        else:
            strong, share = GREEN if value > 0 else RED, 0.75 * min(1.0, abs(value) / self.full)
        return "#" + "".join(f"{round(255 + (part - 255) * share):02x}" for part in strong)
