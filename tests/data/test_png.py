"""PNG files of every kind, whole and damaged: with kornia-rs they are read as without it, or end in the same error."""

from __future__ import annotations

import io
import itertools
import random
import re
import zlib
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, ImageCms
from PIL.PngImagePlugin import PngInfo

from tests.helpers.fuzz import mutate
from tmt_d2.data import png, reader
from tmt_d2.data.datasets.label_spaces import LabelSpace
from tmt_d2.data.png import END, SIGNATURE
from tmt_d2.data.reader import DataError, read_image, read_label

ANY_ID = LabelSpace("any", {value: value % 19 for value in range(255)}, frozenset({255}))
READS = (read_image, lambda path: read_image(path, "BGR"), lambda path: read_label(path, ANY_ID))
PICTURE = (np.random.default_rng(0).integers(-3, 4, (37, 53, 3)).cumsum(0) + 128).astype(np.uint8)
GRAY = PICTURE[:, :, 0]


def stored(picture: np.ndarray | Image.Image = PICTURE, **options: object) -> bytes:
    buffer = io.BytesIO()
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    image.save(buffer, "PNG", **options)
    return buffer.getvalue()


def chunk(name: bytes, content: bytes = b"") -> bytes:
    return len(content).to_bytes(4, "big") + name + content + zlib.crc32(name + content).to_bytes(4, "big")


def with_chunk(name: bytes, content: bytes = b"", picture: np.ndarray = PICTURE) -> bytes:
    whole = stored(picture)
    return whole[:33] + chunk(name, content) + whole[33:]


def built(depth: int, color: int, rows: bytes, interlaced: int = 0, parts: int = 1) -> bytes:
    """A file of 5 x 3 pixels. rows: what is compressed; parts: the IDAT chunks that it is in."""
    header = (5).to_bytes(4, "big") + (3).to_bytes(4, "big") + bytes((depth, color, 0, 0, interlaced))
    data = zlib.compress(rows)
    ends = [len(data) * part // parts for part in range(parts + 1)]
    pieces = [chunk(b"IDAT", data[start:end]) for start, end in itertools.pairwise(ends)]
    return SIGNATURE + chunk(b"IHDR", header) + b"".join(pieces) + END


def text(compressed: bool) -> PngInfo:
    info = PngInfo()
    info.add_text("Comment", "a street " * 9, zip=compressed)
    return info


def rows(bytes_in_a_row: int, seed: int = 1) -> bytes:
    """Rows of random filters, with values that wrap around."""
    chance = random.Random(seed)
    return b"".join(bytes((chance.randrange(5),)) + chance.randbytes(bytes_in_a_row) for _ in range(3))


SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
PLAIN = {
    "RGB": stored(),
    "gray": stored(GRAY),
    "by OpenCV": cv2.imencode(".png", PICTURE)[1].tobytes(),
    "not compressed": stored(compress_level=0),
    "gamma": with_chunk(b"gAMA", (45455).to_bytes(4, "big")),
    "gamma 1": with_chunk(b"gAMA", (100000).to_bytes(4, "big"), GRAY),
    "sRGB": with_chunk(b"sRGB", b"\0"),
    "5 significant bits": with_chunk(b"sBIT", b"\5\5\5"),
    "text": stored(pnginfo=text(False), dpi=(72, 72)),
    "of 7 parts": built(8, 2, rows(15), parts=7),
    "gray, every filter": built(8, 0, rows(5)),
    "on its side": stored(exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"),
}
OTHERS = {
    "palette": stored(Image.fromarray(GRAY).convert("P")),
    "palette of 4 bits": stored(Image.fromarray(GRAY).quantize(16), bits=4),
    "1 bit": stored(Image.fromarray(GRAY > 128)),
    "RGBA": stored(np.dstack([PICTURE, GRAY])),
    "gray with transparency": stored(Image.fromarray(PICTURE).convert("LA")),
    "16 bits": stored(GRAY.astype(np.uint16) * 250),
    "16 bits, RGB": built(16, 2, rows(30)),
    "interlaced": built(8, 2, bytes(52), interlaced=1),
    "a transparent color": with_chunk(b"tRNS", b"\0\x80" * 3),
    "a transparent gray": with_chunk(b"tRNS", b"\0\x80", GRAY),
    "ICC": stored(icc_profile=SRGB),
    "compressed text": stored(GRAY, pnginfo=text(True)),
    "animated": stored(save_all=True, append_images=[Image.fromarray(255 - PICTURE)]),
    "a color palette in RGB": with_chunk(b"PLTE", bytes(30)),
    "unknown chunk": with_chunk(b"abCd", b"x"),
    "bytes behind its end": stored() + b"more",
    "two": stored() + stored(255 - PICTURE),
}
DAMAGED = {
    "cut": stored()[:1000],
    "cut, with an end": stored()[:1000] + END,
    "without its last bytes": stored()[:-4],
    "without image data": stored()[:33] + END,
    "too few rows": built(8, 2, rows(15)[:20]),
    "no such filter": built(8, 2, b"\x07" * 48),
    "no header": SIGNATURE + stored()[33:],
    "two headers": stored()[:33] + stored()[8:],
    "an unknown chunk that must be known": with_chunk(b"ABCD"),
    "a wrong checksum": stored()[:200] + bytes((stored()[200] ^ 1,)) + stored()[201:],
    "a length beyond the file": stored()[:33] + b"\0\0\xff" + stored()[36:],
    "a size beyond memory": SIGNATURE + chunk(b"IHDR", b"\x7f" * 8 + b"\x08\x02\0\0\0") + stored()[33:],
    "no width": SIGNATURE + chunk(b"IHDR", bytes(7) + b"\x05\x08\x02\0\0\0") + stored()[33:],
}


def outcome(read: Callable[[str], np.ndarray], path: Path) -> np.ndarray | str:
    try:
        return read(str(path))
    except DataError as error:
        return re.sub(" at 0x[0-9a-f]+", "", str(error))  # Pillow names an object by its address


@pytest.fixture
def same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[bytes], tuple[int, int]]:
    """How many of the ways of reading a file succeed, and for how many of these kornia-rs is used."""
    pytest.importorskip("kornia_rs")
    answers: list[bool] = []

    def decode(*args: object) -> np.ndarray | None:
        image = png.decode_plain(*args)  # type: ignore[arg-type]
        answers.append(image is not None)
        return image

    def compare(data: bytes) -> tuple[int, int]:
        path = tmp_path / "file.png"
        path.write_bytes(data)
        answers.clear()
        monkeypatch.setattr(reader, "decode_plain", decode)
        ours = [outcome(read, path) for read in READS]
        monkeypatch.setattr(reader, "decode_plain", lambda *_: None)
        for with_it, without in zip(ours, (outcome(read, path) for read in READS), strict=True):
            assert np.array_equal(with_it, without)
            if isinstance(with_it, np.ndarray):
                assert with_it.dtype == np.uint8 and with_it.flags.c_contiguous and with_it.flags.writeable
        return sum(isinstance(one, np.ndarray) for one in ours), sum(answers)

    return compare


@pytest.mark.parametrize("kind", PLAIN)
def test_plain_files_are_read_by_kornia_and_equal(kind: str, same: Callable[[bytes], tuple[int, int]]) -> None:
    gray = PLAIN[kind][25] == 0
    assert same(PLAIN[kind]) == ((3, 1) if gray else (2, 2))  # a gray image is a label, too


@pytest.mark.parametrize("kind", OTHERS)
def test_other_files_are_left_to_opencv_and_pillow(kind: str, same: Callable[[bytes], tuple[int, int]]) -> None:
    read, by_kornia = same(OTHERS[kind])
    assert read >= 2 and not by_kornia


@pytest.mark.parametrize("kind", DAMAGED)
def test_damaged_files_end_in_the_same_error(kind: str, same: Callable[[bytes], tuple[int, int]]) -> None:
    _, by_kornia = same(DAMAGED[kind])
    assert not by_kornia


def test_mutated_files_are_read_alike_or_end_in_the_same_error(same: Callable[[bytes], tuple[int, int]]) -> None:
    chance = random.Random(0)
    counts = [same(mutate(chance.choice([*PLAIN.values()]), chance)) for _ in range(300)]
    assert any(by_kornia for _, by_kornia in counts) and any(read == 0 for read, _ in counts)


def test_without_kornia_nothing_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(png, "decode_image_png_u8", None)
    assert png.decode_plain(stored(), "RGB") is None
