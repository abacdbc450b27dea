"""EXIF orientation: one rule, whoever reads, with its label or alone."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from tests.data.test_reader import random_image, save_label
from tests.helpers.small_runs import exif
from tmt_d2.data.datasets.cityscapes import CITYSCAPES
from tmt_d2.data.reader import DataError, SizeError, exif_orientation, read_image, read_image_of, read_pair


def with_orientation(path: Path, orientation: int | None, size: tuple[int, int] = (32, 48), **options: object) -> str:
    """An image of `size` (height, width) as stored, with no two corners alike."""
    block = Image.Exif() if orientation is None else exif(orientation)
    pixels = cv2.resize(random_image(2, 2), size[::-1], interpolation=cv2.INTER_CUBIC)
    Image.fromarray(pixels).save(path, exif=block, **options)
    return str(path)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
@pytest.mark.parametrize("orientation", [None, *range(1, 10)])
def test_the_orientation_that_is_said_is_the_one_that_is_applied(
    tmp_path: Path, suffix: str, orientation: int | None
) -> None:
    options = {"lossless": True} if suffix == "webp" else {"quality": 100} if suffix == "jpg" else {}
    path = with_orientation(tmp_path / f"image.{suffix}", orientation, **options)
    said = orientation if orientation in range(1, 9) else 1
    assert exif_orientation(path) == said
    stored = read_image(path)
    turned = {
        1: stored,
        2: stored[:, ::-1],
        3: stored[::-1, ::-1],
        4: stored[::-1],
        5: stored.transpose(1, 0, 2),
        6: np.rot90(stored, -1),
        7: stored[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(stored),
    }
    assert np.array_equal(read_image(path, oriented=True), turned[said])
    assert stored.shape == (32, 48, 3)
    assert sum(np.array_equal(turned[said], other) for other in turned.values()) == 1  # no two are alike


def test_files_without_a_readable_orientation_have_none(tmp_path: Path) -> None:
    assert exif_orientation(str(tmp_path / "gone.jpg")) == 1
    (tmp_path / "text.jpg").write_text("no image")
    assert exif_orientation(str(tmp_path / "text.jpg")) == 1
    Image.fromarray(random_image()).save(tmp_path / "damaged.jpg", exif=b"Exif\0\0MM\0*\xff\xff")
    assert exif_orientation(str(tmp_path / "damaged.jpg")) == 1
    path = with_orientation(tmp_path / "image.tif", 6)  # decoders turn it, whatever they are asked
    assert exif_orientation(path) == 1 and read_image(path).shape == (48, 32, 3)


@pytest.mark.parametrize("size", [(32, 48), (40, 40)])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_image_is_the_same_with_its_label_with_the_size_of_it_and_where_nothing_tells_alone(
    tmp_path: Path, size: tuple[int, int], orientation: int
) -> None:
    path = with_orientation(tmp_path / "image.png", orientation, size)
    stored, turned = read_image(path), read_image(path, oriented=True)
    for label_size in {size, size[::-1]}:
        record = {"file_name": path, "sem_seg_file_name": save_label(tmp_path / "label.png", np.zeros(label_size))}
        if label_size == size:
            expected = stored
        elif turned.shape[:2] == label_size:
            expected = turned
        else:
            for read in (read_image_of, lambda record: read_pair(record, CITYSCAPES)):
                with pytest.raises(SizeError, match="48x32.*32x48"):
                    read(record)
            continue
        assert np.array_equal(read_image_of(record), expected)
        assert np.array_equal(read_pair(record, CITYSCAPES)[0], expected)
        assert np.array_equal(read_image_of(record, "BGR", label_size), expected[..., ::-1])
    assert np.array_equal(read_image_of({"file_name": path}), stored)


def test_a_lone_image_that_is_not_turned_is_named_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    turned, plain = with_orientation(tmp_path / "turned.jpg", 6), with_orientation(tmp_path / "plain.jpg", 1)
    for path in (turned, plain, turned):
        assert read_image_of({"file_name": path}).shape == (32, 48, 3)
    assert len(caplog.messages) == 1 and str(turned) in caplog.text
    record = {"file_name": turned, "sem_seg_file_name": save_label(tmp_path / "label.png", np.zeros((32, 48)))}
    read_image_of(record)
    assert len(caplog.messages) == 1


def test_of_a_label_that_only_says_its_size_the_header_is_enough(tmp_path: Path) -> None:
    label = Path(save_label(tmp_path / "label.png", np.zeros((48, 32))))
    label.write_bytes(label.read_bytes()[:26])
    record = {"file_name": with_orientation(tmp_path / "image.jpg", 8), "sem_seg_file_name": str(label)}
    assert read_image_of(record).shape == (48, 32, 3)
    label.write_bytes(label.read_bytes()[:25])
    with pytest.raises(DataError, match="label.png"):
        read_image_of(record)
    label.unlink()
    with pytest.raises(DataError, match="label.png"):
        read_image_of(record)
