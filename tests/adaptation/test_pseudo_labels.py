"""Pseudo-labels: labels, confidence and weights by hand."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch

from tests.helpers.errors import refuses
from tmt_d2.adaptation.self_training.pseudo_labels import (
    CollapseMonitor,
    PseudoLabelPolicy,
    balanced,
    labels_and_confidence,
    marginals,
    mask_weights,
)
from tmt_d2.data.datasets.label_spaces import CLASSES
from tmt_d2.errors import UserError
from tmt_d2.modeling.mask_logits import MaskLogits


def test_marginals_by_hand() -> None:
    """Two queries, two classes, two pixels: class times mask probabilities, then divided by their sum."""
    class_logits = torch.tensor([[[0.8, 0.1, 0.1], [0.2, 0.2, 0.6]]]).log()
    masks = torch.tensor([[[0.5, 0.01], [0.25, 0.02]]]).logit()  # (1, Q, pixels)
    outputs: Any = {"pred_logits": class_logits, "pred_masks": MaskLogits(masks, torch.eye(2)[None, :, None])}
    found = marginals(outputs)[0, :, 0]
    first = torch.tensor([0.8 * 0.5 + 0.2 * 0.25, 0.1 * 0.5 + 0.2 * 0.25])
    second = torch.tensor([0.8 * 0.01 + 0.2 * 0.02, 0.1 * 0.01 + 0.2 * 0.02])  # of almost nothing, still sums to 1
    torch.testing.assert_close(found, torch.stack([first / first.sum(), second / second.sum()], 1))


def test_balance_of_classes_by_hand() -> None:
    """Shares 0.64, 0.36 and 0, which counts as 0.001: with exponent 1/2 factors 1 / 0.8, 1 / 0.6, sqrt(1000)."""
    probabilities = torch.tensor([0.8, 0.18, 0.02]).view(1, 3, 1, 1)
    counts = torch.tensor([64.0, 36.0, 0.0], dtype=torch.float64)
    weighted = torch.tensor([1.0, 0.3, 0.02 * 1000**0.5])
    found = balanced(probabilities, counts, 0.5)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.flatten(), weighted / weighted.sum())
    assert torch.equal(balanced(probabilities, counts, 0.0), probabilities)
    assert torch.equal(balanced(probabilities, torch.zeros(3), 0.5), probabilities)


def test_labels_and_confidence_are_those_of_the_enlarged_map() -> None:
    probabilities = torch.tensor([[[[0.9, 0.3]], [[0.1, 0.7]]]])  # (1, 2, 1, 2)
    ((labels, confidence),) = labels_and_confidence(probabilities, (1, 4))
    assert labels.tolist() == [[0, 0, 1, 1]]
    torch.testing.assert_close(confidence, torch.tensor([[0.9, 0.75, 0.55, 0.7]]))


def test_weights_of_masks_by_hand() -> None:
    labels = torch.tensor([[2, 2, 2], [5, 5, 255]], dtype=torch.uint8)
    confident = torch.tensor([[True, True, False], [False, False, True]])
    for weighs, two, five in (("none", 1, 1), ("pixel", 2 / 3, 0), ("image", 0.5, 0.5)):
        weights = mask_weights(labels, PseudoLabelPolicy(weight_by=weighs).weights(confident))
        assert weights[2] == pytest.approx(two) and weights[5] == pytest.approx(five)
        assert weights[:2].eq(0).all() and weights.shape == (256,)


def test_counts_of_a_step_do_not_depend_on_how_it_is_shared() -> None:
    whole, split = CollapseMonitor("ab"), CollapseMonitor("ab")
    label = torch.tensor([0, 0, 1, 255], dtype=torch.uint8)
    for step in (1, 2):
        whole.add("labelled", label)
        split.add("labelled", label[:1])
        split.add("labelled", label[1:])
        assert whole.labelled.tolist() == ([0, 0] if step == 1 else [2, 1])  # they take effect after the step
        whole.after_step(step)
        split.after_step(step)
    assert whole.labelled.tolist() == split.labelled.tolist() == pytest.approx([3.98, 1.99])


@pytest.mark.parametrize(("later", "expected"), [(16, False), (20, True)])
def test_without_labels_the_first_predictions_are_expected(later: int, expected: bool) -> None:
    monitor = CollapseMonitor(CLASSES)
    with refuses("SELF_TRAINING") if expected else nullcontext():
        for step in range(1, 401):
            road = 14 if step <= 20 else later
            monitor.add("predicted", torch.tensor([0] * road + [1] * (20 - road)))
            monitor.after_step(step)


@pytest.mark.parametrize(("road", "labelled", "expected"), [(19, 10, True), (14, 10, False), (19, 18, False)])
def test_a_collapse_stops_the_run(road: int, labelled: int, expected: bool) -> None:
    monitor = CollapseMonitor(CLASSES)
    with refuses("SELF_TRAINING") if expected else nullcontext():
        for step in range(1, 46):
            monitor.add("predicted", torch.tensor([0] * road + [1] * (20 - road)))
            labels = [0] * labelled + [3] * (20 - labelled) + [255] * 50
            monitor.add("labelled", torch.tensor(labels, dtype=torch.uint8))
            monitor.after_step(step)


@pytest.mark.parametrize("interrupted", [0, 27])
def test_a_resumed_run_checks_at_the_same_steps_against_the_same_counts(interrupted: int) -> None:
    monitor, raised, expected = CollapseMonitor(CLASSES), [], None
    for step in range(1, 201):
        if step == interrupted:
            state, monitor = monitor.state_dict(), CollapseMonitor(CLASSES)
            monitor.load_state_dict(state)
        road = 14 if step <= 20 else 19
        monitor.add("predicted", torch.tensor([0] * road + [1] * (20 - road)))
        try:
            monitor.after_step(step)
        except UserError:
            raised.append(step)
        if step == 20:
            expected = monitor.labelled.clone()
    assert raised == list(range(60, 201, 20))
    assert torch.equal(monitor.labelled, expected)  # without labels those of the first predictions
