"""report.html, results.csv and results.tex in a matrix's output folder."""

from __future__ import annotations

import logging
from pathlib import Path

from tmt_d2.errors import USER_ERRORS, one_line
from tmt_d2.experiments.records import ALL
from tmt_d2.experiments.results import read_results
from tmt_d2.projects.report.document import render_page
from tmt_d2.projects.report.examples import Worst, examples, worst
from tmt_d2.projects.report.tables import latex_table, write_csv
from tmt_d2.utils.files import atomic_write

logger = logging.getLogger(__name__)


def write_report(output: Path, images: int = 0, title: str = "", worst_count: int = 0) -> Path:
    """Returns the page's path.

    Raises:
        FileNotFoundError: ``output`` holds no finished unit of a matrix.
    """
    results = read_results(output)
    amounts = results.labels()
    write_csv(results, output / "results.csv")
    with atomic_write(output / "results.tex", "w") as file:
        file.write("\n".join(latex_table(results, labels) for labels in amounts))
    most, missing = amounts[0] if amounts else ALL, []
    views, sheets = [], Worst()
    try:
        views = examples(results, images, most)
        sheets = worst(results, worst_count, most)
    except USER_ERRORS as error:  # the images, or a checkpoint, are not here (any more)
        missing.append(f"No images are shown: {one_line(error)}")
        logger.warning(missing[-1])
    page = output / "report.html"
    with atomic_write(page, "w") as file:
        file.write(render_page(results, views, title or f"Transfer matrix: {output.name}", sheets, missing))
    return page
