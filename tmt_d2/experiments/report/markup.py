"""The page's elements that several sections use, as HTML text; their looks and behaviour are in ``style``."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import NamedTuple

NOTHING = "&ndash;"


class Section(NamedTuple):
    """lead, content: HTML. A section without content is left out of the page."""

    anchor: str
    heading: str
    lead: str
    content: str


def figure(caption: str, content: str) -> str:
    return f"<figure><figcaption>{escape(caption)}</figcaption>{content}</figure>"


def side_by_side(parts: Sequence[str]) -> str:
    """As many in a line as fit; nothing for no parts."""
    return f'<div class="row-flex">{"".join(parts)}</div>' if parts else ""


def table(columns: Sequence[str], rows: Sequence[str]) -> str:
    """rows: HTML, the first cell a heading, see ``table_row``."""
    head = "".join(f"<th>{escape(name)}</th>" for name in columns)
    return f'<table class="results"><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table>'


def table_row(name: str, cells: Sequence[str], attributes: str = "") -> str:
    """cells: ``<td>`` elements. attributes: of the row, after a blank."""
    return f"<tr{attributes}><th>{escape(name)}</th>{''.join(cells)}</tr>"


def scrolling(content: str) -> str:
    return f'<div class="scroll">{content}</div>'


def tabs(prefix: str, panes: Sequence[tuple[str, str]]) -> str:
    """panes: (label, HTML), of which one is seen at a time; a single one needs no button. prefix: of their ids."""
    if len(panes) < 2:
        return "".join(content for _, content in panes)
    buttons = "".join(
        f'<button type="button" data-pane="{prefix}-{index}">{escape(label)}</button>'
        for index, (label, _) in enumerate(panes)
    )
    content = "".join(f'<div id="{prefix}-{index}">{pane}</div>' for index, (_, pane) in enumerate(panes))
    return f'<div class="tabs">{buttons}</div>{content}'
