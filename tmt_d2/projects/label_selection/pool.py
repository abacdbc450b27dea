"""Statistics of every image of a pool from one pass of a model, kept in a folder.

Letters: n images, D features, K classes.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from tmt_d2.adaptation.self_training.pseudo_labels import marginals
from tmt_d2.data.reader import DataError
from tmt_d2.engine.run_dir import claim
from tmt_d2.errors import UserError
from tmt_d2.inference.images import InputImage, InputImages
from tmt_d2.inference.predictor import Predictor
from tmt_d2.modeling.mask_former import real_positions
from tmt_d2.utils.files import atomic_write, read_npz

IMAGES_PER_FILE = 256
FEATURES = ("res4", "res5")
ARRAYS = ("features", "entropy", "margin", "classes", "domain")


@dataclass(frozen=True)
class Pool:
    """Images and their statistics, one row per image.

    Attributes:
        names, files: of the images.
        features: (n, D) float32, spatial means of the backbone's features, each map's scaled to unit length.
        entropy: (n,) in [0, 1], of the class probabilities, mean over pixels.
        margin: (n,) in [0, 1], between the two most probable classes, mean over pixels.
        classes: (n, K), share of pixels predicted as each class.
        domain: (n,), mean logit of E, high = unlike the source; NaN without an estimator.
        broken: name -> reason, of images that cannot be read.
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


@torch.no_grad()
def image_statistics(predictor: Predictor, pixels: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    """(H, W, 3) uint8 RGB arrays of one size -> the arrays of ``Pool``, from one forward pass."""
    model = predictor.model
    images = model.preprocess([predictor.model_input(each) for each in pixels])
    features: dict[str, Tensor] = {}
    hook = model.backbone.register_forward_hook(lambda module, inputs, outputs: features.update(outputs))
    try:
        passed = model.run(images)
    finally:
        hook.remove()

    def without_padding(maps: Tensor) -> Tensor:
        rows, columns = real_positions(images.image_sizes[0], images.tensor.shape[-2:], maps.shape[-2:])
        return maps[..., :rows, :columns].float()

    means = [without_padding(features[name]).mean((2, 3)) for name in FEATURES]
    probabilities = without_padding(marginals(passed.outputs))
    count = probabilities.shape[1]
    best = probabilities.topk(2, dim=1)
    entropy = torch.special.entr(probabilities).sum(1).mean((1, 2)) / math.log(count)
    labels = best.indices[:, 0].flatten(1)
    classes = torch.stack([torch.bincount(each, minlength=count) for each in labels]) / labels.shape[1]
    domain = torch.full((len(pixels),), float("nan"))
    levels = getattr(passed, "transferability", None)
    if levels is not None:
        domain = torch.stack([without_padding(level.logits).mean((1, 2)) for level in levels]).mean(0)
    return {
        "features": torch.cat([torch.nn.functional.normalize(mean) for mean in means], 1).cpu().numpy(),
        "entropy": entropy.cpu().numpy(),
        "margin": (best.values[:, 0] - best.values[:, 1]).mean((1, 2)).cpu().numpy(),
        "classes": classes.float().cpu().numpy(),
        "domain": domain.float().cpu().numpy(),
    }


def score_pool(
    predictor: Predictor, images: InputImages, folder: Path, identity: dict[str, Any], batch_size: int = 8
) -> Pool:
    """Return the statistics of all images; files of ``folder`` that are up to date are read instead of computed.

    Args:
        identity: values that the statistics depend on, such as the weights.
        batch_size: maximum number of images in a forward pass.

    Raises:
        UserError: ``folder`` belongs to other images or to another model, or no image can be read.
    """
    listing = json.dumps([each.record["file_name"] for each in images])
    claim(folder / "pool.json", identity | {"images": hashlib.sha256(listing.encode()).hexdigest()[:16]})
    keys = ("names", "files", "broken", "reasons")  # and ARRAYS, if any image could be read
    parts = []
    with tqdm(total=images.count or None, unit="image", desc=images.place) as progress:
        for number, chunk in enumerate(_chunks(images)):
            file = folder / f"pool_{number:05d}_{_file_state(chunk)}.npz"
            if not file.is_file():
                for old in folder.glob(f"pool_{number:05d}*.npz"):  # its images have changed
                    old.unlink()
                with atomic_write(file) as stream:
                    np.savez(stream, **_statistics(predictor, chunk, batch_size))  # type: ignore[arg-type]
            parts.append(read_npz(file, keys, "delete it, its images are read again"))
            progress.update(len(chunk))
    broken = {str(name): str(why) for part in parts for name, why in zip(part["broken"], part["reasons"])}
    parts = [part for part in parts if len(part["names"])]
    if not parts:
        raise UserError(f"no image can be read: {next(iter(broken.values()))}", key=images.place)
    arrays = {key: np.concatenate([part[key] for part in parts]) for key in ARRAYS}
    names, files = ([str(name) for part in parts for name in part[key]] for key in ("names", "files"))
    return Pool(names, files, **arrays, broken=broken)


def _chunks(images: InputImages) -> Iterator[list[InputImage]]:
    iterator = iter(images)
    while chunk := list(islice(iterator, IMAGES_PER_FILE)):
        yield chunk


def _file_state(images: Sequence[InputImage]) -> str:
    """Hash of sizes and modification times."""
    stats = [path.stat() if (path := Path(each.record["file_name"])).is_file() else None for each in images]
    text = json.dumps([stat and (stat.st_size, stat.st_mtime_ns) for stat in stats])
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _statistics(predictor: Predictor, images: Sequence[InputImage], batch_size: int) -> dict[str, np.ndarray]:
    statistics: list[dict[str, np.ndarray]] = []
    names, files = list[str](), list[str]()
    broken: dict[str, str] = {}
    batch: list[np.ndarray] = []
    for image in images:
        try:
            pixels = image.read("RGB")
        except DataError as error:
            broken[image.name] = " ".join(str(error).split())
            continue
        if batch and (len(batch) == batch_size or batch[0].shape != pixels.shape):
            statistics.append(image_statistics(predictor, batch))
            batch = []
        batch.append(pixels)
        names.append(image.name)
        files.append(str(image.record["file_name"]))
    if batch:
        statistics.append(image_statistics(predictor, batch))
    arrays = {key: np.concatenate([each[key] for each in statistics]) for key in ARRAYS} if statistics else {}
    texts = {"names": names, "files": files, "broken": list(broken), "reasons": list(broken.values())}
    return arrays | {key: np.array(values, dtype=np.str_) for key, values in texts.items()}
