"""Source images in the style of the target: amplitudes of low frequencies, and nothing else."""

from __future__ import annotations

import itertools

import pytest
import torch

from tests.helpers.models import random
from tmt_d2.adaptation.self_training.fda import fda


def test_low_frequencies_take_the_other_images_amplitudes() -> None:
    image, other = random(3, 24, 33).sigmoid() * 100 + 50, random(3, 24, 33, seed=1).sigmoid() * 60 + 150
    found = fda(image, other, 0.1)  # up to frequency 2
    spectrum, expected = (torch.fft.fft2(each) for each in (found, image))
    amplitudes = torch.fft.fft2(other).abs()
    frequencies = list(itertools.product((0, 1, 2, 3, -1, -2, -3), repeat=2))
    for y, x in frequencies:
        wanted = amplitudes if max(abs(y), abs(x)) <= 2 else expected.abs()
        torch.testing.assert_close(spectrum[:, y, x].abs(), wanted[:, y, x], rtol=1e-3, atol=0.1)
    torch.testing.assert_close(spectrum[:, 3, 4].angle(), expected[:, 3, 4].angle(), rtol=1e-3, atol=1e-3)
    assert found.mean() == pytest.approx(float(other.mean()), rel=1e-3)
    torch.testing.assert_close(fda(image, image, 0.1), image, rtol=1e-4, atol=1e-2)  # control
    assert fda(image, other[:, :10, :50], 0.5).shape == image.shape
