"""Fourier domain adaptation (FDA, arXiv 2004.05498): an image takes over the low-frequency amplitudes of another."""

from __future__ import annotations

import torch
from torch import Tensor

from tmt_d2.modeling.ops.resize import resize


def fda(image: Tensor, style: Tensor, beta: float) -> Tensor:
    """
    Args:
        image: (3, h, w) in [0, 255]; keeps its phases. style: (3, H, W); gives the amplitudes.
        beta: largest frequency to replace, as a share of the shorter side, in both directions.

    Returns:
        (3, h, w) float in [0, 255].
    """
    height, width = image.shape[-2:]
    reach = int(min(height, width) * beta)
    spectrum = torch.fft.fft2(image.float())
    amplitudes = torch.fft.fft2(resize(style.float(), (height, width))).abs()
    rows, columns = (torch.fft.fftfreq(length, 1 / length).abs() <= reach for length in (height, width))
    low = (rows[:, None] & columns).to(image.device)
    mixed = torch.polar(torch.where(low, amplitudes, spectrum.abs()), spectrum.angle())
    return torch.fft.ifft2(mixed).real.clamp(0, 255)
