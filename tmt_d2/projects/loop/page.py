"""The page of a round: proposed images with their pre-labels, the hardest images, and mIoU against labels."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from tmt_d2.data.reader import read_image
from tmt_d2.projects.loop.project import Project
from tmt_d2.projects.loop.state import ModelStatus, known_models
from tmt_d2.utils.files import atomic_write
from tmt_d2.visualization.html import templates
from tmt_d2.visualization.overlays import label_overlay

PAGE = "round.html"
THUMBNAIL = 320  # pixels, of the longest edge
WIDTH, HEIGHT, MARGIN = 480, 200, 30  # of the curve


def write_page(project: Project, path: Path, prelabels: Mapping[str, Path], hardest: list[str], title: str) -> None:
    """Write one self-contained HTML file.

    Args:
        prelabels: name of each proposed image -> file of its pre-labels, which need not exist.
        hardest: names of the images with the least certain predictions.
    """
    classes = project.classes().classes

    def thumbnail(name: str) -> np.ndarray:
        pixels = read_image(project.files[name], "RGB")
        file = prelabels.get(name)
        if file is not None and file.is_file():
            pixels = label_overlay(pixels, np.asarray(Image.open(file)), classes, 0.5)
        factor = THUMBNAIL / max(pixels.shape[:2])
        return cv2.resize(pixels, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA) if factor < 1 else pixels

    page = templates(__package__).get_template("round.html")
    groups = {"Proposed": [*prelabels], "Least certain": hardest}
    models = known_models(project)
    with atomic_write(path, "w") as file:
        file.write(page.render(title=title, groups=groups, thumbnail=thumbnail, models=models, points=curve(models)))


def curve(models: list[ModelStatus]) -> list[tuple[float, float, str]]:
    """Return x, y in pixels and a text for each model with a known mIoU: measured, or else estimated."""
    known = [(model.labels, value) for model in models if (value := model.measured or model.estimated)]
    most = max([labels for labels, _ in known], default=0) or 1
    width, height = WIDTH - 2 * MARGIN, HEIGHT - 2 * MARGIN
    return [
        (MARGIN + width * labels / most, MARGIN + height * (1 - value.value / 100), f"{value.value:.1f}")
        for labels, value in known
    ]
