"""Files of checkpoints, read without executing code, and refused where they are damaged."""

from __future__ import annotations

import io
import pickle
import re
import zipfile
from typing import Any

import torch

from tmt_d2.errors import UserError

# What a NumPy pickle of plain arrays is made of; anything else in a .pkl file is refused.
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


class DamagedCheckpoint(UserError):
    """A checkpoint file cannot be read whole, or holds more than arrays."""


def read_torch(filename: str) -> dict[str, Any]:
    """A file of ``torch.save``, its checksums compared, where it has any."""
    if zipfile.is_zipfile(filename):
        with zipfile.ZipFile(filename) as archive:
            broken = archive.testzip()  # torch.load takes what it finds, right or wrong
        if broken:
            raise zipfile.BadZipFile(f"the checksum of {broken} is wrong")
    else:
        with open(filename, "rb") as file:
            if file.read(1) != pickle.PROTO:
                raise pickle.UnpicklingError("it is no file that torch.save wrote")
    try:
        return torch.load(filename, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        asked = re.search(r"GLOBAL (\S+)", str(error))
        if asked is None:
            raise
        raise pickle.UnpicklingError(
            f"it asks for {asked[1]}, only arrays are admitted; of a file that you trust, keep the arrays: "
            'torch.save({"model": torch.load(FILE, weights_only=False)["model"]}, OTHER_FILE)'
        ) from error


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("torch.storage", "_load_from_bytes"):  # PyTorch's own would execute code
            return lambda data: torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        if (module, name) in _ARRAY_PARTS:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, only NumPy arrays are admitted")


def read_pickle(filename: str) -> dict[str, Any]:
    """A model-zoo ``.pkl`` file (Detectron2's, or Caffe2's without "__author__"), arrays only."""
    with open(filename, "rb") as file:
        data = _ArrayUnpickler(file, encoding="latin1").load()
    if not isinstance(data, dict):
        raise pickle.UnpicklingError(f"it holds a {type(data).__name__}, not a dictionary of arrays")
    if "model" in data and "__author__" in data:
        return data
    blobs = data.get("blobs", data)
    weights = {name: value for name, value in blobs.items() if not name.endswith("_momentum")}
    return {"model": weights, "__author__": "Caffe2", "matching_heuristics": True}
