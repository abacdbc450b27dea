"""Elements of the page; ``templates/elements.html`` has a macro for each ``kind`` of block."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

NOTHING = "\N{EN DASH}"
BLUE, GREEN, RED = (64, 128, 232), (42, 157, 111), (208, 68, 68)


class Block:
    kind: ClassVar[str]  # name of its macro


class Section(NamedTuple):
    """lead: the paragraph below the heading; ``Markup`` may hold HTML. A section without blocks is left out."""

    anchor: str
    heading: str
    lead: str = ""
    blocks: Sequence[Block] = ()


@dataclass(frozen=True)
class Note(Block):
    kind = "note"
    text: str


@dataclass(frozen=True)
class Legend(Block):
    """keys: (name, CSS color)."""

    kind = "legend"
    keys: Sequence[tuple[str, str]]


class Cell(NamedTuple):
    """difference, interval: below the text. trend: "up" or "down" where the interval leaves out 0."""

    text: str
    difference: str = ""
    interval: str = ""
    trend: str = ""


class TableRow(NamedTuple):
    name: str
    cells: Sequence[Cell]
    is_total: bool = False


@dataclass(frozen=True)
class Table(Block):
    kind = "table"
    columns: Sequence[str]
    rows: Sequence[TableRow]


@dataclass(frozen=True)
class HeatTable(Block):
    """A table colored by value; a cell without a value stays empty.

    values: by (row, column). full: values are gains, red below 0 and green above, in full color from this value on;
    None: values go from pale to blue over ``scale``, the range of the quantity: what is nearly equal looks equal.
    """

    kind = "heat"
    rows: Sequence[str]
    columns: Sequence[str]
    values: Mapping[tuple[str, str], float]
    full: float | None = None
    digits: int = 1
    scale: tuple[float, float] = (0.0, 100.0)

    def text(self, value: float) -> str:
        return f"{value:.{self.digits}f}" if self.full is None else f"{value:+.{self.digits}f}"

    def color(self, value: float) -> str:
        """CSS color of a cell; pale enough for dark text."""
        if self.full is None:
            low, high = self.scale
            strong, share = BLUE, 0.05 + 0.75 * min(1.0, max(0.0, (value - low) / (high - low)))
        else:
            strong, share = GREEN if value > 0 else RED, 0.75 * min(1.0, abs(value) / self.full)
        return "#" + "".join(f"{round(255 + (part - 255) * share):02x}" for part in strong)


@dataclass(frozen=True)
class Figures(Block):
    """Blocks side by side. parts: (caption, block)."""

    kind = "figures"
    parts: Sequence[tuple[str, Block]]


@dataclass(frozen=True)
class Tabs(Block):
    """Groups of blocks, of which one is seen at a time. panes: (label, blocks). name: unique on the page."""

    kind = "tabs"
    name: str
    panes: Sequence[tuple[str, Sequence[Block]]]


@dataclass(frozen=True)
class Example(Block):
    """Views of one image to compare by a slider. views: data URIs by name. left, right: views shown at first."""

    kind = "example"
    title: str
    views: Mapping[str, str]
    left: str
    right: str


@dataclass(frozen=True)
class Thumbnails(Block):
    """images: (caption, file name, data URI)."""

    kind = "thumbnails"
    heading: str
    images: Sequence[tuple[str, str, str]]
