"""Export a trained model at a fixed image size to ONNX or torch.export, and compare the file with the model.

    python -m tmt_d2.cli.export --config-file configs/models/R50.yaml --method tmt --weights model_final.pth \\
        --size 512x1024 --format onnx --output tmt.onnx

tmt_d2/inference/export.py describes the exported function and its agreement with the model. The file resizes nothing:
--image computes the size of the model's input from an image or its size, and a warning names it for another --size.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from tmt_d2.cli.common import add_config_arguments, check_config, check_file, parse, run
from tmt_d2.errors import UserError
from tmt_d2.inference.choices import FORMATS
from tmt_d2.utils.files import check_writable

logger = logging.getLogger(__name__)


def main(arguments: Sequence[str] | None = None) -> None:
    args = parse(parser(), arguments)
    given = _size("--size", args.size) if args.size else _image_size(args.image)
    suffix = Path(args.output).suffix[1:]
    file_format = args.format or (suffix if suffix in FORMATS else FORMATS[0])
    if suffix in FORMATS and suffix != file_format:
        raise UserError(f"its suffix is not that of --format {file_format}", key="--output", value=args.output)
    if Path(args.output).is_dir():
        raise UserError("this is a folder", key="--output", value=args.output, hint="name a file in it")
    check_writable("--output", args.output)
    check_file("--weights", args.weights)
    check_config(args.config_file, args.opts, args.method)
    import torch

    from tmt_d2.data.mapper import resized_size
    from tmt_d2.inference.export import IMAGES, export_model
    from tmt_d2.inference.predictor import Predictor
    from tmt_d2.utils.logs import log_to_screen

    log_to_screen()
    predictor = Predictor.from_config(args.config_file, args.weights, ["MODEL.DEVICE", "cpu", *args.opts], args.method)
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
    agreement = export_model(predictor.model, size, args.output, file_format, channels=cfg.INPUT.FORMAT)
    print(
        f"{args.output}: {Path(args.output).stat().st_size / 2**20:.1f} MiB, logits differ by {agreement.logits:.1e} "
        f"(median of {IMAGES} images, at worst {agreement.worst:.1e}), {agreement.labels:.3%} of the labels are equal\n"
        f"latency at {size[0]}x{size[1]} on {torch.get_num_threads()} CPU threads, median of {IMAGES} images: "
        f"PyTorch {1000 * agreement.model_seconds:.0f} ms, {file_format} {1000 * agreement.file_seconds:.0f} ms"
    )


def _size(option: str, text: str) -> tuple[int, int]:
    parts = text.lower().split("x")
    if len(parts) != 2 or not all(part.isdecimal() for part in parts) or not all(map(int, parts)):
        raise UserError("write HEIGHTxWIDTH, both positive, e.g. 512x1024", key=option, value=text)
    return int(parts[0]), int(parts[1])


def _image_size(text: str) -> tuple[int, int]:
    """Return the size of an image file, or the size itself."""
    if Path(text).suffix:
        check_file("--image", text)
        from tmt_d2.data.reader import read_image_of

        height, width = read_image_of({"file_name": text}).shape[:2]
        return height, width
    return _size("--image", text)


def parser() -> argparse.ArgumentParser:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = arguments.add_argument
    add_config_arguments(arguments)
    add("--weights", default="", metavar="FILE", help="checkpoint, path or URL; default: MODEL.WEIGHTS")
    sizes = arguments.add_mutually_exclusive_group(required=True)
    sizes.add_argument(
        "--image",
        metavar="FILE|HxW",
        help="an image or its size, which is resized as the config says (INPUT.MIN_SIZE_TEST)",
    )
    sizes.add_argument("--size", metavar="HxW", help="input size of the file, e.g. 512x1024")
    add("--format", choices=FORMATS, help="default: from the suffix of --output, else onnx")
    add("--output", required=True, metavar="FILE", help="file to write")
    return arguments


def command() -> NoReturn:
    run(main)


if __name__ == "__main__":
    command()
