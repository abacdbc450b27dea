#!/usr/bin/env python
"""Run a whole (source, target) pair: source model, estimator, fine-tuning by each method, evaluation, one table.

    python tools/train_pair.py --configs configs/R50 --source cityscapes --target bdd100k --methods full tmt \\
        --output output/cityscapes-bdd100k --num-gpus 8

Stages that are done are skipped and an interrupted one goes on, so the same command again is how to resume.
Each stage has a folder in --output; results.json there holds what the table shows.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout need not be installed
# isort: split

from tmt_d2.cli import log_to_screen, one_line_errors
from tmt_d2.config import METHODS
from tmt_d2.experiments.pair import results_table, run_pair, run_stage_here
from tmt_d2.processes.launch import launch


def parser():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--configs", type=Path, required=True, help="folder of source.yaml, estimator.yaml, ...")
    arguments.add_argument("--source", required=True, help="data set name, e.g. cityscapes")
    arguments.add_argument("--target", required=True, help="data set name, e.g. bdd100k")
    arguments.add_argument("--methods", nargs="+", default=["full", "tmt"], help=f"of: {', '.join(METHODS)}")
    arguments.add_argument("--output", type=Path, required=True, help="folder for everything that is written")
    arguments.add_argument("--num-gpus", type=int, default=1, help="GPUs of this machine per stage (on a CPU: 1)")
    arguments.add_argument("opts", nargs="*", default=[], help="KEY VALUE ... overrides for every stage (after --)")
    return arguments


def main():
    args = parser().parse_args()
    log_to_screen()

    def run(cfg):
        launch(run_stage_here, args.num_gpus, args=(cfg,))

    results = run_pair(args.configs, args.source, args.target, args.methods, args.output, args.opts, run)
    print(results_table(results))


if __name__ == "__main__":
    with one_line_errors():
        main()
    sys.exit(0)
