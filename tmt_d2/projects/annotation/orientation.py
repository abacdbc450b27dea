"""Copies of images without their EXIF orientation, which annotation tools apply and data sets do not."""

from __future__ import annotations

import io
import shutil
import struct
import zlib
from pathlib import Path

from PIL import Image

from tmt_d2.data.png import SIGNATURE as PNG
from tmt_d2.data.reader import ORIENTATION, exif_orientation
from tmt_d2.errors import UserError

PREFIX = b"Exif\0\0"
SHORT = 3  # EXIF's number of a 16-bit value
ENTRY = 12  # bytes of a tag with its value


def copy_as_stored(file: str, copy: Path) -> None:
    """Copy an image; a tool shows the copy as it is stored. Nothing else of it changes, a JPEG is not encoded again.

    Raises:
        UserError: its EXIF orientation cannot be overwritten.
    """
    shutil.copyfile(file, copy)
    if (orientation := exif_orientation(file)) == 1:
        return
    copy.write_bytes(_as_stored(copy.read_bytes()))
    if exif_orientation(str(copy)) != 1:
        raise UserError(f"has EXIF orientation {orientation}", key=file, hint="remove the orientation from the image")


def _as_stored(data: bytes) -> bytes:
    """Return the bytes of an image whose EXIF orientation, where it has one, is 1."""
    with Image.open(io.BytesIO(data)) as image:
        block = image.info["exif"]
    while block.startswith(PREFIX):  # some writers repeat it
        block = block.removeprefix(PREFIX)
    order = "<" if block.startswith(b"II") else ">"
    (start,) = struct.unpack_from(f"{order}I", block, 4)
    (count,) = struct.unpack_from(f"{order}H", block, start)
    changed = bytearray(block)
    end = min(start + 2 + count * ENTRY, len(block) - ENTRY + 1)  # readers tolerate a count that is too large
    for place in range(start + 2, end, ENTRY):
        if struct.unpack_from(f"{order}H", block, place)[0] == ORIENTATION:
            struct.pack_into(f"{order}HHIHH", changed, place, ORIENTATION, SHORT, 1, 1, 0)
    if data.startswith(PNG):  # a chunk ends with the checksum of its name and content
        old, new = (each + zlib.crc32(b"eXIf" + each).to_bytes(4, "big") for each in (block, bytes(changed)))
        return data.replace(old, new, 1)
    return data.replace(block, bytes(changed), 1)
