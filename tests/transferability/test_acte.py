"""Discriminators and the transferability of every position, on small feature maps."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tmt_d2.transferability import TransferabilityEstimator, adaptive_clustering, transferability_mask
from tmt_d2.transferability.acte import fill_frozen_encoder

C = 6
SIZES = [(2, 3), (5, 7), (8, 12)]
CELLS = [1, 2, 4]


def make_estimator(**changes: Any) -> TransferabilityEstimator:
    torch.manual_seed(0)
    arguments = {
        "channels": C,
        "cell_sizes": CELLS,
        "iterations": 3,
        "kappa": 10.0,
        "regions": "adaptive",
        "hidden_dim": 8,
        "normalize": True,
    }
    return TransferabilityEstimator(**{**arguments, **changes}).eval()


def make_levels() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(2, C, *size, generator=generator) for size in SIZES]


def make_valid() -> list[Tensor]:
    """The second image has padding at the bottom and right of every level."""
    masks = [torch.ones(2, *size, dtype=torch.bool) for size in SIZES]
    for mask, (height, width) in zip(masks, SIZES):
        mask[1, (height + 1) // 2 :] = False
        mask[1, :, width - 1 :] = False
    return masks


@pytest.mark.parametrize("padded", [False, True])
def test_each_position_has_the_logit_of_its_region(padded: bool) -> None:
    estimator, levels = make_estimator(), make_levels()
    valid = make_valid() if padded else None
    results = estimator(levels, valid)
    assert len(results) == 3
    for level, result in enumerate(results):
        regions = adaptive_clustering(levels[level], CELLS[level], 3, 10.0, None if valid is None else valid[level])
        for left, right in zip(result.regions, regions):
            assert torch.equal(left, right)
        height, width = SIZES[level]
        expected = torch.zeros(2, height, width)
        columns = -(-width // CELLS[level])
        for image in range(2):
            for y in range(height):
                for x in range(width):
                    if valid is None or valid[level][image, y, x]:
                        row, column = divmod(int(regions.index[image, y, x]), columns)
                        center = regions.centers[image, :, row, column]
                        expected[image, y, x] = estimator.discriminators[level](center)
        torch.testing.assert_close(result.logits, expected)
        assert result.logits.std() > 0
        assert torch.equal(
            result.valid, torch.ones(2, height, width, dtype=torch.bool) if valid is None else valid[level]
        )
        for p_t in (0.0, 0.3):
            assert torch.equal(result.transferable(p_t), transferability_mask(result.logits, p_t, result.valid))


def test_square_regions_are_no_iterations() -> None:
    levels, valid = make_levels(), make_valid()
    square = make_estimator(regions="square")(levels, valid)
    none = make_estimator(iterations=0)(levels, valid)
    adaptive = make_estimator()(levels, valid)
    for left, right in zip(square, none):
        assert torch.equal(left.logits, right.logits)
        assert torch.equal(left.regions.index, right.regions.index)
    assert any(not torch.equal(left.logits, right.logits) for left, right in zip(square, adaptive))


def test_square_regions_are_equal_patches() -> None:
    (_, _, coarse) = make_estimator(regions="square")(make_levels(), None)
    expected = torch.tensor([[0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2], [3, 3, 3, 3, 4, 4, 4, 4, 5, 5, 5, 5]])
    assert torch.equal(coarse.regions.index[0], expected.repeat_interleave(4, 0))
    torch.testing.assert_close(
        coarse.regions.centers, nn.functional.avg_pool2d(make_levels()[2], 4), atol=1e-6, rtol=1e-5
    )


@pytest.mark.parametrize("changes", [{}, {"iterations": 1}, {"regions": "square"}])
def test_a_feature_that_is_no_number_shows_in_transferability(changes: dict[str, Any]) -> None:
    levels = make_levels()
    levels[2][0, 0, 7, 11] = float("nan")
    coarse, middle, fine = make_estimator(**changes)(levels, None)
    assert fine.map_of(0)[7, 11].isnan()
    assert not fine.transferable(0.3)[0, 7, 11]
    assert fine.map_of(1).isfinite().all()
    assert coarse.map_of(0).isfinite().all() and middle.map_of(0).isfinite().all()


def test_logits_are_float32_under_autocast() -> None:
    estimator, levels = make_estimator(), make_levels()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = estimator([level.bfloat16() for level in levels], None)
    expected = estimator([level.bfloat16().float() for level in levels], None)
    for left, right in zip(found, expected):
        assert left.logits.dtype == torch.float32
        assert torch.equal(left.logits, right.logits)


def test_discriminators_learn_from_region_logits() -> None:
    estimator, levels = make_estimator(), make_levels()
    for level, features in enumerate(levels):
        estimator.region_logits(level, estimator.regions_of(level, features, None)).sum().backward()
    assert all(parameter.grad is not None for parameter in estimator.parameters())


def test_errors() -> None:
    with pytest.raises(ValueError):
        make_estimator()(make_levels()[:2], None)
    with pytest.raises(ValueError):
        make_estimator(regions="round")


class Encoder(nn.Module):
    """Stands for a pixel decoder: three levels of one convolution's output."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(C, C, 1)

    def levels(self, features: Tensor) -> list[Tensor]:
        return [self.convolution(features)] * 3


def frozen_pair() -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, C, 1), nn.BatchNorm2d(C)), Encoder()


def test_frozen_encoder_is_a_copy_that_never_changes() -> None:
    backbone, pixel_decoder = frozen_pair()
    images = torch.randn(2, 3, 4, 5)
    estimator = make_estimator(frozen_encoder=(backbone, pixel_decoder)).train()
    parts = {name.split(".")[0] for name in estimator.state_dict()}
    assert parts == {"discriminators", "backbone", "pixel_decoder", "_extra_state"}
    assert estimator.discriminators.training
    before = estimator.encode(images)
    assert before is not None
    assert len(before) == 3
    assert not before[0].requires_grad
    for part in (estimator.backbone, estimator.pixel_decoder):
        assert not any(module.training for module in part.modules())
        assert not any(parameter.requires_grad for parameter in part.parameters())
    with torch.no_grad():
        for parameter in (*backbone.parameters(), *pixel_decoder.parameters()):
            parameter.fill_(7.0)  # fine-tuning moves the model's own weights
    for left, right in zip(before, estimator.encode(images)):  # nor do its batch statistics move
        assert torch.equal(left, right)
    assert all(parameter.requires_grad for parameter in backbone.parameters())
    assert make_estimator().encode(images) is None


def test_a_plain_checkpoint_fills_the_frozen_encoder() -> None:
    plain = {"backbone.stem.weight": 1, "sem_seg_head.pixel_decoder.a.bias": 2, "sem_seg_head.predictor.b": 3}
    assert fill_frozen_encoder(plain) == {
        **plain,
        "transferability.backbone.stem.weight": 1,
        "transferability.pixel_decoder.a.bias": 2,
    }
    own = {**plain, "transferability.backbone.stem.weight": 9}
    assert fill_frozen_encoder(own)["transferability.backbone.stem.weight"] == 9  # what the checkpoint has stays
