"""The page of a round: proposed images with their pre-labels, the hardest images, mIoU against labels, and classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from tmt_d2.data.reader import read_image
from tmt_d2.projects.loop.estimator import Measured
from tmt_d2.projects.loop.project import Project
from tmt_d2.projects.loop.state import ModelStatus, interval_text, known_models
from tmt_d2.utils.files import atomic_write
from tmt_d2.visualization.html import templates
from tmt_d2.visualization.overlays import label_overlay
from tmt_d2.visualization.sizes import shrink

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
        return shrink(pixels, THUMBNAIL)

    page = templates(__package__).get_template("round.html")
    groups = {"Proposed": [*prelabels], "Least certain": hardest}
    models = known_models(project)
    values = {
        "models": models,
        "points": curve(models),
        "changes": class_changes(models),
        "interval_text": interval_text,
    }
    with atomic_write(path, "w") as file:
        file.write(page.render(title=title, groups=groups, thumbnail=thumbnail, **values))


def comparable(models: Sequence[ModelStatus]) -> tuple[str, list[ModelStatus]]:
    """Return "measured" or "estimated", and the models with this mIoU: that of the newest model, measured if it can be.

    Measured and estimated values are not compared with each other.
    """
    kinds = [kind for kind in ("measured", "estimated") if models and getattr(models[-1], kind)]
    kind = kinds[0] if kinds else "measured"
    return kind, [model for model in models if getattr(model, kind)]


def curve(models: Sequence[ModelStatus]) -> list[tuple[float, float, str]]:
    """Return x, y in pixels and a text for each of the comparable models."""
    kind, known = comparable(models)
    most = max([model.labels for model in known], default=0) or 1
    width, height = WIDTH - 2 * MARGIN, HEIGHT - 2 * MARGIN
    points = []
    for model in known:
        miou = getattr(model, kind).value
        points.append((MARGIN + width * model.labels / most, MARGIN + height * (1 - miou / 100), f"{miou:.1f}"))
    return points


@dataclass(frozen=True)
class ClassChanges:
    """IoU of each class of the newest comparable model, and its change against the one before.

    Attributes:
        kind: "measured" or "estimated".
        model, before: numbers of the models; 0: the source model.
        rows: class, IoU of ``before``, IoU, and change, as text; "-" where the class does not occur.
    """

    kind: str
    model: int
    before: int
    rows: list[tuple[str, str, str, str]]


def class_changes(models: Sequence[ModelStatus]) -> ClassChanges | None:
    """Return None unless there are two comparable models."""
    kind, known = comparable(models)
    if len(known) < 2:
        return None
    earlier, last = known[-2:]
    old, new = (getattr(model, f"{kind}_iou") for model in (earlier, last))
    rows = []
    for name in dict.fromkeys([*old, *new]):
        is_in_both = name in old and name in new
        change = f"{_value(new[name]) - _value(old[name]):+.1f}" if is_in_both else "-"
        rows.append((name, *(_text(values.get(name)) for values in (old, new)), change))
    return ClassChanges(kind, last.number, earlier.number, rows)


def _value(iou: Measured | float) -> float:
    return iou.value if isinstance(iou, Measured) else iou


def _text(iou: Measured | float | None) -> str:
    return f"{iou:.1f}" if isinstance(iou, float) else interval_text(iou)
