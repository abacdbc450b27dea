"""report.html, results.csv and results.tex in a matrix's output folder."""

from __future__ import annotations

from pathlib import Path

from tmt_d2.experiments.records import ALL
from tmt_d2.experiments.report.document import render_page
from tmt_d2.experiments.report.examples import examples, worst
from tmt_d2.experiments.report.results import read_results
from tmt_d2.experiments.report.tables import latex_table, write_csv
from tmt_d2.files import atomic_write


def write_report(output: Path, images: int = 0, title: str = "", worst_count: int = 0) -> Path:
    """Returns the page's path.

    Raises:
        FileNotFoundError: ``output`` holds no finished unit of a matrix.
    """
    results = read_results(output)
    amounts = results.labels()
    views = examples(results, images, amounts[0] if amounts else ALL)
    sheets = worst(results, worst_count, amounts[0] if amounts else ALL)
    write_csv(results, output / "results.csv")
    with atomic_write(output / "results.tex", "w") as file:
        file.write("\n".join(latex_table(results, labels) for labels in amounts))
    page = output / "report.html"
    with atomic_write(page, "w") as file:
        file.write(render_page(results, views, title or f"Transfer matrix: {output.name}", sheets))
    return page
