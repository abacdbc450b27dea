"""Maps on an image, overlays and panels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tmt_d2.data.datasets.label_spaces import CITYSCAPES_CLASSES, PALETTE
from tmt_d2.errors import UserError
from tmt_d2.visualization.grid import Grid
from tmt_d2.visualization.overlays import (
    BORDER,
    REMOVED,
    error_overlay,
    heat_overlay,
    label_overlay,
    mask_overlay,
    outlined,
    removed_overlay,
)
from tmt_d2.visualization.panels import Panel, PanelRow, draw, save, to_array
from tmt_d2.visualization.sizes import enlarge, shrink, size_within

SIZE = (37, 91)


# Geometry ---------------------------------------------------------------------------------------------------------


def test_each_pixel_gets_the_value_of_its_position() -> None:
    grid = Grid(level_size=(2, 3), padded_size=(64, 96), image_size=SIZE)
    assert grid.stride == 32 and grid.valid == (2, 3)
    values = np.arange(6).reshape(2, 3)
    shown = grid.to_image(values, SIZE)
    for y, x in ((0, 0), (31, 31), (31, 32), (32, 0), (36, 63), (36, 64), (36, 90)):
        assert shown[y, x] == values[y // 32, x // 32]
    double = grid.to_image(values, (2 * SIZE[0], 2 * SIZE[1]))
    assert np.array_equal(double[::2, ::2], shown) and np.array_equal(double[1::2, 1::2], shown)


def test_padding_is_never_interpolated_into_the_image() -> None:
    grid = Grid(
        level_size=(4, 6), padded_size=(64, 96), image_size=(30, 50)
    )  # stride 16: rows 0-1 and columns 0-3 see the image
    assert grid.valid == (2, 4)
    level = np.full((4, 6), 1000.0)
    level[:2, :4] = np.random.default_rng(0).random((2, 4))
    valid = grid.crop(level)
    for smooth in (False, True):
        for size in ((30, 50), (7, 11), (301, 499)):
            shown = grid.to_image(valid, size, smooth)
            assert shown.shape == size and shown.max() <= valid.max() + 1e-6 and shown.min() >= valid.min() - 1e-6
    with pytest.raises(ValueError, match="shape"):
        grid.to_image(level, (30, 50))


def test_smooth_interpolation_is_linear_between_the_centers_of_positions() -> None:
    grid = Grid(level_size=(1, 2), padded_size=(4, 8), image_size=(4, 8))
    shown = grid.to_image(np.array([[0.0, 4.0]]), (4, 8), smooth=True)
    # Centers at pixels 2 and 6; pixel centers at 0.5, 1.5, ...: one unit per pixel between them.
    np.testing.assert_allclose(shown[0], [0, 0, 0.5, 1.5, 2.5, 3.5, 4, 4])


# Overlays and panels ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(1, 1), (37, 91), (129, 64)])
def test_overlays_have_the_size_of_the_picture(size: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
    labels = rng.integers(0, 19, size).astype(np.uint8)
    mask = rng.random(size) < 0.5
    for result in (
        label_overlay(image, labels, CITYSCAPES_CLASSES),
        heat_overlay(image, rng.random(size), "viridis"),
        mask_overlay(image, mask),
        mask_overlay(image, mask, ~mask),
        removed_overlay(image, mask),
        error_overlay(image, labels, labels),
        outlined(image, labels),
    ):
        assert result.shape == image.shape and result.dtype == np.uint8


def test_colors_of_overlays() -> None:
    image = np.full((4, 6, 3), 100, np.uint8)
    labels = np.full((4, 6), 13, np.uint8)
    labels[:, 3:] = 255
    overlay = label_overlay(image, labels, CITYSCAPES_CLASSES, strength=1.0)
    assert tuple(overlay[0, 0]) == PALETTE[13] and tuple(overlay[0, 5]) == (0, 0, 0)
    heat = heat_overlay(image, np.linspace(0, 1, 24).reshape(4, 6), "viridis", strength=1.0)
    assert tuple(heat[0, 0]) == (68, 1, 84) and tuple(heat[-1, -1]) == (253, 231, 37)  # viridis from end to end
    prediction = np.full((4, 6), 13, np.uint8)
    prediction[2:] = 0
    errors = error_overlay(image, prediction, labels)
    assert errors[0, 0, 0] == errors[0, 0, 1] == errors[0, 0, 2]  # right: gray
    assert np.abs(errors[3, 0].astype(int) - REMOVED).max() < 40
    assert not errors[:, 3:].any()  # unlabeled, whatever is predicted
    borders = outlined(image, labels)
    assert (borders == BORDER).all(-1).any(0).tolist() == [False, False, False, True, False, False]
    assert np.array_equal(outlined(image, np.zeros((4, 6), int)), image)


def test_a_figure_is_saved_by_its_suffix(tmp_path: Path) -> None:
    blue = np.zeros((20, 31, 3), np.uint8)
    blue[..., 2] = 255
    figure = draw([PanelRow([Panel(blue, "one", "numbers"), None])], "heading", [("road", PALETTE[0])])
    assert (to_array(figure) == (0, 0, 255)).all(-1).any()
    for suffix, start in (("png", b"\x89PNG"), ("pdf", b"%PDF")):
        save(figure, tmp_path / f"figure.{suffix}")
        assert (tmp_path / f"figure.{suffix}").read_bytes().startswith(start)
    assert len(list(tmp_path.iterdir())) == 2
    with pytest.raises(UserError, match="figure.gif"):
        save(figure, tmp_path / "figure.gif")


def test_large_images_are_shown_smaller_and_small_ones_larger() -> None:
    assert size_within((1024, 2048)) == (1024, 2048)
    assert size_within((3936, 5248)) == (1536, 2048)
    image = np.zeros((3, 300, 3), np.uint8)
    assert shrink(image, 100).shape == (1, 100, 3) and shrink(image) is image
    assert enlarge(image).shape == (9, 900, 3)
