"""Mask2Former as a whole, and TMT where it must do the same: losses, sizes, and what padding may not do."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from tests.helpers.errors import refuses
from tests.helpers.models import Build, Records, equal, make_records, plain_twin, scores, train_step
from tmt_d2.modeling import mask_former
from tmt_d2.modeling.mask_former import semantic_scores, valid_positions
from tmt_d2.modeling.ops.resize import resize


@pytest.mark.parametrize("architecture", ["MaskFormer", "TransferableMaskFormer"])
def test_every_weight_of_the_model_learns_without_a_single_label(architecture: str, build_tiny: Build) -> None:
    """Distributed training waits for the gradient of every parameter, also where a batch is all ignored."""
    records = make_records()
    for record in records:
        record["sem_seg"].fill_(255)
    model = build_tiny(architecture)
    losses = train_step(model, records)
    assert all(torch.isfinite(loss) for loss in losses.values())
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None or name.startswith("transferability."), name


def test_losses_are_weighted_once(build_tiny: Build, records: Records) -> None:
    once = train_step(build_tiny("MaskFormer"), records)
    twice = train_step(
        build_tiny(
            "MaskFormer",
            MODEL__MASK_FORMER__CLASS_WEIGHT=4.0,
            MODEL__MASK_FORMER__MASK_WEIGHT=10.0,
            MODEL__MASK_FORMER__DICE_WEIGHT=10.0,
        ),
        records,
    )
    for name, loss in once.items():
        torch.testing.assert_close(twice[name], 2 * loss)


def test_labels_of_padding_are_ignored(build_tiny: Build) -> None:
    """A class of a smaller image must not grow into its padding: all targets keep their number of pixels."""
    model, records = build_tiny("MaskFormer"), make_records(((37, 91), (64, 50)))
    for record, target in zip(records, model.targets(records, model.preprocess(records))):
        assert target.masks.shape[-2:] == (64, 96)
        for label, mask in zip(target.labels, target.masks):
            assert mask.sum() == (record["sem_seg"] == label).sum()


def test_padding_is_ignored_where_asked(build_tiny: Build) -> None:
    """A small image beside a large one: what its padding is worth depends on the rule."""
    records = make_records(((32, 32), (64, 96)))
    losses = {}
    for rule in ("background", "ignore"):
        model = build_tiny("MaskFormer", MODEL__MASK_FORMER__IGNORED_PIXELS=rule)
        losses[rule] = train_step(model, records)
        assert all(torch.isfinite(loss) for loss in losses[rule].values())
    assert losses["background"]["loss_mask_0"] != losses["ignore"]["loss_mask_0"]
    valid = model.targets(records, model.preprocess(records))[0].valid
    assert torch.equal(valid[:32, :32], records[0]["sem_seg"] != 255)
    assert not valid[32:].any() and not valid[:, 32:].any()


def test_images_with_mask_weights_always_leave_ignored_pixels_out(build_tiny: Build) -> None:
    model, records = build_tiny("MaskFormer"), make_records()
    assert all(target.valid is None for target in model.targets(records, model.preprocess(records)))
    for record in records:
        record["mask_weights"] = torch.arange(256.0)
    for target in model.targets(records, model.preprocess(records)):
        assert target.weights.tolist() == target.labels.tolist()
        assert torch.equal(target.valid, target.masks.any(0))


@pytest.mark.parametrize("architecture", ["MaskFormer", "TransferableMaskFormer"])
@pytest.mark.parametrize("divisibility", [32, 64])
def test_no_query_attends_to_padding(architecture: str, divisibility: int, build_tiny: Build, records: Records) -> None:
    model = build_tiny(architecture, MODEL__MASK_FORMER__SIZE_DIVISIBILITY=divisibility)
    seen = model.inspect(records)
    padded = {32: (64, 96), 64: (64, 128)}[divisibility]
    assert seen["images"].tensor.shape[-2:] == padded
    assert len(seen["layers"]) == 4
    for layer in seen["layers"]:
        stride = 32 >> layer.level
        assert layer.positions.allowed.shape[-2:] == (padded[0] // stride, padded[1] // stride)
        paddings = []
        for index, (height, width) in enumerate(seen["images"].image_sizes):
            padding = torch.ones(layer.positions.allowed.shape[-2:], dtype=torch.bool)
            padding[: -(-height // stride), : -(-width // stride)] = False
            paddings.append(padding)
            assert not layer.positions.allowed[index, :, padding].any()
            assert (layer.attention[index][..., padding] == 0).all()
        assert torch.stack(paddings).any()
        assert layer.positions.allowed.flatten(2).any(-1).all()
        torch.testing.assert_close(layer.attention.sum((3, 4)), torch.ones(layer.attention.shape[:3]))


def test_official_padding_is_attended_to_where_asked(build_tiny: Build, records: Records) -> None:
    model = build_tiny("MaskFormer", MODEL__MASK_FORMER__ATTEND_PADDING=True)
    layer = model.inspect(records)["layers"][1]
    assert layer.positions.allowed[0, :, 3:].any()
    assert not equal(scores(model, records), scores(plain_twin(model, build_tiny), records))


def test_padding_makes_no_difference_to_images_that_need_none(build_tiny: Build) -> None:
    records = make_records(((64, 96), (64, 96)))
    strict = build_tiny("MaskFormer")
    official = plain_twin(strict, build_tiny, MODEL__MASK_FORMER__ATTEND_PADDING=True)
    assert strict.encode(strict.preprocess(records)).key_mask.valid is None
    assert equal(scores(strict, records), scores(official, records))


def test_valid_positions_see_at_least_one_pixel(build_tiny: Build, records: Records) -> None:
    model = build_tiny("MaskFormer")
    images = model.preprocess(records)
    levels = [torch.zeros(2, 1, 64 // stride, 96 // stride) for stride in (32, 16, 8)]
    for level, valid in zip(levels, valid_positions(images, levels)):
        stride = 64 // level.shape[2]
        for index, (height, width) in enumerate(images.image_sizes):
            for y in range(level.shape[2]):
                for x in range(level.shape[3]):
                    assert valid[index, y, x] == (y * stride < height and x * stride < width)


@pytest.mark.parametrize("before", [False, True])
def test_outputs_have_the_wanted_size(before: bool, build_tiny: Build, records: Records) -> None:
    option = {"MODEL__MASK_FORMER__TEST__SEM_SEG_POSTPROCESSING_BEFORE_INFERENCE": before}
    model = build_tiny("MaskFormer", **option)
    records[0].update(height=80, width=111)
    del records[1]["height"], records[1]["width"]
    found = scores(model, records)
    assert [tuple(score.shape) for score in found] == [(19, 80, 111), (19, 64, 50)]
    other = copy.copy(model)
    other.postprocess_before_inference = not before
    resized, unchanged = scores(other, records)
    torch.testing.assert_close(unchanged, found[1], rtol=0, atol=1e-6)  # no resizing: equal up to rounding
    assert not torch.equal(resized, found[0])
    torch.testing.assert_close(resized, found[0], atol=0.1, rtol=0.1)


def test_semantic_scores_by_hand() -> None:
    classes = torch.tensor([[0.0, 0.0, 0.0], [2.0, 0.0, 0.0]])  # two classes and "no object"
    masks = torch.tensor([0.0, 100.0]).view(2, 1, 1)
    e = torch.tensor(2.0).exp()
    expected = torch.stack([0.5 / 3 + e / (e + 2), 0.5 / 3 + 1 / (e + 2)]).view(2, 1, 1)
    torch.testing.assert_close(semantic_scores(classes, masks), expected)


def test_batch_of_two_is_two_batches_of_one(build_tiny: Build) -> None:
    records = make_records(((64, 96), (64, 96)))
    model = build_tiny()
    both = scores(model, records)
    for record, score in zip(records, both):
        torch.testing.assert_close(scores(model, [record])[0], score, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("MODEL.MASK_FORMER.TEST.SEMANTIC_ON", False),
        ("MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE", "res5"),
        ("MODEL.SEM_SEG_HEAD.IN_FEATURES", ["res3", "res4", "res5"]),
        ("MODEL.MASK_FORMER.PRE_NORM", True),
        ("MODEL.MASK_FORMER.DEC_LAYERS", 1),
    ],
)
def test_configs_that_are_not_built(key: str, value: Any, build_tiny: Build) -> None:
    with refuses(key, value):
        build_tiny("MaskFormer", **{key.replace(".", "__"): value})


def test_frozen_parts_stay_in_evaluation_mode(build_tiny: Build, records: Records) -> None:
    """Linear probing freezes backbone and pixel decoder: their batch statistics must not move either."""
    model = build_tiny("MaskFormer")
    for part in (model.backbone, model.sem_seg_head.pixel_decoder):
        part.requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    train_step(model, records)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.sem_seg_head.predictor.training
    unfrozen = build_tiny("MaskFormer")
    train_step(unfrozen, records)
    name = "backbone.stem.conv1.norm.running_mean"
    assert not torch.equal(unfrozen.state_dict()[name], before[name])  # control


@pytest.mark.parametrize("size", [(9, 13), (8, 4), (1, 5)])
def test_scores_by_strips_are_the_scores(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    logits, masks = torch.randn(3, 5), torch.randn(3, *size)
    full = (4 * size[0], 4 * size[1])
    whole = mask_former.semantic_scores(logits, resize(masks, full))
    for values in (1, 3 * 4 * full[1] * 2):  # one row at a time, two rows at a time
        monkeypatch.setitem(mask_former.STRIP_VALUES, "cpu", values)
        torch.testing.assert_close(mask_former.upsampled_scores(logits, masks, full), whole, rtol=0, atol=1e-6)


@pytest.mark.parametrize("values", [1, 2 * 64 * 96, 2**20])
def test_small_outputs_by_groups_of_classes_are_the_scores(
    build_tiny: Build, records: Records, values: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build_tiny("MaskFormer")
    items = [record | {"height": 20, "width": 30} for record in records]
    expected = scores(model, items)
    monkeypatch.setitem(mask_former.GROUP_VALUES, "cpu", values)
    for found, whole in zip(scores(model, items), expected, strict=True):
        torch.testing.assert_close(found, whole, rtol=0, atol=1e-6)
