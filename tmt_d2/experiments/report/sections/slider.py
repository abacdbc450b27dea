"""Example pictures, two views of each behind a bar that can be moved."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape

from tmt_d2.experiments.report.examples import Example
from tmt_d2.experiments.report.markup import Section, side_by_side
from tmt_d2.experiments.report.results import BASELINE


def pictures(examples: Sequence[Example]) -> Section:
    lead = "Move the bar to compare two views of one picture."
    return Section("examples", "Examples", lead, side_by_side([_comparison(example) for example in examples]))


def _comparison(example: Example) -> str:
    """The script in ``style`` puts the chosen views into the two images."""
    names = list(example.views)
    left = names.index(BASELINE) if BASELINE in names else 0
    right = names.index("tmt") if "tmt" in names else len(names) - 1
    selects = _select("left", names, left) + _select("right", names, right)
    data = json.dumps(list(example.views.values()))
    return (
        f'<figure class="example"><figcaption>{escape(example.title)}</figcaption><div class="choose">{selects}</div>'
        f'<div class="compare"><img alt="right view"><img class="top" alt="left view"><i></i></div>'
        f'<input type="range" min="0" max="100" value="50" aria-label="boundary">'
        f'<script type="application/json">{data}</script></figure>'
    )


def _select(side: str, names: Sequence[str], chosen: int) -> str:
    options = "".join(
        f'<option value="{index}"{" selected" if index == chosen else ""}>{escape(name)}</option>'
        for index, name in enumerate(names)
    )
    return f'<select aria-label="{side}">{options}</select>'
