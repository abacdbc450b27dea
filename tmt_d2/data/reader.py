"""Reading images and labels from disk, once for training, evaluation and checking.

A label leaves this file as train ids, whatever the data set ships. A file that cannot be read whole, or that holds
an id its data set does not define, is an error: it would otherwise train or score on wrong pixels without a word.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
from detectron2.utils.logger import log_first_n
from PIL import Image

from tmt_d2.data import jpeg
from tmt_d2.data.datasets.label_spaces import OUTSIDE, TRAIN_IDS, LabelSpace
from tmt_d2.data.png import SIGNATURE as PNG
from tmt_d2.data.png import decode_plain
from tmt_d2.errors import UserError

ChannelOrder = Literal["RGB", "BGR"]

GREY, RGB, PALETTE, GREY_ALPHA, RGBA = 0, 2, 3, 4, 6  # kinds of color in a PNG header
PNG_HEADER = 26  # bytes up to the end of width, height, depth and kind of colour
ORIENTATION = 0x0112  # EXIF's number for it
MAX_IDS_SHOWN = 5


class DataError(UserError):
    """A file or folder of a data set is not what it should be; the message is one line that names it."""


class MissingDataError(DataError, FileNotFoundError):
    """A file or folder of a data set does not exist."""


UNREADABLE = (DataError, OSError, cv2.error)  # what reading a record may raise


class SizeError(DataError):
    """Image and label differ in size."""


class UndefinedIdError(DataError):
    """A label file holds ids that its data set does not define, or that mean other things in it."""


def read_image(path: str, format: ChannelOrder = "RGB", oriented: bool = False) -> np.ndarray:
    """Read an image of any kind that OpenCV knows, as it is stored.

    The rule for the EXIF orientation, held by `read_image_of` for all that reads records: a picture is taken as
    stored, unless it has a label and only the turned picture has the label's size. A label has no such entry, and those
    of most data sets belong to the picture as stored. Sizes do not tell half a turn, a mirror image or a square, and a
    lone picture has no label: all these are as stored, so that a picture predicted alone is what it is in its data set.

    Args:
        path: the file.
        format: order of the channels in the result.
        oriented: turn the image as its EXIF orientation says, to what a person sees elsewhere. (TIFF files always come
            so: OpenCV and Pillow turn them while decoding.)

    Returns:
        (H, W, 3) uint8, C-contiguous. Grey images are repeated, transparency is dropped.

    Raises:
        DataError: the file is missing, empty, truncated, damaged, or no image.
    """
    if format not in ("RGB", "BGR"):
        raise UserError(f"format is {format!r}: should be 'RGB' or 'BGR'")
    data = _read_whole(path)
    if not oriented and (plain := decode_plain(data, format)) is not None:
        return plain
    stored = decode_stored_jpeg(path, data, format)
    if stored is not None and not oriented:
        return stored
    flags = cv2.IMREAD_COLOR if oriented else cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    image = _decode(path, data, flags)
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB) if format == "RGB" else image


def decode_stored_jpeg(path: str, data: bytes, format: ChannelOrder, reduction: int = 1) -> np.ndarray | None:
    """``jpeg.decode_jpeg`` of the file ``path``, whose damage is a DataError."""
    try:
        return jpeg.decode_jpeg(data, format, reduction)
    except jpeg.DamagedError as error:
        raise DataError(f"{path}: the file is damaged ({error}): replace it or take it out") from error


def read_label(path: str, label_space: LabelSpace) -> np.ndarray:
    """Read a label file and map its ids to train ids.

    A file named ``*_labelTrainIds.png`` of Cityscapes is read as train ids.

    Returns:
        (H, W) uint8 train ids, 255 = ignore.

    Raises:
        DataError: the file is missing, empty, truncated, or not encoded as `label_space` says, or holds ids that
            `label_space` does not define; or it is one of Mapillary Vistas v2.0, which its palette tells whatever ids
            it holds (one without that palette goes by its ids).
        UndefinedIdError: an RGB file of a data set with ``label_space.colors`` holds another color.
    """
    if label_space.train_id_suffix and str(path).endswith(label_space.train_id_suffix):
        label_space = TRAIN_IDS
    data = _read_whole(path)
    ids = _synthia_ids(path, data) if label_space.encoding == "synthia" else _index_ids(path, data, label_space)
    if ids.ndim == 3:
        return _of_colors(path, ids, label_space)
    # No table defines id 255 of a 16-bit file, so every id above 255 may stand there as 255.
    label = cv2.LUT(ids if ids.dtype == np.uint8 else np.minimum(ids, 255).astype(np.uint8), label_space.lookup())
    outside = label == OUTSIDE
    if outside.any():
        raise UndefinedIdError(_outside_message(path, np.unique(ids[outside]).tolist(), label_space))
    return label


def read_image_of(
    record: Mapping[str, Any], format: ChannelOrder = "RGB", size: tuple[int, int] | None = None
) -> np.ndarray:
    """Read the image of one record, turned where its label wants it so; see `read_image` for the rule.

    Args:
        record: ``file_name``, and ``sem_seg_file_name`` where there is a label.
        format: order of the channels in the result.
        size: (H, W) of the label where that is known; otherwise it is read from the header of the label's file.

    Returns:
        (H, W, 3) uint8, of the size of its label. Without a label as stored; the log then says what was not applied.

    Raises:
        DataError: as `read_image`, the label has no header, or the sizes differ.
    """
    path, label_path = record["file_name"], record.get("sem_seg_file_name")
    image = read_image(path, format)
    if label_path is None:
        if (orientation := exif_orientation(path)) != 1:
            message = f"{path}: read as stored, without its EXIF orientation {orientation}"
            log_first_n(logging.WARNING, message, key="message")
        return image
    size = size or _size_in_header(label_path)
    if image.shape[:2] == size:
        return image
    turned = read_image(path, format, oriented=True)
    if turned.shape[:2] != size:
        (height, width), (label_height, label_width) = image.shape[:2], size
        raise SizeError(f"{path} is {width}x{height}, but its label {label_path} is {label_width}x{label_height}")
    return turned


def read_pair(
    record: Mapping[str, Any], label_space: LabelSpace, format: ChannelOrder = "RGB"
) -> tuple[np.ndarray, np.ndarray]:
    """Read the image and the label of one record (``file_name``, ``sem_seg_file_name``).

    Returns:
        image (H, W, 3) uint8 and label (H, W) uint8 train ids, of the same size.

    Raises:
        DataError: as `read_image_of` and `read_label`.
    """
    label = read_label(record["sem_seg_file_name"], label_space)
    height, width = label.shape
    return read_image_of(record, format, (height, width)), label


def exif_orientation(path: str) -> int:
    """1 to 8, what an EXIF entry says about turning a file once it is decoded; 1, as it is, where nothing does."""
    try:
        with Image.open(path) as image:  # reads the header only
            exif = Image.Exif()
            exif.load(image.info.get("exif", b""))
    except Exception:  # Pillow raises OSError, SyntaxError, ValueError, ... for damaged files: `read_image` names them
        return 1
    orientation = exif.get(ORIENTATION, 1)
    return orientation if orientation in range(1, 9) else 1


def has_header(path: str) -> bool:
    """Whether Pillow knows the file's kind and size."""
    try:
        with Image.open(path):
            return True
    except Exception:  # as above
        return False


def stored_size(data: bytes) -> tuple[int, int] | None:
    """(H, W) that the header of an encoded image states, as stored; None where there is no such header."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            return image.height, image.width
    except Exception:  # as above
        return None


def _size_in_header(path: str) -> tuple[int, int]:
    """(H, W) of a label file, of which nothing else is read."""
    try:
        with open(path, "rb") as file:
            header = file.read(PNG_HEADER)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    if len(header) < PNG_HEADER or not header.startswith(PNG):
        raise DataError(f"{path}: is not a PNG file, as labels are, or cut within its first {PNG_HEADER} bytes")
    return int.from_bytes(header[20:24], "big"), int.from_bytes(header[16:20], "big")


def _read_whole(path: str) -> bytes:
    """The bytes of an image file whose end is there: decoders may fill what is missing with grey, without a word."""
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    if not data:
        raise DataError(f"{path}: the file is empty (0 bytes)")
    if data.startswith(PNG) and data.rfind(b"IEND") < 0:
        raise DataError(f"{path}: the file is truncated (PNG without its end)")
    # The end of a thumbnail in the header does not count: picture data begin after it.
    if data.startswith(jpeg.START) and (end := data.rfind(jpeg.END)) < data.find(jpeg.SCAN, max(end, 0)):
        raise DataError(f"{path}: the file is truncated (JPEG without its end)")
    return data


def _decode(path: str, data: bytes, flags: int) -> np.ndarray:
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:
        raise DataError(f"{path}: cannot be decoded ({error.err})") from error
    if image is None:
        raise DataError(f"{path}: cannot be decoded (damaged or truncated, or no image)")
    return image


def _open(path: str, data: bytes) -> Image.Image:
    """The decoded image in Pillow, which keeps the indices of a palette file and knows when data are missing."""
    try:
        image = Image.open(io.BytesIO(data))
        image.load()
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, ValueError, ... for damaged files
        raise DataError(f"{path}: cannot be decoded ({type(error).__name__}: {error})".replace("\n", " ")) from error
    return image


def _index_ids(path: str, data: bytes, label_space: LabelSpace) -> np.ndarray:
    """(H, W) ids; (H, W, 3) RGB of a file in the colors of ``label_space``."""
    if not data.startswith(PNG) or len(data) < PNG_HEADER:
        raise DataError(f"{path}: is not a PNG file; labels are PNG files of ids, grey or palette")
    depth, color_type = data[24], data[25]  # of the header chunk, which always comes first
    if color_type in (GREY, PALETTE) and (plain := decode_plain(data, "GREY")) is not None:
        return plain
    image = _open(path, data)
    if color_type == PALETTE:
        colour = tuple((image.getpalette() or [])[6:9])  # of id 2
        if colour == label_space.other_version_color:
            raise UndefinedIdError(f"{path}: its palette has {colour} for id 2; {label_space.other_version}")
        return np.asarray(image)
    values = np.asarray(image)
    if color_type == GREY and depth < 8:  # Pillow has two values as bool, and stretches 4 and 16 to 0-255
        return values.astype(np.uint8) if depth == 1 else values // np.uint8(255 // (2**depth - 1))
    if color_type == GREY and depth == 8:
        return values
    if color_type == GREY and values.max() <= 255:
        return values.astype(np.uint8)
    if not label_space.label_files and depth == 8:
        colors, alpha = values[..., : 1 if color_type == GREY_ALPHA else 3], values[..., -1]
        if color_type == RGB or (alpha == 255).all():
            # Ids that a tool saved in several equal channels; an original is never so.
            if (colors == colors[..., :1]).all() and not _is_in_colors(path, colors, label_space):
                return np.ascontiguousarray(colors[..., 0])
            if label_space.colors and color_type != GREY_ALPHA:
                return colors
    kind = {GREY: "grey", RGB: "RGB", GREY_ALPHA: "grey with transparency", RGBA: "RGBA"}.get(color_type, "unknown")
    if label_space.label_files:
        reason = f"It holds instances or colors: take {label_space.label_files}"
    elif color_type == GREY:
        reason = f"It has values up to {values.max()}, and ids are 0-255: does it hold instances or depth?"
    else:
        reason = "Colours or transparency: give the classes colors, or make ids (docs/data.md: Masks in colours)"
    raise DataError(f"{path}: is a {depth}-bit {kind} PNG; labels are PNG files of ids, grey or palette. {reason}")


def _by_color(pixels: np.ndarray, label_space: LabelSpace) -> np.ndarray:
    """(H, W, 3) RGB -> (H, W) train ids, ``OUTSIDE`` where ``label_space.colors`` lacks the color."""
    table = sorted((r << 16 | g << 8 | b, train_id) for (r, g, b), train_id in label_space.colors.items())
    codes, train_ids = np.array(table).T
    values = pixels.astype(np.int64) @ (1 << 16, 1 << 8, 1)
    places = np.searchsorted(codes, values).clip(max=len(codes) - 1)
    return np.where(codes[places] == values, train_ids[places], OUTSIDE).astype(np.uint8)


def _of_colors(path: str, pixels: np.ndarray, label_space: LabelSpace) -> np.ndarray:
    label = _by_color(pixels, label_space)
    outside = label == OUTSIDE
    if outside.any():
        color = pixels[outside][0].tolist()
        raise UndefinedIdError(
            f"{path}: the color {color} is that of no class of {label_space.name}, or of several: write it into the "
            f"class list, as {{name: ..., color: {color}}}, of ignored pixels with the name ignore"
        )
    return label


def _is_in_colors(path: str, pixels: np.ndarray, label_space: LabelSpace) -> bool:
    """Whether an RGB file that is grey throughout holds colors of ``label_space``, not ids.

    Raises:
        DataError: it may hold either, which would mean different classes.
    """
    if pixels.shape[-1] == 1 or not any(len({*color}) == 1 for color in label_space.colors):
        return False
    by_color = _by_color(pixels, label_space)
    by_id = cv2.LUT(np.ascontiguousarray(pixels[..., 0]), label_space.lookup())
    if (by_color == OUTSIDE).any() or (by_color == by_id).all():
        return False
    if (by_id == OUTSIDE).any():
        return True
    raise DataError(
        f"{path}: is an RGB PNG of greys that are ids and colors of {label_space.name} as well: save it as a grey PNG "
        "of ids, or give the classes colors that are not grey"
    )


def _synthia_ids(path: str, data: bytes) -> np.ndarray:
    image = _decode(path, data, cv2.IMREAD_UNCHANGED)  # Pillow cannot decode 16-bit RGB
    if image.dtype != np.uint16 or image.ndim != 3 or image.shape[2] != 3:
        raise DataError(
            f"{path}: is {image.dtype} of shape {image.shape}; SYNTHIA's labels are 16-bit PNG with 3 channels "
            "(the folder GT/LABELS, not GT/COLOR)"
        )
    return image[:, :, 2]  # OpenCV has the channels in BGR order: the class is the red one


def _outside_message(path: str, ids: list[int], label_space: LabelSpace) -> str:
    shown = ", ".join(map(str, ids[:MAX_IDS_SHOWN])) + (", ..." if len(ids) > MAX_IDS_SHOWN else "")
    message = f"{path}: ids {shown} are not defined in {label_space.name}"
    return f"{message}; {label_space.other_version}" if label_space.other_version else message
