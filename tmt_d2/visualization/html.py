"""HTML from templates: every value is escaped, and pictures are part of the page, which needs nothing else."""

from __future__ import annotations

import base64
from typing import Any

import cv2
import matplotlib
import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined

STOPS = 12  # of a gradient; more cannot be told apart


def templates(package: str, **names: Any) -> Environment:
    """What lies in the folder ``templates`` of a package. names: known in all of them, besides the functions below."""
    environment = Environment(
        loader=PackageLoader(package), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.globals.update(data_uri=data_uri, gradient=gradient, **names)
    return environment


def data_uri(picture: np.ndarray, quality: int = 88) -> str:
    """picture: (H, W, 3) uint8 RGB, as a JPEG."""
    encoded = cv2.imencode(".jpg", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    return "data:image/jpeg;base64," + base64.b64encode(encoded.tobytes()).decode()


def gradient(colour_map: str) -> str:
    """A Matplotlib colour map as a CSS gradient."""
    colours = (255 * matplotlib.colormaps[colour_map](np.linspace(0, 1, STOPS))[:, :3]).round().astype(int)
    return f"linear-gradient(to right, {', '.join(f'rgb{tuple(colour)}' for colour in colours.tolist())})"
