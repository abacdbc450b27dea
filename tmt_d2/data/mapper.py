"""Dataset mapper from a record to a model input, for training, estimation and testing.

In training, scale and crop are drawn first and only the crop is resized, so that the cost depends on the size of the
crop, not of the image. For a given state of NumPy's generator, crops are those of Detectron2's ``ResizeShortestEdge``
followed by ``RandomCrop_CategoryAreaConstraint``, as in Mask2Former's semantic mapper.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import DatasetCatalog
from detectron2.data.transforms import ResizeShortestEdge

from tmt_d2.data import reader
from tmt_d2.data.augmentation import Crop, crop_image, crop_label, ssd_colors
from tmt_d2.data.datasets.label_spaces import IGNORE, LabelSpace
from tmt_d2.data.datasets.registration import label_space_of
from tmt_d2.data.maps import TransferabilityMaps
from tmt_d2.data.reader import ChannelOrder
from tmt_d2.errors import UserError

CROP_ATTEMPTS = 10  # draws of a crop in which no class fills more than SINGLE_CATEGORY_MAX_AREA
KEPT_KEYS = ("file_name", "sem_seg_file_name", "image_id", "dataset", "domain", "labeled")


class SemanticMapper:
    """A record {"file_name", "sem_seg_file_name", "image_id", "dataset"} -> one model input.

    In training: ``image`` uint8 (3, h, w) and, unless ``with_label`` is off or the record's "labeled" is False,
    ``sem_seg`` uint8 (h, w) of train ids, at most as large as the crop. The model pads them to ``padded_size`` (H, W),
    that of a whole crop, so that position encodings are equal in every micro-batch and process. In testing: ``image``
    only, with its shortest edge resized. Both have ``height`` and ``width`` of the label, or of an image without one,
    and the names of the record.
    """

    @configurable
    def __init__(
        self,
        *,
        is_train: bool,
        label_spaces: Mapping[str, LabelSpace],
        min_sizes: Sequence[int],
        max_size: int,
        min_size_sampling: str = "choice",
        crop_size: tuple[int, int] | None = None,
        single_category_max_area: float = 1.0,
        color_jitter: bool = False,
        horizontal_flip: bool = False,
        size_divisibility: int = 0,
        image_format: ChannelOrder = "RGB",
        with_label: bool = True,
        maps: TransferabilityMaps | None = None,
        rare_class_area: float = 0.0,
        ignored_rows: Sequence[float] = (0.0, 0.0),
    ) -> None:
        """
        Args:
            is_train: draw scale, crop, colors and flip; otherwise only resize to ``min_sizes[0]``.
            label_spaces: by registered data set name.
            min_sizes: lengths of the shortest edge (two ends of a range for ``"range"``); 0 keeps the size.
            max_size: upper bound of the longest edge.
            min_size_sampling: ``"choice"`` or ``"range"``.
            crop_size: (h, w) in pixels of the resized image; None for all of it.
            single_category_max_area: below 1, crops in which one class fills more are drawn again.
            color_jitter: SSD's color augmentation, except for records with "labeled" False.
            horizontal_flip: mirror with probability 1/2.
            size_divisibility: ``padded_size`` is a multiple of it.
            image_format: ``"RGB"`` or ``"BGR"``.
            with_label: False reads no label, only the size of its file, for the orientation of the image.
            rare_class_area: crops in which the "rare_class" (a train id) of a record fills less are drawn again.
            maps: in training add ``transferability``, the crop of each level's map.
            ignored_rows: shares of the height, at the top and at the bottom, outside of crops of records with "labeled"
                False.
        """
        if min_size_sampling not in ("choice", "range"):
            raise UserError("use 'choice' or 'range'", key="INPUT.MIN_SIZE_TRAIN_SAMPLING", value=min_size_sampling)
        if min_size_sampling == "range" and len(min_sizes) != 2:
            raise UserError("'range' sampling needs two lengths", key="INPUT.MIN_SIZE_TRAIN", value=tuple(min_sizes))
        if image_format not in ("RGB", "BGR"):
            raise UserError("use 'RGB' or 'BGR'", key="INPUT.FORMAT", value=image_format)
        self.is_train = is_train
        self.label_spaces = dict(label_spaces)
        self.min_sizes = tuple(min_sizes)
        self.max_size = max_size
        self.min_size_sampling = min_size_sampling
        self.crop_size = crop_size
        self.single_category_max_area = single_category_max_area
        self.color_jitter = color_jitter
        self.horizontal_flip = horizontal_flip
        self.size_divisibility = size_divisibility
        self.image_format = image_format
        self.with_label = with_label
        self.maps = maps
        self.rare_class_area = rare_class_area
        self.ignored_rows = ignored_rows

    @classmethod
    def from_config(
        cls, cfg: CfgNode, is_train: bool = True, with_label: bool = True, maps: TransferabilityMaps | None = None
    ) -> dict[str, Any]:
        # The mapper carries the label spaces: loader processes that are not forked know the five data sets only.
        spaces = {name: label_space_of(name) for name in cfg.DATASETS.TRAIN} if is_train and with_label else {}
        if spaces:
            spaces |= {name: label_space_of(name) for name in cfg.DATASETS.SOURCE_TRAIN if name in DatasetCatalog}
        values = {
            "is_train": is_train,
            "label_spaces": spaces,
            "image_format": cfg.INPUT.FORMAT,
        }
        if not is_train:
            return values | {"min_sizes": (cfg.INPUT.MIN_SIZE_TEST,), "max_size": cfg.INPUT.MAX_SIZE_TEST}
        return values | {
            "min_sizes": cfg.INPUT.MIN_SIZE_TRAIN,
            "max_size": cfg.INPUT.MAX_SIZE_TRAIN,
            "min_size_sampling": cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING,
            "crop_size": tuple(cfg.INPUT.CROP.SIZE) if cfg.INPUT.CROP.ENABLED else None,
            "single_category_max_area": cfg.INPUT.CROP.SINGLE_CATEGORY_MAX_AREA,
            "color_jitter": cfg.INPUT.COLOR_AUG_SSD,
            "horizontal_flip": cfg.INPUT.RANDOM_FLIP == "horizontal",
            "size_divisibility": cfg.INPUT.SIZE_DIVISIBILITY,
            "with_label": with_label,
            "maps": maps,
            "rare_class_area": cfg.SELF_TRAINING.RARE_CLASS_AREA / 2,
            "ignored_rows": cfg.SELF_TRAINING.IGNORED_ROWS,
        }

    def __call__(self, record: Mapping[str, Any]) -> dict[str, Any]:
        sample = {key: record[key] for key in KEPT_KEYS if key in record}
        if not self.is_train:
            image = reader.read_image_of(record, self.image_format)
            return sample | model_input(image, self.min_sizes[0], self.max_size)

        if self.with_label and record.get("labeled", True):
            pixels, sem_seg, crop = self._read_crop(record)
        else:
            image = reader.read_image_of(record, self.image_format)
            crop, sem_seg = self._draw_crop(image.shape[:2], ignored_rows=self.ignored_rows), None
            pixels = crop_image(image, crop)
        size = crop.source
        sample |= {"height": size[0], "width": size[1], "padded_size": self._padded_size(pixels.shape[:2])}
        # The teacher sees unlabeled images without it (arXiv 2111.14887); the student's view is made later.
        if self.color_jitter and record.get("labeled", True):
            pixels = ssd_colors(pixels, rgb=self.image_format == "RGB")
        mirrored = self.horizontal_flip and np.random.rand() < 0.5
        sample["image"] = _channels_first(pixels, mirrored)
        if sem_seg is not None:
            sample["sem_seg"] = _channels_first(sem_seg[..., None], mirrored)[0]
        if self.maps is not None:
            sample["transferability"] = self.maps.crop(record, crop, mirrored)
        return sample

    def _read_crop(self, record: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray, Crop]:
        """Return pixels and labels of a random crop, and the crop. Large JPEG files are decoded at a reduced size."""
        space = self.label_spaces.get(record["dataset"]) or label_space_of(record["dataset"])
        label = reader.read_label(record["sem_seg_file_name"], space)
        size = label.shape[:2]
        crop = self._draw_crop(size, label, record.get("rare_class"))
        sem_seg = crop_label(label, crop)
        if crop.reduction > 1:
            reduced = _read_reduced(record["file_name"], self.image_format, size, crop.reduction)
            if reduced is not None:
                return crop_image(reduced, crop, crop.reduction), sem_seg, crop
        return crop_image(reader.read_image_of(record, self.image_format, size), crop), sem_seg, crop

    def _draw_crop(
        self,
        size: tuple[int, int],
        label: np.ndarray | None = None,
        rare_class: int | None = None,
        ignored_rows: Sequence[float] = (0.0, 0.0),
    ) -> Crop:
        if self.min_size_sampling == "range":
            min_size = int(np.random.randint(self.min_sizes[0], self.min_sizes[1] + 1))
        else:
            min_size = int(np.random.choice(self.min_sizes))
        resized = resized_size(size, min_size, self.max_size)
        first, rows = _kept_rows(resized[0], ignored_rows)
        if self.crop_size is None:
            return Crop(size, resized, first, 0, rows, resized[1])
        height, width = min(self.crop_size[0], rows), min(self.crop_size[1], resized[1])
        for _ in range(CROP_ATTEMPTS):
            top = first + int(np.random.randint(rows - height + 1))
            left = int(np.random.randint(resized[1] - width + 1))
            crop = Crop(size, resized, top, left, height, width)
            if label is not None and rare_class is not None:
                if np.mean(crop_label(label, crop) == rare_class) >= self.rare_class_area:
                    break
                continue
            if label is None or self.single_category_max_area >= 1:
                break
            if _is_varied(crop_label(label, crop), self.single_category_max_area):
                break
        return crop

    def _padded_size(self, size: tuple[int, int]) -> tuple[int, int]:
        height, width = self.crop_size or size
        step = max(self.size_divisibility, 1)
        return -(-height // step) * step, -(-width // step) * step


def model_input(image: np.ndarray, min_size: int, max_size: int) -> dict[str, Any]:
    """Return the model input of an image in testing: ``image`` (3, h, w), and its original ``height`` and ``width``.

    Args:
        image: (H, W, 3) uint8 in the model's channel order.
        min_size, max_size: of the shortest and the longest edge; min_size 0 keeps the size.
    """
    height, width = image.shape[:2]
    crop = _whole((height, width), resized_size((height, width), min_size, max_size))
    return {"image": _channels_first(crop_image(image, crop)), "height": height, "width": width}


def _read_reduced(path: str, image_format: ChannelOrder, size: tuple[int, int], reduction: int) -> np.ndarray | None:
    """Return a JPEG of ``size`` at 1 / ``reduction`` of it; None for any other file, damaged or not."""
    data = Path(path).read_bytes() if os.path.isfile(path) else b""
    if b"\xff\xd9" not in data[-64:]:
        return None
    if reader.stored_size(data) != size:  # different sizes may have the same rounded fraction
        return None
    image = reader.decode_stored_jpeg(path, data, image_format, reduction)
    if image is None or image.shape[:2] != (-(-size[0] // reduction), -(-size[1] // reduction)):
        return None
    return image


def resized_size(size: tuple[int, int], min_size: int, max_size: int) -> tuple[int, int]:
    """Return (H, W) after ``ResizeShortestEdge``, at least one pixel each; min_size 0 keeps the size."""
    if not min_size:
        return size
    height, width = ResizeShortestEdge.get_output_shape(*size, min_size, max_size)
    return max(height, 1), max(width, 1)


def _kept_rows(height: int, ignored: Sequence[float]) -> tuple[int, int]:
    """Return the first row, and the number of rows, that are not ignored; one is always left."""
    first = min(round(ignored[0] * height), height - 1)
    return first, max(height - first - round(ignored[1] * height), 1)


def _whole(size: tuple[int, int], resized: tuple[int, int]) -> Crop:
    return Crop(size, resized, 0, 0, *resized)


def _is_varied(sem_seg: np.ndarray, max_area: float) -> bool:
    """Return True if at least two classes occur and none fills ``max_area`` of the labeled pixels or more."""
    counts = np.bincount(sem_seg.ravel(), minlength=IGNORE + 1)[:IGNORE]
    return bool(np.count_nonzero(counts) > 1 and counts.max() < counts.sum() * max_area)


def _channels_first(pixels: np.ndarray, mirrored: bool = False) -> torch.Tensor:
    """Return (h, w, C) as contiguous (C, h, w)."""
    planes = (pixels[:, ::-1] if mirrored else pixels).transpose(2, 0, 1)
    return torch.from_numpy(np.ascontiguousarray(planes))
