"""Classes in checkpoints: the class list in a file, and class heads matched by class name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from detectron2.utils.file_io import PathManager
from torch import Tensor, nn

from tmt_d2.data.class_lists import MAX_CLASSES, ClassList
from tmt_d2.engine.checkpoint.files import DamagedCheckpoint
from tmt_d2.errors import UserError
from tmt_d2.modeling.official import CLASS_HEAD

CLASSES = "classes"  # {"names": [str], "colors": [[red, green, blue]]}, of ``ClassList``; official files lack it
EMPTY_WEIGHT = "criterion.empty_weight"  # of the loss: (number of classes + 1,)


def read_classes(path: str) -> ClassList | None:
    """Return the class list in a checkpoint (path or URL), without reading its weights.

    Returns:
        None if it has none, or is unreadable, which is an error when it is loaded.
    """
    try:
        local = PathManager.get_local_path(path)
        return decode_classes(torch.load(local, map_location="cpu", weights_only=True, mmap=True).get(CLASSES))
    except Exception:
        return None


def encode_classes(classes: ClassList) -> dict[str, list[Any]]:
    """Return the entry ``CLASSES``: plain strings and numbers."""
    return {"names": list(classes.names), "colors": [list(color) for color in classes.colors]}


def decode_classes(entry: Any) -> ClassList | None:
    """Return the class list of the entry ``CLASSES`` of a checkpoint; None if it is invalid."""
    try:
        names, colors = tuple(entry["names"]), tuple((red, green, blue) for red, green, blue in entry["colors"])
    except (TypeError, KeyError, ValueError):
        return None
    if not all(type(name) is str for name in names) or len(set(names)) != len(names):
        return None
    if not all(type(value) is int and 0 <= value <= 255 for color in colors for value in color):
        return None
    return ClassList(names, colors) if 0 < len(names) == len(colors) <= MAX_CLASSES else None


def match_classes(
    checkpoint: Mapping[str, Any], model: nn.Module, model_state: Mapping[str, Tensor], file: str, by_name: bool
) -> dict[str, list[str]]:
    """Order the rows of the file's class head as the model's classes, in place.

    A model without a class list gets the file's.

    Args:
        by_name: keep the rows of classes that both have; False: refuse other classes.

    Returns:
        for the load report: outcome -> names of classes; empty if the classes are equal or unknown.
    """
    weights, there = checkpoint["model"], _classes_of(checkpoint, file)
    here: ClassList | None = getattr(model, "classes", None)
    if there is None or any(name not in weights or name not in model_state for name in CLASS_HEAD):
        return {}
    if here is None:
        if weights[CLASS_HEAD[0]].shape == model_state[CLASS_HEAD[0]].shape:
            model.classes = there  # type: ignore[assignment]
        return {}
    if here.names == there.names:
        return {}
    if not by_name:
        raise UserError(
            f"it has {there}, the data sets have {here}",
            key=file,
            hint="to keep the classes of both and initialize the others, set TRANSFER.REINIT_CLASS_HEAD True",
        )
    row = {name: index for index, name in enumerate(there.names)}
    for name in CLASS_HEAD:
        rows = model_state[name].clone()
        rows[-1] = weights[name][-1]  # "no object"
        for index, known in enumerate(here.names):
            if known in row:
                rows[index] = weights[name][row[known]]
        weights[name] = rows
    return {
        "rows kept by name": [name for name in here.names if name in row],
        "initialized": [name for name in here.names if name not in row],
        "in the file only, not used": [name for name in there.names if name not in here.names],
    }


def drop_other_sizes(weights: dict[str, Any], model_state: Mapping[str, Tensor]) -> set[str]:
    """Remove a class head of another size from the file's weights; return the removed names."""
    reset = set()
    for name in (*CLASS_HEAD, EMPTY_WEIGHT):
        if name in weights and name in model_state and tuple(weights[name].shape) != model_state[name].shape:
            del weights[name]
            reset.add(name)
    return reset


def _classes_of(checkpoint: Mapping[str, Any], file: str) -> ClassList | None:
    """
    Raises:
        DamagedCheckpoint: the class list is invalid, or does not fit the class head.
    """
    classes = decode_classes(checkpoint.get(CLASSES))
    head = checkpoint["model"].get(CLASS_HEAD[0])
    if CLASSES in checkpoint and (classes is None or (head is not None and len(head) != len(classes) + 1)):
        raise DamagedCheckpoint(f"it is damaged: its entry {CLASSES!r} is not a list of classes", key=file)
    return classes
