"""Images of the page: examples on disk, and uploads, which are not trusted."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
from PIL import Image

from tmt_d2.data.reader import read_image
from tmt_d2.errors import UserError
from tmt_d2.visualization.sizes import shrink

MAX_MEGABYTES = 25
MAX_MEGAPIXELS = 40
EXAMPLES = 8


def find_examples(folder: Path) -> list[Path]:
    """Return a few validation images of the data sets below ``folder``, Cityscapes last."""
    files = [path for path in folder.rglob("*") if path.suffix in (".jpg", ".png") and "val" in path.parts]
    images = [path for path in files if not {"labels", "gtFine", "masks"} & set(path.parts)]
    return sorted(images, key=lambda path: ("cityscapes" in path.parts, path.name))[:EXAMPLES]


def read_upload(path: Path) -> np.ndarray:
    """Return an uploaded photo (H, W, 3) uint8 RGB, at most ``LONGEST`` on the longer side.

    Its EXIF orientation is applied, unlike in data sets: the user clicks at the photo as it is seen elsewhere.

    Raises:
        UserError: the file is too large or no image; key is its name without the folder.
    """
    megabytes = path.stat().st_size / 2**20
    if megabytes > MAX_MEGABYTES:
        raise UserError(f"{megabytes:.1f} MB, the limit is {MAX_MEGABYTES} MB", key=path.name)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            width, height = Image.open(path).size  # reads the header only
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError("not a readable image (PNG, JPEG, WebP, TIFF, BMP)", key=path.name) from error
    megapixels = width * height / 10**6
    if megapixels > MAX_MEGAPIXELS:
        size = f"{width}x{height}, {megapixels:.1f} megapixels"
        raise UserError(f"{size}, the limit is {MAX_MEGAPIXELS}", key=path.name)
    try:
        return shrink(read_image(str(path), oriented=True))
    except UserError as error:
        raise UserError("the file is damaged", key=path.name) from error
