"""Convert checkpoints from and to other projects.

    tmt-convert from-hf facebook/mask2former-swin-tiny-cityscapes-semantic swin_tiny.pth
    tmt-convert to-hf --config-file swin_tiny.yaml --weights model_final.pth FOLDER
    tmt-convert strip output/R50/tmt/model_final.pth plain.pth

from-hf   Mask2Former of Hugging Face, a folder or a model on the hub -> NAME.pth and its config NAME.yaml, with the
          sizes and the normalization of its preprocessor_config.json
to-hf     checkpoint and config -> a folder for transformers (model.safetensors, config.json, preprocessor_config.json)
strip     TMT checkpoint -> plain Mask2Former for the official code: .pth, or .pkl as in its model zoo

KEY VALUE overrides of the config follow FOLDER. Existing files are overwritten. The estimator
(transferability.*) is left out.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from tmt_d2.cli.common import add_config_arguments, check_config, check_file, run
from tmt_d2.errors import UserError
from tmt_d2.utils.files import atomic_write

logger = logging.getLogger(__name__)


def convert_from_huggingface(source: str, output: str | Path) -> Path:
    """Write ``output`` (.pth) and its config beside it; return the path of the config.

    Raises:
        FileNotFoundError, UserError: ``source`` cannot be found, read or converted.
    """
    output = Path(output)
    if output.suffix != ".pth":
        raise UserError("must end in .pth", key=output)
    import torch

    from tmt_d2.engine.checkpoint.classes import CLASSES, encode_classes
    from tmt_d2.projects.huggingface.checkpoint import PROCESSOR, from_huggingface, read_huggingface
    from tmt_d2.projects.huggingface.config import classes_of

    config, tensors, processor = read_huggingface(source)
    state, settings = from_huggingface(config, tensors, processor)
    if "MIN_SIZE_TEST" not in settings.INPUT:
        logger.warning(
            "%s resizes images to %s without keeping their aspect ratio, which is not possible here: "
            "set INPUT.MIN_SIZE_TEST in the config", PROCESSOR, processor["size"],
        )  # fmt: skip
    output.parent.mkdir(parents=True, exist_ok=True)
    config_file = output.with_suffix(".yaml")
    classes = classes_of(config, settings.MODEL.SEM_SEG_HEAD.NUM_CLASSES)
    with atomic_write(output) as weights:
        torch.save({"model": state} | ({CLASSES: encode_classes(classes)} if classes else {}), weights)
    with atomic_write(config_file, "w") as file:
        file.write(settings.dump())
    return config_file


def main(arguments: Sequence[str] | None = None) -> None:
    args = parser().parse_args(arguments)
    if args.command != "from-hf":
        check_file("checkpoint", args.weights)
    if args.command == "to-hf":
        check_config(args.config_file, args.opts, args.method)
    from tmt_d2.config import setup_cfg
    from tmt_d2.engine.checkpoint.checkpointer import read_state
    from tmt_d2.engine.checkpoint.classes import read_classes
    from tmt_d2.modeling.official import ESTIMATOR, write_official
    from tmt_d2.projects.huggingface.checkpoint import write_huggingface
    from tmt_d2.utils.logs import log_to_screen

    log_to_screen()
    if args.command == "from-hf":
        config_file = convert_from_huggingface(args.source, args.output)
        print(f"written: {args.output} and {config_file}; classes: {read_classes(args.output) or 'not named'}")
        return
    state = read_state(args.weights)
    if args.command == "to-hf":
        cfg = setup_cfg(args.config_file, ["MODEL.DEVICE", "cpu", *args.opts], args.method)
        write_huggingface(cfg, state, args.output, read_classes(args.weights))
        step = cfg.MODEL.MASK_FORMER.SIZE_DIVISIBILITY
        if step > 1:
            print(f"note: transformers stretches images to multiples of {step} pixels, this project pads them")
    else:
        Path(args.output).parent.mkdir(parents=True, exist_ok=True)
        write_official(state, args.output)
    left_out = sum(name.startswith(ESTIMATOR) for name in state)
    print(f"written: {args.output}" + (f" (without {left_out} entries of the estimator)" if left_out else ""))


def parser() -> argparse.ArgumentParser:
    formatter = argparse.RawDescriptionHelpFormatter
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    commands = arguments.add_subparsers(dest="command", required=True)
    command = commands.add_parser("from-hf", help="Hugging Face -> checkpoint and config")
    command.add_argument("source", help="folder, or name on the hub (owner/model)")
    command.add_argument("output", help="checkpoint to write, .pth; its config goes beside it")
    command = commands.add_parser("to-hf", help="checkpoint and config -> Hugging Face folder")
    command.add_argument("--weights", required=True, metavar="FILE", help="checkpoint, .pth or .pkl")
    command.add_argument("output", help="folder to write")
    add_config_arguments(command)
    command = commands.add_parser("strip", help="TMT checkpoint -> plain Mask2Former")
    command.add_argument("weights", help="checkpoint, .pth or .pkl")
    command.add_argument("output", help="file to write, .pth or .pkl")
    return arguments


def command() -> NoReturn:
    run(main)


if __name__ == "__main__":
    command()
