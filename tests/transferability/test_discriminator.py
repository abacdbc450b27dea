"""Eqs. 2 and 3: the discriminator's logit by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tmt_d2.transferability import Discriminator

C = 6


def test_discriminator_by_hand() -> None:
    linear = Discriminator(2, 0, normalize=False)
    nn.init.constant_(linear.layers[0].weight, 2.0)
    nn.init.constant_(linear.layers[0].bias, -1.0)
    torch.testing.assert_close(linear(torch.tensor([[1.0, 3.0], [0.0, 0.5]])), torch.tensor([7.0, 0.0]))
    normalized = Discriminator(2, 0, normalize=True)
    normalized.load_state_dict(linear.state_dict())
    # (3, 4) -> unit length (0.6, 0.8) -> times sqrt(2)
    expected = 2 * (0.6 + 0.8) * 2**0.5 - 1
    torch.testing.assert_close(normalized(torch.tensor([3.0, 4.0])), torch.tensor(expected))


@pytest.mark.parametrize("normalize", [True, False])
def test_discriminator_ignores_length_where_asked(normalize: bool) -> None:
    torch.manual_seed(0)
    discriminator, features = Discriminator(C, 8, normalize), torch.randn(4, 5, C)
    assert discriminator(features).shape == (4, 5)
    assert torch.allclose(discriminator(features), discriminator(7 * features), atol=1e-5) == normalize
