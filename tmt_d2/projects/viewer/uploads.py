"""Images for the page: examples on disk, and uploads, which are not trusted."""

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
    """A few validation images of the data sets below ``folder``, those of the target (not Cityscapes) first."""
    files = [path for path in folder.rglob("*") if path.suffix in (".jpg", ".png") and "val" in path.parts]
    images = [path for path in files if not {"labels", "gtFine", "masks"} & set(path.parts)]
    return sorted(images, key=lambda path: ("cityscapes" in path.parts, path.name))[:EXAMPLES]


def read_upload(path: Path) -> np.ndarray:
    """(H, W, 3) uint8 RGB, at most LONGEST on the longer side; turned as its EXIF says, unlike files of a data set (see
    `tmt_d2.data.reader.read_image`): an upload is somebody's own photo, and is clicked at as that person sees it.

    Raises:
        UserError: too large, or no image; one line that names the file without its folder.
    """
    size = path.stat().st_size
    if size > MAX_MEGABYTES * 2**20:
        raise UserError(f"{path.name} has {size / 2**20:.1f} MB: the page takes at most {MAX_MEGABYTES} MB")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            width, height = Image.open(path).size  # reads the header only
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{path.name} is no image that can be read here (PNG, JPEG, WebP, TIFF, BMP)") from error
    if width * height > MAX_MEGAPIXELS * 10**6:
        raise UserError(
            f"{path.name} is {width}x{height}, {width * height / 10**6:.1f} megapixels: the page takes at most "
            f"{MAX_MEGAPIXELS}"
        )
    try:
        picture = read_image(str(path), oriented=True)
    except UserError as error:
        raise UserError(str(error).replace(str(path), path.name)) from error
    return shrink(picture)
