"""Reading images and labels of every kind, and the one line about each file that cannot be used."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from tmt_d2.data.datasets.bdd100k import BDD100K
from tmt_d2.data.datasets.cityscapes import CITYSCAPES
from tmt_d2.data.datasets.gtav import GTAV
from tmt_d2.data.datasets.label_spaces import PALETTE, TRAIN_IDS, LabelSpace
from tmt_d2.data.datasets.mapillary import MAPILLARY_A, MAPILLARY_B
from tmt_d2.data.datasets.synthia import SYNTHIA
from tmt_d2.data.mapper import _read_reduced
from tmt_d2.data.reader import PNG, DataError, SizeError, UndefinedIdError, read_image, read_label, read_pair


def save_label(path: Path, ids: np.ndarray, palette: bool = False) -> str:
    image = Image.fromarray(ids.astype(np.uint8))
    if palette:
        image.putpalette([255 - value // 3 for value in range(768)])  # colors that have nothing to do with the ids
    image.save(path)
    return str(path)


def random_image(height: int = 61, width: int = 93) -> np.ndarray:
    """Rough enough that a JPEG of it is several kilobytes."""
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def encoded(kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(random_image()).save(buffer, kind, **options)
    return buffer.getvalue()


# ---- images


def test_the_order_of_the_channels(tmp_path: Path) -> None:
    path = str(tmp_path / "image.png")
    Image.new("RGB", (3, 2), (10, 20, 30)).save(path)
    for format, pixel in (("RGB", [10, 20, 30]), ("BGR", [30, 20, 10])):
        image = read_image(path, format)
        assert image.shape == (2, 3, 3) and image.dtype == np.uint8 and image.flags.c_contiguous
        assert image[1, 2].tolist() == pixel
    with pytest.raises(ValueError, match="format is 'L'"):
        read_image(path, "L")  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("keep", [0.02, 0.5, -2])
def test_a_truncated_image_is_an_error(tmp_path: Path, kind: str, keep: float) -> None:
    whole = encoded(kind)
    path = tmp_path / "cut.image"
    path.write_bytes(whole)
    read_image(str(path))
    path.write_bytes(whole[: keep if keep < 0 else int(len(whole) * keep)])
    with pytest.raises(DataError, match=r"cut\.image"):
        read_image(str(path))


def test_a_jpeg_filled_up_with_zeros_is_an_error_but_one_with_bytes_behind_its_end_is_not(tmp_path: Path) -> None:
    whole = encoded("JPEG")
    path = tmp_path / "image.jpg"
    path.write_bytes(whole[: len(whole) // 2] + bytes(len(whole) // 2))  # an aborted download of a known size
    with pytest.raises(DataError, match="truncated"):
        read_image(str(path))
    path.write_bytes(whole + bytes(300))
    assert read_image(str(path)).shape == (61, 93, 3)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_blocks": 4}])
def test_a_jpeg_damaged_in_its_middle_is_an_error_at_every_size(tmp_path: Path, options: dict[str, object]) -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (160, 240, 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=90, **options)
    whole, path = stream.getvalue(), tmp_path / "image.jpg"
    middle = len(whole) // 2
    for damaged in (whole[:middle] + b"\xff\xd9", whole[:middle] + whole[middle + 1500 :]):
        path.write_bytes(damaged)
        for oriented in (False, True):
            with pytest.raises(DataError, match=r"image\.jpg"):
                read_image(str(path), oriented=oriented)
        with pytest.raises(DataError, match=r"image\.jpg"):
            _read_reduced(str(path), "RGB", (160, 240), 2)
    expected = cv2.imdecode(np.frombuffer(whole, np.uint8), cv2.IMREAD_COLOR)
    for fine in (whole, whole[:-2] + bytes(40) + whole[-2:]):  # a camera's padding is no damage
        path.write_bytes(fine)
        assert np.array_equal(read_image(str(path), "BGR"), expected)
        half = _read_reduced(str(path), "BGR", (160, 240), 2)
        assert np.array_equal(half, cv2.imdecode(np.frombuffer(whole, np.uint8), cv2.IMREAD_REDUCED_COLOR_2))


def test_whatever_follows_the_end_of_a_jpeg_is_no_damage(tmp_path: Path) -> None:
    """Such as the film of a phone's motion photo, in which the markers occur by chance."""
    whole, path = encoded("JPEG"), tmp_path / "image.jpg"
    path.write_bytes(whole)
    expected = read_image(str(path))
    for film in (b"\xff\xda", b"\xff\xd9\xff\xda" + bytes(50), encoded("JPEG")[:2000]):
        path.write_bytes(whole + film)
        assert np.array_equal(read_image(str(path)), expected)


def test_the_thumbnail_of_a_truncated_jpeg_does_not_hide_that_it_is_truncated(tmp_path: Path) -> None:
    thumbnail = encoded("JPEG")
    whole = encoded("JPEG", exif=b"Exif\0\0" + thumbnail[:60000])
    assert whole.count(b"\xff\xd9") == 2
    path = tmp_path / "image.jpg"
    for length in (len(whole) - 200, len(thumbnail) + 50):  # the second is cut within the header
        path.write_bytes(whole[:length])
        with pytest.raises(DataError, match="truncated"):
            read_image(str(path))
    path.write_bytes(whole)
    assert read_image(str(path)).shape == (61, 93, 3)


@pytest.mark.parametrize("name", ["empty.png", "text.png", "gone.png"])
@pytest.mark.parametrize("read", [read_image, lambda path: read_label(path, CITYSCAPES)])
def test_files_that_are_no_images(tmp_path: Path, read: Callable[[str], np.ndarray], name: str) -> None:
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("version https://git-lfs.github.com/spec/v1")
    with pytest.raises(DataError, match=name):
        read(str(tmp_path / name))


# ---- labels


def test_a_palette_label_is_read_by_index(tmp_path: Path) -> None:
    ids = np.array([[7, 26, 34], [0, 33, 21]])
    expected = [[0, 13, 255], [255, 18, 8]]
    for palette in (False, True):
        label = read_label(save_label(tmp_path / "label.png", ids, palette), GTAV)
        assert label.tolist() == expected and label.dtype == np.uint8
    assert Image.open(tmp_path / "label.png").mode == "P"
    image = Image.fromarray(np.array([[7, 8, 11]], np.uint8))
    image.putpalette([0] * 48)
    image.save(tmp_path / "label.png", bits=4)
    assert read_label(str(tmp_path / "label.png"), GTAV).tolist() == [[0, 1, 2]]


def test_ids_without_loss_are_read_however_they_are_encoded(tmp_path: Path) -> None:
    path = tmp_path / "label.png"
    ids = np.array([[0, 1, 3], [2, 1, 0]], np.uint8)
    three, gray_alpha = np.stack([ids] * 3, -1), np.stack([ids, np.full_like(ids, 255)], -1)
    for image in (
        Image.fromarray(ids.astype(np.uint16)),
        Image.fromarray(three),
        Image.fromarray(np.dstack([three, np.full_like(ids, 255)])),
        Image.fromarray(gray_alpha, "LA"),
    ):
        image.save(path)
        assert read_label(str(path), TRAIN_IDS).tolist() == ids.tolist()
    Image.fromarray(ids > 0).save(path)
    assert path.read_bytes()[24] == 1
    assert read_label(str(path), TRAIN_IDS).tolist() == [[0, 1, 1], [1, 1, 0]]
    for depth, rows in ((2, ([0b00011100], [0b10010000])), (4, ([0x01, 0x3F], [0x21, 0x00]))):
        header = struct.pack(">IIBBBBB", 3, 2, depth, 0, 0, 0, 0)
        packed = zlib.compress(b"".join(b"\0" + bytes(row) for row in rows))
        chunks = ((b"IHDR", header), (b"IDAT", packed), (b"IEND", b""))
        path.write_bytes(
            PNG + b"".join(struct.pack(">I", len(c)) + n + c + struct.pack(">I", zlib.crc32(n + c)) for n, c in chunks)
        )
        assert read_label(str(path), TRAIN_IDS).tolist() == ids.tolist()


@pytest.mark.parametrize(
    ("image", "kind"),
    [
        (Image.new("RGB", (4, 3), PALETTE[0]), "PNG"),
        (Image.new("RGBA", (4, 3)), "PNG"),
        (Image.fromarray(np.full((3, 4), 26001, np.uint16)), "PNG"),
        (Image.new("L", (4, 3)), "JPEG"),
    ],
)
@pytest.mark.parametrize("space", [CITYSCAPES, BDD100K, MAPILLARY_B, GTAV])
def test_a_label_that_has_lost_its_ids_is_an_error(
    tmp_path: Path, space: LabelSpace, image: Image.Image, kind: str
) -> None:
    image.save(tmp_path / "label.png", kind)
    with pytest.raises(DataError, match=r"label\.png"):
        read_label(str(tmp_path / "label.png"), space)


@pytest.mark.parametrize("keep", [0.02, 0.97])
def test_a_truncated_label_is_an_error(tmp_path: Path, keep: float) -> None:
    path = Path(save_label(tmp_path / "label.png", random_image()[:, :, 0] % 34, palette=True))
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])
    with pytest.raises(DataError, match=r"label\.png"):
        read_label(str(path), CITYSCAPES)


def test_ids_outside_the_table_are_named(tmp_path: Path) -> None:
    path = save_label(tmp_path / "label.png", np.array([[99, 7, 40, 40, 35, 255, 60, 61]]))
    with pytest.raises(UndefinedIdError) as error:
        read_label(path, CITYSCAPES)
    assert error.value.key == path and "35, 40, 60, 61, 99, ..." in str(error.value)


def test_labels_of_mapillary_2_are_rejected_with_a_hint(tmp_path: Path) -> None:
    path = save_label(tmp_path / "label.png", np.array([[13, 65, 66, 123]]), palette=True)
    for space in (MAPILLARY_A, MAPILLARY_B):
        with pytest.raises(UndefinedIdError, match=r"66, 123 .*v2\.0"):
            read_label(path, space)
    path = save_label(tmp_path / "label.png", np.array([[13, 65]]), palette=True)
    assert read_label(path, MAPILLARY_A).tolist() == [[0, 255]]


# The first colors of the two palettes, as the data sets ship them.
VISTAS_1 = [(165, 42, 42), (0, 192, 0), (196, 196, 196), (190, 153, 153)]
VISTAS_2 = [(165, 42, 42), (0, 192, 0), (250, 170, 31), (250, 170, 32), (196, 196, 196)]


def save_colored(path: Path, ids: list[int], colors: list[tuple[int, int, int]]) -> str:
    image = Image.fromarray(np.array([ids], np.uint8))
    image.putpalette([value for color in colors for value in color])
    image.save(path)
    return str(path)


def test_the_palette_tells_labels_of_mapillary_2_whose_ids_version_1_has_too(tmp_path: Path) -> None:
    path = save_colored(tmp_path / "label.png", [2, 3, 4], VISTAS_2)
    for space in (MAPILLARY_A, MAPILLARY_B):
        with pytest.raises(UndefinedIdError) as error:
            read_label(path, space)
        assert path in str(error.value) and "v1.2/labels" in str(error.value)
    own = LabelSpace("town", {4: 1}, frozenset({2, 3}))  # a table of v2.0's ids, in a data set of one's own
    assert read_label(path, own).tolist() == [[255, 255, 1]]


@pytest.mark.parametrize("colors", [VISTAS_1, [(250, 170, 31)], None])
def test_other_palettes_of_mapillary_and_none_go_by_the_ids(
    tmp_path: Path, colors: list[tuple[int, int, int]] | None
) -> None:
    def save(ids: list[int]) -> str:
        if colors is None:
            return save_label(tmp_path / "label.png", np.array([ids]))
        return save_colored(tmp_path / "label.png", ids, colors + [(9, 9, 9)] * (256 - len(colors)))

    assert read_label(save([2, 3, 65]), MAPILLARY_A).tolist() == [[1, 4, 255]]
    with pytest.raises(UndefinedIdError, match=r"66.*v2\.0"):
        read_label(save([2, 3, 66]), MAPILLARY_A)
    too_short = save_colored(tmp_path / "label.png", [0, 1], VISTAS_2[:2])
    assert read_label(too_short, MAPILLARY_A).tolist() == [[255, 255]]


def test_files_of_train_ids_in_cityscapes_are_read_as_such(tmp_path: Path) -> None:
    ids = np.array([[0, 7, 18, 255]])
    assert read_label(save_label(tmp_path / "a_gtFine_labelTrainIds.png", ids), CITYSCAPES).tolist() == ids.tolist()
    with pytest.raises(UndefinedIdError, match="255"):
        read_label(save_label(tmp_path / "a_gtFine_labelIds.png", ids), CITYSCAPES)


def synthia_label(path: Path, red: np.ndarray) -> str:
    instance = np.full(red.shape, 1000, np.uint16)
    cv2.imwrite(str(path), np.dstack([np.zeros_like(instance), instance, red.astype(np.uint16)]))  # BGR
    return str(path)


def test_the_class_of_synthia_is_the_red_channel_of_16_bits(tmp_path: Path) -> None:
    path = synthia_label(tmp_path / "label.png", np.array([[1, 3, 21], [0, 22, 15]]))
    assert read_label(path, SYNTHIA).tolist() == [[10, 0, 3], [255, 255, 6]]
    with pytest.raises(UndefinedIdError, match="23, 255, 256, 259"):
        read_label(synthia_label(tmp_path / "label.png", np.array([[1, 256, 259, 23, 255]])), SYNTHIA)
    Image.new("RGB", (4, 3)).save(tmp_path / "color.png")
    with pytest.raises(DataError, match="GT/LABELS"):
        read_label(str(tmp_path / "color.png"), SYNTHIA)


# ---- pairs


def test_a_pair_of_other_sizes_is_an_error(tmp_path: Path) -> None:
    image = str(tmp_path / "image.png")
    Image.new("RGB", (5, 4)).save(image)
    label = save_label(tmp_path / "label.png", np.zeros((4, 6)))
    with pytest.raises(SizeError) as error:
        read_pair({"file_name": image, "sem_seg_file_name": label}, CITYSCAPES)
    assert error.value.key == image and all(part in str(error.value) for part in ("5x4", label, "6x4"))


COLORS = {(200, 0, 0): 0, (0, 90, 0): 1, (0, 0, 0): 255, (70, 70, 70): 1}
IN_COLORS = LabelSpace("town", {0: 0, 1: 1}, frozenset({255}), colors=COLORS)


@pytest.mark.parametrize("palette", [(0, 1, 2), (1, 0, 2), (1, 0, 9), (9, 2, 0, 1)])
def test_palettes_in_colors(tmp_path: Path, palette: tuple[int, ...]) -> None:
    """Tools that save a mask in few colors with a palette order it as they like; 9: a color of no class."""
    town = {0: (0, 0, 142), 1: (70, 70, 70), 2: (0, 90, 0), 9: (9, 9, 9)}
    space = LabelSpace("town", {0: 0, 1: 1, 2: 2}, frozenset({255}), colors={town[index]: index for index in range(3)})
    truth = np.tile(np.array([0, 1, 1, 0], np.uint8), (4, 1))
    indices = np.array([palette.index(0), palette.index(1)], np.uint8)[truth]
    path = save_colored(tmp_path / "label.png", indices.ravel().tolist(), [town[index] for index in palette])
    if palette == (1, 0, 2):  # all are colors of classes, and the indices are ids of other ones
        with pytest.raises(DataError) as error:
            read_label(path, space)
        assert error.value.key == path
    else:
        expected = indices if palette == (1, 0, 9) else truth
        assert np.array_equal(read_label(path, space), expected.reshape(1, -1))


@pytest.mark.parametrize("channels", [3, 4])
def test_colors_of_the_class_list(tmp_path: Path, channels: int) -> None:
    path = tmp_path / "label.png"
    pixels = np.full((2, 3, channels), 255, np.uint8)
    pixels[..., :3] = np.array(list(COLORS), np.uint8)[[[0, 1, 2], [3, 1, 0]]]
    Image.fromarray(pixels).save(path)
    assert read_label(str(path), IN_COLORS).tolist() == [[0, 1, 255], [1, 1, 0]]
    pixels[1, 2, :3] = 200, 0, 1
    Image.fromarray(pixels).save(path)
    with pytest.raises(UndefinedIdError, match=r"label\.png.*\[200, 0, 1\]"):
        read_label(str(path), IN_COLORS)
    with pytest.raises(DataError, match=r"label\.png"):
        read_label(str(path), BDD100K)


@pytest.mark.parametrize(
    ("grays", "expected"),
    [
        ([0, 1, 255], [0, 1, 255]),  # ids, since no class has the color of 1
        ([0, 70], [255, 1]),  # colors, since there is no id 70
    ],
)
def test_grays_in_rgb_are_ids_or_colors(tmp_path: Path, grays: list[int], expected: list[int]) -> None:
    path = tmp_path / "label.png"
    Image.fromarray(np.array([[[gray] * 3 for gray in grays]], np.uint8)).save(path)
    assert read_label(str(path), IN_COLORS).tolist() == [expected]
    Image.fromarray(np.zeros((1, 2, 3), np.uint8)).save(path)  # may be either
    with pytest.raises(DataError, match=r"label\.png"):
        read_label(str(path), IN_COLORS)
