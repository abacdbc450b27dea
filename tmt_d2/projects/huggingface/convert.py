"""Turn checkpoints into other projects' and back, in one command.

    tmt-convert from-hf facebook/mask2former-swin-tiny-cityscapes-semantic swin_tiny.pth
    tmt-convert to-hf --config-file swin_tiny.yaml --weights model_final.pth FOLDER
    tmt-convert strip output/R50/tmt/model_final.pth plain.pth

from-hf   a folder or hub name of a Mask2Former of Hugging Face -> NAME.pth and NAME.yaml, the config it needs, with the
          sizes and the normalization of its preprocessor_config.json.
to-hf     a checkpoint and its config -> a folder that transformers reads (model.safetensors, config.json).
strip     a TMT checkpoint -> plain Mask2Former for the official code: .pth, or .pkl as in its model zoo.

Of to-hf KEY VALUE overrides may stand anywhere. Files of the given names are overwritten. An estimator
(transferability.*) has no place in the other projects: it stays behind, which is said.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch
import yaml
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import build_model
from torch import Tensor

from tmt_d2.cli.common import parse, run
from tmt_d2.config import add_tmt_config, setup_cfg
from tmt_d2.engine.checkpoint.checkpointer import read_state
from tmt_d2.engine.checkpoint.classes import CLASSES, encode_classes, read_classes
from tmt_d2.errors import UserError
from tmt_d2.modeling.official import ESTIMATOR, write_official
from tmt_d2.projects.huggingface.checkpoint import PROCESSOR, from_huggingface, read_huggingface, write_huggingface
from tmt_d2.projects.huggingface.config import classes_of
from tmt_d2.utils.files import atomic_write
from tmt_d2.utils.logs import log_to_screen

logger = logging.getLogger(__name__)


def convert_from_huggingface(source: str, output: str | Path) -> Path:
    """Write ``output`` (.pth) and, beside it, the config; returns the config's path.

    Raises:
        FileNotFoundError, UserError: ``source`` cannot be had, read or converted; one line.
    """
    output = Path(output)
    if output.suffix != ".pth":
        raise UserError(f"{output}: write a .pth file")
    config, tensors, processor = read_huggingface(source)
    state, settings = from_huggingface(config, tensors, processor)
    if "INPUT.MIN_SIZE_TEST" not in settings:
        logger.warning(
            "%s resizes images to %s, whatever their shape; here they keep it: set INPUT.MIN_SIZE_TEST in the config",
            PROCESSOR, processor["size"],
        )  # fmt: skip
    nested = _nested(settings)
    cfg = get_cfg()
    add_tmt_config(cfg)
    cfg.merge_from_other_cfg(CfgNode(nested))
    cfg.MODEL.DEVICE = "cpu"
    _check_names(state, build_model(cfg).state_dict(), source)
    output.parent.mkdir(parents=True, exist_ok=True)
    config_file = output.with_suffix(".yaml")
    classes = classes_of(config, settings["MODEL.SEM_SEG_HEAD.NUM_CLASSES"])
    with atomic_write(output) as weights:
        torch.save({"model": state} | ({CLASSES: encode_classes(classes)} if classes else {}), weights)
    with atomic_write(config_file, "w") as file:
        yaml.safe_dump(nested, file)
    return config_file


def _check_names(state: Mapping[str, Tensor], model: Mapping[str, Tensor], source: str) -> None:
    left = sorted(name for name in model if name not in state and name != "criterion.empty_weight")
    other = sorted(name for name in state if name not in model or state[name].shape != model[name].shape)
    if left or other:
        raise UserError(f"{source}: config.json and weights do not belong together, see {(left + other)[0]}")


def _nested(settings: Mapping[str, Any]) -> dict[str, Any]:
    root: dict[str, Any] = {}
    for key, value in settings.items():
        *parents, leaf = key.split(".")
        node = root
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = value
    return root


def main(arguments: Sequence[str] | None = None) -> None:
    args = parse(parser(), arguments)
    if args.opts and args.command != "to-hf":
        raise UserError(f"{args.opts[0]}: KEY VALUE overrides are of to-hf alone, {args.command} takes no config")
    log_to_screen()
    if args.command == "from-hf":
        config_file = convert_from_huggingface(args.source, args.output)
        named = read_classes(args.output)
        classes = (
            f"; it names {named}" if named else "; id2label names no classes of its own, so the checkpoint does not"
        )
        print(f"written: {args.output} and {config_file}{classes}")
        return
    state = read_state(args.weights)
    if args.command == "to-hf":
        cfg = setup_cfg(args.config_file, ["MODEL.DEVICE", "cpu", *args.opts])
        write_huggingface(cfg, state, args.output, read_classes(args.weights))
        step = cfg.MODEL.MASK_FORMER.SIZE_DIVISIBILITY
        if step > 1:
            print(
                f"note: the processor of transformers stretches images to multiples of {step} pixels, this project "
                "pads them: labels are the same only where the sizes fit"
            )
    else:
        Path(args.output).parent.mkdir(parents=True, exist_ok=True)
        write_official(state, args.output)
    left = sum(name.startswith(ESTIMATOR) for name in state)
    note = f" ({left} entries of the estimator stay behind)" if left else ""
    print(f"written: {args.output}{note}")


def parser() -> argparse.ArgumentParser:
    formatter = argparse.RawDescriptionHelpFormatter
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    arguments.set_defaults(opts=[])  # KEY VALUE, which `parse` takes out from anywhere
    commands = arguments.add_subparsers(dest="command", required=True)
    command = commands.add_parser("from-hf", help="Hugging Face -> checkpoint and config")
    command.add_argument("source", help="folder, or name on the hub (owner/model)")
    command.add_argument("output", help="checkpoint to write, .pth; its config goes beside it")
    command = commands.add_parser("to-hf", help="checkpoint and config -> Hugging Face folder")
    command.add_argument("--config-file", required=True, metavar="FILE")
    command.add_argument("--weights", required=True, metavar="FILE")
    command.add_argument("output", help="folder to write")
    command = commands.add_parser("strip", help="TMT checkpoint -> plain Mask2Former")
    command.add_argument("weights", help="checkpoint, .pth or .pkl")
    command.add_argument("output", help="file to write, .pth or .pkl")
    return arguments


def command() -> NoReturn:
    run(main)


if __name__ == "__main__":
    command()
