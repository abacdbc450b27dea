"""Reading checkpoint files without executing code, and refusing damaged ones."""

from __future__ import annotations

import io
import pickle
import re
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from tmt_d2.errors import UserError

# Parts of a NumPy pickle of plain arrays; anything else in a .pkl file is refused.
_ARRAY_PARTS = {
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy.core.multiarray", "scalar"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "scalar"),
    ("_codecs", "encode"),
    ("collections", "OrderedDict"),
    ("torch._utils", "_rebuild_tensor_v2"),  # the official converter of Swin weights pickles tensors
}


# Prefixes of wrappers: at any depth (torch.compile, activation checkpointing, FSDP), or before all names.
_INSIDE = re.compile(r"\b(?:_orig_mod|_checkpoint_wrapped_module|_fsdp_wrapped_module)\.")
_AROUND = ("module", "model", "ema", "ema_model", "model_ema", "student", "teacher")
_OWN = re.compile(r"((?:[^.]+\.)*?)(backbone|sem_seg_head|transferability|criterion)\.")


class DamagedCheckpoint(UserError):
    """A checkpoint file is incomplete, or holds more than arrays."""


def read_torch(filename: str) -> dict[str, Any]:
    """Read a file of ``torch.save`` and compare its checksums, if it has any."""
    if zipfile.is_zipfile(filename):
        with zipfile.ZipFile(filename) as archive:
            broken = archive.testzip()  # torch.load does not check them
        if broken:
            raise zipfile.BadZipFile(f"the checksum of {broken} is wrong")
    else:
        with open(filename, "rb") as file:
            if file.read(1) != pickle.PROTO:
                raise pickle.UnpicklingError("it is not a file of torch.save")
    try:
        return torch.load(filename, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        refused = re.search(r"GLOBAL (\S+)", str(error))
        if refused is None:
            raise
        raise pickle.UnpicklingError(
            f"it contains a {refused[1]}, only arrays are allowed; to keep the arrays of a file that you trust: "
            'torch.save({"model": torch.load(FILE, weights_only=False)["model"]}, OTHER_FILE)'
        ) from error


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("torch.storage", "_load_from_bytes"):  # PyTorch's own would execute code
            return lambda data: torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        if (module, name) in _ARRAY_PARTS:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it contains a {module}.{name}, only NumPy arrays are allowed")


def read_pickle(filename: str) -> dict[str, Any]:
    """Read the arrays of a model-zoo ``.pkl`` file (Detectron2's, or Caffe2's without "__author__")."""
    with open(filename, "rb") as file:
        data = _ArrayUnpickler(file, encoding="latin1").load()
    if not isinstance(data, dict):
        raise pickle.UnpicklingError(f"it holds a {type(data).__name__}, not a dictionary of arrays")
    if "model" in data and "__author__" in data:
        return data
    blobs = data.get("blobs", data)
    weights = {name: value for name, value in blobs.items() if not name.endswith("_momentum")}
    return {"model": weights, "__author__": "Caffe2", "matching_heuristics": True}


def find_weights(content: Any, filename: str) -> dict[str, Any]:
    """Return the dictionary of arrays in ``content``: itself or, in files of other tools, its only such entry.

    Raises:
        pickle.UnpicklingError: there is none.
        UserError: there are several, such as ``student`` and ``teacher``.
    """
    if not isinstance(content, dict):
        raise pickle.UnpicklingError(f"it holds a {type(content).__name__}, not a dictionary of arrays")
    if _is_state(content):
        return content
    states = {key: value for key, value in content.items() if isinstance(value, dict) and value and _is_state(value)}
    if len(states) > 1:
        raise UserError(
            f"it holds several sets of weights ({', '.join(map(str, states))})",
            key=filename,
            hint=f'keep one, torch.save({{"model": torch.load(FILE)["{next(iter(states))}"]}}, OTHER_FILE)',
        )
    if not states:
        other = next(key for key, value in content.items() if not _is_array(value))
        raise pickle.UnpicklingError(f"its {other} is a {type(content[other]).__name__}, not an array")
    return next(iter(states.values()))


def _is_array(value: Any) -> bool:
    return isinstance(value, (torch.Tensor, np.ndarray))


def _is_state(content: Mapping[Any, Any]) -> bool:
    return all(map(_is_array, content.values()))


def strip_wrappers(weights: dict[str, Any], filename: str) -> str:
    """Remove prefixes of wrappers (``module.``, ``_orig_mod.``, ``teacher.``) from names, in place; order is kept.

    Returns:
        an example of a removed prefix; empty if there is none.

    Raises:
        UserError: it holds several models, such as ``student.`` and ``teacher.``.
    """
    names = {name: _INSIDE.sub("", name) for name in weights}
    prefix = _prefix(list(names.values()), filename)
    example = prefix or next((match[0] for name in weights if (match := _INSIDE.search(name))), "")
    if example:
        values = [(names[name].removeprefix(prefix), value) for name, value in weights.items()]
        weights.clear()
        weights.update(values)
    return example


def _prefix(names: list[str], filename: str) -> str:
    own = [match for name in names if (match := _OWN.match(name))]
    prefixes = {match[1] for match in own if match[2] in ("backbone", "sem_seg_head")}
    whole = any(match[2] == "sem_seg_head" for match in own)
    if whole and "" not in prefixes:
        if len(prefixes) > 1:
            message = f"it holds several models ({', '.join(sorted(prefixes))})"
            raise UserError(message, key=filename, hint="keep the names of one")
        return prefixes.pop()
    shared = ""
    while names and all(name.startswith(shared) for name in names):
        first = {name[len(shared) :].partition(".")[0] for name in names}
        if len(first) > 1 or not first <= {*_AROUND}:
            break
        shared += f"{first.pop()}."
    return shared
