"""Write report.html, results.csv and results.tex into the output folder of a matrix or a pair.

    python tools/report.py output/tiny-3

The page is one file that opens offline. --examples N shows N pictures of the first pair by every method, for which the
models are run; the images are those in OUTPUT/data where the matrix rendered its own, else below $DETECTRON2_DATASETS.
--worst N adds the N held-out pictures with the largest share of wrong pixels, and the N with the highest mean T,
and says how well entropy, margin and T rank all of them by that share.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import NoReturn

from tmt_d2.cli import log_to_screen, run
from tmt_d2.experiments.report.writing import write_report


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("output", type=Path, help="output folder of train_matrix.py or train_pair.py")
    arguments.add_argument("--examples", type=int, default=2, metavar="N", help="pictures to show; 0 runs no model")
    arguments.add_argument("--worst", type=int, default=0, metavar="N", help="worst pictures to show; runs one model")
    arguments.add_argument("--title", default="")
    args = arguments.parse_args()
    log_to_screen()
    if (args.output / "data").is_dir():  # the matrix's own pictures, whatever else there is
        os.environ["DETECTRON2_DATASETS"] = str((args.output / "data").resolve())
    print(write_report(args.output, args.examples, args.title, args.worst))


def command() -> NoReturn:
    run(main)


if __name__ == "__main__":
    command()
