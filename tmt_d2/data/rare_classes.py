"""Rare class sampling (DAFormer, arXiv 2111.14887, 3.3): draw a class, rare ones more often, then an image that has it.

The pixels of each class in each image are counted once and cached in a file.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.utils import comm

from tmt_d2.data.datasets.label_spaces import IGNORE
from tmt_d2.data.datasets.registration import label_space_of, read_record_label
from tmt_d2.data.labeled import LABEL
from tmt_d2.data.mapper import resized_size
from tmt_d2.data.reader import UNREADABLE
from tmt_d2.utils.files import atomic_write, read_npz

logger = logging.getLogger(__name__)

FOLDER = "class_pixels"


@dataclass(frozen=True)
class RareClasses:
    """
    Attributes:
        temperature: T of P(c) ~ exp((1 - f_c) / T), with f_c the share of class c among all labeled pixels.
        area: an image has a class if its pixels would fill this share of a crop.
        crop: (H, W) of a crop; None for the whole image.
        min_size, max_size: of the edges of the resized image; min_size 0 keeps the size.
        folder: of the cached counts.
    """

    temperature: float
    area: float
    crop: tuple[int, int] | None
    min_size: int
    max_size: int
    folder: Path
    other_folder: Path | None = None

    @classmethod
    def from_config(cls, cfg: CfgNode) -> RareClasses | None:
        """Return None where SELF_TRAINING.RARE_CLASS_TEMPERATURE is 0.

        The folder is beside MODEL.WEIGHTS, or in OUTPUT_DIR where that is no local file.
        """
        keys = cfg.SELF_TRAINING
        if not keys.RARE_CLASS_TEMPERATURE:
            return None
        own, weights = Path(cfg.OUTPUT_DIR) / FOLDER, Path(cfg.MODEL.WEIGHTS)
        return cls(
            keys.RARE_CLASS_TEMPERATURE,
            keys.RARE_CLASS_AREA,
            tuple(cfg.INPUT.CROP.SIZE) if cfg.INPUT.CROP.ENABLED else None,
            int(np.median(cfg.INPUT.MIN_SIZE_TRAIN)),
            cfg.INPUT.MAX_SIZE_TRAIN,
            weights.parent / FOLDER if weights.is_file() else own,
            own,
        )

    def chooser(self, records: Sequence[Mapping[str, Any]]) -> ClassChooser | None:
        """Return the chooser of labeled records; None, with a warning, if no class fills ``area`` in any image."""
        pixels, sizes = class_pixels(records, self.folder, self.other_folder)
        unreadable = [str(record[LABEL]) for record, size in zip(records, sizes) if not size.any()]
        if unreadable:
            logger.warning("rare class sampling: %d labels cannot be read, e.g. %s", len(unreadable), unreadable[0])
        sizes = np.maximum(sizes, 1)
        shares = pixels / sizes.prod(1, keepdims=True)  # of each image
        resized = np.array([resized_size(tuple(size.tolist()), self.min_size, self.max_size) for size in sizes])
        crops = resized if self.crop is None else np.minimum(resized, self.crop)
        of_a_crop = shares * (resized.prod(1) / np.maximum(crops.prod(1), 1))[:, None]
        images = {c: np.flatnonzero(of_a_crop[:, c] >= self.area) for c in range(pixels.shape[1])}
        classes = [c for c, having in images.items() if len(having)]
        if not classes:
            logger.warning("no class fills %g of a crop in any image: no rare class sampling", self.area)
            return None
        frequency = pixels.sum(0)[classes] / pixels.sum()
        return ClassChooser(classes, sampling_probabilities(frequency, self.temperature), [images[c] for c in classes])


def sampling_probabilities(frequency: np.ndarray, temperature: float) -> np.ndarray:
    """Return softmax((1 - f) / T), (C,), of f (C,), the shares of all pixels."""
    exponents = (1 - frequency) / temperature
    weights = np.exp(exponents - exponents.max())
    return weights / weights.sum()


@dataclass(frozen=True)
class ClassChooser:
    """Random choice of a record.

    Attributes:
        classes: (C,) train ids. probabilities: (C,).
        images: per class the indices of the records that have it.
    """

    classes: Sequence[int]
    probabilities: np.ndarray
    images: Sequence[np.ndarray]

    def __call__(self, *entropy: int) -> tuple[int, int]:
        """Return a record's index and the class for which it was drawn, as a function of ``entropy``."""
        generator = np.random.default_rng(entropy)
        place = int(generator.choice(len(self.classes), p=self.probabilities))
        return int(generator.choice(self.images[place])), self.classes[place]


def class_pixels(
    records: Sequence[Mapping[str, Any]], folder: Path, other_folder: Path | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return the number of pixels of each train id in each label, (R, 255) int64, and the labels' sizes, (R, 2).

    Labels that cannot be read are all 0. The main process counts. The file is in ``folder``, or in ``other_folder``
    where it does not exist there and cannot be written; its name is a hash of the label files and label spaces.
    """
    path = folder / f"{_fingerprint(records)}.npz"
    if other_folder and not path.is_file() and not os.access(folder if folder.is_dir() else folder.parent, os.W_OK):
        folder = other_folder
        path = folder / path.name
    if comm.is_main_process() and not path.is_file():
        logger.info("rare class sampling: counting the classes of %d labels, once, in %s", len(records), folder)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            counts = list(pool.map(_count, records))
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as file:
            pixels, sizes = (np.stack(values) for values in zip(*counts))
            np.savez_compressed(file, pixels=pixels, sizes=sizes)  # type: ignore[arg-type]
    comm.synchronize()
    content = read_npz(path, ("pixels", "sizes"), "delete it, the labels are counted again")
    return content["pixels"], content["sizes"]


def _count(record: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    try:
        label = read_record_label(record)
    except UNREADABLE:
        return np.zeros(IGNORE, np.int64), np.zeros(2, np.int64)
    return np.bincount(label.ravel(), minlength=IGNORE + 1)[:IGNORE], np.array(label.shape)


def _fingerprint(records: Sequence[Mapping[str, Any]]) -> str:
    names = []
    for record in records:
        path, space = str(record[LABEL]), label_space_of(record["dataset"])
        stat = os.stat(path) if os.path.isfile(path) else None
        meaning = sorted(space.train_ids.items()), sorted(space.ignored), space.encoding, *sorted(space.colors.items())
        names.append([meaning, path, stat and (stat.st_size, stat.st_mtime_ns)])
    return hashlib.sha256(json.dumps(names).encode()).hexdigest()[:16]
