"""JPEG decoder by simplejpeg: the pixels of OpenCV and Pillow, but damaged data are an error."""

from __future__ import annotations

import re
from typing import Literal

import numpy as np
import simplejpeg

START = b"\xff\xd8\xff"
SCAN, END = b"\xff\xda", b"\xff\xd9"  # neither occurs within image data
MAX_PIXELS = 2**30  # OpenCV's limit, for damaged headers
DAMAGED = ("Corrupt JPEG data", "Premature end of JPEG file")  # beginnings of libjpeg's warnings about image data
PADDING = re.compile(r"Corrupt JPEG data: (\d+) extraneous bytes before marker 0xd9")


class DamagedError(ValueError):
    """Image data are missing or wrong."""


def decode_jpeg(data: bytes, order: Literal["RGB", "BGR"], reduction: int = 1) -> np.ndarray | None:
    """Decode a JPEG file as it is stored.

    Args:
        data: bytes of any file.
        reduction: 1, 2, 4 or 8; decode at 1 / ``reduction`` of the size, rounded up.

    Returns:
        (H, W, 3) uint8, C-contiguous; None if the file is no JPEG, or one that simplejpeg does not support.

    Raises:
        DamagedError: the image data are damaged.
    """
    if not data.startswith(START):
        return None
    try:
        height, width = simplejpeg.decode_jpeg_header(data)[:2]
        if height * width > MAX_PIXELS:
            return None
        least = {"min_height": -(-height // reduction), "min_width": -(-width // reduction)} if reduction > 1 else {}
        options = {"colorspace": order, "fastdct": False, "fastupsample": False, **least}
        try:
            return simplejpeg.decode_jpeg(data, **options)
        except ValueError as error:
            if not _is_padded(data, str(error)):
                raise
            return simplejpeg.decode_jpeg(data, **options, strict=False)
    except ValueError as error:
        if str(error).startswith(DAMAGED):
            raise DamagedError(str(error)) from error
        return None


def _is_padded(data: bytes, message: str) -> bool:
    """Return True if the only damage is equal bytes between image data and end, as some cameras write them."""
    match = PADDING.fullmatch(message)
    end = end_of(data)
    return match is not None and len(set(data[end - int(match[1]) : end])) == 1


def end_of(data: bytes) -> int:
    """Return where the end marker of a JPEG file's image is; -1 if it is missing.

    The end of a thumbnail does not count, which lies in the header, nor that of data that follow the image.
    """
    at = len(START) - 1
    while data[at : at + 1] == b"\xff":
        if data.startswith(SCAN, at):
            return data.find(END, at)
        fill = data[at + 1 : at + 2] == b"\xff"
        at += 1 if fill else 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return -1 if at >= len(data) else data.rfind(END)  # a damaged header is left to the decoder
