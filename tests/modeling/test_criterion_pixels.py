"""Losses with ignored pixels and with pseudo-labels."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tests.helpers.criterion import CLASSES, POINTS, as_product, dense, make_criterion, make_outputs, seeded, sigmoid
from tmt_d2.modeling.mask_logits import MaskLogits
from tmt_d2.modeling.targets import MaskTargets, semantic_targets

RULES = ("background", "ignore")


def targets_of(labels: Tensor, rule: str = "ignore") -> list[MaskTargets]:
    """The targets that a model with this rule for ignored pixels makes."""
    targets = semantic_targets(labels)
    return targets if rule == "ignore" else [target._replace(valid=None) for target in targets]


def half_ignored(rule: str) -> list[MaskTargets]:
    """Two images of 24 x 28 pixels; of the first the left half is ignored."""
    labels = torch.randint(0, CLASSES, (2, 24, 28), generator=torch.Generator().manual_seed(0))
    labels[0, :, :14] = 255
    return targets_of(labels, rule)


@pytest.mark.usefixtures("only_the_center")
@pytest.mark.parametrize("rule", RULES)
def test_losses_beside_an_ignored_pixel_by_hand(rule: str) -> None:
    logit, wanted, n = 1.5, 3 / 4, POINTS  # the middle of four pixels: three of the class, the last one is ignored
    counted = {"background": 1.0, "ignore": wanted}[rule]
    masks = torch.tensor([[[True, True], [True, False]]])
    target = MaskTargets(torch.tensor([1]), masks, masks[0] if rule == "ignore" else None)
    outputs = {
        "pred_logits": torch.zeros(1, 1, CLASSES + 1),
        "pred_masks": as_product(torch.full((1, 1, 2, 2), logit))[0],
    }
    losses = make_criterion()(outputs, [target])
    p = sigmoid(logit)
    outside = (counted - wanted) * math.log(1 - p)
    assert losses["loss_mask"].item() == pytest.approx(-(wanted * math.log(p) + outside) / counted, rel=1e-5)
    dice = 1 - (2 * n * p * wanted + 1) / (n * p * counted + n * wanted + 1)
    assert losses["loss_dice"].item() == pytest.approx(dice, rel=1e-5)


@pytest.mark.parametrize("rule", RULES)
def test_what_is_predicted_in_ignored_pixels(rule: str) -> None:
    """It is nothing to "ignore": not to the losses, nor to which queries and points are chosen, nor to the gradient."""
    targets, criterion = half_ignored(rule), make_criterion(aux=2, points=64)
    outputs = dense(make_outputs())
    features = outputs["pred_masks"].features.detach().clone()
    ignored = features[0, :, :, :2]  # a point with a share in column 14 sees none of them
    for maps, value in zip(ignored.chunk(3), (30.0, -30.0, 0.0)):  # of each output
        maps.fill_(value)
    features.requires_grad_()
    layers = [
        {**each, "pred_masks": MaskLogits(each["pred_masks"].embeddings, features)}
        for each in (*outputs["aux_outputs"], outputs)
    ]
    changed = {**layers[-1], "aux_outputs": layers[:-1]}
    before, after = (seeded(criterion, each, targets) for each in (outputs, changed))
    sum(after.values()).backward()
    for gradient in features.grad.chunk(3, 1):
        assert gradient[0, :, :, :2].any() == (rule == "background")
        assert gradient.any()
    assert all(torch.equal(before[name], after[name]) for name in before) == (rule == "ignore")


def test_the_rules_agree_where_every_pixel_has_a_label() -> None:
    labels = torch.randint(0, CLASSES, (2, 24, 28), generator=torch.Generator().manual_seed(0))
    losses = [seeded(make_criterion(2), make_outputs(), targets_of(labels, rule)) for rule in RULES]
    for name in losses[0]:
        torch.testing.assert_close(losses[0][name], losses[1][name])
    different = [seeded(make_criterion(2), make_outputs(), half_ignored(rule)) for rule in RULES]
    assert different[0]["loss_mask"] != different[1]["loss_mask"]  # control


def test_means_are_over_the_points_that_count() -> None:
    """A mask that is right by a margin costs the same however much of the image is ignored."""
    outputs = {
        "pred_logits": torch.zeros(1, 1, CLASSES + 1),
        "pred_masks": as_product(torch.full((1, 1, 32, 32), 2.0))[0],
    }
    for columns in (0, 14, 24):
        labels = torch.zeros(1, 28, 28, dtype=torch.long)
        labels[..., :columns] = 255
        labels = torch.nn.functional.pad(labels, (2, 2, 2, 2), value=255)  # so that no point mixes with the outside
        losses = seeded(make_criterion(points=400), outputs, semantic_targets(labels))
        assert losses["loss_mask"].item() == pytest.approx(math.log1p(math.exp(-2)), abs=1e-3)


@pytest.mark.parametrize("images", [1, 2])
def test_an_ignored_image_costs_no_mask(images: int) -> None:
    labels = torch.randint(0, CLASSES, (2, 24, 28), generator=torch.Generator().manual_seed(0))
    labels[:images] = 255
    outputs = make_outputs()
    losses = seeded(make_criterion(aux=2), outputs, semantic_targets(labels))
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert (losses["loss_mask"] == 0) == (losses["loss_dice"] == 0) == (images == 2)
    sum(losses.values()).backward()
    assert outputs["pred_masks"].features.grad[0].abs().sum() == 0
    one_pixel = torch.full((1, 24, 28), 255)
    one_pixel[0, 5, 6] = 1  # most likely no point meets it
    losses = seeded(make_criterion(), make_outputs(B=1), semantic_targets(one_pixel))
    assert all(torch.isfinite(loss) for loss in losses.values())


def test_weights_of_masks() -> None:
    """Half the weights are half the mask losses; the classification loss has no weights."""
    labels = torch.full((2, 24, 28), 255)
    labels[0, :, :9], labels[1, :12], labels[1, 12:20] = 0, 1, 2
    criterion = make_criterion(aux=2, points=64)

    def losses(weight: float) -> dict[str, Tensor]:
        targets = [t._replace(weights=torch.full((len(t.labels),), weight)) for t in semantic_targets(labels)]
        return seeded(criterion, make_outputs(), targets)

    whole, half = losses(1.0), losses(0.5)
    expected = seeded(criterion, make_outputs(), semantic_targets(labels))
    for name, value in whole.items():
        torch.testing.assert_close(value, expected[name])
        torch.testing.assert_close(half[name], value * (1.0 if "loss_ce" in name else 0.5))


def test_each_mask_has_its_own_weight() -> None:
    labels = torch.zeros(1, 24, 28, dtype=torch.long)
    labels[0, :, 14:] = 2

    def loss(*weights: float) -> float:
        targets = [semantic_targets(labels)[0]._replace(weights=torch.tensor(weights))]
        return seeded(make_criterion(), make_outputs(B=1), targets)["loss_mask"].item()

    assert loss(1.0, 0.0) + loss(0.0, 1.0) == pytest.approx(loss(1.0, 1.0))
    assert loss(0.2, 0.7) == pytest.approx(0.2 * loss(1.0, 0.0) + 0.7 * loss(0.0, 1.0))
