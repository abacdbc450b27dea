"""Pseudo-labels: what the teacher says, which of it is trusted, and what that weighs."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tmt_d2.data.label_spaces import CLASSES
from tmt_d2.methods.self_training.pseudo_labels import (
    NEVER,
    Statistics,
    Trust,
    labels_and_confidence,
    marginals,
    mask_weights,
    transferability_ranks,
)
from tmt_d2.modeling.mask_logits import MaskLogits
from tmt_d2.transferability.map import TransferabilityMap


def test_marginals_by_hand() -> None:
    """Two queries, two classes, two pixels: class times mask probabilities, then divided by their sum."""
    class_logits = torch.tensor([[[0.8, 0.1, 0.1], [0.2, 0.2, 0.6]]]).log()
    masks = torch.tensor([[[0.5, 0.01], [0.25, 0.02]]]).logit()  # (1, Q, pixels)
    outputs: Any = {"pred_logits": class_logits, "pred_masks": MaskLogits(masks, torch.eye(2)[None, :, None])}
    found = marginals(outputs)[0, :, 0]
    first = torch.tensor([0.8 * 0.5 + 0.2 * 0.25, 0.1 * 0.5 + 0.2 * 0.25])
    second = torch.tensor([0.8 * 0.01 + 0.2 * 0.02, 0.1 * 0.01 + 0.2 * 0.02])  # of almost nothing, still sums to 1
    torch.testing.assert_close(found, torch.stack([first / first.sum(), second / second.sum()], 1))


def test_labels_and_confidence_are_those_of_the_enlarged_map() -> None:
    probabilities = torch.tensor([[[[0.9, 0.3]], [[0.1, 0.7]]]])  # (1, 2, 1, 2)
    ((labels, confidence),) = labels_and_confidence(probabilities, (1, 4))
    assert labels.tolist() == [[0, 0, 1, 1]]
    torch.testing.assert_close(confidence, torch.tensor([[0.9, 0.75, 0.55, 0.7]]))


def test_confident_pixels_by_hand() -> None:
    labels, confidence = torch.tensor([[0, 0, 1, 1]]), torch.tensor([[0.5, 0.9, 0.5, 0.7]])
    thresholds = torch.tensor([0.8, 0.6])

    def confident(**settings: float) -> list[int]:
        return Trust(**settings).confident(labels, confidence, thresholds)[0].int().tolist()

    assert confident() == [1, 1, 1, 1]
    assert confident(threshold=0.7) == [0, 1, 0, 1]
    assert confident(quantile=0.3) == confident(precision=0.9) == [0, 1, 0, 1]
    assert confident(quantile=0.3, threshold=0.95) == [0, 1, 0, 1]  # the lower one of each class
    assert confident(quantile=0.3, threshold=0.5) == [1, 1, 1, 1]


def test_weights_of_masks_by_hand() -> None:
    labels = torch.tensor([[2, 2, 2], [5, 5, 255]], dtype=torch.uint8)
    confident = torch.tensor([[True, True, False], [False, False, True]])
    for weighs, two, five in (("nothing", 1, 1), ("confident", 2 / 3, 0), ("picture", 0.5, 0.5)):
        weights = mask_weights(labels, Trust(weighs=weighs).weights(confident))
        assert weights[2] == pytest.approx(two) and weights[5] == pytest.approx(five)
        assert weights[:2].eq(0).all() and weights.shape == (256,)


def test_weights_by_t_are_ranks_within_the_picture() -> None:
    logits = torch.tensor([[[9.0, -3.0, 2.0, 0.0]], [[1.0, 2.0, 8.0, 8.0]]])  # of E: T is 1 minus it
    valid = torch.tensor([[[True] * 4], [[True, True, False, False]]])
    ranks = transferability_ranks([TransferabilityMap(logits, valid)], (1, 4))
    torch.testing.assert_close(ranks, torch.tensor([[[0, 1, 1 / 3, 2 / 3]], [[1, 0, 0.5, 0.5]]]))
    confident = torch.ones(1, 4, dtype=torch.bool)
    torch.testing.assert_close(Trust(weighs="T").weights(confident, ranks[0]), 2 * ranks[0])
    torch.testing.assert_close(Trust(weighs="1-T").weights(confident, ranks[0]), 2 - 2 * ranks[0])
    two = transferability_ranks([TransferabilityMap(logits, valid), TransferabilityMap(-logits, valid)], (1, 4))
    torch.testing.assert_close(two, torch.full((2, 1, 4), 0.5))  # the mean over levels


def test_quantiles_are_of_each_class_and_take_effect_after_the_step() -> None:
    statistics = Statistics(3, quantile=0.5)
    confidence = torch.tensor([[0.2, 0.4, 0.6, 0.8, 0.9], [0.1, 0.1, 0.1, 0.3, 1.0]])
    statistics.note(torch.tensor([[0] * 5, [1] * 5]), confidence)
    assert statistics.thresholds().tolist() == [0, 0, 0]
    statistics.after_step()
    assert statistics.thresholds().tolist() == pytest.approx([0.6, 0.1, 0])  # to a bin of 1 / 200
    split = Statistics(3, quantile=0.5)
    for label in (0, 1):  # two micro-batches
        split.note(torch.full((5,), label), confidence[label])
    split.after_step()
    assert torch.equal(split.said, statistics.said)
    for _ in range(600):  # what was said long ago is forgotten
        statistics.note(torch.tensor([0]), torch.tensor([0.333]))
        statistics.after_step()
    assert statistics.thresholds()[0] == pytest.approx(0.33)


def test_precision_by_hand() -> None:
    """Class 0 is right on 3 of 4 pixels from 0.301 on and on 2 of 2 from 0.601 on; 1 never; nobody has judged 2."""
    statistics = Statistics(3, precision=0.75)
    assert statistics.thresholds().tolist() == [0, 0, 0]
    labels = torch.tensor([[0, 0, 0, 0, 0, 1, 0]])
    truth = torch.tensor([[1, 0, 2, 0, 0, 0, 255]], dtype=torch.uint8)
    confidence = torch.tensor([[0.201, 0.301, 0.501, 0.601, 0.801, 0.999, 0.001]])
    for part in (slice(0, 3), slice(3, 7)):  # two micro-batches
        statistics.judge(labels[:, part], confidence[:, part], truth[:, part])
    assert statistics.thresholds().tolist() == [0, 0, 0]
    statistics.after_step()
    assert statistics.thresholds().tolist() == pytest.approx([0.205, NEVER, 0])  # a bin above the wrong one
    statistics.precision = 0.8
    assert statistics.thresholds().tolist() == pytest.approx([0.505, NEVER, 0])  # above the next


@pytest.mark.parametrize(("road", "labelled", "expected"), [(19, 10, True), (14, 10, False), (19, 18, False)])
def test_a_collapse_is_named_once(road: int, labelled: int, expected: bool, caplog: Any) -> None:
    statistics = Statistics(19, names=CLASSES)
    for _ in range(45):
        statistics.note(torch.tensor([0] * road + [1] * (20 - road)), torch.ones(20))
        statistics.note_label(torch.tensor([0] * labelled + [3] * (20 - labelled) + [255] * 50, dtype=torch.uint8))
        statistics.after_step()
    told = [record.getMessage() for record in caplog.records if "collapse" in record.getMessage()]
    assert len(told) == expected
    if expected:
        assert told[0].startswith("collapse? 95 % of the pseudo-labels are road, of the labels 50 %: ")
