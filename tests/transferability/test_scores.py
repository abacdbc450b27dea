"""Transferability scores by hand, and what must not change them."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tmt_d2.transferability import jc_otce, leep, otce, proxy_a_distance
from tmt_d2.transferability.scores import leep_objective


def test_pad_by_hand() -> None:
    source, target = torch.tensor([-1.0, -2.0, 3.0, -0.1]), torch.tensor([1.0, -1.0])
    # errors: 1 of 4 source samples called target, 1 of 2 target samples called source; balanced 0.375
    assert proxy_a_distance(source, target) == pytest.approx(2 * (1 - 2 * 0.375))


@pytest.mark.parametrize(
    ("source", "target", "expected"),
    [([-1.0, -9.0], [4.0], 2.0), ([1.0], [-1.0, -2.0, -3.0], -2.0), ([1.0, -1.0], [-5.0, 5.0], 0.0)],
)
def test_pad_extremes(source: list[float], target: list[float], expected: float) -> None:
    assert proxy_a_distance(torch.tensor(source), torch.tensor(target)) == expected


def test_pad_of_an_undecided_classifier_is_zero() -> None:
    assert proxy_a_distance(torch.zeros(5), torch.zeros(3)) == 0.0
    assert proxy_a_distance(torch.tensor([0.0, -1.0]), torch.tensor([1.0])) == 1.5  # error (1/4 + 0) / 2


def test_pad_is_balanced() -> None:
    source, target = torch.tensor([-1.0, 1.0]), torch.tensor([1.0, 1.0, 1.0, -1.0])
    assert proxy_a_distance(source.repeat(50), target) == pytest.approx(proxy_a_distance(source, target))


def test_pad_takes_any_shape_and_saturated_logits() -> None:
    assert proxy_a_distance(torch.full((2, 3, 4), -200.0), torch.full((5, 1), 200.0)) == 2.0


def test_pad_errors() -> None:
    with pytest.raises(ValueError):
        proxy_a_distance(torch.zeros(0), torch.zeros(2))
    with pytest.raises(ValueError):
        proxy_a_distance(torch.tensor([float("nan")]), torch.zeros(2))


def test_leep_by_hand() -> None:
    theta = torch.tensor([[0.8, 0.2], [0.6, 0.4], [0.1, 0.9]])
    labels = torch.tensor([0, 0, 1])
    # P(y, z): y = 0 -> (1.4, 0.6) / 3, y = 1 -> (0.1, 0.9) / 3; P(z) = (1.5, 1.5) / 3
    first = math.log(1.4 / 1.5 * 0.8 + 0.6 / 1.5 * 0.2)
    second = math.log(1.4 / 1.5 * 0.6 + 0.6 / 1.5 * 0.4)
    third = math.log(0.1 / 1.5 * 0.1 + 0.9 / 1.5 * 0.9)
    assert leep(theta, labels) == pytest.approx((first + second + third) / 3, abs=1e-7)


def test_leep_extremes() -> None:
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    certain = torch.eye(3)[labels]
    assert leep(certain, labels) == pytest.approx(0.0, abs=1e-9)
    assert leep(certain.roll(1, 1), labels) == pytest.approx(0.0, abs=1e-9)  # names of source classes do not matter
    assert leep(torch.full((6, 4), 0.25), labels) == pytest.approx(-math.log(3))  # predictions that say nothing


def random_predictions(n: int = 60, k: int = 5) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 4, (n,), generator=generator)
    logits = torch.randn(n, k, generator=generator) + 2 * torch.nn.functional.one_hot(labels, k)
    return logits.softmax(1), labels


def test_leep_invariances() -> None:
    theta, labels = random_predictions()
    score = leep(theta, labels)
    assert score < 0
    assert leep(theta, torch.tensor([7, 3, 18, 0])[labels]) == pytest.approx(score)  # other label names, with gaps
    assert leep(theta[:, [2, 0, 4, 1, 3]], labels) == pytest.approx(score)
    assert leep(theta.flip(0), labels.flip(0)) == pytest.approx(score)
    assert leep(torch.cat([theta, torch.zeros(60, 2)], 1), labels) == pytest.approx(score)  # no 0 / 0
    shuffled = labels[torch.randperm(60, generator=torch.Generator().manual_seed(1))]
    assert leep(theta, shuffled) < score - 0.1


def test_leep_errors() -> None:
    with pytest.raises(ValueError):
        leep(torch.ones(4, 3) / 3, torch.zeros(5))
    with pytest.raises(ValueError):
        leep(torch.ones(0, 3), torch.zeros(0))


FAR = torch.tensor([[0.0], [0.0], [10.0], [10.0]])  # two pairs that transport never mixes
SOURCE = torch.tensor([0, 0, 1, 1])


@pytest.mark.parametrize(
    ("target_labels", "conditional_entropy"),
    [
        ([0, 0, 1, 1], 0.0),
        ([5, 5, 2, 2], 0.0),  # other names
        ([0, 1, 0, 1], math.log(2)),  # the source label says nothing
        ([0, 1, 1, 1], 0.5 * math.log(2)),  # it settles half of the samples
    ],
)
@pytest.mark.parametrize("regularization", [0.1, 0.01])
def test_otce_by_hand(target_labels: list[int], conditional_entropy: float, regularization: float) -> None:
    found = otce(FAR, SOURCE, FAR, torch.tensor(target_labels), regularization)
    assert found == pytest.approx(-conditional_entropy, abs=1e-6)


def test_otce_with_the_exact_plan() -> None:
    features = torch.tensor([[0.0], [1.0], [10.0], [11.0]])
    assert otce(features, SOURCE, features, SOURCE, 0.0) == pytest.approx(0.0, abs=1e-9)
    assert otce(FAR, SOURCE, FAR + 2, torch.tensor([0, 1, 0, 1]), 0.0) == pytest.approx(-math.log(2))


def test_otce_conditions_on_the_source() -> None:
    """H(Y_t | Y_s), not H(Y_s | Y_t): four source classes that all become one target class leave nothing open."""
    labels = torch.tensor([0, 1, 2, 3])
    one = torch.zeros(4, dtype=torch.long)
    points = torch.tensor([[0.0], [10.0], [20.0], [30.0]])
    assert otce(points, labels, points, one) == pytest.approx(0.0, abs=1e-9)
    assert otce(points, one, points, labels) == pytest.approx(-math.log(4), abs=1e-6)


def test_otce_range_and_order() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 4, (80,), generator=generator)
    centers = torch.randn(4, 6, generator=generator) * 3
    source = centers[labels] + torch.randn(80, 6, generator=generator)
    target = centers[labels] + torch.randn(80, 6, generator=generator) + 0.5
    shuffled = labels[torch.randperm(80, generator=generator)]
    good, bad = otce(source, labels, target, labels), otce(source, labels, target, shuffled)
    assert -math.log(4) - 1e-9 <= bad < good - 0.3 <= 0
    assert otce(source * 100, labels, target * 100, labels) == pytest.approx(good, abs=1e-6)  # units do not matter
    order = torch.randperm(80, generator=generator)
    assert otce(source[order], labels[order], target, labels) == pytest.approx(good, abs=1e-6)


def test_otce_of_sets_of_different_size() -> None:
    source = torch.tensor([[0.0], [10.0]])
    target = torch.tensor([[0.0], [0.1], [10.0], [10.1]])
    assert otce(source, torch.tensor([0, 1]), target, SOURCE) == pytest.approx(0.0, abs=1e-6)


def test_otce_of_identical_features() -> None:
    """A cost of zero everywhere: the plan is uniform, the source label says nothing."""
    features = torch.ones(4, 3)
    assert otce(features, SOURCE, features, SOURCE) == pytest.approx(-math.log(2), abs=1e-6)


def test_otce_errors() -> None:
    with pytest.raises(ValueError):
        otce(FAR, SOURCE, FAR.repeat(1, 2), SOURCE)
    with pytest.raises(ValueError):
        otce(FAR[:0], SOURCE[:0], FAR, SOURCE)
    with pytest.raises(ValueError):
        otce(FAR, SOURCE[:3], FAR, SOURCE)
    with pytest.raises(ValueError):
        otce(FAR, SOURCE, FAR, SOURCE.repeat(2))


def test_leep_objective_is_leep_with_its_gradient() -> None:
    logits = torch.randn(12, 4, generator=torch.Generator().manual_seed(0)).double().requires_grad_()
    labels = torch.tensor([0, 1, 2] * 4)
    assert leep_objective(logits.softmax(1), labels).item() == pytest.approx(leep(logits.detach().softmax(1), labels))
    assert torch.autograd.gradcheck(lambda x: leep_objective(x.softmax(1), labels), logits)


def test_jc_otce_by_hand() -> None:
    points, labels = torch.tensor([[0.0], [4.0], [6.0], [10.0]]), torch.tensor([0, 0, 1, 1])
    # every class is one sample: the distance of classes is that of the samples, and the two halves make the whole
    alone = torch.arange(4)
    assert jc_otce(points, alone, points, alone) == pytest.approx(otce(points, alone, points, alone), abs=1e-9)
    # 4 and 6 are neighbors of different classes; the distance of the classes, 36, keeps them apart
    assert jc_otce(points, labels, points, labels) > otce(points, labels, points, labels) + 0.05
    with pytest.raises(ValueError):
        jc_otce(points, labels, points, labels[:3])
