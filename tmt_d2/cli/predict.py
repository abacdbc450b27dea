"""Predict the images of a folder, a list, a registered split or a video: label files, overlays, confidence, T.

    python tools/predict.py --config-file configs/models/R50.yaml --method tmt \\
        --weights output/R50/tmt/model_final.pth --input photos --output predicted --write labels overlays

--output receives, for an image NAME (its path below the common folder of all images; the number of a video frame)

    labels/NAME.png             train ids (255: none), or with --ids cityscapes the ids of that data set's own files
    overlays/NAME.png           the image in the colors of its classes
    confidence/NAME.png         0-255: score of the best class divided by the sum of all scores; see --calibration
    transferability/NAME.png    0-255: T, mean over the levels; TMT models only
    classes.json                the ids in labels/: {"classes": [{"id": 0, "name": "road", "color": [...]}]}

Run the same command again to resume: images whose files are complete are skipped. --input is a folder (searched with
its subfolders), a text file with one path per line, a split in Detectron2's catalogs, a video, or an image. Exit
status: 0 all images predicted; 1 some images are unreadable, one line each; 2 an error, in one line.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

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
from tmt_d2.inference.choices import KINDS

TRAIN_IDS = "train"


def parser() -> argparse.ArgumentParser:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = arguments.add_argument
    add_config_arguments(arguments)
    add("--weights", default="", metavar="FILE", help="checkpoint; default: MODEL.WEIGHTS")
    add("--input", required=True, metavar="PLACE", help="a folder, a list, a registered split, a video, or an image")
    add("--output", required=True, type=Path, metavar="FOLDER", help="created if it does not exist")
    add("--write", nargs="+", choices=KINDS, default=KINDS[:2], help="files to write; default: labels overlays")
    add(
        "--ids",
        default=TRAIN_IDS,
        metavar="NAME",
        help="write this data set's own ids to labels/; default: train ids",
    )
    add("--calibration", metavar="FILE", help="calibration.json of tools/estimate.py, for --write confidence")
    add("--batch-size", type=int, default=8, metavar="N", help="maximum number of images in a forward pass")
    return arguments


def main(arguments: Sequence[str] | None = None) -> int:
    args = parse(parser(), arguments)
    if args.batch_size < 1:
        raise UserError("must be at least 1", key="--batch-size", value=args.batch_size)
    if args.calibration and "confidence" not in args.write:
        raise UserError("it needs --write confidence", key="--calibration", value=args.calibration)
    check_output_folder(args.output, args.input, "--input")
    check_place("--input", args.input)
    check_file("--weights", args.weights)
    check_file("--calibration", args.calibration or "")
    check_config(args.config_file, args.opts, args.method)
    from tmt_d2.config import setup_cfg
    from tmt_d2.data import register_data
    from tmt_d2.data.datasets.registration import split_name
    from tmt_d2.inference.folder import claim_output, ids_table, predict_images, write_classes
    from tmt_d2.inference.images import find_images
    from tmt_d2.inference.predictor import Predictor
    from tmt_d2.modeling.tmt import TransferableMaskFormer
    from tmt_d2.utils.files import remove_temporaries
    from tmt_d2.utils.lock import folder_lock
    from tmt_d2.utils.logs import log_to_screen

    log_to_screen()
    cfg = setup_cfg(args.config_file, args.opts, args.method)
    register_data(cfg, missing_ok=True)  # --input may be a split of custom data
    images = find_images(args.input)
    predictor = Predictor.from_config(args.config_file, args.weights, args.opts, args.method)
    if args.calibration:
        predictor.calibrate(args.calibration)
    if "transferability" in args.write:
        if not isinstance(predictor.model, TransferableMaskFormer):
            raise UserError("the model is a plain Mask2Former, which has none", key="--write transferability")
        predictor.model.output_transferability = True
    ids = None if args.ids == TRAIN_IDS else ids_table(predictor.label_space_of(split_name(args.ids, "val")))
    if images.left_out:
        print(f"{args.input}: {len(images)} images, {images.left_out} other and hidden files left out")
    with folder_lock(args.output, "--output"):
        claim_output(args.output, predictor, images, args.ids, args.calibration)
        remove_temporaries(args.output)
        write_classes(args.output, predictor.classes, ids)
        outcome = predict_images(predictor, images, args.output, args.write, ids, args.batch_size)
    print(f"{args.output}: {outcome}")
    return 1 if outcome.broken else 0


def command() -> NoReturn:
    run(main)


if __name__ == "__main__":
    command()
