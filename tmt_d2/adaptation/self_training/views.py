"""How the student sees a picture whose label the teacher gave: in other colours, blurred, or only in part.

The teacher has seen it as it is. What is random comes from the CPU's generator, which the caller seeds.
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
class StrongView:
    """colour, blur: probabilities. strength: of brightness, contrast, saturation and hue. bgr: order of channels."""

    colour: float = 0.8
    strength: float = 0.2
    blur: float = 0.5
    bgr: bool = False

    def __call__(self, image: Tensor) -> Tensor:
        """(3, h, w) in [0, 255] -> float, the same size and range."""
        in_colour, is_blurred, place = torch.rand(3).tolist()
        image = image.float() / 255
        if in_colour < self.colour and self.strength:
            rgb = image.flip(0) if self.bgr else image
            rgb = ColorJitter(self.strength, self.strength, self.strength, min(self.strength, 0.5))(rgb)
            image = rgb.flip(0) if self.bgr else rgb
        if is_blurred < self.blur:
            sigma = SIGMA[0] + place * (SIGMA[1] - SIGMA[0])
            width = 2 * min(math.ceil(4 * sigma), *(length - 1 for length in image.shape[1:])) + 1
            image = gaussian_blur(image, [width, width], [sigma, sigma])
        return image * 255


@dataclass(frozen=True)
class MaskedView:
    """What is left of a picture when blocks of it are hidden (MIC, arXiv 2212.01322).

    ratio: of blocks that are hidden, each with this probability. block: its side, as a share of the picture's shorter
    one. fill: (3, 1, 1), the colour of what is hidden.
    """

    ratio: float
    block: float
    fill: Tensor

    def __call__(self, image: Tensor) -> Tensor:
        """(3, h, w) -> the same size."""
        height, width = image.shape[-2:]
        side = max(1, round(min(height, width) * self.block))
        hidden = torch.rand(-(-height // side), -(-width // side)) < self.ratio
        hidden = hidden.repeat_interleave(side, 0).repeat_interleave(side, 1)[:height, :width]
        return torch.where(hidden.to(image.device), self.fill, image.float())
