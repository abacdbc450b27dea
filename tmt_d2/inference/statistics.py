"""Statistics of every image of a place from one pass of a model, kept in a folder."""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from detectron2.config import CfgNode
from tqdm import tqdm

from tmt_d2.config import model_settings
from tmt_d2.data.reader import DataError
from tmt_d2.engine.run_dir import claim
from tmt_d2.errors import UserError
from tmt_d2.inference.images import InputImage, InputImages
from tmt_d2.utils.files import atomic_write, read_npz

IMAGES_PER_FILE = 256
TEXTS = ("names", "files", "broken", "reasons")

Measure = Callable[[Sequence[np.ndarray]], Mapping[str, np.ndarray]]


@dataclass(frozen=True)
class ImageStatistics:
    """Statistics of the images that could be read.

    Attributes:
        names, files: of the images, in order.
        arrays: by name, one row per image.
        broken: name -> reason, of images that cannot be read.
    """

    names: list[str]
    files: list[str]
    arrays: dict[str, np.ndarray]
    broken: dict[str, str]


def statistics_of(
    images: InputImages, folder: Path, identity: Mapping[str, Any], measure: Measure, batch_size: int = 8
) -> ImageStatistics:
    """Return the statistics of all images; files of ``folder`` that are up to date are read instead of computed.

    Args:
        identity: values that the statistics depend on, such as the weights.
        measure: (H, W, 3) uint8 RGB arrays of one size -> arrays with one row per image.
        batch_size: maximum number of images that ``measure`` gets.

    Raises:
        UserError: as ``claim_pool``, or no image can be read.
    """
    all_files = claim_pool(images, folder, identity)
    remaining, parts = iter(images), []
    with tqdm(total=len(all_files), unit="image", desc=images.place) as progress:
        for number, start in enumerate(range(0, len(all_files), IMAGES_PER_FILE)):
            of_chunk = all_files[start : start + IMAGES_PER_FILE]
            chunk = islice(remaining, len(of_chunk))  # not a list: frames must be read one after the other
            file = folder / f"pool_{number:05d}_{state_of(of_chunk)}.npz"
            if file.is_file():
                deque(chunk, maxlen=0)  # pass over its images
            else:
                for old in folder.glob(f"pool_{number:05d}*.npz"):  # its images have changed
                    old.unlink()
                with atomic_write(file) as stream:
                    np.savez(stream, **_measured(chunk, measure, batch_size))  # type: ignore[arg-type]
            parts.append(read_npz(file, TEXTS, "delete it, its images are read again"))
            progress.update(len(of_chunk))
    broken = {str(name): str(why) for part in parts for name, why in zip(part["broken"], part["reasons"])}
    parts = [part for part in parts if len(part["names"])]
    if not parts:
        raise UserError(f"no image can be read: {next(iter(broken.values()))}", key=images.place)
    arrays = {key: np.concatenate([part[key] for part in parts]) for key in parts[0] if key not in TEXTS}
    names, files = ([str(name) for part in parts for name in part[key]] for key in ("names", "files"))
    return ImageStatistics(names, files, arrays, broken)


def claim_pool(images: InputImages, folder: Path, identity: Mapping[str, Any]) -> list[str]:
    """Record in ``folder`` the images and ``identity``, and return the file of each image.

    Raises:
        UserError: ``folder`` belongs to other images or to another model.
    """
    files = [str(each.record["file_name"]) for each in images]
    listing = hashlib.sha256(json.dumps(files).encode()).hexdigest()
    claim(folder / "pool.json", {**identity, "images": listing[:16]})
    return files


def state_of(files: Iterable[str]) -> str:
    """Return a hash of sizes and modification times."""
    stats = [path.stat() if (path := Path(each)).is_file() else None for each in files]
    text = json.dumps([stat and (stat.st_size, stat.st_mtime_ns) for stat in stats])
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _measured(images: Iterable[InputImage], measure: Measure, batch_size: int) -> dict[str, np.ndarray]:
    statistics: list[Mapping[str, np.ndarray]] = []
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
            statistics.append(measure(batch))
            batch = []
        batch.append(pixels)
        names.append(image.name)
        files.append(str(image.record["file_name"]))
    if batch:
        statistics.append(measure(batch))
    arrays = {key: np.concatenate([each[key] for each in statistics]) for key in statistics[0]} if statistics else {}
    texts = {"names": names, "files": files, "broken": list(broken), "reasons": list(broken.values())}
    return arrays | {key: np.array(values, dtype=np.str_) for key, values in texts.items()}


def model_identity(cfg: CfgNode) -> dict[str, Any]:
    """Return the values that predictions of a checkpoint depend on."""
    weights = Path(cfg.MODEL.WEIGHTS)
    return {
        "weights": str(weights),
        "changed": weights.stat().st_mtime_ns if weights.is_file() else 0,
        "model": hashlib.sha256(model_settings(cfg).encode()).hexdigest()[:16],
        **{key: cfg.INPUT[key] for key in ("FORMAT", "MIN_SIZE_TEST", "MAX_SIZE_TEST")},
    }


def testing_identity(cfg: CfgNode) -> dict[str, Any]:
    """Return the values that predictions depend on if they are made as in testing."""
    parts = {f"TEST.{key}": yaml.safe_load(cfg.TEST[key].dump()) for key in ("SLIDING_WINDOW", "AUG")}
    return model_identity(cfg) | {"TEST.PRECISION": cfg.TEST.PRECISION} | parts
