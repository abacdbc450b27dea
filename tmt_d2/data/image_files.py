"""Search for image files in a folder."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from tmt_d2.errors import UserError

logger = logging.getLogger(__name__)

IMAGES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".ppm"}


def image_files(folder: str | Path) -> tuple[list[Path], int]:
    """Return the images in ``folder`` and its subfolders, sorted by path, and the number of files left out.

    Links are followed, a folder that contains itself is entered once. Names that begin with a dot (``._x.png``,
    ``.ipynb_checkpoints/``) are left out. The case of a suffix does not matter. Unreadable folders are logged.

    Raises:
        UserError: there is no image.
    """
    images: list[Path] = []
    left_out, entered = 0, set()
    for top, folders, files in os.walk(folder, onerror=_warn, followlinks=True):
        real = os.path.realpath(top)
        if real in entered:
            folders.clear()
            continue
        entered.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in files:
            path = Path(top, name)
            if name.startswith(".") or path.suffix.lower() not in IMAGES or not path.is_file():
                left_out += 1
            else:
                images.append(path)
    if not images:
        raise UserError(f"has no image ({', '.join(sorted(IMAGES))})", key=folder)
    return sorted(images), left_out


def _warn(error: OSError) -> None:
    logger.warning("%s: left out, this folder cannot be read (%s)", error.filename, error.strerror)
