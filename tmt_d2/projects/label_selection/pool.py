"""What a model says about each picture of a pool, in one pass: a few hundred numbers a picture, kept in a folder.

Letters: n pictures, D features, K classes.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from tmt_d2.adaptation.self_training.pseudo_labels import marginals
from tmt_d2.data.mapper import model_input
from tmt_d2.data.reader import ChannelOrder, DataError
from tmt_d2.errors import UserError
from tmt_d2.inference.streaming import Picture, Pictures
from tmt_d2.modeling.mask_former import MaskFormer, real_positions
from tmt_d2.utils.files import atomic_write, read_json, read_npz, write_json

PART = 256  # pictures in a file of the folder
FEATURES = ("res4", "res5")
ROWS = ("features", "entropy", "margin", "classes", "domain")


@dataclass(frozen=True)
class Pool:
    """Pictures and what a model says of them, a row for each.

    names, files: of the pictures. features: (n, D) float32, means of the encoder's features over the picture, of each
    map to unit length. entropy: (n,) in [0, 1], of the classes' probabilities, mean over pixels. margin: (n,) in
    [0, 1], between the two most probable classes, likewise. classes: (n, K), shares of the pixels that are predicted as
    each. domain: (n,), mean logit of E, high = unlike the source; not a number without an estimator.
    """

    names: list[str]
    files: list[str]
    features: np.ndarray
    entropy: np.ndarray
    margin: np.ndarray
    classes: np.ndarray
    domain: np.ndarray
    broken: dict[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.names)


class Describer:
    """A model, asked for the rows of pictures of one size."""

    def __init__(self, model: MaskFormer, *, min_size: int, max_size: int, image_format: ChannelOrder) -> None:
        self.model, self.image_format = model.eval(), image_format
        self.min_size, self.max_size = min_size, max_size
        self._features: dict[str, Tensor] = {}
        model.backbone.register_forward_hook(lambda module, given, features: self._features.update(features))

    @torch.no_grad()
    def __call__(self, pixels: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
        """(H, W, 3) uint8 of one size -> the arrays of ``Pool``."""
        items = [model_input(each, self.min_size, self.max_size) for each in pixels]
        images = self.model.preprocess(items)
        passed = self.model.run(images)
        padded = images.tensor.shape[-2:]
        size = images.image_sizes[0]

        def real(maps: Tensor) -> Tensor:
            rows, columns = real_positions(size, padded, maps.shape[-2:])
            return maps[..., :rows, :columns].float()

        means = [real(self._features[name]).mean((2, 3)) for name in FEATURES]
        features = torch.cat([torch.nn.functional.normalize(mean) for mean in means], 1)
        probabilities = real(marginals(passed.outputs))
        best = probabilities.topk(2, dim=1)
        entropy = torch.special.entr(probabilities).sum(1).mean((1, 2)) / math.log(probabilities.shape[1])
        labels = best.indices[:, 0].flatten(1)
        classes = torch.stack([torch.bincount(each, minlength=probabilities.shape[1]) for each in labels])
        levels = getattr(passed, "transferability", None)
        domain = torch.full((len(items),), float("nan"))
        if levels is not None:
            domain = torch.stack([real(level.logits).mean((1, 2)) for level in levels]).mean(0)
        return {
            "features": features.cpu().numpy(),
            "entropy": entropy.cpu().numpy(),
            "margin": (best.values[:, 0] - best.values[:, 1]).mean((1, 2)).cpu().numpy(),
            "classes": (classes / labels.shape[1]).float().cpu().numpy(),
            "domain": domain.cpu().numpy().astype(np.float32),
        }


def describe(describer: Describer, pictures: Pictures, folder: Path, identity: dict[str, Any], batch: int = 8) -> Pool:
    """The rows of all pictures, made as by ``fill`` where they are not in ``folder`` yet.

    Raises:
        UserError: as ``fill``, or no picture can be read.
    """
    written = fill(describer, pictures, folder, identity, batch)
    parts = []
    for file in written:
        keys = ("names", "files", "broken", "reasons")  # and ROWS, where any could be read
        parts.append(read_npz(file, keys, "delete it, its pictures are described anew"))
    broken = {str(name): str(why) for part in parts for name, why in zip(part["broken"], part["reasons"])}
    parts = [part for part in parts if len(part["names"])]
    if not parts:
        raise UserError(f"{pictures.place}: none of its pictures can be read: {next(iter(broken.values()))}")
    arrays = {key: np.concatenate([part[key] for part in parts]) for key in ROWS}
    names, files = ([str(name) for part in parts for name in part[key]] for key in ("names", "files"))
    return Pool(names, files, **arrays, broken=broken)


def fill(
    describer: Describer,
    pictures: Pictures,
    folder: Path,
    identity: dict[str, Any],
    batch: int = 8,
    rank: int = 0,
    processes: int = 1,
) -> list[Path]:
    """Write the rows of the pictures, ``PART`` by ``PART`` in files of ``folder``; the same call again goes on.

    Args:
        identity: what the rows depend on, such as the weights. batch: pictures of one size that share a pass, at most.
        rank, processes: which files are this process's, number ``rank`` of so many.

    Returns:
        its files.

    Raises:
        UserError: ``folder`` holds the rows of other pictures or of another model.
    """
    stamp = identity | {"pictures": _digest(pictures)}
    path = folder / "pool.json"
    if path.is_file() and read_json(path) != stamp:
        raise UserError(f"{folder} holds what another model said, or of other pictures: choose another --output")
    folder.mkdir(parents=True, exist_ok=True)
    write_json(path, stamp)
    files = []
    with tqdm(total=pictures.count or None, unit="picture", desc=pictures.place, disable=rank > 0) as progress:
        for number, part in enumerate(_parts(pictures)):
            if number % processes == rank:
                file = folder / f"pool_{number:05d}_{_state(part)}.npz"
                if not file.is_file():
                    for old in folder.glob(f"pool_{number:05d}*.npz"):  # of pictures that have changed since
                        old.unlink()
                    with atomic_write(file) as stream:
                        np.savez(stream, **_rows(describer, part, batch))  # type: ignore[arg-type]
                files.append(file)
            progress.update(len(part))
    return files


def _rows(describer: Describer, pictures: Sequence[Picture], batch: int) -> dict[str, np.ndarray]:
    rows: dict[str, list[np.ndarray]] = {}
    names: list[str] = []
    files: list[str] = []
    broken: dict[str, str] = {}
    waiting: list[np.ndarray] = []

    def ask() -> None:
        if waiting:
            for key, value in describer(waiting).items():
                rows.setdefault(key, []).append(value)
            waiting.clear()

    for picture in pictures:
        try:
            pixels = picture.read(describer.image_format)
        except DataError as error:
            broken[picture.name] = " ".join(str(error).split())
            continue
        if waiting and (len(waiting) == batch or waiting[0].shape != pixels.shape):
            ask()
        waiting.append(pixels)
        names.append(picture.name)
        files.append(str(picture.record["file_name"]))
    ask()
    arrays = {key: np.concatenate(values) for key, values in rows.items()}
    texts = {"names": names, "files": files, "broken": list(broken), "reasons": list(broken.values())}
    return arrays | {key: np.array(values, dtype=np.str_) for key, values in texts.items()}


def _parts(pictures: Pictures) -> Iterator[list[Picture]]:
    part: list[Picture] = []
    for picture in pictures:
        part.append(picture)
        if len(part) == PART:
            yield part
            part = []
    if part:
        yield part


def _state(pictures: Sequence[Picture]) -> str:
    """Of the files as they are now."""
    stats = [path.stat() if (path := Path(each.record["file_name"])).is_file() else None for each in pictures]
    text = json.dumps([stat and (stat.st_size, stat.st_mtime_ns) for stat in stats])
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:8]


def _digest(pictures: Pictures) -> str:
    digest = hashlib.sha256()
    for picture in pictures:
        digest.update(f"{picture.record['file_name']}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()[:16]
