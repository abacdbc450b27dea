"""The grid of pixels, temperatures and calibration curves: by hand, by brute force, and on labels of known chance."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.helpers.pixel_samples import simulated
from tmt_d2.estimation.calibration import (
    LEAST_PIXELS,
    RANGE,
    calibration_error,
    class_temperatures,
    matching_temperature,
    risk_coverage,
    tempered,
)
from tmt_d2.estimation.sample import SIDE, PixelSample, at_grid


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (37, 91), (SIDE, SIDE), (3 * SIDE, 2 * SIDE)])
def test_the_grid_has_centers_of_equal_cells(size: tuple[int, int]) -> None:
    height, width = size
    places = torch.arange(height * width).view(1, height, width)
    expected = [
        ((2 * i + 1) * height // (2 * SIDE)) * width + (2 * j + 1) * width // (2 * SIDE)
        for i in range(SIDE)
        for j in range(SIDE)
    ]
    assert at_grid(places)[0].tolist() == expected


def test_the_sample_of_an_image() -> None:
    scores = torch.rand(4, 7, 9, generator=torch.Generator().manual_seed(0))
    scores[:, 0, 0] = 0
    levels = torch.stack([torch.full((7, 9), value) for value in (0.0, 0.25, 1.0)])
    labels = scores.argmax(0).to(torch.uint8)
    twice = labels.repeat_interleave(2, 0).repeat_interleave(2, 1)
    sample = PixelSample.of_image(scores, levels, twice.numpy())
    assert sample.probabilities.shape == (1, SIDE * SIDE, 4) and len(sample) == 1
    assert torch.allclose(sample.probabilities.sum(-1), torch.ones(()))
    assert torch.allclose(sample.probabilities[0, 0], torch.tensor(0.25))  # no score: nothing is known
    assert torch.allclose(sample.probabilities, PixelSample.of_image(3 * scores).probabilities)
    assert sample.truth is not None and torch.equal(sample.truth.long(), sample.predicted)  # places are relative
    has_label, correct = sample.labeled()
    assert has_label.all() and correct.all()
    assert sample.domain is not None and torch.isfinite(sample.domain).all()
    worst, middle, best = sample.domain[0, 0].tolist()
    assert worst > 0 > best and middle == pytest.approx(np.log(3), abs=1e-4)  # E = 1 - T

    joined = PixelSample.concatenate([sample, PixelSample.of_image(scores)])
    assert len(joined) == 2 and joined.truth is None and joined.domain is None
    ignored = PixelSample.of_image(scores, None, np.full((3, 3), 255, np.uint8))
    assert not ignored.labeled()[0].any() and not ignored.labeled()[1].any()


@pytest.mark.parametrize("sharpness", [0.5, 3.0])
def test_the_temperature_undoes_what_was_done_to_the_logits(sharpness: float) -> None:
    sample = simulated(sharpness=sharpness)
    temperatures = class_temperatures(sample)
    assert temperatures.tolist() == pytest.approx([sharpness] * 4, rel=0.1)
    calibrated = tempered(sample.probabilities, temperatures[sample.predicted][..., None])
    assert torch.equal(calibrated.argmax(-1), sample.predicted)
    assert torch.allclose(tempered(sample.probabilities, torch.ones(1)), sample.probabilities, atol=1e-6)  # control
    _, correct = sample.labeled()
    errors = [calibration_error(p.amax(-1).flatten(), correct.flatten()) for p in (sample.probabilities, calibrated)]
    assert errors[1] < errors[0] / 2


def test_each_class_has_its_temperature_unless_it_is_rare() -> None:
    """One class is predicted too surely, one almost never."""
    x = simulated(seed=1).probabilities.log() - torch.tensor([0, 0, 0, 5.0])
    truth = torch.multinomial(x.softmax(-1).flatten(0, 1), 1, generator=torch.Generator().manual_seed(0))
    predicted = x.argmax(-1)
    sharpness = torch.tensor([3.0, 1.0, 1.0, 1.0])[predicted]
    sample = PixelSample((x * sharpness[..., None]).softmax(-1), truth.view(predicted.shape).to(torch.uint8))
    counts = torch.bincount(predicted.flatten(), minlength=4)
    assert counts[3] < LEAST_PIXELS <= counts[:3].min()

    def loss(temperature: float) -> float:
        p = tempered(sample.probabilities.flatten(0, 1), torch.tensor([temperature]))
        return float(-p.gather(1, truth).log().mean())

    temperatures = class_temperatures(sample)
    assert temperatures[:3].tolist() == pytest.approx([3, 1, 1], rel=0.1)
    common = min(np.geomspace(*RANGE, 600), key=loss)
    assert float(temperatures[3]) == pytest.approx(common, rel=0.02)
    ignored = torch.zeros_like(predicted, dtype=torch.bool)
    ignored[:5] = True
    assert sample.truth is not None
    unlabeled = PixelSample(sample.probabilities, sample.truth.masked_fill(ignored, 255))
    rest = PixelSample(sample.probabilities[5:], sample.truth[5:])
    assert torch.equal(class_temperatures(unlabeled), class_temperatures(rest))


def test_hopeless_and_perfect_models_end_at_the_border() -> None:
    sample = simulated(images=2)
    perfect = PixelSample(sample.probabilities, sample.predicted.to(torch.uint8))
    assert class_temperatures(perfect).tolist() == pytest.approx([RANGE[0]] * 4)
    wrong = PixelSample(sample.probabilities, sample.probabilities.argmin(-1).to(torch.uint8))
    assert class_temperatures(wrong).tolist() == pytest.approx([RANGE[1]] * 4)


def test_the_mean_confidence_of_an_image_can_be_chosen() -> None:
    p = simulated(images=5).probabilities
    p = torch.cat([p, torch.full_like(p[:1], 1 / 4)])
    aims = torch.tensor([0.4, 0.6, 0.95, 0.1, 1.0, 0.8])
    temperature = matching_temperature(p, aims)
    assert temperature.shape == (6,)
    confidence = tempered(p, temperature[:, None, None]).amax(-1).mean(1)
    assert torch.allclose(confidence[:3], aims[:3], atol=1e-4)
    assert temperature[3] == pytest.approx(RANGE[1]) and temperature[4] == pytest.approx(RANGE[0])
    assert confidence[5] == pytest.approx(1 / 4)  # of an image on which nothing is known


def shares(*values: float) -> Tensor:
    return torch.tensor(values)


def test_calibration_error_by_hand() -> None:
    confidence, correct = shares(0.9, 0.9, 0.5), torch.tensor([True, False, True])
    assert calibration_error(confidence, correct) == pytest.approx((abs(1.8 - 1) + abs(0.5 - 1)) / 3)
    assert calibration_error(shares(1, 0, 1), torch.tensor([True, False, True])) == 0
    assert calibration_error(shares(0.7, 0.7), torch.tensor([True, False])) == pytest.approx(0.2)


def test_risk_and_coverage_by_hand() -> None:
    confidence, correct = shares(0.5, 0.9, 0.7, 0.8, 0.6), torch.tensor([False, True, False, True, True])
    risks = risk_coverage(confidence, correct, shares(0.01, 0.2, 0.4, 0.6, 0.61, 1))
    assert risks.tolist() == pytest.approx([0, 0, 0, 1 / 3, 1 / 4, 2 / 5])
    wrong = torch.arange(1000) == 0  # all right but for the least confident one
    tenths = risk_coverage(torch.arange(1000.0), ~wrong, torch.arange(1, 1001) / 1000)
    assert tenths.count_nonzero() == 1 and tenths[-1] == pytest.approx(1e-3)
