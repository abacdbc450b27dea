"""The page: one section per question, from the paper's table to the settings, in one file that needs nothing else."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from tmt_d2.adaptation.methods import BASELINE
from tmt_d2.experiments.results import Results
from tmt_d2.projects.report.examples import Example, Worst
from tmt_d2.projects.report.sections import Section, choices, comparison, curves, gains, measurements, settings
from tmt_d2.projects.report.summary import tiles, verdict
from tmt_d2.projects.report.view import View
from tmt_d2.visualization.html import templates

TEMPLATES = templates(__package__, BASELINE=BASELINE)
for name in ("charts", "elements"):  # their macros are known in all templates
    TEMPLATES.globals[name] = TEMPLATES.get_template(f"{name}.html").module


def render_page(
    results: Results,
    examples: Sequence[Example] = (),
    title: str = "Transfer matrix",
    worst: Worst | None = None,
    missing: Sequence[str] = (),
) -> str:
    """The whole page as HTML text.

    missing: lines about what cannot be shown.
    """
    view = View(results)
    sections = [
        comparison.results_table(view),
        gains.differences(view),
        gains.heat_maps(view),
        curves.sweeps(view),
        curves.few_labels(view),
        choices.chosen_labels(view),
        gains.classes(view),
        measurements.estimators(view),
        measurements.scores(view),
        curves.training(view),
        Section("examples", "Examples", {"examples": examples} if examples else {}),
        Section("worst", "Worst pictures", worst._asdict() if worst and worst.sheets else {}),
        settings.settings(view),
    ]
    sections = [section for section in sections if section.values]
    contents = {
        section.anchor: Markup(TEMPLATES.get_template(f"sections/{section.anchor}.html").render(section.values))
        for section in sections
    }
    page = TEMPLATES.get_template("report.html")
    return page.render(
        title=title, verdict=verdict(view), missing=missing, tiles=tiles(view), sections=sections, contents=contents
    )
