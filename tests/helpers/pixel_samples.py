"""Samples of invented predictions whose labels are drawn from known probabilities."""

from __future__ import annotations

import torch
from torch import Tensor

from tmt_d2.estimation.sample import PixelSample

CLASSES = ("a", "b", "c", "d")


def simulated(
    levels: Tensor | None = None, sharpness: float = 1.0, images: int = 20, pixels: int = 500, seed: int = 0
) -> PixelSample:
    """Predictions softmax(sharpness * x), and labels drawn from softmax(x / difficulty of the image).

    levels: (images,), E's logit everywhere in an image, but for a little noise; its difficulty is exp(level / 2). None:
        no estimator, difficulty 1.
    """
    generator = torch.Generator().manual_seed(seed)
    count = images if levels is None else len(levels)
    x = 2 * torch.randn(count, pixels, len(CLASSES), generator=generator)
    noise = 0.1 * torch.randn(count, pixels, 3, generator=generator)
    difficulty = torch.ones(count) if levels is None else (levels / 2).exp()
    true = (x / difficulty[:, None, None]).softmax(-1)
    truth = torch.multinomial(true.flatten(0, 1), 1, generator=generator).view(count, pixels)
    domain = None if levels is None else levels[:, None, None] + noise
    return PixelSample((sharpness * x).softmax(-1), truth.to(torch.uint8), domain)


def right(sample: PixelSample) -> Tensor:
    """(n,), the measured accuracy of each image."""
    return sample.labeled()[1].float().mean(1)
