"""Ignored parts of unlabeled images follow the crop, its scale and its flip."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from tests.helpers.errors import refuses
from tests.helpers.models import tiny_cfg
from tmt_d2.data.augmentation import Crop
from tmt_d2.data.ignored_area import IgnoredArea
from tmt_d2.data.mapper import SemanticMapper

SIZE = (90, 151)


def area(**changes: Any) -> IgnoredArea:
    return IgnoredArea(tiny_cfg(**{f"SELF_TRAINING__{key}": value for key, value in changes.items()}))


def whole(height: int, width: int) -> Crop:
    return Crop((height, width), (height, width), 0, 0, height, width)


def test_rows_at_the_top_and_bottom() -> None:
    ignored = area(IGNORED_ROWS=(0.1, 0.25)).crop(whole(20, 7))
    assert ignored[:2].all() and ignored[15:].all() and not ignored[2:15].any()


def test_a_mask_is_stretched_over_the_image(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "mask.png"), np.array([[255, 0], [255, 255]], np.uint8))
    ignored = area(IGNORED_MASK=str(tmp_path / "mask.png"), IGNORED_ROWS=(0.0, 0.1)).crop(whole(10, 6))
    assert ignored[:5, 3:].all() and ignored[9].all() and ignored.sum() == 15 + 6


def test_the_ignored_part_is_cut_as_the_image_is(tmp_path: Path) -> None:
    painted = np.full((*SIZE, 3), 255, np.uint8)
    painted[60:, 20:100] = 0  # the hood, in the image and in the mask
    cv2.imwrite(str(tmp_path / "image.png"), painted)
    mapper = SemanticMapper(
        is_train=True, label_spaces={}, min_sizes=(45, 90, 135), max_size=400, crop_size=(64, 80), horizontal_flip=True,
        ignored_area=area(IGNORED_MASK=str(tmp_path / "image.png")),
    )  # fmt: skip
    record = {"file_name": str(tmp_path / "image.png"), "image_id": "a", "dataset": "street"}
    shares = []
    for seed in range(12):
        np.random.seed(seed)
        sample = mapper(record | {"labeled": False})
        black = sample["image"].float().mean(0) < 128
        assert (sample["ignored"] != black).float().mean() < 0.04  # the border, which the image's resize blurs
        shares.append(float(sample["ignored"].float().mean()))
    assert len({*shares}) > 6 and max(shares) > 0.3


@pytest.mark.parametrize("rows", [(0.5, 0.5), (0.0, 1.0)])
def test_nothing_is_left(rows: tuple[float, float], tmp_path: Path) -> None:
    with refuses("SELF_TRAINING.IGNORED_ROWS"):
        area(IGNORED_ROWS=rows)
    cv2.imwrite(str(tmp_path / "black.png"), np.zeros((4, 4), np.uint8))
    with refuses("SELF_TRAINING.IGNORED_MASK"):
        area(IGNORED_MASK=str(tmp_path / "black.png"))
