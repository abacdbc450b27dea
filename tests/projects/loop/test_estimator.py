"""The difference estimator: hand arithmetic, coverage and width in simulated populations; strata and draws."""

from __future__ import annotations

import numpy as np
import pytest

from tmt_d2.projects.loop import estimator
from tmt_d2.projects.loop.estimator import (
    allocate,
    class_iou,
    difference_estimate,
    draw,
    images_to_halve,
    merged,
    strata_of,
)


def image(right: float) -> np.ndarray:
    """Confusion matrix of an image of two classes, half of it each, with this share of right pixels."""
    return np.array([[right, 1 - right], [1 - right, right]]) / 2


def test_hand_arithmetic() -> None:
    # Two strata of 4 and 2 images. Predicted: 0.5 everywhere. Drawn: 0.6, 0.8 in the first, 1.0, 1.0 in the second.
    predicted = np.stack([image(0.5)] * 6)
    measured = np.stack([image(0.6), image(0.8), image(1.0), image(1.0)])
    found = difference_estimate(predicted, measured, np.array([0, 1, 4, 5]), np.array([0, 0, 0, 0, 1, 1]))
    # 6 * 0.5 + 4/2 * (0.1 + 0.3) + 2/2 * (0.5 + 0.5) = 4.8 of 6 images.
    assert found["accuracy"].value == pytest.approx(80)
    assert found["mIoU"].value == pytest.approx(100 * 0.8 / 1.2)
    # The second stratum is known; the mean of the first varies by sqrt(0.02 / 2 * (1 - 2/4)), 4 of 6 images.
    deviation = 100 * 4 / 6 * np.sqrt(0.02 / 2 / 2)
    assert found["accuracy"].high - found["accuracy"].value == pytest.approx(4.303 * deviation, rel=0.1)


def test_iou_of_each_class_that_occurs() -> None:
    truth = np.zeros((3, 3))
    truth[0, 0], truth[0, 2], truth[1, 1], truth[1, 0] = 0.4, 0.1, 0.3, 0.2  # the third class is only predicted
    found = difference_estimate(
        np.stack([truth] * 4), np.stack([truth] * 2), np.array([0, 2]), np.zeros(4, int), ["road", "sky", "tree"]
    )
    assert found["IoU-road"].value == pytest.approx(100 * 0.4 / 0.7)
    assert found["IoU-sky"].value == pytest.approx(100 * 0.3 / 0.5)
    assert found["mIoU"].value == pytest.approx((found["IoU-road"].value + found["IoU-sky"].value) / 2)
    assert "IoU-tree" not in found


def test_right_predictions_leave_no_interval() -> None:
    truth = np.stack([image(right) for right in np.linspace(0.3, 0.9, 20)])
    drawn = np.arange(0, 20, 3)
    found = difference_estimate(truth, truth[drawn], drawn, np.zeros(20, int))
    assert found["accuracy"].value == pytest.approx(60)
    assert found["accuracy"].low == pytest.approx(found["accuracy"].high) == pytest.approx(60)


def population(rng: np.random.Generator, size: int, noise: float) -> tuple[np.ndarray, np.ndarray]:
    """True and predicted confusion matrices of images of three classes; predictions are too confident and noisy."""
    right = rng.beta(6, 2, size)
    shares = rng.dirichlet([3, 2, 1], size)
    spread = rng.dirichlet([1, 1, 1], (size, 3))

    def matrices(right: np.ndarray) -> np.ndarray:
        return shares[:, :, None] * (right[:, None, None] * np.eye(3) + (1 - right)[:, None, None] * spread)

    predicted = np.clip(right + 0.1 + noise * rng.normal(size=size), 0.05, 0.99)
    return matrices(right), matrices(predicted)


def simulate(monkeypatch: pytest.MonkeyPatch, noise: float, repeats: int = 200) -> tuple[float, float, float, float]:
    """Return coverage of mIoU, its mean error, its mean width, and the width of simple random sampling."""
    monkeypatch.setattr(estimator, "RESAMPLINGS", 200)
    rng = np.random.default_rng(5)
    truth, predicted = population(rng, 400, noise)
    quality = np.trace(predicted, axis1=1, axis2=2)
    strata, nothing = strata_of(quality, 5), np.zeros(400, bool)
    target = float(class_iou(truth.sum(0)).mean())
    covered, errors, widths, plain = [], [], [], []
    for seed in range(repeats):
        drawn = draw(strata, quality, nothing, ~nothing, 20, rng)
        found = difference_estimate(predicted, truth[drawn], drawn, strata, seed=seed)["mIoU"]
        covered.append(found.low <= target <= found.high)
        errors.append(found.value - target)
        widths.append(found.high - found.low)
        drawn = np.sort(rng.permutation(400)[:20])
        simple = difference_estimate(0 * predicted, truth[drawn], drawn, 0 * strata, seed=seed)["mIoU"]
        plain.append(simple.high - simple.low)
    return float(np.mean(covered)), float(np.mean(errors)), float(np.mean(widths)), float(np.mean(plain))


def test_interval_covers_and_is_narrower_with_informative_predictions(monkeypatch: pytest.MonkeyPatch) -> None:
    coverage, error, width, simple = simulate(monkeypatch, noise=0.05)
    assert coverage >= 0.9 and abs(error) < 0.2 * width and width < 0.8 * simple


def test_interval_covers_with_useless_predictions(monkeypatch: pytest.MonkeyPatch) -> None:
    coverage, error, width, _ = simulate(monkeypatch, noise=1.0)
    assert coverage >= 0.9 and abs(error) < 0.2 * width


def test_strata_are_equal_parts_in_order_of_quality() -> None:
    assert strata_of(np.array([0.9, 0.1, 0.5, 0.3, 0.7, 0.2, 0.8]), 3).tolist() == [2, 0, 1, 0, 1, 0, 2]


def test_allocation_is_proportional_to_size_and_error_with_two_each() -> None:
    strata, none = np.repeat([0, 1], 50), np.zeros(100, bool)
    quality = np.repeat([0.64, 0.96], 50)  # deviations 0.6 and 0.2
    assert allocate(strata, quality, none, ~none, 16).tolist() == [12, 4]
    assert allocate(strata, quality, none, ~none, 4).tolist() == [2, 2]
    drawn = none.copy()
    drawn[:8] = True
    assert allocate(strata, quality, drawn, ~drawn, 8).tolist() == [4, 4]  # 12 and 4 in all
    assert allocate(strata, quality, none, np.arange(100) < 3, 3).tolist() == [3, 0]


def test_draws_are_new_and_each_image_of_a_stratum_is_as_probable() -> None:
    strata, quality, drawn = np.repeat([0, 1], [6, 4]), np.full(10, 0.5), np.zeros(10, bool)
    drawn[2] = True
    counts = np.zeros(10)
    for seed in range(2000):
        counts[draw(strata, quality, drawn, ~drawn, 5, np.random.default_rng(seed))] += 1
    per_stratum = allocate(strata, quality, drawn, ~drawn, 5)
    assert counts[2] == 0
    assert np.allclose(counts[[0, 1, 3, 4, 5]] / 2000, per_stratum[0] / 5, atol=0.05)
    assert np.allclose(counts[6:] / 2000, per_stratum[1] / 4, atol=0.05)


def test_strata_without_two_drawn_images_are_joined_with_their_neighbors() -> None:
    strata = np.array([0, 0, 1, 1, 2, 2, 3, 3])
    assert merged(strata, np.array([0, 1, 2, 3])).tolist() == [0, 0, 1, 1, 1, 1, 1, 1]
    assert merged(strata, np.array([0, 2, 4, 5])).tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    assert merged(strata, np.array([3])).tolist() == [0] * 8


@pytest.mark.parametrize(("drawn", "images"), [(20, 10**9), (20, 100), (2, 5), (7, 7)])
def test_images_that_halve_the_interval(drawn: int, images: int) -> None:
    more = images_to_halve(drawn, images)
    variance = [1 / n - 1 / images for n in (drawn, drawn + more, drawn + more - 1)]
    assert variance[1] <= variance[0] / 4 + 1e-12
    assert more == 0 or variance[2] > variance[0] / 4
    assert images_to_halve(20, 10**9) == 60
