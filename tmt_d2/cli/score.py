"""Rank source checkpoints for a target by transferability scores, without training.

    python tools/score.py --config-file configs/models/R50.yaml --target bdd100k --images 50 --json scores.json \\
        --checkpoints cityscapes/model_final.pth gtav/model_final.pth --sources cityscapes gtav

LEEP needs the checkpoint and labeled target images only. F-OTCE, JC-OTCE and PAD (proxy A-distance of a linear
classifier) also need the data that each checkpoint was trained on: name it by --sources, one for each checkpoint.
Higher is better, except for PAD. Images come from the training splits below $DETECTRON2_DATASETS.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from tabulate import tabulate

from tmt_d2.cli.common import add_config_arguments, check_config, check_file, parse, run
from tmt_d2.errors import UserError
from tmt_d2.utils.files import check_writable, write_json

logger = logging.getLogger(__name__)


def parser() -> argparse.ArgumentParser:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = arguments.add_argument
    add_config_arguments(arguments)
    add("--target", required=True, metavar="NAME", help="data set name, e.g. bdd100k")
    add("--checkpoints", nargs="+", required=True, type=Path, metavar="FILE", help="source models to rank")
    add("--sources", nargs="+", default=[], metavar="NAME", help="data set name of each checkpoint")
    add("--images", type=int, default=50, metavar="N", help="labeled images per data set; default: %(default)s")
    add("--pixels", type=int, default=1000, metavar="N", help="pixels per data set and draw; default: %(default)s")
    add(
        "--draws",
        type=int,
        default=5,
        metavar="N",
        help="draws of pixels, whose scores are averaged; default: %(default)s",
    )
    add("--seed", type=int, default=0, metavar="N", help="seed of the draws; default: %(default)s")
    add("--json", type=Path, metavar="FILE", help="also write the scores and the rankings to this file")
    return arguments


def main(arguments: Sequence[str] | None = None) -> None:
    args = parse(parser(), arguments)
    check_arguments(args)
    from tmt_d2.config import setup_cfg
    from tmt_d2.data.datasets.registration import split_name
    from tmt_d2.experiments.scoring import SCORES, ranked, score_checkpoint
    from tmt_d2.utils.logs import log_to_screen

    log_to_screen()
    check_data_sets(args)
    target = [split_name(args.target, "train")]
    amounts = {name: getattr(args, name) for name in ("images", "pixels", "draws", "seed")}
    results = {}
    for index, checkpoint in enumerate(args.checkpoints):
        cfg = setup_cfg(args.config_file, [*args.opts, "MODEL.WEIGHTS", str(checkpoint)], args.method)
        source = [split_name(args.sources[index], "train")] if args.sources else []
        results[str(checkpoint)] = score_checkpoint(cfg, target, source, **amounts)
    rankings = ranked(results)
    columns = [name for name in SCORES if name in rankings]
    rows = [
        (name, *(f"{results[name][score]:.3f}  (#{rankings[score].index(name) + 1})" for score in columns))
        for name in next(iter(rankings.values()))
    ]
    print(tabulate(rows, headers=("checkpoint", *columns)))
    if args.json:
        write_json(args.json, {"target": args.target, "scores": results, "rankings": rankings})


def check_arguments(args: argparse.Namespace) -> None:
    """Refuse wrong arguments before a model is loaded."""
    if args.sources and len(args.sources) != len(args.checkpoints):
        message = f"{len(args.sources)} data sets for {len(args.checkpoints)} checkpoints"
        raise UserError(message, key="--sources", value=args.sources)
    for option, least in (("images", 2), ("pixels", 2), ("draws", 1)):
        if getattr(args, option) < least:
            raise UserError(f"must be at least {least}", key=f"--{option}", value=getattr(args, option))
    if args.json:
        check_writable("--json", args.json)
    for checkpoint in args.checkpoints:
        check_file("--checkpoints", checkpoint)
    check_config(args.config_file, args.opts, args.method)


def check_data_sets(args: argparse.Namespace) -> None:
    from tmt_d2.config import setup_cfg
    from tmt_d2.data import register_data
    from tmt_d2.data.datasets.registration import check_registered, split_name

    register_data(setup_cfg(args.config_file, args.opts, args.method))
    for option, names in (("--target", [args.target]), ("--sources", args.sources)):
        for name in names:
            check_registered(split_name(name, "train"), f"{option} {name}")
    if args.target in args.sources:
        logger.warning("--target and --sources both name %s: the scores are those of one domain", args.target)


def command() -> NoReturn:
    run(main)


if __name__ == "__main__":
    command()
