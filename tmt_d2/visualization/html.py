"""HTML from Jinja templates: values are escaped, and images are embedded as data URIs."""

from __future__ import annotations

import base64
from typing import Any

import cv2
import matplotlib
import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined

GRADIENT_STOPS = 12


def templates(package: str, **names: Any) -> Environment:
    """Return the templates in the folder ``templates`` of a package.

    Args:
        names: further globals of the templates, besides ``data_uri`` and ``gradient``.
    """
    environment = Environment(
        loader=PackageLoader(package), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.globals.update(data_uri=data_uri, gradient=gradient, **names)
    return environment


def data_uri(image: np.ndarray, quality: int = 88) -> str:
    """Encode an image (H, W, 3) uint8 RGB as a JPEG data URI."""
    encoded = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    return "data:image/jpeg;base64," + base64.b64encode(encoded.tobytes()).decode()


def gradient(color_map: str) -> str:
    """Return a Matplotlib color map as a CSS gradient."""
    colors = (255 * matplotlib.colormaps[color_map](np.linspace(0, 1, GRADIENT_STOPS))[:, :3]).round().astype(int)
    return f"linear-gradient(to right, {', '.join(f'rgb{tuple(color)}' for color in colors.tolist())})"
