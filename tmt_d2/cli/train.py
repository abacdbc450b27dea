"""Run one stage of TMT: source training, estimator training, fine-tuning, or an evaluation.

What to run is said by the config file (TRANSFER.STAGE, TRANSFER.METHOD); any key can be overridden behind it:

    python train_net.py --config-file configs/R50/source.yaml
    python train_net.py --config-file configs/R50/estimator.yaml MODEL.WEIGHTS output/R50/source/model_final.pth
    python train_net.py --config-file configs/R50/tmt.yaml MODEL.WEIGHTS output/R50/estimator/model_final.pth
    python train_net.py --config-file configs/R50/tmt.yaml --eval-only MODEL.WEIGHTS output/R50/tmt/model_final.pth

Data is found below $DETECTRON2_DATASETS. Results: OUTPUT_DIR/evaluation.json (estimator.json), model_final.pth,
log.txt, metrics.json and TensorBoard events. --resume goes on from the newest usable checkpoint in OUTPUT_DIR.
Several processes: --num-gpus N (on a CPU: N processes), or `torchrun --nproc-per-node N train_net.py ...`.
Exit status: 0 done; 2 an error that one line on stderr names; 75 stopped by SIGTERM, SIGUSR1, SIGHUP or Ctrl-C, and
--resume goes on.
"""

from __future__ import annotations

import argparse
from typing import Any, NoReturn

from detectron2.engine import default_argument_parser

from tmt_d2.cli.common import parse, run
from tmt_d2.config import setup_cfg
from tmt_d2.engine.hooks.evaluation_images import EvaluationImages
from tmt_d2.engine.launch import launch
from tmt_d2.engine.run_stage import run_stage


def run_process(args: argparse.Namespace) -> dict[str, Any]:
    """What every process of the run does."""
    opts = [*args.opts, *(["SOLVER.DETECT_ANOMALY", "True"] if args.detect_anomaly else [])]
    cfg = setup_cfg(args.config_file, opts)
    return run_stage(cfg, args.resume, args.eval_only, hooks=[EvaluationImages(cfg)])


def main() -> None:
    parser = default_argument_parser(epilog=__doc__)
    parser.add_argument("--detect-anomaly", action="store_true", help="find the module that makes a NaN; slow")
    args = parse(parser)
    launch(run_process, args.num_gpus, args.num_machines, args.machine_rank, args.dist_url, args=(args,))


def command() -> NoReturn:
    run(main)


if __name__ == "__main__":
    command()
