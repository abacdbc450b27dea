"""Mask2Former of Hugging Face ``transformers`` (Swin or ResNet backbone) <-> our config and state dict.

Nothing here imports ``transformers``: a model there is a folder with ``config.json`` and safetensors files. Which of
its entries and keys is which of ours is said by ``huggingface_names`` and ``huggingface_config``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from detectron2.config import CfgNode
from torch import Tensor

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
from tmt_d2.projects.huggingface.names import name_here, names_there
from tmt_d2.utils.files import atomic_write, read_json, write_json

PROCESSOR = "preprocessor_config.json"


class Converted(NamedTuple):
    """state: our state dict; settings: our config keys, dotted, that describe the model."""

    state: dict[str, Tensor]
    settings: dict[str, Any]


def from_huggingface(
    config: Mapping[str, Any], tensors: Mapping[str, Tensor], processor: Mapping[str, Any] = {}
) -> Converted:
    """A ``Mask2FormerForUniversalSegmentation`` as our state dict and the settings that build its model.

    processor: its preprocessor_config.json.

    Raises:
        UserError: another kind of model, a variant that is not built here, or an entry without a counterpart.
    """
    settings = settings_from(config) | settings_of_processor(processor)
    if "class_predictor.weight" not in tensors:
        raise UserError("class_predictor.weight is missing: take a Mask2FormerForUniversalSegmentation")
    settings["MODEL.SEM_SEG_HEAD.NUM_CLASSES"] = len(tensors["class_predictor.weight"]) - 1
    backbone = backbone_type(config)
    parts: dict[str, dict[int, Tensor]] = {}
    wanted: dict[str, int] = {}
    for name, tensor in tensors.items():
        place = name_here(name, backbone)
        if place is not None:
            parts.setdefault(place.name, {})[place.number] = tensor
            wanted[place.name] = place.total
    for ours, found in parts.items():
        if len(found) != wanted[ours]:
            raise UserError(f"{ours} is made of {wanted[ours]} entries (query, key, value), the file has {len(found)}")
    state = {
        ours: torch.cat([found[i] for i in sorted(found)]) if len(found) > 1 else found[0]
        for ours, found in parts.items()
    }
    if backbone == "swin":
        index = _relative_position_index(settings["MODEL.SWIN.WINDOW_SIZE"])
        tables = [name for name in state if name.endswith("relative_position_bias_table")]
        state.update({name.replace("bias_table", "index"): index.clone() for name in tables})
    return Converted(state, settings)


def to_huggingface(
    cfg: CfgNode, state: Mapping[str, Tensor], classes: ClassList | None = None
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """(config.json, tensors) of the plain Mask2Former in ``state``; its estimator has no place there and stays behind.

    classes: of the checkpoint, where it names them.

    Raises:
        UserError: a variant that ``transformers`` does not have, or an entry without a counterpart.
    """
    config = config_of(cfg, classes)
    backbone = backbone_type(config)
    tensors = {}
    for ours, tensor in state.items():
        if ours.startswith(ESTIMATOR) or ours.endswith("relative_position_index"):
            continue  # the index follows from the window size
        names = names_there(ours, backbone)
        chunks = tensor.chunk(len(names)) if len(names) > 1 else (tensor,)
        tensors.update({name: chunk.contiguous() for name, chunk in zip(names, chunks)})
    for name in [name for name in tensors if name.endswith("normalization.running_var")]:  # FrozenBN counts no batches
        tensors.setdefault(name.replace("running_var", "num_batches_tracked"), torch.tensor(0))
    return config, tensors


def _relative_position_index(window: int) -> Tensor:
    """(window^2, window^2) row of the bias table for each pair of positions in a window."""
    y, x = torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")
    y, x = y.flatten(), x.flatten()
    return (y[:, None] - y + window - 1) * (2 * window - 1) + (x[:, None] - x + window - 1)


def read_huggingface(source: str) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, Any]]:
    """config.json, tensors and preprocessor_config.json (empty where there is none) of a local folder, or of a name on
    the hub, which is downloaded.

    Raises:
        FileNotFoundError: no such folder or hub name, or no config.json or safetensors in it.
        UserError: a file cannot be read. ImportError: safetensors or huggingface_hub is not installed.
    """
    from safetensors import SafetensorError  # optional: pip install "tmt_d2[hf]"
    from safetensors.torch import load_file

    folder = Path(source)
    if not folder.is_dir():
        folder = _download(source)
    files = sorted(folder.glob("model*.safetensors"))
    if not (folder / "config.json").is_file() or not files:
        raise FileNotFoundError(f"{source} holds no config.json with model*.safetensors")
    tensors: dict[str, Tensor] = {}
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        for file in files:
            tensors.update(load_file(file))
    except (SafetensorError, ValueError) as error:
        raise UserError(f"{source} cannot be read: {' '.join(str(error).split())}") from error
    processor = folder / PROCESSOR
    return config, tensors, read_json(processor, remedy="download it again") if processor.is_file() else {}


def _download(name: str) -> Path:
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise FileNotFoundError(f"{name} is neither a folder nor a name on the hub (owner/model)")
    from huggingface_hub import snapshot_download  # optional: pip install "tmt_d2[hf]"

    try:
        return Path(snapshot_download(name, allow_patterns=["config.json", PROCESSOR, "model*.safetensors"]))
    except Exception as error:  # a dozen kinds, of the library and of the network
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise FileNotFoundError(f"{name} is no folder here and cannot be had from the hub: {reason}") from error


def write_huggingface(
    cfg: CfgNode, state: Mapping[str, Tensor], folder: str | Path, classes: ClassList | None = None
) -> None:
    """Write config.json, model.safetensors and preprocessor_config.json to ``folder``, each atomically.

    Args, raises: as ``to_huggingface``.
    """
    from safetensors.torch import save  # optional: pip install "tmt_d2[hf]"

    config, tensors = to_huggingface(cfg, state, classes)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_write(folder / "model.safetensors") as file:
        file.write(save(tensors, metadata={"format": "pt"}))
    write_json(folder / "config.json", config)
    write_json(folder / PROCESSOR, processor_of(cfg))
