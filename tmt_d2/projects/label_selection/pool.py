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


class ImageScorer:
    """Statistics of images of one size from one forward pass."""

    def __init__(self, predictor: Predictor) -> None:
        self.predictor, self.model = predictor, predictor.model

    @torch.no_grad()
    def __call__(self, pixels: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
        """(H, W, 3) uint8 RGB arrays of one size -> the arrays of ``Pool``."""
        items = [self.predictor.model_input(each) for each in pixels]
        images = self.model.preprocess(items)
        features: dict[str, Tensor] = {}
        hook = self.model.backbone.register_forward_hook(lambda module, inputs, outputs: features.update(outputs))
        try:
            passed = self.model.run(images)
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
        domain = torch.full((len(items),), float("nan"))
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
    scorer: ImageScorer, images: InputImages, folder: Path, identity: dict[str, Any], batch_size: int = 8
) -> Pool:
    """Read the statistics of all images from ``folder``; compute those that are missing.

    Raises:
        UserError: as ``write_scores``, or no image can be read.
    """
    written = write_scores(scorer, images, folder, identity, batch_size)
    keys = ("names", "files", "broken", "reasons")  # and ARRAYS, if any image could be read
    parts = [read_npz(file, keys, "delete it, its images are read again") for file in written]
    broken = {str(name): str(why) for part in parts for name, why in zip(part["broken"], part["reasons"])}
    parts = [part for part in parts if len(part["names"])]
    if not parts:
        raise UserError(f"no image can be read: {next(iter(broken.values()))}", key=images.place)
    arrays = {key: np.concatenate([part[key] for part in parts]) for key in ARRAYS}
    names, files = ([str(name) for part in parts for name in part[key]] for key in ("names", "files"))
    return Pool(names, files, **arrays, broken=broken)


def write_scores(
    scorer: ImageScorer,
    images: InputImages,
    folder: Path,
    identity: dict[str, Any],
    batch_size: int = 8,
    rank: int = 0,
    processes: int = 1,
) -> list[Path]:
    """Write the statistics to files of ``IMAGES_PER_FILE`` images; files that exist and are up to date are kept.

    Args:
        identity: values that the statistics depend on, such as the weights.
        batch_size: maximum number of images in a forward pass.
        rank, processes: this process writes every ``processes``-th file, from number ``rank``.

    Returns:
        the files of this process.

    Raises:
        UserError: ``folder`` belongs to other images or to another model.
    """
    listing = json.dumps([each.record["file_name"] for each in images])
    claim(folder / "pool.json", identity | {"images": hashlib.sha256(listing.encode()).hexdigest()[:16]})
    files = []
    with tqdm(total=images.count or None, unit="image", desc=images.place, disable=rank > 0) as progress:
        for number, part in enumerate(_chunks(images)):
            if number % processes == rank:
                file = folder / f"pool_{number:05d}_{_file_state(part)}.npz"
                if not file.is_file():
                    for old in folder.glob(f"pool_{number:05d}*.npz"):  # its images have changed
                        old.unlink()
                    with atomic_write(file) as stream:
                        np.savez(stream, **_scores(scorer, part, batch_size))  # type: ignore[arg-type]
                files.append(file)
            progress.update(len(part))
    return files


def _chunks(images: InputImages) -> Iterator[list[InputImage]]:
    iterator = iter(images)
    while chunk := list(islice(iterator, IMAGES_PER_FILE)):
        yield chunk


def _file_state(images: Sequence[InputImage]) -> str:
    """Hash of sizes and modification times."""
    stats = [path.stat() if (path := Path(each.record["file_name"])).is_file() else None for each in images]
    text = json.dumps([stat and (stat.st_size, stat.st_mtime_ns) for stat in stats])
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _scores(scorer: ImageScorer, images: Sequence[InputImage], batch_size: int) -> dict[str, np.ndarray]:
    scores: list[dict[str, np.ndarray]] = []
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
            scores.append(scorer(batch))
            batch = []
        batch.append(pixels)
        names.append(image.name)
        files.append(str(image.record["file_name"]))
    if batch:
        scores.append(scorer(batch))
    arrays = {key: np.concatenate([each[key] for each in scores]) for key in ARRAYS} if scores else {}
    texts = {"names": names, "files": files, "broken": list(broken), "reasons": list(broken.values())}
    return arrays | {key: np.array(values, dtype=np.str_) for key, values in texts.items()}
