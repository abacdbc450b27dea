"""Write report.html, results.csv and results.tex into the output folder of a matrix or a pair.

    python tools/report.py output/tiny-3
    python tools/report.py output/tiny/full output/tiny/tmt    # runs of train_net.py: prints a table, writes nothing

The page is one file that opens offline. --examples N shows N images of the first pair by every method, for which the
models are run; the images are those in OUTPUT/data where the matrix rendered its own, else below $DETECTRON2_DATASETS.
--worst N adds the N held-out images with the largest share of wrong pixels, the N with the highest mean T, and the rank
correlations of entropy, margin and T with that share.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from tmt_d2.cli.common import run


def parser() -> argparse.ArgumentParser:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    folder = "output folder of train_matrix.py or train_pair.py, or folders of runs of train_net.py"
    arguments.add_argument("output", type=Path, nargs="+", metavar="FOLDER", help=folder)
    arguments.add_argument("--examples", type=int, default=2, metavar="N", help="images to show; 0 runs no model")
    arguments.add_argument("--worst", type=int, default=0, metavar="N", help="worst images to show; runs one model")
    arguments.add_argument("--title", default="", help="title of the page; default: name of the folder")
    return arguments


def main(arguments: Sequence[str] | None = None) -> None:
    args = parser().parse_args(arguments)
    for folder in args.output:
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder}: no such folder")
    from tmt_d2.projects.report.document import write_report
    from tmt_d2.projects.report.tables import is_run, runs_table
    from tmt_d2.utils.logs import log_to_screen

    log_to_screen()
    if len(args.output) > 1 or is_run(args.output[0]):
        print(runs_table(args.output))
        return
    (output,) = args.output
    if (output / "data").is_dir():  # a matrix that rendered its own images
        os.environ["DETECTRON2_DATASETS"] = str((output / "data").resolve())
    print(write_report(output, args.examples, args.title, args.worst))


def command() -> NoReturn:
    run(main)


if __name__ == "__main__":
    command()
