"""Export a trained model at a fixed image size to ONNX or torch.export, and compare the file with the model.

    python -m tmt_d2.cli.export --config-file configs/R50/tmt.yaml --weights model_final.pth \\
        --size 512x1024 --format onnx --output tmt.onnx

The exported function: ``image`` (1, 3, H, W) float32, values 0 to 255 in the channel order of INPUT.FORMAT ->

    labels           (1, H, W) int64, the best class of each pixel
    scores           (1, K, H, W), not normalised over the classes
    class_logits     (1, Q, K + 1), mask_logits (1, Q, h, w): what the decoder says of its Q queries
    transferability  (1, L, H, W) in [0, 1], coarsest level first; TMT models only

The file says what it reads and what its labels mean, in JSON: ``input`` and ``classes`` in the metadata of ONNX, the
extra files ``input.json`` and ``classes.json`` of torch.export. ``input`` is {"name": "image", "layout": "NCHW",
"channels": "RGB" or "BGR", "range": [0, 255], "dtype": "float32", "size": [H, W]}, ``classes`` is {"names": [...],
"colors": [[r, g, b], ...]}.

The file resizes nothing. It answers as ``Predictor`` does for images that are resized to its size as the config resizes
them: --image computes that size from an image or its size, and another --size is warned of.

Normalisation, padding, adaptive clustering and transferable masked attention are part of the file. It is only written
when it agrees with the model on five images: their largest difference of logits has a median of at most 1e-3, and at
least 99.9 % of the labels are equal. Not every image can pass: masked attention asks whether a logit is above 0, and
one that is 0 but for rounding changes what a query attends to (PyTorch does the same to itself when an image changes by
1e-7 of its values). A fault in the file shows in every image.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import torch

from tmt_d2.cli.common import parse, run
from tmt_d2.data.mapper import resized_size
from tmt_d2.data.reader import read_image_of
from tmt_d2.errors import UserError
from tmt_d2.inference.export import FORMATS, IMAGES, export_model
from tmt_d2.inference.predictor import Predictor
from tmt_d2.utils.files import check_writable
from tmt_d2.utils.logs import log_to_screen

logger = logging.getLogger(__name__)


def main(arguments: Sequence[str] | None = None) -> None:
    args = parse(parser(), arguments)
    given = _size("--size", args.size) if args.size else _image_size(args.image)
    log_to_screen()
    suffix = Path(args.output).suffix[1:]
    file_format = args.format or (suffix if suffix in FORMATS else FORMATS[0])
    if suffix in FORMATS and suffix != file_format:
        raise UserError(f"--output {args.output} is called .{suffix}, --format is {file_format}: change one of them")
    if Path(args.output).is_dir():
        raise UserError(f"--output {args.output} is a folder: name a file in it")
    check_writable("--output", args.output)
    predictor = Predictor.from_config(args.config_file, args.weights, ["MODEL.DEVICE", "cpu", *args.opts])
    cfg = predictor.cfg
    resized = resized_size(given, cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST)
    size = given if args.size else resized
    if size != resized:
        logger.warning(
            "--size %s: in testing images of this shape are resized to %dx%d (INPUT.MIN_SIZE_TEST, MAX_SIZE_TEST); "
            "for the labels of Predictor use --size %dx%d",
            args.size,
            *resized,
            *resized,
        )
    for key in ("SLIDING_WINDOW", "AUG"):
        if cfg.TEST[key].ENABLED:
            logger.warning("TEST.%s.ENABLED is True: the file does one pass over the whole image without it", key)
    found = export_model(predictor.model, size, args.output, file_format, channels=cfg.INPUT.FORMAT)
    print(
        f"{args.output}: {Path(args.output).stat().st_size / 2**20:.1f} MiB, logits differ by {found.logits:.1e} "
        f"(median of {IMAGES} images, at worst {found.worst:.1e}), {found.labels:.3%} of the labels are equal\n"
        f"latency at {size[0]}x{size[1]} on {torch.get_num_threads()} CPU threads, median of {IMAGES} images: "
        f"PyTorch {1000 * found.model_seconds:.0f} ms, {file_format} {1000 * found.file_seconds:.0f} ms"
    )


def _size(option: str, text: str) -> tuple[int, int]:
    parts = text.lower().split("x")
    if len(parts) != 2 or not all(part.isdecimal() for part in parts) or not all(map(int, parts)):
        raise UserError(f"{option} {text}: write HEIGHTxWIDTH, both positive, e.g. 512x1024")
    return int(parts[0]), int(parts[1])


def _image_size(text: str) -> tuple[int, int]:
    """Of the file of this name, or what it says."""
    if Path(text).suffix:
        height, width = read_image_of({"file_name": text}).shape[:2]
        return height, width
    return _size("--image", text)


def parser() -> argparse.ArgumentParser:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = arguments.add_argument
    add("--config-file", required=True, metavar="FILE")
    add("--weights", default="", metavar="FILE", help="checkpoint, path or URL; default: MODEL.WEIGHTS")
    sizes = arguments.add_mutually_exclusive_group(required=True)
    sizes.add_argument(
        "--image",
        metavar="FILE|HxW",
        help="an image, or the size of one: the file reads what the config resizes it to (INPUT.MIN_SIZE_TEST)",
    )
    sizes.add_argument("--size", metavar="HxW", help="the size that the file reads, e.g. 512x1024")
    add("--format", choices=FORMATS, help="default: as the name of --output says, else onnx")
    add("--output", required=True, metavar="FILE")
    add("opts", nargs="*", default=[], metavar="KEY VALUE", help="config overrides")
    return arguments


def command() -> NoReturn:
    run(main)


if __name__ == "__main__":
    command()
