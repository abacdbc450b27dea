"""The files of the report: report.html, results.csv and results.tex in the output folder of a matrix."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from tmt_d2.errors import USER_ERRORS, one_line
from tmt_d2.experiments.results import Results, read_results
from tmt_d2.projects.report.data import ReportData
from tmt_d2.projects.report.elements import Section
from tmt_d2.projects.report.examples import examples, worst_images
from tmt_d2.projects.report.sections.choices import chosen_labels
from tmt_d2.projects.report.sections.comparison import results_table
from tmt_d2.projects.report.sections.curves import few_labels, sweeps, training
from tmt_d2.projects.report.sections.gains import classes, differences
from tmt_d2.projects.report.sections.measurements import estimators, scores
from tmt_d2.projects.report.sections.settings import settings
from tmt_d2.projects.report.sections.summary import tiles, verdict
from tmt_d2.projects.report.sections.without_labels import without_labels
from tmt_d2.projects.report.tables import latex_table, write_csv
from tmt_d2.utils.files import atomic_write
from tmt_d2.visualization.html import templates

logger = logging.getLogger(__name__)

SECTIONS = (
    results_table,
    differences,
    sweeps,
    few_labels,
    chosen_labels,
    classes,
    estimators,
    scores,
    without_labels,
    training,
)


def write_report(output: Path, images: int = 0, title: str = "", worst: int = 0) -> Path:
    """Write the three files.

    Args:
        images: example images to show; runs every model of the first pair.
        worst: images with the largest error to show; runs one model.

    Returns:
        path of the page.

    Raises:
        FileNotFoundError: ``output`` holds no finished unit of a matrix.
    """
    results = read_results(output)
    amounts = results.labels()
    write_csv(results, output / "results.csv")
    with atomic_write(output / "results.tex", "w") as file:
        file.write("\n".join(latex_table(results, labels) for labels in amounts))
    missing, shown = list[str](), list[Section]()
    for section, count in ((examples, images), (worst_images, worst)):
        try:
            shown.append(section(results, count, amounts[:1]))
        except USER_ERRORS as error:  # the images or a checkpoint may have been moved or deleted
            missing.append(f"{count} images are not shown: {one_line(error)}")
            logger.warning(missing[-1])
    page = output / "report.html"
    with atomic_write(page, "w") as file:
        file.write(render_page(results, shown, title or f"Transfer matrix: {output.name}", missing))
    return page


def render_page(
    results: Results, images: Sequence[Section] = (), title: str = "Transfer matrix", missing: Sequence[str] = ()
) -> str:
    """The page as HTML text.

    Args:
        images: sections of images. missing: for each that is not among them, the reason.
    """
    data = ReportData(results)
    sections = [*(section(data) for section in SECTIONS), *images, settings(data)]
    page = templates(__package__).get_template("report.html")
    return page.render(
        title=title,
        verdict=verdict(data),
        missing=missing,
        tiles=tiles(data),
        sections=[section for section in sections if section.blocks],
    )
