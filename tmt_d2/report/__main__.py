"""Write report.html, results.csv and results.tex into a matrix's output folder.

    python -m tmt_d2.report output/tiny-3

The page is one file that opens offline. --examples N shows N pictures of the first pair by every method, for which the
models are run and the images must be below $DETECTRON2_DATASETS (or in OUTPUT/data).
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from ..engine.cli import log_to_screen, one_line_errors
from ..files import atomic_write
from .examples import examples
from .page import render_page
from .results import read_results
from .tables import latex_table, write_csv


def write_report(output: Path, images: int = 0, title: str = "") -> Path:
    """Returns the page's path.

    Raises:
        FileNotFoundError: ``output`` holds no finished unit of a matrix.
    """
    results = read_results(output)
    fractions = results.fractions()
    views = examples(results, images, fractions[0] if fractions else 1.0)
    write_csv(results, output / "results.csv")
    with atomic_write(output / "results.tex", "w") as file:
        file.write("\n".join(latex_table(results, fraction) for fraction in fractions))
    page = output / "report.html"
    with atomic_write(page, "w") as file:
        file.write(render_page(results, views, title or f"Transfer matrix: {output.name}"))
    return page


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("output", type=Path, help="output folder of train_matrix.py")
    arguments.add_argument("--examples", type=int, default=2, metavar="N", help="pictures to show; 0 runs no model")
    arguments.add_argument("--title", default="")
    args = arguments.parse_args()
    log_to_screen()
    if "DETECTRON2_DATASETS" not in os.environ and (args.output / "data").is_dir():
        os.environ["DETECTRON2_DATASETS"] = str((args.output / "data").resolve())
    print(write_report(args.output, args.examples, args.title))  # noqa: T201  this is the command's answer


if __name__ == "__main__":
    with one_line_errors():
        main()
