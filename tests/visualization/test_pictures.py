"""Maps on a picture, overlays and panels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tmt_d2.data.datasets.label_spaces import CITYSCAPES_CLASSES, PALETTE
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
from tmt_d2.visualization.panels import Panel, Row, draw, save, to_array
from tmt_d2.visualization.sizes import enlarge, shrink, size_within

SIZE = (37, 91)


# Geometry ---------------------------------------------------------------------------------------------------------


def test_each_pixel_gets_the_value_of_the_position_that_it_lies_in() -> None:
    grid = Grid(level=(2, 3), padded=(64, 96), image=SIZE)
    assert grid.stride == 32 and grid.valid == (2, 3)
    values = np.arange(6).reshape(2, 3)
    shown = grid.to_picture(values, SIZE)
    for y, x in ((0, 0), (31, 31), (31, 32), (32, 0), (36, 63), (36, 64), (36, 90)):
        assert shown[y, x] == values[y // 32, x // 32]
    double = grid.to_picture(values, (2 * SIZE[0], 2 * SIZE[1]))
    assert np.array_equal(double[::2, ::2], shown) and np.array_equal(double[1::2, 1::2], shown)


def test_padding_is_cut_off_and_never_interpolated_into_the_picture() -> None:
    grid = Grid(level=(4, 6), padded=(64, 96), image=(30, 50))  # stride 16: rows 0-1 and columns 0-3 see the image
    assert grid.valid == (2, 4)
    level = np.full((4, 6), 1000.0)
    level[:2, :4] = np.random.default_rng(0).random((2, 4))
    valid = grid.crop(level)
    for smooth in (False, True):
        for size in ((30, 50), (7, 11), (301, 499)):
            shown = grid.to_picture(valid, size, smooth)
            assert shown.shape == size and shown.max() <= valid.max() + 1e-6 and shown.min() >= valid.min() - 1e-6
    with pytest.raises(ValueError, match=r"shape \(4, 6\), the grid has \(2, 4\)"):
        grid.to_picture(level, (30, 50))


def test_smooth_interpolation_is_linear_between_the_centres_of_positions() -> None:
    grid = Grid(level=(1, 2), padded=(4, 8), image=(4, 8))
    shown = grid.to_picture(np.array([[0.0, 4.0]]), (4, 8), smooth=True)
    # Centres at pixels 2 and 6; pixel centres at 0.5, 1.5, ...: one unit per pixel between them.
    np.testing.assert_allclose(shown[0], [0, 0, 0.5, 1.5, 2.5, 3.5, 4, 4])


# Overlays and panels ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(1, 1), (37, 91), (129, 64)])
def test_overlays_have_the_size_of_the_picture(size: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
    labels = rng.integers(0, 19, size).astype(np.uint8)
    mask = rng.random(size) < 0.5
    for result in (
        label_overlay(picture, labels, CITYSCAPES_CLASSES),
        heat_overlay(picture, rng.random(size), "viridis"),
        mask_overlay(picture, mask),
        mask_overlay(picture, mask, ~mask),
        removed_overlay(picture, mask),
        error_overlay(picture, labels, labels),
        outlined(picture, labels),
    ):
        assert result.shape == picture.shape and result.dtype == np.uint8


def test_overlays_show_what_they_say() -> None:
    picture = np.full((4, 6, 3), 100, np.uint8)
    labels = np.full((4, 6), 13, np.uint8)
    labels[:, 3:] = 255
    overlay = label_overlay(picture, labels, CITYSCAPES_CLASSES, strength=1.0)
    assert tuple(overlay[0, 0]) == PALETTE[13] and tuple(overlay[0, 5]) == (0, 0, 0)
    heat = heat_overlay(picture, np.linspace(0, 1, 24).reshape(4, 6), "viridis", strength=1.0)
    assert tuple(heat[0, 0]) == (68, 1, 84) and tuple(heat[-1, -1]) == (253, 231, 37)  # viridis from end to end
    prediction = np.full((4, 6), 13, np.uint8)
    prediction[2:] = 0
    errors = error_overlay(picture, prediction, labels)
    assert errors[0, 0, 0] == errors[0, 0, 1] == errors[0, 0, 2]  # right: grey
    assert np.abs(errors[3, 0].astype(int) - REMOVED).max() < 40
    assert not errors[:, 3:].any()  # not labelled, whatever is predicted
    borders = outlined(picture, labels)
    assert (borders == BORDER).all(-1).any(0).tolist() == [False, False, False, True, False, False]
    assert np.array_equal(outlined(picture, np.zeros((4, 6), int)), picture)


def test_a_figure_holds_every_panel(tmp_path: Path) -> None:
    blue = np.zeros((20, 31, 3), np.uint8)
    blue[..., 2] = 255
    one = to_array(draw([Row([Panel(blue, "one")])]))
    three = to_array(draw([Row([Panel(blue, "one"), None]), Row([Panel(blue, "two"), Panel(blue, "three")], "row")]))
    pixels = [int((figure == (0, 0, 255)).all(-1).sum()) for figure in (one, three)]
    assert pixels[1] == pytest.approx(3 * pixels[0], rel=0.02)
    figure = draw([Row([Panel(blue, "one", "numbers")])], "heading", [("road", PALETTE[0])])
    for suffix, start in (("png", b"\x89PNG"), ("pdf", b"%PDF")):
        save(figure, tmp_path / f"figure.{suffix}")
        assert (tmp_path / f"figure.{suffix}").read_bytes().startswith(start)
    assert len(list(tmp_path.iterdir())) == 2
    with pytest.raises(ValueError, match=r"figure.gif: figures are written as .png or .pdf"):
        save(figure, tmp_path / "figure.gif")
    with pytest.raises(ValueError, match="at least one panel"):
        draw([Row([None])])


def test_large_images_are_shown_smaller_and_small_ones_larger() -> None:
    assert size_within((1024, 2048)) == (1024, 2048)
    assert size_within((3936, 5248)) == (1536, 2048)
    picture = np.zeros((3, 300, 3), np.uint8)
    assert shrink(picture, 100).shape == (1, 100, 3) and shrink(picture) is picture
    assert enlarge(picture).shape == (9, 900, 3)
