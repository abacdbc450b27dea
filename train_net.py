#!/usr/bin/env python
"""Run one stage of TMT: source training, estimator training, fine-tuning, or an evaluation.

What to run is said by the config file (TRANSFER.STAGE, TRANSFER.METHOD); any key can be overridden behind it:

    python train_net.py --config-file configs/R50/source.yaml
    python train_net.py --config-file configs/R50/estimator.yaml MODEL.WEIGHTS output/R50/source/model_final.pth
    python train_net.py --config-file configs/R50/tmt.yaml MODEL.WEIGHTS output/R50/estimator/model_final.pth
    python train_net.py --config-file configs/R50/tmt.yaml --eval-only MODEL.WEIGHTS output/R50/tmt/model_final.pth

Data is found below $DETECTRON2_DATASETS. Results: OUTPUT_DIR/evaluation.json (estimator.json), model_final.pth,
log.txt, metrics.json and TensorBoard events. --resume goes on from OUTPUT_DIR/last_checkpoint.
"""

import sys

from detectron2.engine import default_argument_parser, launch

from tmt_d2 import setup_cfg
from tmt_d2.engine.cli import one_line_errors
from tmt_d2.engine.stages import run_stage


def main(args):
    return run_stage(setup_cfg(args.config_file, args.opts), resume=args.resume, eval_only=args.eval_only)


if __name__ == "__main__":
    with one_line_errors():
        args = default_argument_parser(epilog=__doc__).parse_args()
        launch(main, args.num_gpus, args.num_machines, args.machine_rank, args.dist_url, args=(args,))
    sys.exit(0)
