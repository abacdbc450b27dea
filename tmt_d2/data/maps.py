"""Cache of transferability maps: computed once per image, then read and cropped like a label.

The file of an image holds the logits of E at the positions of every level, (h, w) float32 each, at the test size.
Logits keep the order of positions that would tie as rounded probabilities (see ``transferability.mask``).
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tmt_d2.data.augmentation import Crop
from tmt_d2.data.reader import DataError
from tmt_d2.errors import UserError
from tmt_d2.modeling.pixel_decoder import STRIDES
from tmt_d2.utils.files import atomic_write, read_npz


class TransferabilityMaps:
    """Maps in one folder."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def path(self, record: Mapping[str, Any]) -> Path:
        """Return the file of a record's map, which depends on the image's path, size in bytes and time of change."""
        stat = os.stat(record["file_name"])
        key = f"{os.path.abspath(record['file_name'])}\n{stat.st_size}\n{stat.st_mtime_ns}"
        return self.folder / f"{hashlib.sha256(os.fsencode(key)).hexdigest()[:24]}.npz"

    def write(self, record: Mapping[str, Any], logits: Sequence[Tensor], size: tuple[int, int]) -> None:
        """Write one map.

        Args:
            logits: (ceil(h / stride), ceil(w / stride)) per level, of the image resized to ``size`` (h, w).
        """
        with atomic_write(self.path(record)) as file:
            arrays = {f"level{i}": level.float().cpu().numpy() for i, level in enumerate(logits)}
            np.savez_compressed(file, size=np.array(size), **arrays)  # type: ignore[arg-type]

    def crop(self, record: Mapping[str, Any], crop: Crop, mirrored: bool) -> list[Tensor]:
        """Return the logits at the positions of a crop, (ceil(height / stride), ceil(width / stride)) per level.

        Each position takes the value at its center (nearest), so that ties stay ties.

        Raises:
            DataError: the image has no map, or a damaged one.
        """
        path = self.path(record)
        names = [f"level{i}" for i in range(len(STRIDES))]
        try:
            content = read_npz(path, ["size", *names])
        except (UserError, OSError) as error:
            message = f"is no readable transferability map of {record['file_name']} ({error})"
            raise DataError(message, key=path, hint="delete it, the next start computes it again") from error
        size, levels = content["size"].tolist(), [content[name] for name in names]
        result = []
        for level, stride in zip(levels, STRIDES):
            rows = _places(crop.top, crop.height, crop.resized[0], size[0], stride, False)
            columns = _places(crop.left, crop.width, crop.resized[1], size[1], stride, mirrored)
            rows, columns = np.minimum(rows, level.shape[0] - 1), np.minimum(columns, level.shape[1] - 1)
            result.append(torch.from_numpy(level[rows][:, columns]))
        return result


def _places(start: int, length: int, resized: int, size: int, stride: int, mirrored: bool) -> np.ndarray:
    """Return the indices, along one axis, of a crop's positions in the map.

    Args:
        start, length: of the crop, in pixels of the image resized to ``resized``.
        size: of the image of the map, in pixels.
    """
    edges = np.minimum(np.arange(math.ceil(length / stride) + 1) * stride, length)
    middles = (edges[:-1] + edges[1:]) / 2
    if mirrored:
        middles = length - middles
    return ((start + middles) / resized * size / stride).astype(np.intp)
