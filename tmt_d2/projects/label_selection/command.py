"""Propose images of a target to label next.

    python tools/select_labels.py --config-file configs/models/lite0.yaml \\
        --weights output/lite0/full/model_final.pth --target photos --budget 20 --output proposed

Files in --output:

    selected.html    every proposed image with its prediction and statistics; deselect images, save the lists
    selected.txt     the list, one image a line, for training: TRANSFER.LABEL_LIST proposed/selected.txt
    labeled.txt      with --labeled: the images of that list and the proposed ones, for training
    selected.csv     the statistics as a table
    pool/            statistics of every image of the target; later runs with another strategy or budget reuse them
    prelabels/       with --prelabels: NAME.png with the predicted class ids of every proposed image
    prelabels.json   the same as one COCO file with the confidence of each mask: run lengths for CVAT;
                     with "--prelabels polygons" outlines for Label Studio, which reads no run lengths

No label is read. --target is a folder (searched recursively), a text file with one path a line, or a registered
split. Images of --labeled LIST are not proposed again, and count in strategies that compare features. Strategies:

    auto       the best one in docs/results.md: {auto}
    random     random images                      entropy    most uncertain predictions
    margin     smallest margin of two classes     kcenter    farthest from all labeled and selected images
    kmeans     one image of each cluster          clue       k-means weighted by uncertainty
    domain     most unlike the source (T)
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import numpy as np

from tmt_d2.cli.common import (
    add_config_arguments,
    check_config,
    check_file,
    check_output_folder,
    check_place,
    parse,
    run,
)
from tmt_d2.errors import UserError
from tmt_d2.inference.choices import VIDEOS
from tmt_d2.projects.label_selection.choices import MASKS, SEGMENTATIONS
from tmt_d2.projects.label_selection.strategies import AUTO, DOMAIN_NEEDS, STRATEGIES, check_strategy

if TYPE_CHECKING:
    from tmt_d2.inference.predictor import Predictor
    from tmt_d2.projects.label_selection.pool import Pool


def parser() -> argparse.ArgumentParser:
    text = __doc__.format(auto=AUTO)
    arguments = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = arguments.add_argument
    add_config_arguments(arguments)
    add("--weights", default="", metavar="FILE", help="checkpoint; default: MODEL.WEIGHTS")
    add("--target", required=True, metavar="PLACE", help="a folder, a list, or a registered split")
    add("--budget", required=True, type=int, metavar="N", help="number of images to propose")
    add("--output", required=True, type=Path, metavar="FOLDER", help="created if it does not exist")
    add("--labeled", metavar="LIST", help="text file of the images that are already labeled")
    add("--strategy", choices=("auto", *STRATEGIES), default="auto", help="default: auto")
    add("--seed", type=int, default=0, help="seed of random, kmeans and clue; default: %(default)s")
    add("--prelabels", nargs="?", const=MASKS, choices=SEGMENTATIONS, help="write predictions for annotators")
    add("--confidence", type=float, default=0.0, metavar="P", help="pre-labels are 255 where confidence is below P")
    add("--calibration", metavar="FILE", help="calibration.json of tools/estimate.py, for confidence in pre-labels")
    add("--batch-size", type=int, default=8, metavar="N", help="maximum number of images in a forward pass")
    return arguments


def check_arguments(args: argparse.Namespace) -> None:
    for name, least in {"budget": 1, "batch_size": 1, "seed": 0}.items():
        if getattr(args, name) < least:
            option = f"--{name.replace('_', '-')}"
            raise UserError(f"must be at least {least}", key=option, value=getattr(args, name))
    if not 0 <= args.confidence < 1:
        raise UserError("must be at least 0 and below 1", key="--confidence", value=args.confidence)
    if args.confidence and not args.prelabels:
        raise UserError("it needs --prelabels", key="--confidence", value=args.confidence)
    if args.calibration and not args.prelabels:
        raise UserError("it needs --prelabels", key="--calibration", value=args.calibration)
    check_strategy(_strategy(args))
    if Path(args.target).suffix.lower() in VIDEOS:
        raise UserError("it is a video", key="--target", value=args.target, hint="extract its frames")
    check_output_folder(args.output, args.target, "--target")
    check_place("--target", args.target)
    check_file("--weights", args.weights)
    check_config(args.config_file, args.opts, args.method)


def _strategy(args: argparse.Namespace) -> str:
    return AUTO if args.strategy == "auto" else args.strategy


def check_budget(budget: int, unlabeled: int) -> None:
    if budget > unlabeled:
        raise UserError(f"there are {unlabeled} images without a label", key="--budget", value=budget)


def main(arguments: Sequence[str] | None = None) -> int:
    args = parse(parser(), arguments)
    check_arguments(args)
    from tmt_d2.config import setup_cfg
    from tmt_d2.data import register_data
    from tmt_d2.inference.images import find_images
    from tmt_d2.inference.predictor import Predictor
    from tmt_d2.inference.statistics import model_identity
    from tmt_d2.modeling.tmt import TransferableMaskFormer
    from tmt_d2.projects.label_selection.pool import score_pool
    from tmt_d2.projects.label_selection.prelabels import check_no_prelabels
    from tmt_d2.projects.label_selection.proposal import labeled_indices
    from tmt_d2.utils.files import remove_temporaries
    from tmt_d2.utils.lock import folder_lock
    from tmt_d2.utils.logs import log_to_screen

    log_to_screen()
    if args.prelabels:
        check_no_prelabels(args.output)
    cfg = setup_cfg(args.config_file, args.opts, args.method)
    register_data(cfg, missing_ok=True)  # --target may be a split of custom data
    images = find_images(args.target)
    names, files = zip(*((each.name, str(each.record["file_name"])) for each in images))
    check_budget(args.budget, len(images) - len(labeled_indices(names, files, args.labeled) if args.labeled else ()))
    predictor = Predictor.from_config(args.config_file, args.weights, args.opts, args.method)
    if args.calibration:
        predictor.calibrate(args.calibration)
    if args.strategy == "domain" and not isinstance(predictor.model, TransferableMaskFormer):
        raise UserError(DOMAIN_NEEDS, key="--strategy", value="domain")
    with folder_lock(args.output, "--output"):
        remove_temporaries(args.output)
        folder, identity = args.output / "pool", model_identity(predictor.cfg)
        return propose(args, predictor, score_pool(predictor, images, folder, identity, args.batch_size))


def propose(args: argparse.Namespace, predictor: Predictor, pool: Pool) -> int:
    from tmt_d2.data.image_lists import names_in_lists
    from tmt_d2.projects.label_selection.prelabels import write_prelabels
    from tmt_d2.projects.label_selection.proposal import labeled_indices, write_proposal

    for name, reason in pool.broken.items():
        print(f"left out: {name}: {reason}")
    labeled = np.zeros(0, np.int64)
    if args.labeled:
        labeled = labeled_indices(pool.names, pool.files, args.labeled)
    check_budget(args.budget, len(pool) - len(labeled))
    strategy = _strategy(args)
    selection = STRATEGIES[strategy](pool, args.budget, labeled, np.random.default_rng(args.seed))
    facts = {
        "proposed": f"{len(selection.indices)} of {len(pool)} images",
        "target": args.target,
        "strategy": strategy,
        "already labeled": len(labeled),
        "model": predictor.cfg.MODEL.WEIGHTS,
    }
    training_list = write_proposal(args.output, pool, selection, labeled, predictor, facts)
    if args.prelabels:
        options = {"confidence": args.confidence, "segmentation": args.prelabels}
        write_prelabels(args.output, pool, selection.indices, predictor, **options)
    names = names_in_lists(pool.files)
    for rank, index in enumerate(selection.indices, 1):
        print(f"{rank:4d}  {names[index]}")
    print(f"\nwritten: {args.output}; train with TRANSFER.LABEL_LIST {training_list}")
    return 1 if pool.broken else 0


def command() -> NoReturn:
    run(main)


if __name__ == "__main__":
    command()
