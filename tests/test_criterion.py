"""Losses by hand, with ignored pixels, with pseudo-labels, and where they could break."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tmt_d2.data.targets import semantic_targets
from tmt_d2.modeling import SetCriterion
from tmt_d2.modeling.mask_logits import MaskLogits

CLASSES = 3
POINTS = 8
Targets = list[dict[str, Tensor]]


def make_criterion(
    aux: int = 0, points: int = POINTS, ignored_pixels: str = "background", **weights: float
) -> SetCriterion:
    values = {"class_weight": 2.0, "mask_weight": 5.0, "dice_weight": 5.0, "no_object_weight": 0.1, **weights}
    return SetCriterion(
        CLASSES,
        num_aux_outputs=aux,
        num_points=points,
        oversample_ratio=3.0,
        importance_sample_ratio=0.75,
        ignored_pixels=ignored_pixels,
        **values,
    )


def make_outputs(layers: int = 3, B: int = 2, Q: int = 5, C: int = 4, seed: int = 0) -> dict[str, Any]:
    """The decoder's outputs with factored masks; the embeddings, features and class logits are leaves."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(B, C, 6, 7, generator=generator).requires_grad_()
    outputs = [
        {
            "pred_logits": torch.randn(B, Q, CLASSES + 1, generator=generator).requires_grad_(),
            "pred_masks": MaskLogits(torch.randn(B, Q, C, generator=generator).requires_grad_(), features),
        }
        for _ in range(layers)
    ]
    return {**outputs[-1], "aux_outputs": outputs[:-1]}


def dense(outputs: dict[str, Any]) -> dict[str, Any]:
    made = {"pred_logits": outputs["pred_logits"], "pred_masks": outputs["pred_masks"].dense()}
    if "aux_outputs" in outputs:
        made["aux_outputs"] = [dense(output) for output in outputs["aux_outputs"]]
    return made


def make_targets(*labels: list[int], size: tuple[int, int] = (24, 28), seed: int = 0) -> Targets:
    generator = torch.Generator().manual_seed(seed)
    return [
        {
            "labels": torch.tensor(ids, dtype=torch.long),
            "masks": torch.rand(len(ids), *size, generator=generator) < 0.4,
        }
        for ids in labels
    ]


def seeded(criterion: SetCriterion, outputs: dict[str, Any], targets: Targets, seed: int = 0) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    return criterion(outputs, targets)


@pytest.fixture
def only_the_centre(monkeypatch: pytest.MonkeyPatch) -> None:
    """All sampled points are the middle of the map, so that the losses can be computed with a pencil."""
    monkeypatch.setattr(torch, "rand", lambda *size, **options: torch.full(size, 0.5))


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


@pytest.mark.usefixtures("only_the_centre")
def test_losses_by_hand() -> None:
    # two queries, one target of class 1; the second query fits it better in every respect
    masks = torch.tensor([[[-1.0, -3.0], [-2.0, -2.0]], [[1.0, 2.0], [0.0, 3.0]]])[None]
    classes = torch.tensor([[[0.0, 0.0, 0.0, 1.0], [0.0, 2.0, 0.0, 0.0]]])
    target = {"labels": torch.tensor([1]), "masks": torch.tensor([[[True, True], [True, False]]])}
    losses = make_criterion()({"pred_logits": classes, "pred_masks": masks}, [target])

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


@pytest.mark.usefixtures("only_the_centre")
def test_mask_losses_are_means_over_the_masks_of_the_batch() -> None:
    masks = torch.tensor([1.0, -2.0, 0.5]).view(1, 3, 1, 1).expand(2, 3, 4, 4)
    outputs = {"pred_logits": torch.zeros(2, 3, CLASSES + 1), "pred_masks": masks}
    every = {"labels": torch.tensor([0, 1, 2]), "masks": torch.ones(3, 4, 4, dtype=torch.bool)}
    one = {"labels": torch.tensor([0]), "masks": torch.ones(1, 4, 4, dtype=torch.bool)}
    losses = make_criterion()(outputs, [every, one])
    # the second image's target takes the query with the largest logit
    expected = sum(math.log1p(math.exp(-x)) for x in (1.0, -2.0, 0.5, 1.0)) / 4
    assert losses["loss_mask"].item() == pytest.approx(expected, rel=1e-5)


def test_fewer_masks_than_calls() -> None:
    """One mask in four images: the mean of four calls is what one call gives."""
    outputs, targets, seeds = make_outputs(1, B=4), make_targets([1], [], [], []), [5, 6, 7, 8]
    whole = make_criterion()(dense(outputs), targets, None, seeds)

    def one(image: int) -> dict[str, Tensor]:
        part = {name: value[image : image + 1] for name, value in dense(outputs).items() if name != "aux_outputs"}
        return make_criterion()(part, targets[image : image + 1], torch.tensor(0.25), seeds[image : image + 1])

    parts = [one(image) for image in range(4)]
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


@pytest.mark.usefixtures("only_the_centre")
def test_every_output_is_supervised_alone() -> None:
    """The losses of an auxiliary output are those it would have as the last one."""
    outputs, targets = make_outputs(), make_targets([0, 2], [1])
    losses = make_criterion(aux=2)(outputs, targets)
    for suffix, output in (("_0", outputs["aux_outputs"][0]), ("_1", outputs["aux_outputs"][1]), ("", outputs)):
        alone = make_criterion()({name: output[name] for name in ("pred_logits", "pred_masks")}, targets)
        for name, loss in alone.items():
            torch.testing.assert_close(losses[name + suffix], loss)


def test_without_deep_supervision_only_the_last_output_counts() -> None:
    losses = seeded(make_criterion(aux=0), make_outputs(), make_targets([0], [1]))
    assert losses.keys() == {"loss_ce", "loss_mask", "loss_dice"}


def test_weights_are_named_but_not_applied() -> None:
    outputs, targets = make_outputs(layers=2), make_targets([0, 1, 2], [0, 1, 2])
    criterion = make_criterion(aux=1)
    assert criterion.weight_dict == {
        "loss_ce": 2.0,
        "loss_mask": 5.0,
        "loss_dice": 5.0,
        "loss_ce_0": 2.0,
        "loss_mask_0": 5.0,
        "loss_dice_0": 5.0,
    }
    scaled = make_criterion(aux=1, class_weight=4.0, mask_weight=10.0, dice_weight=10.0)  # the same matching
    for left, right in zip(
        seeded(criterion, outputs, targets).values(), seeded(scaled, outputs, targets).values(), strict=True
    ):
        assert left == right


@pytest.mark.parametrize("labels", [([0, 1], []), ([], [2]), ([], [])])
@pytest.mark.parametrize("form", ["factored", "dense"])
def test_images_without_a_target(labels: tuple[list[int], list[int]], form: str) -> None:
    outputs, targets = make_outputs(), make_targets(*labels)
    losses = seeded(make_criterion(aux=2), outputs if form == "factored" else dense(outputs), targets)
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
    losses = make_criterion()({"pred_logits": classes, "pred_masks": masks}, make_targets([0, 1], [2]))
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
    outputs = dense(make_outputs(layers=2))
    outputs["pred_logits"] = outputs["pred_logits"].detach().clone()
    outputs["pred_logits"][1, 3] = value
    losses = make_criterion(aux=1)(outputs, make_targets([0], [1]))
    assert not torch.isfinite(losses["loss_ce"])
    assert torch.isfinite(losses["loss_ce_0"])


def test_more_targets_than_queries() -> None:
    with pytest.raises(ValueError, match=r"3 classes but there are 2 queries: raise MODEL.MASK_FORMER.NUM_OBJECT"):
        make_criterion()(make_outputs(layers=1, B=1, Q=2), make_targets([0, 1, 2]))


def test_costs_travel_to_the_host_once(monkeypatch: pytest.MonkeyPatch) -> None:
    transfers = []
    monkeypatch.setattr(Tensor, "cpu", lambda self: transfers.append(self.shape) or self)
    for name in ("item", "tolist", "__bool__", "__float__", "__int__"):
        monkeypatch.setattr(Tensor, name, lambda self, name=name: pytest.fail(f"Tensor.{name} waits for the device"))
    seeded(make_criterion(aux=2), make_outputs(), make_targets([0, 2], [1]))
    assert transfers == [(3 * 5 * 2 + 3 * 5 * 1,)]


def test_the_order_of_queries_does_not_matter() -> None:
    outputs, targets = dense(make_outputs(layers=1)), make_targets([0, 2], [1])
    order = torch.tensor([3, 0, 4, 2, 1])
    shuffled = {name: outputs[name][:, order] for name in ("pred_logits", "pred_masks")}
    expected, found = seeded(make_criterion(), outputs, targets), seeded(make_criterion(), shuffled, targets)
    for name in expected:
        torch.testing.assert_close(found[name], expected[name])


def test_points_are_taken_where_the_mask_is_uncertain() -> None:
    """A mask with one uncertain column: importance sampling looks there, uniform sampling hardly ever."""
    logits = torch.full((1, 1, 8, 32), 20.0)
    logits[..., 16:] = -20.0
    target = [{"labels": torch.tensor([0]), "masks": (logits[0] > 0)}]
    outputs = {"pred_logits": torch.zeros(1, 1, CLASSES + 1), "pred_masks": logits}

    def mean_loss(share: float) -> float:
        criterion = make_criterion(points=64)
        criterion.importance_sample_ratio = share
        return float(np.mean([seeded(criterion, outputs, target, seed)["loss_mask"].item() for seed in range(10)]))

    assert mean_loss(0.75) > 2 * mean_loss(0.0)


# --- ignored pixels

RULES = ("background", "ignore")


def half_ignored(seed: int = 0) -> Targets:
    """Two images of 24 x 28 pixels; of the first the left half is ignored."""
    labels = torch.randint(0, CLASSES, (2, 24, 28), generator=torch.Generator().manual_seed(seed))
    labels[0, :, :14] = 255
    return semantic_targets(labels)


@pytest.mark.usefixtures("only_the_centre")
@pytest.mark.parametrize("rule", RULES)
def test_losses_beside_an_ignored_pixel_by_hand(rule: str) -> None:
    logit, wanted, n = 1.5, 3 / 4, POINTS  # the middle of four pixels: three of the class, the last one is ignored
    counted = {"background": 1.0, "ignore": wanted}[rule]
    target = {"labels": torch.tensor([1]), "masks": torch.tensor([[[True, True], [True, False]]])}
    target["labelled"] = target["masks"][0]
    outputs = {"pred_logits": torch.zeros(1, 1, CLASSES + 1), "pred_masks": torch.full((1, 1, 2, 2), logit)}
    losses = make_criterion(ignored_pixels=rule)(outputs, [target])
    p = sigmoid(logit)
    outside = (counted - wanted) * math.log(1 - p)
    assert losses["loss_mask"].item() == pytest.approx(-(wanted * math.log(p) + outside) / counted, rel=1e-5)
    dice = 1 - (2 * n * p * wanted + 1) / (n * p * counted + n * wanted + 1)
    assert losses["loss_dice"].item() == pytest.approx(dice, rel=1e-5)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("seed", range(3))
def test_what_is_predicted_in_ignored_pixels(rule: str, seed: int) -> None:
    """It is nothing to "ignore": not to the losses, nor to which queries and points are chosen, nor to the gradient."""
    targets, criterion = half_ignored(), make_criterion(aux=2, points=64, ignored_pixels=rule)
    outputs = dense(make_outputs(seed=seed))
    cells = (slice(0, 1), slice(None), slice(None), slice(0, 2))  # a point with a share in column 14 sees none of them
    changed = {**outputs, "aux_outputs": [dict(output) for output in outputs["aux_outputs"]]}
    for output, value in zip((changed, *changed["aux_outputs"]), (0.0, 30.0, -30.0)):
        output["pred_masks"] = output["pred_masks"].detach().clone()
        output["pred_masks"][cells] = value
        output["pred_masks"].requires_grad_()
    before, after = (seeded(criterion, each, targets, seed) for each in (outputs, changed))
    sum(after.values()).backward()
    for output in (changed, *changed["aux_outputs"]):
        assert output["pred_masks"].grad[cells].any() == (rule == "background")
        assert output["pred_masks"].grad.any()
    assert all(torch.equal(before[name], after[name]) for name in before) == (rule == "ignore")


def test_the_rules_agree_where_every_pixel_has_a_label() -> None:
    targets = semantic_targets(torch.randint(0, CLASSES, (2, 24, 28), generator=torch.Generator().manual_seed(0)))
    losses = [seeded(make_criterion(2, ignored_pixels=rule), make_outputs(), targets) for rule in RULES]
    for name in losses[0]:
        torch.testing.assert_close(losses[0][name], losses[1][name])
    different = [seeded(make_criterion(2, ignored_pixels=rule), make_outputs(), half_ignored()) for rule in RULES]
    assert different[0]["loss_mask"] != different[1]["loss_mask"]  # control


def test_means_are_over_the_points_that_count() -> None:
    """A mask that is right by a margin costs the same however much of the image is ignored."""
    outputs = {"pred_logits": torch.zeros(1, 1, CLASSES + 1), "pred_masks": torch.full((1, 1, 32, 32), 2.0)}
    for columns in (0, 14, 24):
        labels = torch.zeros(1, 28, 28, dtype=torch.long)
        labels[..., :columns] = 255
        labels = torch.nn.functional.pad(labels, (2, 2, 2, 2), value=255)  # so that no point mixes with the outside
        losses = seeded(make_criterion(points=400, ignored_pixels="ignore"), outputs, semantic_targets(labels))
        assert losses["loss_mask"].item() == pytest.approx(math.log1p(math.exp(-2)), abs=1e-3)


@pytest.mark.parametrize("images", [1, 2])
def test_an_ignored_image_costs_no_mask(images: int) -> None:
    labels = torch.randint(0, CLASSES, (2, 24, 28), generator=torch.Generator().manual_seed(0))
    labels[:images] = 255
    outputs = make_outputs()
    losses = seeded(make_criterion(aux=2, ignored_pixels="ignore"), outputs, semantic_targets(labels))
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert (losses["loss_mask"] == 0) == (losses["loss_dice"] == 0) == (images == 2)
    sum(losses.values()).backward()
    assert outputs["pred_masks"].features.grad[0].abs().sum() == 0
    one_pixel = torch.full((1, 24, 28), 255)
    one_pixel[0, 5, 6] = 1  # most likely no point meets it
    losses = seeded(make_criterion(ignored_pixels="ignore"), make_outputs(B=1), semantic_targets(one_pixel))
    assert all(torch.isfinite(loss) for loss in losses.values())


def test_the_official_rule_does_not_look_for_ignored_pixels() -> None:
    targets = half_ignored()
    bare = [{name: target[name] for name in ("labels", "masks")} for target in targets]
    with_labelled, without = (seeded(make_criterion(2), make_outputs(), each) for each in (targets, bare))
    assert all(torch.equal(with_labelled[name], without[name]) for name in without)
    with pytest.raises(ValueError, match="ignored_pixels is 'void': choose background or ignore"):
        make_criterion(ignored_pixels="void")


# --- pseudo-labels


def test_weights_of_masks_and_of_no_object() -> None:
    """Twice the weights are twice the mask losses; without "no object" only matched queries say a class."""
    labels = torch.full((2, 24, 28), 255)
    labels[0, :, :9], labels[1, :12], labels[1, 12:20] = 0, 1, 2
    criterion = make_criterion(aux=2, points=64)

    def losses(weight: float, no_object: float) -> dict[str, Tensor]:
        targets: list[dict[str, Any]] = [*semantic_targets(labels)]
        for target in targets:
            target |= {"weights": torch.full((len(target["labels"]),), weight), "no_object": no_object}
        return seeded(criterion, make_outputs(), targets)  # type: ignore[arg-type]

    whole, half, matched = losses(1.0, 1.0), losses(0.5, 1.0), losses(1.0, 0.0)
    ignoring = make_criterion(aux=2, points=64, ignored_pixels="ignore")
    expected = seeded(ignoring, make_outputs(), semantic_targets(labels))
    for name, value in whole.items():
        torch.testing.assert_close(value, expected[name])  # other pixels are ignored, whatever the criterion's rule
        torch.testing.assert_close(half[name], value * (1.0 if "loss_ce" in name else 0.5))
        assert (matched[name] < value) if "loss_ce" in name else torch.equal(matched[name], value)
    background = seeded(criterion, make_outputs(), semantic_targets(labels))
    assert any(not torch.equal(background[name], whole[name]) for name in whole)  # control


def test_each_mask_has_its_own_weight() -> None:
    labels = torch.zeros(1, 24, 28, dtype=torch.long)
    labels[0, :, 14:] = 2

    def loss(*weights: float) -> float:
        targets: list[dict[str, Any]] = [*semantic_targets(labels)]
        targets[0] |= {"weights": torch.tensor(weights), "no_object": 1.0}
        return seeded(make_criterion(), make_outputs(B=1), targets)["loss_mask"].item()  # type: ignore[arg-type]

    assert loss(1.0, 0.0) + loss(0.0, 1.0) == pytest.approx(loss(1.0, 1.0))
    assert loss(0.2, 0.7) == pytest.approx(0.2 * loss(1.0, 0.0) + 0.7 * loss(0.0, 1.0))
