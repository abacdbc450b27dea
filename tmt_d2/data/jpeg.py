"""JPEG files by simplejpeg: the pixels of OpenCV and Pillow, which are silent about damaged data."""

from __future__ import annotations

import re
from typing import Literal

import numpy as np
import simplejpeg

START = b"\xff\xd8\xff"
SCAN, END = b"\xff\xda", b"\xff\xd9"  # neither can occur within image data
MAX_PIXELS = 2**30  # OpenCV's limit: a damaged header may state any size
DAMAGED = ("Corrupt JPEG data", "Premature end of JPEG file")  # how libjpeg's warnings about the image data begin
PADDING = re.compile(r"Corrupt JPEG data: (\d+) extraneous bytes before marker 0xd9")


class DamagedError(ValueError):
    """Image data are missing or wrong; decoders fill the rest with grey or other colors."""


def decode_jpeg(data: bytes, order: Literal["RGB", "BGR"], reduction: int = 1) -> np.ndarray | None:
    """Decode a JPEG as it is stored.

    Args:
        data: of any file.
        reduction: 1, 2, 4 or 8; decode at a fraction of the size, rounded up.

    Returns:
        (H, W, 3) uint8, C-contiguous. None: it is another kind of file, or one that only other decoders read.

    Raises:
        DamagedError: the file is a JPEG whose data are damaged.
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
    """Whether nothing is wrong but equal bytes between the image data and the end, as some cameras write them."""
    match = PADDING.fullmatch(message)
    end = data.rfind(END)
    return match is not None and len(set(data[end - int(match[1]) : end])) == 1
