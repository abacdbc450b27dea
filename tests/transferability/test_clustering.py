"""Adaptive clustering against Eqs. 6-9 written out as loops over every pixel and every region."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tmt_d2.transferability import Regions, adaptive_clustering

SIZES = [(5, 7, 2), (6, 6, 3), (4, 5, 1), (3, 4, 5), (9, 11, 4), (1, 1, 2)]  # H, W, c


def cluster_by_loops(
    features: np.ndarray, c: int, iterations: int, kappa: float, valid: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """One image in float64: features (C, H, W), valid (H, W) -> centers (C, R, S), assignment (H, W, R, S)."""
    C, H, W = features.shape
    R, S = math.ceil(H / c), math.ceil(W / c)
    regions = [(i, j) for i in range(R) for j in range(S) if valid[i * c : (i + 1) * c, j * c : (j + 1) * c].any()]
    pixels = [(y, x) for y in range(H) for x in range(W) if valid[y, x]]
    assignment = np.zeros((H, W, R, S))
    for y, x in pixels:
        assignment[y, x, y // c, x // c] = 1
    centers = np.zeros((C, R, S))

    def find_centers() -> None:
        for i, j in regions:
            mass = sum(assignment[y, x, i, j] for y, x in pixels)
            total = sum(assignment[y, x, i, j] * features[:, y, x] for y, x in pixels)
            centers[:, i, j] = total / mass if mass > 0 else 0

    def cosine(a: np.ndarray, b: np.ndarray) -> float:
        lengths = np.linalg.norm(a) * np.linalg.norm(b)
        return float(a @ b / lengths) if lengths > 0 else 0.0

    if iterations == 0:
        find_centers()
    for _ in range(iterations):
        find_centers()
        for y, x in pixels:
            near = [(i, j) for i, j in regions if abs(i - y // c) <= 1 and abs(j - x // c) <= 1]
            similarity = [kappa * cosine(centers[:, i, j], features[:, y, x]) for i, j in near]
            similarity = np.exp(np.array(similarity) - max(similarity))
            assignment[y, x] = 0
            for (i, j), share in zip(near, similarity / similarity.sum()):
                assignment[y, x, i, j] = share
    return centers, assignment


def dense_assignment(regions: Regions, c: int) -> Tensor:
    """(B, 9, H, W) over the neighbors -> (B, H, W, R, S) over all regions; asserts that nothing lies outside."""
    B, _, H, W = regions.assignment.shape
    R, S = regions.centers.shape[2:]
    dense = torch.zeros(B, H, W, R, S)
    for y in range(H):
        for x in range(W):
            for neighbor in range(9):
                i, j = y // c + neighbor // 3 - 1, x // c + neighbor % 3 - 1
                share = regions.assignment[:, neighbor, y, x]
                if 0 <= i < R and 0 <= j < S:
                    dense[:, y, x, i, j] = share
                else:
                    assert (share == 0).all(), "a pixel belongs to a region outside of the grid"
    return dense


def check_against_loops(features: Tensor, c: int, iterations: int, kappa: float, valid: Tensor | None) -> Regions:
    found = adaptive_clustering(features, c, iterations, kappa, valid)
    B, C, H, W = features.shape
    R, S = math.ceil(H / c), math.ceil(W / c)
    assert found.centers.shape == (B, C, R, S)
    assert found.assignment.shape == (B, 9, H, W)
    assert found.index.shape == (B, H, W)
    assert found.index.dtype == torch.long
    keep = torch.ones(B, H, W, dtype=torch.bool) if valid is None else valid
    dense = dense_assignment(found, c)
    torch.testing.assert_close(dense.sum((3, 4)), keep.float())
    for image in range(B):
        centers, assignment = cluster_by_loops(
            features[image].double().numpy(), c, iterations, kappa, keep[image].numpy()
        )
        np.testing.assert_allclose(found.centers[image], centers, atol=2e-4, rtol=1e-3)
        np.testing.assert_allclose(dense[image], assignment, atol=2e-4)
    flat = dense.flatten(3)
    assert (found.index[~keep] == -1).all()
    chosen = flat[keep].gather(1, found.index[keep][:, None])[:, 0]
    assert torch.equal(chosen, flat[keep].max(1).values)
    return found


def random_case(H: int, W: int, batch: int = 2, channels: int = 4, seed: int = 0) -> Tensor:
    return torch.randn(batch, channels, H, W, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("iterations", [0, 1, 6])
@pytest.mark.parametrize(("H", "W", "c"), SIZES)
def test_equals_the_equations(H: int, W: int, c: int, iterations: int) -> None:
    check_against_loops(random_case(H, W), c, iterations, 5.0, None)


@pytest.mark.parametrize("kappa", [0.0, 1.0, 200.0])
def test_sharpness(kappa: float) -> None:
    found = check_against_loops(random_case(5, 7), 2, 3, kappa, None)
    if kappa == 0:  # all regions around a pixel are equal: 4 of them at a corner, 9 inside
        assert found.assignment[0, 4, 0, 0] == pytest.approx(1 / 4)
        assert found.assignment[0, 4, 2, 3] == pytest.approx(1 / 9)
    if kappa == 200:
        assert found.assignment.amax(1).mean() > 0.95


@pytest.mark.parametrize("iterations", [0, 1, 6])
def test_padding_within_and_beyond_cells(iterations: int) -> None:
    valid = torch.zeros(3, 6, 9, dtype=torch.bool)
    valid[0, :5, :4] = True  # two columns of cells are padding, the third one is cut
    valid[1] = True
    found = check_against_loops(random_case(6, 9, batch=3), 3, iterations, 5.0, valid)
    assert (found.centers[0, :, :, 2] == 0).all()  # no valid pixel, no region
    assert (found.assignment[0][:, ~valid[0]] == 0).all()
    assert (found.index[2] == -1).all()  # an image of padding alone
    assert (found.centers[2] == 0).all()


def test_holes_are_padding_too() -> None:
    valid = torch.rand(2, 7, 8, generator=torch.Generator().manual_seed(3)) < 0.5
    check_against_loops(random_case(7, 8), 2, 4, 5.0, valid)


@pytest.mark.parametrize("filler", [0.0, 1e30, float("inf"), float("nan")])
def test_what_padding_holds_changes_nothing(filler: float) -> None:
    features = random_case(6, 9)
    valid = torch.ones(2, 6, 9, dtype=torch.bool)
    valid[0, 4:], valid[1, :, 5:] = False, False
    before = adaptive_clustering(features, 2, 6, 10.0, valid)
    changed = features.masked_fill(~valid[:, None], filler)
    for left, right in zip(before, adaptive_clustering(changed, 2, 6, 10.0, valid)):
        assert torch.equal(left, right)
    without_mask = adaptive_clustering(features.masked_fill(~valid[:, None], 7.0), 2, 6)
    assert not torch.equal(before.assignment[0, :, :3], without_mask.assignment[0, :, :3])


def test_padding_equals_a_smaller_map() -> None:
    features = random_case(5, 6)
    small = adaptive_clustering(features, 2)
    padded = torch.nn.functional.pad(features, (0, 5, 0, 4), value=3.0)
    valid = torch.zeros(2, 9, 11, dtype=torch.bool)
    valid[:, :5, :6] = True
    large = adaptive_clustering(padded, 2, valid=valid)
    torch.testing.assert_close(large.centers[:, :, :3, :3], small.centers)
    torch.testing.assert_close(large.assignment[:, :, :5, :6], small.assignment)
    rows, columns = small.index // 3, small.index % 3
    assert torch.equal(large.index[:, :5, :6], rows * 6 + columns)


def test_batch_of_two_is_two_batches_of_one() -> None:
    features = random_case(7, 9)
    valid = torch.ones(2, 7, 9, dtype=torch.bool)
    valid[1, 5:] = False
    both = adaptive_clustering(features, 3, valid=valid)
    for image in range(2):
        one = adaptive_clustering(features[image : image + 1], 3, valid=valid[image : image + 1])
        for left, right in zip(one, both):
            torch.testing.assert_close(left[0], right[image])


def test_regions_follow_an_edge_that_cells_do_not() -> None:
    """Two colors that meet in the middle of a column of cells: after clustering no region holds both."""
    features = torch.zeros(1, 2, 8, 12)
    features[:, 0, :, :6] = 1.0
    features[:, 1, :, 6:] = 1.0
    left, right = (
        set(part.flatten().tolist()) for part in adaptive_clustering(features, 4, 6, 20.0).index.split([6, 6], 2)
    )
    assert not left & right
    squares = adaptive_clustering(features, 4, 0).index
    assert set(squares[..., :6].flatten().tolist()) & set(squares[..., 6:].flatten().tolist()) == {1, 4}


def test_brightness_does_not_matter() -> None:
    features = random_case(6, 8)
    torch.testing.assert_close(
        adaptive_clustering(features * 5, 2).assignment, adaptive_clustering(features, 2).assignment
    )


def test_features_of_zero_stay_finite() -> None:
    found = adaptive_clustering(torch.zeros(1, 3, 5, 5), 2)
    assert torch.isfinite(found.assignment).all()
    torch.testing.assert_close(found.assignment.sum(1), torch.ones(1, 5, 5))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("iterations", [0, 1, 2, 6])
@pytest.mark.parametrize("place", [(0, 0), (4, 5), (3, 8), (8, 11)])
def test_a_feature_that_is_no_number_shows(place: tuple[int, int], iterations: int, value: float) -> None:
    """In the center of its region and in the index, so that T, read there, is not a number; other images stay."""
    features, (y, x), c = random_case(9, 12), place, 3
    valid = torch.ones(2, 9, 12, dtype=torch.bool)
    valid[0, :, 9:] = x > 8  # else a column of cells without a pixel
    whole = adaptive_clustering(features, c, iterations, valid=valid)
    features[0, 1, y, x] = value
    found = adaptive_clustering(features, c, iterations, valid=valid)
    assert not found.centers[0, :, y // c, x // c].isfinite().all()
    if iterations:
        assert found.assignment[0, 4, y, x].isnan()
    region = int(found.index[0, y, x])
    assert region >= 0
    assert not found.centers[0].flatten(1)[:, region].isfinite().all()
    assert (found.index[0][valid[0]] >= 0).all() and (found.index[0] < 12).all()
    if x <= 8:  # where there is no region, nothing changes
        assert (found.centers[0, :, :, 3] == 0).all()
        assert (found.assignment[0, :, :, 9:] == 0).all()
        assert (found.index[0, :, 9:] == -1).all()
    for left, right in zip(whole, found):
        assert torch.equal(left[1], right[1])


def test_half_precision_is_clustered_in_float32() -> None:
    features = random_case(6, 8).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = adaptive_clustering(features, 2)
    expected = adaptive_clustering(features.float(), 2)
    assert found.centers.dtype == found.assignment.dtype == torch.float32
    assert torch.equal(found.assignment, expected.assignment)


class LargestTensor(TorchDispatchMode):
    """Records the most elements that any operation put out."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for value in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(value, Tensor):
                self.numel = max(self.numel, value.numel())
        return result


@pytest.mark.parametrize("c", [2, 4, 8])
def test_memory_is_nine_values_a_pixel(c: int) -> None:
    channels, H, W = 8, 96, 160
    features = random_case(H, W, batch=1, channels=channels)
    with LargestTensor() as largest:
        adaptive_clustering(features, c, 2)
    with_border = (H + 2 * c) * (W + 2 * c)  # a ring of cells around the grid
    assert largest.numel <= 9 * with_border * max(1, channels // c**2)  # pixel by region: H * W / (9 c^2) times more


@pytest.mark.parametrize(
    "arguments",
    [
        (torch.zeros(3, 4, 5), 2),  # no batch
        (torch.zeros(1, 3, 4, 5), 0),  # cell size
        (torch.zeros(1, 3, 4, 5), 2, -1),  # iterations
        (torch.zeros(1, 3, 4, 5), 2, 6, 1.0, torch.ones(1, 5, 4, dtype=torch.bool)),  # shape of valid
    ],
)
def test_errors(arguments: tuple[Any, ...]) -> None:
    with pytest.raises(ValueError):
        adaptive_clustering(*arguments)
