"""The page: one section per question, from the paper's table to the settings, in one file that needs nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from tmt_d2.experiments.report.examples import Example
from tmt_d2.experiments.report.results import Results
from tmt_d2.experiments.report.sections import comparison, curves, gains, settings
from tmt_d2.experiments.report.sections import estimators as transferability
from tmt_d2.experiments.report.sections import slider as pictures
from tmt_d2.experiments.report.style import CSS, JS
from tmt_d2.experiments.report.summary import tiles, verdict
from tmt_d2.experiments.report.view import View

# The browser itself refuses to load anything that is not in the page.
ONLY_INLINE = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"


def render_page(results: Results, examples: Sequence[Example] = (), title: str = "Transfer matrix") -> str:
    """The whole page as HTML text."""
    view = View(results)
    sections = [
        comparison.results_table(view),
        gains.differences(view),
        gains.heat_maps(view),
        curves.sweeps(view),
        curves.few_labels(view),
        gains.classes(view),
        transferability.estimators(view),
        transferability.scores(view),
        curves.training(view),
        pictures.pictures(examples),
        settings.settings(view),
    ]
    sections = [section for section in sections if section.content]
    links = "".join(f'<a href="#{section.anchor}">{escape(section.heading)}</a>' for section in sections)
    body = "".join(
        f'<section id="{section.anchor}"><h2>{escape(section.heading)}</h2><p class="lead">{section.lead}</p>'
        f"{section.content}</section>"
        for section in sections
    )
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta http-equiv="Content-Security-Policy" content="{ONLY_INLINE}">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">'
        f"<style>{CSS}</style></head><body><header><div><h1>{escape(title)}</h1><p>{verdict(view)}</p></div></header>"
        f"<nav><div>{links}</div></nav><main>{tiles(view)}{body}</main><script>{JS}</script></body></html>\n"
    )
