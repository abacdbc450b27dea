"""Rare class sampling (DAFormer, arXiv 2111.14887, 3.3): a class is drawn, the rarer the likelier, then its picture.

How many pixels each class has in each picture is counted once and kept in a file.
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
from tmt_d2.data.image_lists import NAMES_SHOWN
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
        temperature: T of P(c) ~ exp((1 - f_c) / T), f_c the share of c among all labeled pixels.
        area: a picture has a class if the class fills this share of a crop, were all of it there.
        crop: (H, W); None: all of a picture. min_size, max_size: of the edges of a resized one; min_size 0: as it is.
        folder: where the counts are kept.
    """

    temperature: float
    area: float
    crop: tuple[int, int] | None
    min_size: int
    max_size: int
    folder: Path

    @classmethod
    def from_config(cls, cfg: CfgNode) -> RareClasses | None:
        """None where SELF_TRAINING.RARE_CLASS_TEMPERATURE is 0. The counts lie beside MODEL.WEIGHTS, or in OUTPUT_DIR
        where that is no file here."""
        keys = cfg.SELF_TRAINING
        if not keys.RARE_CLASS_TEMPERATURE:
            return None
        weights = Path(cfg.MODEL.WEIGHTS)
        return cls(
            keys.RARE_CLASS_TEMPERATURE,
            keys.RARE_CLASS_AREA,
            tuple(cfg.INPUT.CROP.SIZE) if cfg.INPUT.CROP.ENABLED else None,
            int(np.median(cfg.INPUT.MIN_SIZE_TRAIN)),
            cfg.INPUT.MAX_SIZE_TRAIN,
            (weights.parent if weights.is_file() else Path(cfg.OUTPUT_DIR)) / FOLDER,
        )

    def chooser(self, records: Sequence[Mapping[str, Any]]) -> ClassChooser | None:
        """Of labeled records; None, and a warning, if no class fills ``area`` anywhere."""
        pixels, sizes = class_pixels(records, self.folder)
        unreadable = [str(record[LABEL]) for record, size in zip(records, sizes) if not size.any()]
        if unreadable:
            shown = ", ".join(unreadable[:NAMES_SHOWN]) + (", ..." if len(unreadable) > NAMES_SHOWN else "")
            logger.warning("rare class sampling: %d labels cannot be read, never drawn: %s", len(unreadable), shown)
        sizes = np.maximum(sizes, 1)
        shares = pixels / sizes.prod(1, keepdims=True)  # of each picture
        resized = np.array([resized_size(tuple(size.tolist()), self.min_size, self.max_size) for size in sizes])
        crops = resized if self.crop is None else np.minimum(resized, self.crop)
        of_a_crop = shares * (resized.prod(1) / np.maximum(crops.prod(1), 1))[:, None]
        pictures = {c: np.flatnonzero(of_a_crop[:, c] >= self.area) for c in range(pixels.shape[1])}
        classes = [c for c, having in pictures.items() if len(having)]
        if not classes:
            logger.warning("no class fills %g of a crop in any picture: no rare class sampling", self.area)
            return None
        frequency = pixels.sum(0)[classes] / pixels.sum()
        return ClassChooser(classes, class_probabilities(frequency, self.temperature), [pictures[c] for c in classes])


def class_probabilities(frequency: np.ndarray, temperature: float) -> np.ndarray:
    """softmax((1 - f) / T): f (C,), shares of all pixels -> (C,)."""
    exponents = (1 - frequency) / temperature
    weights = np.exp(exponents - exponents.max())
    return weights / weights.sum()


@dataclass(frozen=True)
class ClassChooser:
    """classes: (C,) train ids; probabilities: (C,); pictures: of each class, indices of the records that have it."""

    classes: Sequence[int]
    probabilities: np.ndarray
    pictures: Sequence[np.ndarray]

    def __call__(self, *entropy: int) -> tuple[int, int]:
        """A record's index and the class for which it was drawn, a function of ``entropy``."""
        generator = np.random.default_rng(entropy)
        place = int(generator.choice(len(self.classes), p=self.probabilities))
        return int(generator.choice(self.pictures[place])), self.classes[place]


def class_pixels(records: Sequence[Mapping[str, Any]], folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """(R, 255) int64, pixels of each train id in each record's label, and (R, 2) its size; 0 where it cannot be read.

    Counted by the first process and kept in ``folder``, under a name that says which files these were and how they are
    read.
    """
    path = folder / f"{_fingerprint(records)}.npz"
    if comm.is_main_process() and not path.is_file():
        logger.info("rare class sampling: counting the classes of %d labels, once, in %s", len(records), folder)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            counted = list(pool.map(_count, records))
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as file:
            pixels, sizes = (np.stack(values) for values in zip(*counted))
            np.savez_compressed(file, pixels=pixels, sizes=sizes)  # type: ignore[arg-type]
    comm.synchronize()
    content = read_npz(path, ("pixels", "sizes"), "delete it, the labels are counted anew")
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
