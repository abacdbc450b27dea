"""What neither half precision nor a faster backend may touch: where deformable attention looks, and PyTorch itself."""

from __future__ import annotations

import pytest
import torch

from tmt_d2.modeling import ms_deform_attn

WIDTH = 256  # a level of stride 8 of an image 2048 pixels wide


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_sampling_locations_are_not_rounded(dtype: torch.dtype) -> None:
    """A map that holds its own column numbers, sampled at cell centres: rounded locations would read neighbours.

    bfloat16 has 8 bits, so near the right edge a rounded location would be off by half a cell.
    """
    value = torch.arange(WIDTH, dtype=dtype).view(1, WIDTH, 1, 1)  # exact in every dtype
    columns = torch.arange(0, WIDTH, 5)
    locations = torch.full((1, len(columns), 1, 1, 1, 2), 0.5)
    locations[0, :, 0, 0, 0, 0] = (columns + 0.5) / WIDTH
    weights = torch.ones(1, len(columns), 1, 1, 1, dtype=dtype)
    output = ms_deform_attn(value, [(1, WIDTH)], locations, weights, backend="torch")
    torch.testing.assert_close(output.flatten().float(), columns.float(), atol=0.02, rtol=0)


def test_numba_leaves_the_threads_of_pytorch_alone() -> None:
    """Numba's OpenMP layer sets the process's thread count when it starts, and with it the rounding of convolutions."""
    pytest.importorskip("numba")
    # conftest sets one thread; Numba starts once a process, here or in an earlier test
    value, locations = torch.randn(1, 6, 1, 2), torch.rand(1, 3, 1, 1, 2, 2)
    ms_deform_attn(value, [(2, 3)], locations, torch.rand(1, 3, 1, 1, 2), backend="numba")
    assert torch.get_num_threads() == 1
