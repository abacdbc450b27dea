"""Run a whole (source, target) pair: source model, estimator, fine-tuning by each method, evaluation, one table.

    python tools/train_pair.py --model configs/models/R50.yaml --source cityscapes --target bdd100k \\
        --methods full tmt --output output/cityscapes-bdd100k --num-gpus 8

A pair is a matrix with one cell: --output has the same folders and progress.txt as with train_matrix.py, and
tools/report.py works on it. The same command again resumes: finished units are skipped, an interrupted one continues.
With --source-weights FILE no source model is trained: that of FILE is evaluated and adapted.
OUTPUT/results.json holds what the table shows. Every unit has the SEED of the model's config, unless an override says
otherwise. Exit status: 0 done; 2 an error that one line on stderr names; 75 stopped by a signal.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NoReturn

from tmt_d2.cli.common import add_overrides, check_config, check_file, parse, run


def parser() -> argparse.ArgumentParser:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = arguments.add_argument
    add("--model", type=Path, required=True, metavar="FILE", help="config file, e.g. configs/models/tiny.yaml")
    add("--source", required=True, help="data set name, e.g. cityscapes")
    add("--target", required=True, help="data set name, e.g. bdd100k")
    methods = "names of configs/methods, or YAML files; default: full tmt"
    add("--methods", nargs="+", default=["full", "tmt"], metavar="NAME", help=methods)
    weights = "checkpoint of a source model that exists: it is evaluated, none is trained"
    add("--source-weights", type=Path, metavar="FILE", help=weights)
    add("--output", type=Path, required=True, help="folder for everything that is written")
    add("--num-gpus", type=int, default=1, help="GPUs of this machine per unit (on a CPU: processes)")
    add_overrides(arguments)
    return arguments


def main(arguments: Sequence[str] | None = None) -> None:
    args = parse(parser(), arguments)
    check_file("--source-weights", args.source_weights or "")
    for method in args.methods:
        check_config(args.model, args.opts, method)
    from tmt_d2.experiments.pair import pair_units, results_table, run_pair
    from tmt_d2.experiments.running import check_names, launch_unit
    from tmt_d2.utils.logs import log_to_screen

    log_to_screen()
    pair = args.model, args.source, args.target, args.methods, args.output
    units = pair_units(*pair, args.opts, args.source_weights)
    check_names(units)
    print(results_table(run_pair(units, args.output, partial(launch_unit, num_processes=args.num_gpus))))


def command() -> NoReturn:
    run(main)


if __name__ == "__main__":
    command()
