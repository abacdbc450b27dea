"""Mask2Former of Hugging Face ``transformers`` (Swin or ResNet backbone) <-> our config and state dict.

Nothing here imports ``transformers``: a model there is a folder with config.json and safetensors files.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import build_model
from torch import Tensor

from tmt_d2.config import add_tmt_config, set_key
from tmt_d2.data.class_lists import ClassList
from tmt_d2.errors import UserError
from tmt_d2.modeling.official import ESTIMATOR
from tmt_d2.projects.huggingface.config import (
    backbone_type,
    config_of,
    processor_of,
    settings_from,
    settings_of_processor,
)
from tmt_d2.projects.huggingface.names import UNUSED, names_there
from tmt_d2.utils.files import atomic_write, read_json, write_json

PROCESSOR = "preprocessor_config.json"
DERIVED = ("relative_position_index", "empty_weight")  # buffers that follow from the config


def from_huggingface(
    config: Mapping[str, Any], tensors: Mapping[str, Tensor], processor: Mapping[str, Any] = {}
) -> tuple[dict[str, Tensor], CfgNode]:
    """Convert a ``Mask2FormerForUniversalSegmentation``.

    Args:
        processor: content of its preprocessor_config.json.

    Returns:
        our state dict; the config keys that differ from the defaults.

    Raises:
        UserError: another kind of model, a variant that cannot be built here, or tensors that do not fit the config.
    """
    settings = settings_from(config) | settings_of_processor(processor)
    if "class_predictor.weight" not in tensors:
        raise UserError("missing: only Mask2FormerForUniversalSegmentation is converted", key="class_predictor.weight")
    settings["MODEL.SEM_SEG_HEAD.NUM_CLASSES"] = len(tensors["class_predictor.weight"]) - 1
    nested, cfg = CfgNode(), get_cfg()
    add_tmt_config(cfg)
    for key, value in settings.items():
        set_key(nested, key, value)
        set_key(cfg, key, value)
    cfg.MODEL.DEVICE = "cpu"
    state, left = build_model(cfg).state_dict(), {name for name in tensors if not UNUSED.fullmatch(name)}
    for ours, initial in state.items():
        if ours.endswith(DERIVED):
            continue
        names = names_there(ours, backbone_type(config))
        if missing := [name for name in names if name not in tensors]:
            raise UserError("missing in the weights", key=missing[0])
        state[ours] = torch.cat([tensors[name] for name in names]) if len(names) > 1 else tensors[names[0]]
        if state[ours].shape != initial.shape:
            shapes = f"{tuple(state[ours].shape)} in the weights, {tuple(initial.shape)} by config.json"
            raise UserError(shapes, key=names[0])
        left -= {*names}
    if left:
        raise UserError("no counterpart here", key=min(left))
    return state, nested


def to_huggingface(
    cfg: CfgNode, state: Mapping[str, Tensor], classes: ClassList | None = None
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return config.json and tensors of the plain Mask2Former in ``state``, without the estimator.

    Args:
        classes: of the checkpoint, if it has them.

    Raises:
        UserError: a variant that ``transformers`` does not have, or an entry without a counterpart.
    """
    config = config_of(cfg, classes)
    tensors = {}
    for ours, tensor in state.items():
        if ours.startswith(ESTIMATOR) or ours.endswith("relative_position_index"):
            continue
        names = names_there(ours, backbone_type(config))
        chunks = tensor.chunk(len(names)) if len(names) > 1 else [tensor]
        tensors.update({name: chunk.contiguous() for name, chunk in zip(names, chunks)})
    for name in [name for name in tensors if name.endswith("normalization.running_var")]:  # FrozenBN counts no batches
        tensors.setdefault(name.replace("running_var", "num_batches_tracked"), torch.tensor(0))
    return config, tensors


def read_huggingface(source: str) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, Any]]:
    """Read config.json, tensors and preprocessor_config.json (empty if missing) of a folder or of a model on the hub.

    Raises:
        FileNotFoundError: no such folder or model, or it has no config.json or safetensors.
        UserError: a file cannot be read.
        ImportError: safetensors or huggingface_hub is not installed.
    """
    from safetensors import SafetensorError  # optional: pip install "tmt_d2[hf]"
    from safetensors.torch import load_file

    folder = Path(source) if Path(source).is_dir() else _download(source)
    files = sorted(folder.glob("model*.safetensors"))
    if not (folder / "config.json").is_file() or not files:
        raise FileNotFoundError(f"{source}: no config.json with model*.safetensors")
    tensors: dict[str, Tensor] = {}
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        for file in files:
            tensors.update(load_file(file))
    except (SafetensorError, ValueError) as error:
        raise UserError(f"cannot be read: {' '.join(str(error).split())}", key=source) from error
    processor = folder / PROCESSOR
    return config, tensors, read_json(processor, remedy="download it again") if processor.is_file() else {}


def _download(name: str) -> Path:
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise FileNotFoundError(f"{name}: neither a folder nor the name of a model on the hub (owner/model)")
    from huggingface_hub import snapshot_download  # optional: pip install "tmt_d2[hf]"

    try:
        return Path(snapshot_download(name, allow_patterns=["config.json", PROCESSOR, "model*.safetensors"]))
    except Exception as error:  # many kinds, of the library and of the network
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise FileNotFoundError(f"{name}: no folder, and not available from the hub: {reason}") from error


def write_huggingface(
    cfg: CfgNode, state: Mapping[str, Tensor], folder: str | Path, classes: ClassList | None = None
) -> None:
    """Write config.json, model.safetensors and preprocessor_config.json to ``folder``, each atomically.

    Args, Raises: as ``to_huggingface``.
    """
    from safetensors.torch import save  # optional: pip install "tmt_d2[hf]"

    config, tensors = to_huggingface(cfg, state, classes)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_write(folder / "model.safetensors") as file:
        file.write(save(tensors, metadata={"format": "pt"}))
    write_json(folder / "config.json", config)
    write_json(folder / PROCESSOR, processor_of(cfg))
