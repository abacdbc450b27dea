"""Mapper and model together: attention, regions, quantile and discriminators know padding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from tmt_d2.adaptation.estimator import Estimator
from tmt_d2.data.datasets.label_spaces import TRAIN_IDS
from tmt_d2.data.mapper import SemanticMapper
from tmt_d2.modeling.mask_former import valid_positions

CROP = (128, 256)
REAL = (128, 228)  # of a 90 x 160 image at short edge 128


def sample_of(folder: Path, short_edge: int, crop: tuple[int, int], size: tuple[int, int]) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 255, (9, 16, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize(size[::-1], Image.Resampling.BILINEAR).save(folder / "i.png")
    Image.fromarray(np.full(size, 3, np.uint8)).save(folder / "l.png")
    mapper = SemanticMapper(
        is_train=True,
        label_spaces={"street": TRAIN_IDS},
        min_sizes=(short_edge,),
        max_size=4096,
        crop_size=crop,
        with_label=True,
    )
    record = {"file_name": str(folder / "i.png"), "sem_seg_file_name": str(folder / "l.png"), "dataset": "street"}
    return mapper(record)


def padded_in_silence(sample: dict[str, Any]) -> dict[str, Any]:
    """A record whose padding looks like part of the image."""
    height, width = sample["image"].shape[-2:]
    image = torch.full((3, *sample["padded_size"]), 128, dtype=torch.uint8)
    image[:, :height, :width] = sample["image"]
    label = torch.full(sample["padded_size"], 255, dtype=torch.uint8)
    label[:height, :width] = sample["sem_seg"]
    return {"image": image, "sem_seg": label}


def test_a_bdd_image_at_the_official_crop_is_padded_and_known_to_be(tmp_path: Path, build_tiny) -> None:
    sample = sample_of(tmp_path, 512, (512, 1024), (720, 1280))
    assert tuple(sample["image"].shape) == (3, 512, 910)
    images = build_tiny("MaskFormer").preprocess([sample])
    assert images.tensor.shape[-2:] == (512, 1024)
    assert images.image_sizes == [(512, 910)]
    assert not images.tensor[..., 910:].any()
    levels = [torch.zeros(1, 1, 512 // stride, 1024 // stride) for stride in (32, 16, 8)]
    valid = valid_positions(images, levels)
    assert valid is not None
    for mask, columns in zip(valid, (29, 57, 114)):  # 910 / stride, rounded up
        assert mask.all(1)[0].sum() == columns
        assert mask[0, :, :columns].all()
    assert valid_positions(build_tiny("MaskFormer").preprocess([padded_in_silence(sample)]), levels) is None


def test_the_excluded_share_of_real_positions_is_p_t(tmp_path: Path, build_tiny) -> None:
    model = build_tiny(MODEL__TMT__P_T=0.3, MODEL__TMT__CELL_SIZES=[1, 1, 1])  # a region a position: no two of one T
    sample = sample_of(tmp_path, 128, CROP, (90, 160))
    assert tuple(sample["image"].shape[1:]) == REAL
    whole = sample | {"image": torch.rand(3, *CROP) * 255}

    def excluded(record: dict[str, Any]) -> list[Tensor]:
        passed = model.run(model.preprocess([record, whole]))
        return [~mask[0] for mask in passed.inputs.key_mask.allowed]

    with torch.no_grad():
        known, unknown = excluded(sample), excluded(padded_in_silence(sample))
    off = []
    for stride, now, before in zip((32, 16, 8), known, unknown):
        rows, columns = CROP[0] // stride, -(-REAL[1] // stride)
        real = rows * columns
        assert now[:, :columns].sum() == int(0.3 * real)
        off.append(abs(int(before[:, :columns].sum()) - int(0.3 * real)))
    assert max(off) > 1  # with padding in the quantile the share of real positions is another


def test_discriminators_never_see_padding(tmp_path: Path, build_tiny) -> None:
    model = build_tiny()
    training = Estimator(model, target_error=0.0)
    sample = sample_of(tmp_path, 128, CROP, (90, 120))
    width = sample["image"].shape[2]
    both = [sample | {"domain": 0}, padded_in_silence(sample) | {"domain": 1}]
    for stride, cell, (_, exists) in zip((32, 16, 8), (1, 2, 4), training._regions(both)):
        size = stride * cell
        assert exists[0].sum() == (CROP[0] // size) * -(-width // size)
        assert exists[1].sum() > exists[0].sum()  # the domain cue that silent padding was


@pytest.mark.parametrize("architecture", ["MaskFormer", "TransferableMaskFormer"])
def test_padding_does_not_change_with_the_rest_of_the_batch(architecture: str, tmp_path: Path, build_tiny) -> None:
    """Every micro-batch and process pads to the crop, on which the encoding of positions depends."""
    model = build_tiny(architecture)
    small, large = (sample_of(tmp_path, 128, CROP, size) for size in ((90, 160), (90, 188)))
    with torch.no_grad():
        alone = model([small])[0]["sem_seg"]
        together = model([small, large])[0]["sem_seg"]
    assert torch.allclose(alone, together, atol=1e-5)
