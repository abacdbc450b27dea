"""Checkpoints: written atomically, read without executing code, and refused where they do not fit the model."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch
from detectron2.checkpoint import DetectionCheckpointer
from fvcore.common.checkpoint import _IncompatibleKeys
from torch import nn

from ..files import atomic_write
from ..transferability.estimator import fill_frozen_encoder

ESTIMATOR = "transferability."
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
}


class TMTCheckpointer(DetectionCheckpointer):
    """Detectron2's checkpointer with three differences: atomic writing, safe reading, and no silent misfit."""

    def __init__(self, model: nn.Module, save_dir: str = "", *, require_estimator: bool = False, **others: Any):
        """require_estimator: refuse a checkpoint without trained discriminators."""
        super().__init__(model, save_dir, **others)
        self.require_estimator = require_estimator
        self._loading = ""

    def save(self, name: str, **extra: Any) -> None:
        if not self.save_dir or not self.save_to_disk:
            return
        state = {key: item.state_dict() for key, item in self.checkpointables.items()}
        path = Path(self.save_dir) / f"{name}.pth"
        with atomic_write(path) as file:
            torch.save({"model": self.model.state_dict(), **state, **extra}, file)
        self.tag_last_checkpoint(path.name)
        self.logger.info("saved %s", path)

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        with atomic_write(Path(self.save_dir) / "last_checkpoint", "w") as file:
            file.write(last_filename_basename)

    def load(self, path: str, checkpointables: list[str] | None = None) -> dict[str, Any]:
        """
        Raises:
            FileNotFoundError: ``path`` does not exist.
            ValueError: it is damaged, holds more than arrays, or belongs to another model; one line with the file.
        """
        self._loading = path
        if path and "://" not in path and not Path(path).is_file():
            raise FileNotFoundError(f"checkpoint {path} does not exist")
        return super().load(path, checkpointables)

    def _load_file(self, filename: str) -> dict[str, Any]:
        try:
            if filename.endswith(".pkl"):
                return _read_pickle(filename)
            return super()._load_file(filename)
        except (
            pickle.UnpicklingError,
            EOFError,
            RuntimeError,
            zipfile.BadZipFile,
            UnicodeDecodeError,
            KeyError,
        ) as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise ValueError(f"checkpoint {filename} is damaged or holds more than arrays: {reason}") from error

    def _torch_load(self, filename: str) -> dict[str, Any]:
        return torch.load(filename, map_location="cpu", weights_only=True)

    def _load_model(self, checkpoint: Any) -> _IncompatibleKeys:
        names = set(checkpoint["model"])
        model_names = set(self.model.state_dict())
        if any(name.startswith(f"{ESTIMATOR}backbone.") for name in model_names):
            checkpoint["model"] = fill_frozen_encoder(checkpoint["model"])
        incompatible = super()._load_model(checkpoint)
        if any(name.startswith("sem_seg_head.") for name in names):
            self._refuse_misfit(incompatible)
        elif not self.require_estimator:
            self.logger.info("%s holds no segmentation head: only the backbone is initialised from it", self._loading)
            incompatible.missing_keys[:] = [name for name in incompatible.missing_keys if name.startswith("backbone.")]
        if self.require_estimator and any(
            n.startswith(f"{ESTIMATOR}discriminators.") for n in incompatible.missing_keys
        ):
            raise ValueError(
                f"checkpoint {self._loading} has no estimator ({ESTIMATOR}discriminators.*): run the estimator stage "
                "(TRANSFER.STAGE estimator) first and use its model_final.pth"
            )
        for keys in (incompatible.missing_keys, incompatible.unexpected_keys):
            keys[:] = [name for name in keys if not name.startswith(ESTIMATOR)]
        return incompatible

    def _refuse_misfit(self, incompatible: _IncompatibleKeys) -> None:
        def essential(names: list[str]) -> list[str]:
            return [
                name
                for name in names
                if not name.startswith((ESTIMATOR, "criterion.")) and not name.endswith("num_batches_tracked")
            ]

        problems = [
            f"{name} is {there} in the file and {here} in the model"
            for name, there, here in incompatible.incorrect_shapes
            if name != "criterion.empty_weight"
        ]
        problems += [f"{name} is not in the file" for name in essential(incompatible.missing_keys)]
        problems += [f"{name} is not in the model" for name in essential(incompatible.unexpected_keys)]
        if problems:
            more = f" and {len(problems) - 1} more differences" if len(problems) > 1 else ""
            raise ValueError(
                f"checkpoint {self._loading} is of another architecture: {problems[0]}{more}; "
                "use the config that it was trained with"
            )


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _ARRAY_PARTS:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, only NumPy arrays are admitted")


def _read_pickle(filename: str) -> dict[str, Any]:
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
