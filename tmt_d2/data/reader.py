"""Reader of images and labels for training, evaluation and checks.

Labels are returned as train ids. A file that is damaged, or holds an id that its data set does not define, is an error:
otherwise wrong pixels would be trained on or scored.
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

GRAY, RGB, PALETTE, GRAY_ALPHA, RGBA = 0, 2, 3, 4, 6  # kinds of color in a PNG header
PNG_HEADER = 26  # bytes up to the end of width, height, bit depth and kind of color
ORIENTATION = 0x0112  # EXIF tag
MAX_IDS_SHOWN = 5
LABEL_HINT = "labels are PNG files of ids, gray or palette"


class DataError(UserError):
    """A file or folder of a data set is wrong; the key is its path."""


class MissingDataError(DataError, FileNotFoundError):
    """A file or folder of a data set does not exist."""


UNREADABLE = (DataError, OSError, cv2.error)  # errors while reading a record


class SizeError(DataError):
    """The sizes of image and label differ."""


class UndefinedIdError(DataError):
    """A label file holds ids that its data set does not define, or defines otherwise."""


def read_image(path: str, format: ChannelOrder = "RGB", oriented: bool = False) -> np.ndarray:
    """Read an image of any format of OpenCV, as it is stored.

    ``read_image_of`` applies the EXIF orientation only if the image has a label and just the turned image has the
    label's size. The labels of most data sets belong to images as stored. Images without a label are read as stored,
    too, so that an image predicted alone equals the one in its data set.

    Args:
        format: order of the channels in the result.
        oriented: apply the EXIF orientation. (OpenCV and Pillow always apply that of TIFF files.)

    Returns:
        (H, W, 3) uint8, C-contiguous. Gray values are repeated, transparency is dropped.

    Raises:
        DataError: the file is missing, empty, truncated, damaged, or no image.
    """
    if format not in ("RGB", "BGR"):
        raise UserError("should be 'RGB' or 'BGR'", key="format", value=format)
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
    """Call ``jpeg.decode_jpeg`` and raise DataError where the file is damaged."""
    try:
        return jpeg.decode_jpeg(data, format, reduction)
    except jpeg.DamagedError as error:
        raise DataError(f"is damaged ({error})", key=path, hint="replace or remove it") from error


def read_label(path: str, label_space: LabelSpace) -> np.ndarray:
    """Read a label file and map its ids to train ids.

    Returns:
        (H, W) uint8 train ids, 255 = ignore.

    Raises:
        DataError: the file is missing, empty, truncated, or has another encoding than ``label_space``.
        UndefinedIdError: it holds an id or a color that ``label_space`` does not define, or has the palette of another
            version of the data set.
    """
    if label_space.train_id_suffix and str(path).endswith(label_space.train_id_suffix):
        label_space = TRAIN_IDS
    data = _read_whole(path)
    ids = _synthia_ids(path, data) if label_space.encoding == "synthia" else _index_ids(path, data, label_space)
    if ids.ndim == 3:
        return _train_ids_of_colors(path, ids, label_space)
    # No table defines id 255 of a 16-bit file, so 255 can represent all ids above it.
    label = cv2.LUT(ids if ids.dtype == np.uint8 else np.minimum(ids, 255).astype(np.uint8), label_space.lookup())
    outside = label == OUTSIDE
    if outside.any():
        undefined = np.unique(ids[outside]).tolist()
        shown = ", ".join(map(str, undefined[:MAX_IDS_SHOWN])) + (", ..." if len(undefined) > MAX_IDS_SHOWN else "")
        message = f"ids {shown} are not defined in {label_space.name}"
        raise UndefinedIdError(message, key=path, hint=label_space.other_version)
    return label


def read_image_of(
    record: Mapping[str, Any], format: ChannelOrder = "RGB", size: tuple[int, int] | None = None
) -> np.ndarray:
    """Read the image of one record, turned if just the turned image has the size of its label (see ``read_image``).

    Args:
        record: ``file_name``, and ``sem_seg_file_name`` where there is a label.
        format: order of the channels in the result.
        size: (H, W) of the label; None reads it from the header of the label's file.

    Returns:
        (H, W, 3) uint8, of the size of its label. Without a label as stored; an ignored orientation is logged.

    Raises:
        SizeError: the sizes of image and label differ.
        DataError: as ``read_image``, or the label has no header.
    """
    path, label_path = record["file_name"], record.get("sem_seg_file_name")
    image = read_image(path, format)
    if label_path is None:
        if (orientation := exif_orientation(path)) != 1:
            message = f"{path}: read as stored, EXIF orientation {orientation} is not applied"
            log_first_n(logging.WARNING, message, key="message")
        return image
    size = size or _size_in_header(label_path)
    if image.shape[:2] == size:
        return image
    turned = read_image(path, format, oriented=True)
    if turned.shape[:2] != size:
        (height, width), (label_height, label_width) = image.shape[:2], size
        message = f"is {width}x{height}, but its label {label_path} is {label_width}x{label_height}"
        raise SizeError(message, key=path)
    return turned


def read_pair(
    record: Mapping[str, Any], label_space: LabelSpace, format: ChannelOrder = "RGB"
) -> tuple[np.ndarray, np.ndarray]:
    """Read the image and the label of one record (``file_name``, ``sem_seg_file_name``).

    Returns:
        image (H, W, 3) uint8 and label (H, W) uint8 train ids, of the same size.

    Raises:
        DataError: as ``read_image_of`` and ``read_label``.
    """
    label = read_label(record["sem_seg_file_name"], label_space)
    height, width = label.shape
    return read_image_of(record, format, (height, width)), label


def exif_orientation(path: str) -> int:
    """Return the EXIF orientation, 1 to 8; 1 (as stored) if the file has none."""
    try:
        with Image.open(path) as image:  # reads the header only
            exif = Image.Exif()
            exif.load(image.info.get("exif", b""))
    except Exception:  # Pillow raises OSError, SyntaxError, ValueError, ... for damaged files
        return 1
    orientation = exif.get(ORIENTATION, 1)
    return orientation if orientation in range(1, 9) else 1


def stored_size(file: str | Path | bytes) -> tuple[int, int] | None:
    """Return (H, W), as stored, in the header of an image file, or of its bytes; None if it has none."""
    try:
        with Image.open(io.BytesIO(file) if isinstance(file, bytes) else file) as image:
            return image.height, image.width
    except Exception:  # as above
        return None


def _size_in_header(path: str) -> tuple[int, int]:
    """Return (H, W) in the header of a label file."""
    try:
        with open(path, "rb") as file:
            header = file.read(PNG_HEADER)
    except OSError as error:
        raise DataError(f"cannot be read ({error.strerror})", key=path) from error
    if len(header) < PNG_HEADER or not header.startswith(PNG):
        raise DataError("is no PNG file, or truncated", key=path)
    return int.from_bytes(header[20:24], "big"), int.from_bytes(header[16:20], "big")


def _read_whole(path: str) -> bytes:
    """Return the bytes of an image file that is not truncated: decoders may fill missing data with gray."""
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise DataError(f"cannot be read ({error.strerror})", key=path) from error
    if not data:
        raise DataError("is empty (0 bytes)", key=path)
    if data.startswith(PNG) and data.rfind(b"IEND") < 0:
        raise DataError("is truncated (PNG without its end)", key=path)
    if data.startswith(jpeg.START) and jpeg.end_of(data) < 0:
        raise DataError("is truncated (JPEG without its end)", key=path)
    return data


def _decode(path: str, data: bytes, flags: int) -> np.ndarray:
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:
        raise DataError(f"cannot be decoded ({error.err})", key=path) from error
    if image is None:
        raise DataError("cannot be decoded (damaged or truncated, or no image)", key=path)
    return image


def open_image(path: str, data: bytes) -> Image.Image:
    """Decode an image by Pillow, which keeps palette indices and reports missing data."""
    try:
        image = Image.open(io.BytesIO(data))
        image.load()
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, ValueError, ... for damaged files
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise DataError(f"cannot be decoded ({reason})", key=path) from error
    return image


def _index_ids(path: str, data: bytes, label_space: LabelSpace) -> np.ndarray:
    """Return (H, W) ids, or (H, W, 3) RGB of a file in the colors of ``label_space``."""
    if not data.startswith(PNG) or len(data) < PNG_HEADER:
        raise DataError("is no PNG file", key=path, hint=LABEL_HINT)
    depth, color_type = data[24], data[25]  # of the header chunk, which always comes first
    is_plain = color_type == GRAY or (color_type == PALETTE and not label_space.colors)
    if is_plain and (plain := decode_plain(data, "GRAY")) is not None:
        return plain
    image = open_image(path, data)
    if color_type == PALETTE:
        palette = np.array(image.getpalette() or [], np.uint8).reshape(-1, 3)
        color = tuple(palette[2:3].flatten().tolist())  # of id 2
        if color == label_space.other_version_color:
            raise UndefinedIdError(f"its palette has {color} for id 2", key=path, hint=label_space.other_version)
        indices = np.asarray(image)
        return palette[indices] if _has_palette_of_colors(path, indices, palette, label_space) else indices
    values = np.asarray(image)
    if color_type == GRAY and depth < 8:  # Pillow has two values as bool, and stretches 4 and 16 to 0-255
        return values.astype(np.uint8) if depth == 1 else values // np.uint8(255 // (2**depth - 1))
    if color_type == GRAY and depth == 8:
        return values
    if color_type == GRAY and values.max() <= 255:
        return values.astype(np.uint8)
    if not label_space.label_files and depth == 8:
        colors, alpha = values[..., : 1 if color_type == GRAY_ALPHA else 3], values[..., -1]
        if color_type == RGB or (alpha == 255).all():
            # Some tools save ids in several equal channels; files of the five data sets never are.
            gray = np.ascontiguousarray(colors[..., 0])
            is_gray = (colors == gray[..., None]).all()
            may_be_colors = colors.shape[-1] == 3 and any(len({*color}) == 1 for color in label_space.colors)
            if is_gray and not (may_be_colors and _is_in_colors(path, colors, gray, label_space)):
                return gray
            if label_space.colors and color_type != GRAY_ALPHA:
                return colors
    kind = {GRAY: "gray", RGB: "RGB", GRAY_ALPHA: "gray with transparency", RGBA: "RGBA"}.get(color_type, "unknown")
    if label_space.label_files:
        hint = f"it holds instances or colors: take {label_space.label_files}"
    elif color_type == GRAY:
        hint = f"it has values up to {values.max()}, and ids are 0-255"
    else:
        hint = f"{LABEL_HINT}; for masks in colors see docs/data.md"
    raise DataError(f"is a {depth}-bit {kind} PNG", key=path, hint=hint)


def ids_of_colors(pixels: np.ndarray, colors: Mapping[tuple[int, int, int], int]) -> np.ndarray:
    """Map (..., 3) RGB to (...) uint8 ids, ``OUTSIDE`` where ``colors`` lacks the color."""
    table = sorted((r << 16 | g << 8 | b, train_id) for (r, g, b), train_id in colors.items())
    codes, train_ids = np.array(table).T
    values = pixels.astype(np.int64) @ (1 << 16, 1 << 8, 1)
    places = np.searchsorted(codes, values).clip(max=len(codes) - 1)
    return np.where(codes[places] == values, train_ids[places], OUTSIDE).astype(np.uint8)


def _train_ids_of_colors(path: str, pixels: np.ndarray, label_space: LabelSpace) -> np.ndarray:
    label = ids_of_colors(pixels, label_space.colors)
    outside = label == OUTSIDE
    if outside.any():
        color = pixels[outside][0].tolist()
        raise UndefinedIdError(
            f"color {color} belongs to no class of {label_space.name}, or to several",
            key=path,
            hint=f"add {{name: ..., color: {color}}} to the class list, with the name ignore for ignored pixels",
        )
    return label


def _has_palette_of_colors(path: str, indices: np.ndarray, palette: np.ndarray, label_space: LabelSpace) -> bool:
    """Return True if a palette file holds colors of ``label_space``, in whatever order, and its indices are no ids.

    Raises:
        DataError: it can be read as either, with different results.
    """
    if not label_space.colors or len(palette) <= indices.max():
        return False
    used = np.flatnonzero(np.bincount(indices.ravel())).astype(np.uint8)  # far faster than np.unique
    undefined = (label_space.lookup()[used] == OUTSIDE).any()
    only_classes = (ids_of_colors(palette, label_space.colors) != OUTSIDE).all()
    return (undefined or only_classes) and _is_in_colors(path, palette[used][None], used[None], label_space)


def _is_in_colors(path: str, pixels: np.ndarray, ids: np.ndarray, label_space: LabelSpace) -> bool:
    """Return True if a file that has colors (H, W, 3) RGB and ids (H, W) uint8 means colors of ``label_space``.

    Raises:
        DataError: it can be read as either, with different results.
    """
    by_color = ids_of_colors(pixels, label_space.colors)
    by_id = cv2.LUT(ids, label_space.lookup())
    if (by_color == OUTSIDE).any() or (by_color == by_id).all():
        return False
    if (by_id == OUTSIDE).any():
        return True
    raise DataError(
        f"holds both ids and colors of {label_space.name}, which mean different classes",
        key=path,
        hint="save it as a gray PNG of ids, or as RGB with classes whose colors are not gray",
    )


def _synthia_ids(path: str, data: bytes) -> np.ndarray:
    image = _decode(path, data, cv2.IMREAD_UNCHANGED)  # Pillow cannot decode 16-bit RGB
    if image.dtype != np.uint16 or image.ndim != 3 or image.shape[2] != 3:
        raise DataError(
            f"is {image.dtype} of shape {image.shape}",
            key=path,
            hint="labels of SYNTHIA are 16-bit PNG with 3 channels, in GT/LABELS, not GT/COLOR",
        )
    return image[:, :, 2]  # red: OpenCV has the channels in BGR order
