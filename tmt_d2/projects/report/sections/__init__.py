"""The sections of the page, each a function from a ``View`` to a ``Section``, grouped by what they are about.

A section's words and looks are in ``templates/sections/<anchor>.html``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

NOTHING = "\N{EN DASH}"


class Section(NamedTuple):
    """values: the variables of its template; a section without any is left out of the page."""

    anchor: str
    heading: str
    values: Mapping[str, Any]


class Cell(NamedTuple):
    """difference, interval: below the text; trend of the difference: up, down, even or none."""

    text: str
    difference: str = ""
    interval: str = ""
    trend: str = ""
    is_best: bool = False


class Row(NamedTuple):
    name: str
    cells: Sequence[Cell]
    is_total: bool = False


class Table(NamedTuple):
    columns: Sequence[str]
    rows: Sequence[Row]
