"""The domain discriminator E (Eqs. 2-5): how likely a region is from the target domain."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class Discriminator(nn.Module):
    """E of Eqs. 2-5 and 10: region features -> logit of the probability that the region is from the target domain."""

    def __init__(self, channels: int, hidden_dim: int, normalize: bool):
        """hidden_dim: units of the one hidden layer, 0 = a linear classifier; normalize: features to unit length."""
        super().__init__()
        self.normalize = normalize
        layers: list[nn.Module] = [nn.Linear(channels, hidden_dim), nn.ReLU()] if hidden_dim else []
        self.layers = nn.Sequential(*layers, nn.Linear(hidden_dim or channels, 1))

    def forward(self, features: Tensor) -> Tensor:
        """(..., C) -> (...)"""
        if self.normalize:  # scaled so that the entries, not the vector, have unit size
            features = F.normalize(features, dim=-1) * features.shape[-1] ** 0.5
        return self.layers(features).squeeze(-1)
