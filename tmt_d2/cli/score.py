"""Which source checkpoint suits a target best? Ranks checkpoints by transferability scores, without training.

    python tools/score.py --config-file configs/models/R50.yaml --target bdd100k --images 50 --json scores.json \\
        --checkpoints cityscapes/model_final.pth gtav/model_final.pth --sources cityscapes gtav

LEEP needs the checkpoint and labelled target images only. F-OTCE, JC-OTCE and PAD (proxy A-distance, of a linear
classifier) compare with the data that the checkpoint was trained on: name it by --sources, one for each checkpoint.
Higher is better, but for PAD. The images are of the training splits, below $DETECTRON2_DATASETS.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import NoReturn

from tabulate import tabulate

from tmt_d2.cli.common import add_config_arguments, parse, run
from tmt_d2.config import setup_cfg
from tmt_d2.data import register_data
from tmt_d2.data.datasets.registration import check_registered, split_name
from tmt_d2.errors import UserError
from tmt_d2.experiments.scoring import SCORES, ranked, score_checkpoint
from tmt_d2.utils.files import check_writable, write_json
from tmt_d2.utils.logs import log_to_screen


def parser():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_config_arguments(arguments)
    arguments.add_argument("--target", required=True, help="data set name, e.g. bdd100k")
    arguments.add_argument("--checkpoints", nargs="+", required=True, type=Path)
    arguments.add_argument("--sources", nargs="+", default=[], help="data set name of each checkpoint")
    arguments.add_argument("--images", type=int, default=50, help="labelled images per data set")
    arguments.add_argument("--pixels", type=int, default=1000, help="labelled pixels per data set and draw")
    arguments.add_argument("--draws", type=int, default=5)
    arguments.add_argument("--seed", type=int, default=0)
    arguments.add_argument("--json", type=Path, help="also write the scores and the rankings to this file")
    return arguments


def main():
    args = parse(parser())
    log_to_screen()
    if args.sources and len(args.sources) != len(args.checkpoints):
        raise UserError(f"--sources names {len(args.sources)} data sets for {len(args.checkpoints)} checkpoints")
    for option, value, least in (("images", args.images, 2), ("pixels", args.pixels, 2), ("draws", args.draws, 1)):
        if value < least:
            raise UserError(f"--{option} is {value}: it must be at least {least}")
    if args.json:
        check_writable("--json", args.json)
    register_data(setup_cfg(args.config_file, args.opts, args.method))
    for option, names in (("--target", [args.target]), ("--sources", args.sources)):
        for name in names:
            check_registered(split_name(name, "train"), f"{option} {name}")
    for checkpoint in args.checkpoints:
        if ":/" not in str(checkpoint) and not checkpoint.is_file():
            raise FileNotFoundError(f"--checkpoints {checkpoint} does not exist")
    if args.target in args.sources:
        logging.getLogger("tmt_d2.score").warning(
            "--target and --sources both name %s: its scores are those of one domain", args.target
        )
    results = {}
    for index, checkpoint in enumerate(args.checkpoints):
        cfg = setup_cfg(args.config_file, [*args.opts, "MODEL.WEIGHTS", str(checkpoint)], args.method)
        source = [split_name(args.sources[index], "train")] if args.sources else []
        results[str(checkpoint)] = score_checkpoint(
            cfg,
            [split_name(args.target, "train")],
            source,
            images=args.images,
            pixels=args.pixels,
            draws=args.draws,
            seed=args.seed,
        )
    rankings = ranked(results)
    order = next(iter(rankings.values()))
    columns = [name for name in SCORES if name in rankings]
    rows = [
        (name, *(f"{results[name][score]:.3f}  (#{rankings[score].index(name) + 1})" for score in columns))
        for name in order
    ]
    print(tabulate(rows, headers=("checkpoint", *columns)))
    if args.json:
        write_json(args.json, {"target": args.target, "scores": results, "rankings": rankings})


def command() -> NoReturn:
    run(main)


if __name__ == "__main__":
    command()
