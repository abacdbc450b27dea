"""The student's view of an image with a pseudo-label; the teacher sees the original.

Random numbers come from the CPU's generator, which the caller seeds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.transforms.v2 import ColorJitter
from torchvision.transforms.v2.functional import gaussian_blur

SIGMA = (0.15, 1.15)  # of the blur, in pixels (DACS, arXiv 2007.08702, and DAFormer)


@dataclass(frozen=True)
class StrongAugmentation:
    """Color jitter and blur.

    color_prob, blur_prob: probabilities. color_strength: of brightness, contrast, saturation and hue.
    bgr: order of channels.
    """

    color_prob: float = 0.8
    color_strength: float = 0.2
    blur_prob: float = 0.5
    bgr: bool = False

    def __call__(self, image: Tensor) -> Tensor:
        """(3, h, w) in [0, 255] -> float, the same size and range."""
        color_draw, blur_draw, sigma_draw = torch.rand(3).tolist()
        image = image.float() / 255
        if color_draw < self.color_prob and self.color_strength:
            strength = self.color_strength
            rgb = image.flip(0) if self.bgr else image
            rgb = ColorJitter(strength, strength, strength, min(strength, 0.5))(rgb)
            image = rgb.flip(0) if self.bgr else rgb
        if blur_draw < self.blur_prob:
            sigma = SIGMA[0] + sigma_draw * (SIGMA[1] - SIGMA[0])
            width = 2 * min(math.ceil(4 * sigma), *(length - 1 for length in image.shape[1:])) + 1
            image = gaussian_blur(image, [width, width], [sigma, sigma])
        return image * 255


@dataclass(frozen=True)
class BlockMasking:
    """Hide random blocks of an image (MIC, arXiv 2212.01322).

    ratio: probability of each block to be hidden. block_size: side of a block as a share of the image's shorter side.
    fill: (3, 1, 1), the color of hidden pixels.
    """

    ratio: float
    block_size: float
    fill: Tensor

    def __call__(self, image: Tensor) -> Tensor:
        """(3, h, w) -> the same size."""
        height, width = image.shape[-2:]
        side = max(1, round(min(height, width) * self.block_size))
        hidden = torch.rand(-(-height // side), -(-width // side)) < self.ratio
        hidden = hidden.repeat_interleave(side, 0).repeat_interleave(side, 1)[:height, :width]
        return torch.where(hidden.to(image.device), self.fill, image.float())
