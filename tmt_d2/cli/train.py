"""Train or evaluate a model by a method: source, estimator, full, tmt, ... (see configs/methods).

    python train_net.py --config-file configs/models/R50.yaml --method source
    python train_net.py --config-file configs/models/R50.yaml --method estimator \\
        MODEL.WEIGHTS output/R50/source/model_final.pth
    python train_net.py --config-file configs/models/R50.yaml --method tmt \\
        MODEL.WEIGHTS output/R50/estimator/model_final.pth
    python train_net.py --config-file configs/models/R50.yaml --method tmt --eval-only \\
        MODEL.WEIGHTS output/R50/tmt/model_final.pth

Any key of the config can be overridden by KEY VALUE. Data is found below $DETECTRON2_DATASETS. OUTPUT_DIR, which is
output/<model>/<method> by default, receives evaluation.json or estimator.json, model_final.pth, log.txt, metrics.json
and TensorBoard events. --resume continues from the newest usable checkpoint there. Several processes: --num-gpus N (on
a CPU: N processes), or `torchrun --nproc-per-node N train_net.py ...`.
Exit status: 0 done; 2 an error, in one line on stderr; 75 stopped by SIGTERM, SIGUSR1, SIGHUP or Ctrl-C, to be resumed.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any, NoReturn

from tmt_d2.cli.common import add_config_arguments, check_config, parse, run


def parser() -> argparse.ArgumentParser:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_config_arguments(arguments)
    add = arguments.add_argument
    add("--resume", action="store_true", help="continue from the newest checkpoint in OUTPUT_DIR")
    add("--eval-only", action="store_true", help="evaluate MODEL.WEIGHTS on DATASETS.TEST")
    add("--detect-anomaly", action="store_true", help="name the module in which a NaN appears; slow")
    add("--num-gpus", type=int, default=1, metavar="N", help="GPUs of this machine; on a CPU: processes")
    add("--num-machines", type=int, default=1, metavar="N", help="machines that train together")
    add("--machine-rank", type=int, default=0, metavar="RANK", help="rank of this machine, from 0")
    add("--dist-url", default="auto", metavar="URL", help="tcp://HOST:PORT of the first machine, if there are several")
    return arguments


def train(args: argparse.Namespace) -> dict[str, Any]:
    """Run one process of the training."""
    from tmt_d2.config import setup_cfg
    from tmt_d2.engine.hooks.evaluation_images import EvaluationImages
    from tmt_d2.engine.run_stage import run_stage

    opts = [*args.opts, *(["SOLVER.DETECT_ANOMALY", "True"] if args.detect_anomaly else [])]
    cfg = setup_cfg(args.config_file, opts, args.method)
    return run_stage(cfg, args.resume, args.eval_only, hooks=[EvaluationImages(cfg)])


def main(arguments: Sequence[str] | None = None) -> None:
    args = parse(parser(), arguments)
    device = check_config(args.config_file, args.opts, args.method).MODEL.DEVICE
    from tmt_d2.engine.launch import launch

    launch(train, args.num_gpus, args.num_machines, args.machine_rank, args.dist_url, args=(args,), device=device)


def command() -> NoReturn:
    run(main)


if __name__ == "__main__":
    command()
