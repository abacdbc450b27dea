#!/usr/bin/env python
"""Run one stage of TMT: source training, estimator training, fine-tuning, or an evaluation.

What to run is said by the config file (TRANSFER.STAGE, TRANSFER.METHOD); any key can be overridden behind it:

    python train_net.py --config-file configs/R50/source.yaml
    python train_net.py --config-file configs/R50/estimator.yaml MODEL.WEIGHTS output/source/model_final.pth
    python train_net.py --config-file configs/R50/tmt.yaml MODEL.WEIGHTS output/estimator/model_final.pth
    python train_net.py --config-file configs/R50/tmt.yaml --eval-only MODEL.WEIGHTS output/tmt/model_final.pth

Data is found below $DETECTRON2_DATASETS. Results: OUTPUT_DIR/evaluation.json (estimator.json), model_final.pth,
log.txt, metrics.json and TensorBoard events. --resume goes on from OUTPUT_DIR/last_checkpoint.
"""

import sys

from detectron2.engine import default_argument_parser, default_setup, launch
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from tmt_d2 import setup_cfg
from tmt_d2.engine.cli import one_line_errors
from tmt_d2.engine.stages import run_stage


def main(args):
    cfg = setup_cfg(args.config_file, args.opts)
    cfg.freeze()
    default_setup(cfg, args)
    setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="tmt_d2")
    return run_stage(cfg, resume=args.resume, eval_only=args.eval_only)


def parser():
    arguments = default_argument_parser(epilog=__doc__)
    arguments.description = __doc__.splitlines()[0]
    return arguments


if __name__ == "__main__":
    with one_line_errors():
        args = parser().parse_args()
        launch(main, args.num_gpus, args.num_machines, args.machine_rank, args.dist_url, args=(args,))
    sys.exit(0)
