"""Maps of transferability on disk: made once of a whole picture, then read and cropped like a label.

One file a picture holds the logits of E at the positions of every level, (h, w) float32 each, for the picture at the
size of testing: as rounded probabilities a confident discriminator's would tie (see ``transferability.mask``).
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
    """The maps in one folder; ``path`` names the file of a record."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def path(self, record: Mapping[str, Any]) -> Path:
        """A picture that is replaced by another one under its name has another map."""
        picture = os.stat(record["file_name"])
        key = f"{os.path.abspath(record['file_name'])}\n{picture.st_size}\n{picture.st_mtime_ns}"
        return self.folder / f"{hashlib.sha256(os.fsencode(key)).hexdigest()[:24]}.npz"

    def write(self, record: Mapping[str, Any], logits: Sequence[Tensor], size: tuple[int, int]) -> None:
        """logits: (ceil(h / stride), ceil(w / stride)) a level, of the picture resized to ``size`` (h, w)."""
        with atomic_write(self.path(record)) as file:
            arrays = {f"level{i}": level.float().cpu().numpy() for i, level in enumerate(logits)}
            np.savez_compressed(file, size=np.array(size), **arrays)  # type: ignore[arg-type]

    def crop(self, record: Mapping[str, Any], crop: Crop, mirrored: bool) -> list[Tensor]:
        """Logits at the positions of a crop, (ceil(height / stride), ceil(width / stride)) a level.

        Each position takes the value at its middle, so regions keep their values, ties and all.

        Raises:
            DataError: the picture has no map, or a damaged one.
        """
        path = self.path(record)
        names = [f"level{i}" for i in range(len(STRIDES))]
        try:
            content = read_npz(path, ["size", *names])
        except (UserError, OSError) as error:
            raise DataError(
                f"{path}: the transferability map of {record['file_name']} cannot be read ({error}): delete that file, "
                "the next start makes it anew"
            ) from error
        size, levels = content["size"].tolist(), [content[name] for name in names]
        result = []
        for level, stride in zip(levels, STRIDES):
            rows = _places(crop.top, crop.height, crop.resized[0], size[0], stride, False)
            columns = _places(crop.left, crop.width, crop.resized[1], size[1], stride, mirrored)
            rows, columns = np.minimum(rows, level.shape[0] - 1), np.minimum(columns, level.shape[1] - 1)
            result.append(torch.from_numpy(level[rows][:, columns]))
        return result


def _places(start: int, length: int, resized: int, size: int, stride: int, mirrored: bool) -> np.ndarray:
    """Indices into a map of a picture ``size`` long, of the positions of a crop of it resized to ``resized``."""
    edges = np.minimum(np.arange(math.ceil(length / stride) + 1) * stride, length)
    middles = (edges[:-1] + edges[1:]) / 2
    if mirrored:
        middles = length - middles
    return ((start + middles) / resized * size / stride).astype(np.intp)
