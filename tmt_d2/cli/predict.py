"""Predict many pictures: a folder, a list, a registered split, a video -> label files, overlays, confidence, T.

    python tools/predict.py --config-file configs/R50/tmt.yaml --weights output/R50/tmt/model_final.pth \\
        --input photos --output predicted --write labels overlays confidence transferability

--output receives, for a picture NAME (its path below the folder that all pictures share; of a video the frame's number)

    labels/NAME.png             train ids (255: none), or with --ids cityscapes the ids of that data set's own files
    overlays/NAME.png           the picture in the colours of its classes
    confidence/NAME.png         0-255: the share of the best class in the sum of all scores
    transferability/NAME.png    0-255: T, the mean of the levels; of TMT models
    classes.json                what the ids in labels/ mean: {"classes": [{"id": 0, "name": "road", "color": [...]}]}

The same command again goes on: what is there and whole is not predicted again. --input is a folder (with those below
it), a text file with a path a line, a name in Detectron2's catalogs, a video, or one picture. Exit status: 0 all are
there; 1 some pictures could not be read, each named in a line; 2 an error that one line names.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NoReturn

from tmt_d2.cli.common import parse, run
from tmt_d2.config import setup_cfg
from tmt_d2.data import register_data
from tmt_d2.data.datasets.registration import split_name
from tmt_d2.errors import UserError
from tmt_d2.inference.folder import KINDS, claim_output, ids_table, predict_files, write_classes
from tmt_d2.inference.predictor import Predictor, load_model
from tmt_d2.inference.reporting import label_space_for
from tmt_d2.inference.streaming import check_apart, find_pictures
from tmt_d2.modeling.tmt import TransferableMaskFormer
from tmt_d2.utils.files import remove_temporaries
from tmt_d2.utils.lock import folder_lock
from tmt_d2.utils.logs import log_to_screen

TRAIN_IDS = "train"


def parser():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = arguments.add_argument
    add("--config-file", required=True, metavar="FILE")
    add("--weights", default="", metavar="FILE", help="checkpoint; default: MODEL.WEIGHTS")
    add("--input", required=True, metavar="PLACE", help="a folder, a list, a registered split, a video, or a picture")
    add("--output", required=True, type=Path, metavar="FOLDER", help="created if it does not exist")
    add("--write", nargs="+", choices=KINDS, default=KINDS[:2], help="what to write; default: labels overlays")
    add("--ids", default=TRAIN_IDS, metavar="NAME", help="of label files: those of this data set; default: train ids")
    add("--batch-size", type=int, default=8, metavar="N", help="pictures of one size that share a pass, at most")
    add("opts", nargs="*", default=[], metavar="KEY VALUE", help="config overrides")
    return arguments


def main(arguments=None):
    args = parse(parser(), arguments)
    log_to_screen()
    if args.batch_size < 1:
        raise UserError(f"--batch-size is {args.batch_size}: it must be at least 1")
    if args.output.exists() and not args.output.is_dir():
        raise UserError(f"--output {args.output} is a file, not a folder")
    check_apart(args.output, args.input, "--input")
    register_data(setup_cfg(args.config_file, args.opts), missing_ok=True)  # --input may be a split of custom data
    pictures = find_pictures(args.input)
    cfg, model = load_model(args.config_file, args.weights, args.opts)
    if "transferability" in args.write and not isinstance(model, TransferableMaskFormer):
        raise UserError(
            f"--write transferability: {cfg.MODEL.META_ARCHITECTURE} has none; take a tmt model, or leave it"
        )
    ids = None if args.ids == TRAIN_IDS else ids_table(label_space_for(model, split_name(args.ids, "val")))
    claim_output(args.output, cfg, pictures, args.ids)
    if pictures.left_out:
        print(f"{args.input}: {len(pictures)} images, {pictures.left_out} other and hidden files left out")
    predictor = Predictor.of_model(cfg, model)
    with folder_lock(args.output, "--output"):
        remove_temporaries(args.output)
        write_classes(args.output, predictor.classes, ids)
        outcome = predict_files(predictor, pictures, args.output, args.write, ids, args.batch_size)
    print(f"{args.output}: {outcome}")
    return 1 if outcome.broken else 0


def command() -> NoReturn:
    run(main)


if __name__ == "__main__":
    command()
