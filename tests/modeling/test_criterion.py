"""Losses by hand, and where they could break."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.helpers.criterion import (
    CLASSES,
    POINTS,
    as_product,
    dense,
    make_criterion,
    make_outputs,
    make_targets,
    seeded,
    sigmoid,
)
from tests.helpers.errors import refuses
from tmt_d2.modeling.mask_logits import MaskLogits
from tmt_d2.modeling.targets import MaskTargets


@pytest.mark.usefixtures("only_the_center")
def test_losses_by_hand() -> None:
    # two queries, one target of class 1; the second query fits it better in every respect
    masks = torch.tensor([[[-1.0, -3.0], [-2.0, -2.0]], [[1.0, 2.0], [0.0, 3.0]]])[None]
    classes = torch.tensor([[[0.0, 0.0, 0.0, 1.0], [0.0, 2.0, 0.0, 0.0]]])
    target = MaskTargets(torch.tensor([1]), torch.tensor([[[True, True], [True, False]]]))
    losses = make_criterion()({"pred_logits": classes, "pred_masks": as_product(masks)[0]}, [target])

    logit, wanted = (1 + 2 + 0 + 3) / 4, 3 / 4  # the means of the four cells around the middle
    bce = -(wanted * math.log(sigmoid(logit)) + (1 - wanted) * math.log(1 - sigmoid(logit)))
    p, n = sigmoid(logit), POINTS
    dice = 1 - (2 * n * p * wanted + 1) / (n * p + n * wanted + 1)
    matched = -math.log(math.exp(2) / (math.exp(2) + 3))
    unmatched = -math.log(math.e / (math.e + 3))  # the first query is "no object", weight 0.1
    assert losses.keys() == {"loss_ce", "loss_mask", "loss_dice"}
    assert losses["loss_mask"].item() == pytest.approx(bce, rel=1e-5)
    assert losses["loss_dice"].item() == pytest.approx(dice, rel=1e-5)
    assert losses["loss_ce"].item() == pytest.approx((1.0 * matched + 0.1 * unmatched) / 1.1, rel=1e-5)


@pytest.mark.usefixtures("only_the_center")
def test_mask_losses_are_means_over_the_masks_of_the_batch() -> None:
    masks = torch.tensor([1.0, -2.0, 0.5]).view(1, 3, 1, 1).expand(2, 3, 4, 4)
    outputs = {"pred_logits": torch.zeros(2, 3, CLASSES + 1), "pred_masks": as_product(masks)[0]}
    every = MaskTargets(torch.tensor([0, 1, 2]), torch.ones(3, 4, 4, dtype=torch.bool))
    one = MaskTargets(torch.tensor([0]), torch.ones(1, 4, 4, dtype=torch.bool))
    losses = make_criterion()(outputs, [every, one])
    # the second image's target takes the query with the largest logit
    expected = sum(math.log1p(math.exp(-x)) for x in (1.0, -2.0, 0.5, 1.0)) / 4
    assert losses["loss_mask"].item() == pytest.approx(expected, rel=1e-5)


def test_fewer_masks_than_calls() -> None:
    """One mask in four images: the mean of four calls is what one call gives."""
    outputs, targets, seeds = make_outputs(1, B=4), make_targets([1], [], [], []), [5, 6, 7, 8]
    whole = make_criterion()(outputs, targets, None, seeds)

    def one(image: slice) -> dict[str, Tensor]:
        masks = MaskLogits(outputs["pred_masks"].embeddings[image], outputs["pred_masks"].features[image])
        part = {"pred_logits": outputs["pred_logits"][image], "pred_masks": masks}
        return make_criterion()(part, targets[image], torch.tensor(0.25), seeds[image])

    parts = [one(slice(image, image + 1)) for image in range(4)]
    for name, value in whole.items():
        torch.testing.assert_close(torch.stack([part[name] for part in parts]).mean(), value)


def test_factored_masks_equal_dense_masks() -> None:
    outputs, targets, criterion = make_outputs(), make_targets([0, 2], [1]), make_criterion(aux=2)
    factored = seeded(criterion, outputs, targets)
    assert factored.keys() == criterion.weight_dict.keys()
    assert len(factored) == 9
    leaves = [outputs["pred_masks"].features, outputs["pred_masks"].embeddings]
    gradients = torch.autograd.grad(sum(factored.values()), leaves)
    expanded = seeded(criterion, dense(outputs), targets)
    for name in factored:
        torch.testing.assert_close(factored[name], expanded[name])
    for left, right in zip(gradients, torch.autograd.grad(sum(expanded.values()), leaves)):
        torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-6)
    other = seeded(criterion, outputs, targets, seed=1)
    assert other["loss_mask"] != factored["loss_mask"]  # control: the points are random


@pytest.mark.usefixtures("only_the_center")
def test_every_output_is_supervised_alone() -> None:
    """The losses of an auxiliary output are those it would have as the last one."""
    outputs, targets = make_outputs(), make_targets([0, 2], [1])
    losses = make_criterion(aux=2)(outputs, targets)
    for suffix, output in (("_0", outputs["aux_outputs"][0]), ("_1", outputs["aux_outputs"][1]), ("", outputs)):
        alone = make_criterion()({name: output[name] for name in ("pred_logits", "pred_masks")}, targets)
        for name, loss in alone.items():
            torch.testing.assert_close(losses[name + suffix], loss)


@pytest.mark.parametrize("labels", [([0, 1], []), ([], [2]), ([], [])])
def test_images_without_a_target(labels: tuple[list[int], list[int]]) -> None:
    outputs, targets = make_outputs(), make_targets(*labels)
    losses = seeded(make_criterion(aux=2), outputs, targets)
    assert all(torch.isfinite(loss) for loss in losses.values())
    if labels == ([], []):
        assert losses["loss_mask"] == losses["loss_dice"] == 0
    sum(losses.values()).backward()
    for output in (outputs, *outputs["aux_outputs"]):
        assert output["pred_logits"].grad.abs().sum() > 0
        assert output["pred_masks"].embeddings.grad is not None  # else distributed training waits forever


def test_all_queries_of_an_image_without_targets_are_no_object() -> None:
    outputs = make_outputs(layers=1, B=1)
    losses = make_criterion()(outputs, make_targets([]))
    expected = -outputs["pred_logits"].log_softmax(-1)[..., -1].mean()
    torch.testing.assert_close(losses["loss_ce"], expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_huge_logits(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    signs = torch.randint(0, 2, (2, 5, 6, 7), generator=generator) * 2 - 1
    masks = (signs * 6e4).to(dtype).requires_grad_()
    classes = (torch.randn(2, 5, CLASSES + 1, generator=generator).sign() * 6e4).to(dtype).requires_grad_()
    losses = make_criterion()({"pred_logits": classes, "pred_masks": as_product(masks)[0]}, make_targets([0, 1], [2]))
    for loss in losses.values():
        assert loss.dtype == torch.float32
        assert torch.isfinite(loss)
    sum(losses.values()).backward()
    assert torch.isfinite(masks.grad).all()
    assert torch.isfinite(classes.grad).all()


def test_huge_factors_do_not_overflow_in_half_precision() -> None:
    masks = MaskLogits(torch.full((1, 3, 4), 200.0).half(), torch.full((1, 4, 5, 5), 200.0).half())  # product 160,000
    outputs = {"pred_logits": torch.zeros(1, 3, CLASSES + 1), "pred_masks": masks}
    assert all(torch.isfinite(loss) for loss in make_criterion()(outputs, make_targets([0, 1])).values())


def test_autocast_does_not_reach_the_losses() -> None:
    outputs, targets, criterion = make_outputs(), make_targets([0, 2], [1]), make_criterion(aux=2)
    expected = seeded(criterion, outputs, targets)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = seeded(criterion, outputs, targets)
    for name in expected:
        assert torch.equal(found[name], expected[name])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_diverged_outputs_give_a_loss_that_says_so(value: float) -> None:
    outputs = make_outputs(layers=2)
    outputs["pred_logits"] = outputs["pred_logits"].detach().clone()
    outputs["pred_logits"][1, 3] = value
    losses = make_criterion(aux=1)(outputs, make_targets([0], [1]))
    assert not torch.isfinite(losses["loss_ce"])
    assert torch.isfinite(losses["loss_ce_0"])


def test_more_targets_than_queries() -> None:
    with refuses("MODEL.MASK_FORMER.NUM_OBJECT_QUERIES", 2):
        make_criterion()(make_outputs(layers=1, B=1, Q=2), make_targets([0, 1, 2]))


def test_the_order_of_queries_does_not_matter() -> None:
    outputs, targets = make_outputs(layers=1), make_targets([0, 2], [1])
    order, masks = torch.tensor([3, 0, 4, 2, 1]), outputs["pred_masks"]
    shuffled = {
        "pred_logits": outputs["pred_logits"][:, order],
        "pred_masks": MaskLogits(masks.embeddings[:, order], masks.features),
    }
    expected, found = seeded(make_criterion(), outputs, targets), seeded(make_criterion(), shuffled, targets)
    for name in expected:
        torch.testing.assert_close(found[name], expected[name])


def test_points_are_taken_where_the_mask_is_uncertain() -> None:
    """A mask with one uncertain column: importance sampling looks there, uniform sampling hardly ever."""
    logits = torch.full((1, 1, 8, 32), 20.0)
    logits[..., 16:] = -20.0
    target = [MaskTargets(torch.tensor([0]), logits[0] > 0)]
    outputs = {"pred_logits": torch.zeros(1, 1, CLASSES + 1), "pred_masks": as_product(logits)[0]}

    def mean_loss(share: float) -> float:
        criterion = make_criterion(points=64)
        criterion.importance_sample_ratio = share
        return float(np.mean([seeded(criterion, outputs, target, seed)["loss_mask"].item() for seed in range(10)]))

    assert mean_loss(0.75) > 2 * mean_loss(0.0)
