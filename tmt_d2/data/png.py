"""Plain PNG files by kornia-rs (optional: pip install "tmt_d2[png]"), in half of the time of OpenCV and Pillow."""

from __future__ import annotations

from typing import Literal

import cv2
import numpy as np

try:
    from kornia_rs.io import decode_image_png_u8
except ImportError:
    decode_image_png_u8 = None  # type: ignore[assignment]

SIGNATURE = b"\x89PNG\r\n\x1a\n"
END = b"\x00\x00\x00\x00IEND\xaeB`\x82"
# What may stand before the picture: none of these changes a pixel in any decoder, or makes one refuse the file.
PLAIN = {b"IHDR", b"bKGD", b"cHRM", b"eXIf", b"gAMA", b"pHYs", b"sBIT", b"sRGB", b"tEXt", b"tIME"}
KINDS = {"GREY": b"\x08\x00\x00\x00\x00", "RGB": b"\x08\x02\x00\x00\x00", "BGR": b"\x08\x02\x00\x00\x00"}
MAX_SIDE = 2**13  # far below where one of the decoders refuses a picture for its size


def decode_plain(data: bytes, order: Literal["GREY", "RGB", "BGR"]) -> np.ndarray | None:
    """A picture of 8 bits, neither interlaced nor transparent, of which every pixel is what OpenCV and Pillow give.

    Args:
        data: of any file.
        order: GREY of grey files, RGB or BGR of those in colours; none is turned into the other.

    Returns:
        (H, W) or (H, W, 3) uint8, C-contiguous, as stored. None: kornia-rs is not installed, or it is another kind of
        file, or damaged in any way: ask another decoder, which says what is wrong. (A file whose checksums all fit, but
        for the one within its compressed data, which only a faulty writer can bring about, is read.)
    """
    if decode_image_png_u8 is None or not _is_plain(data, KINDS[order]):
        return None
    width, height = (int.from_bytes(data[start : start + 4], "big") for start in (16, 20))
    if not (0 < width <= MAX_SIDE and 0 < height <= MAX_SIDE):
        return None
    try:
        image = decode_image_png_u8(data, (height, width), "mono" if order == "GREY" else "rgb")
    except Exception:  # its only kind
        return None
    if order == "GREY":
        return image[:, :, 0]
    return cv2.cvtColor(image, cv2.COLOR_RGB2BGR) if order == "BGR" else image


def _is_plain(data: bytes, kind: bytes) -> bool:
    """Whether it is the header with this ``kind``, then chunks of ``PLAIN``, the picture without a gap, and the end."""
    if not data.startswith(SIGNATURE) or data[12:16] != b"IHDR" or data[24:29] != kind or not data.endswith(END):
        return False
    place, allowed, end = len(SIGNATURE), PLAIN, len(data) - len(END)
    while place < end:
        name = data[place + 4 : place + 8]
        if name == b"IDAT":
            allowed = {name}
        if name not in allowed or (name == b"IHDR") != (place == len(SIGNATURE)):
            return False
        place += 12 + int.from_bytes(data[place : place + 4], "big")  # length, name and checksum take 4 bytes each
    return place == end and name == b"IDAT"
