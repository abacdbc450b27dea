"""Comparison of models on the page of a round."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
from PIL import Image

from tmt_d2.data.class_lists import ClassList
from tmt_d2.projects.loop.estimator import Measured
from tmt_d2.projects.loop.page import class_changes, curve, write_page
from tmt_d2.projects.loop.project import Project
from tmt_d2.projects.loop.state import ModelStatus


@pytest.mark.parametrize("size", [(6, 4000), (4000, 1), (1, 1)])
def test_a_thin_image_is_on_the_page(tmp_path: Path, size: tuple[int, int]) -> None:
    Image.fromarray(np.zeros((*size, 3), np.uint8)).save(tmp_path / "a.png")
    classes = SimpleNamespace(classes=ClassList(("road",), ((1, 2, 3),)))
    project = SimpleNamespace(files={"a.png": str(tmp_path / "a.png")}, classes=lambda: classes, models=list)
    write_page(cast(Project, project), tmp_path / "round.html", {"a.png": tmp_path / "none"}, [], "Round")
    assert "<img" in (tmp_path / "round.html").read_text()


def measured(value: float) -> Measured:
    return Measured(value, value - 1, value + 1)


def model(number: int, measured_miou: float | None, estimated_miou: float | None) -> ModelStatus:
    """A model of one class, as accurate as the mean."""
    return ModelStatus(
        number,
        labels=5 * number,
        measured=None if measured_miou is None else measured(measured_miou),
        estimated=None if estimated_miou is None else measured(estimated_miou),
        measured_iou={} if measured_miou is None else {"road": measured(measured_miou)},
        estimated_iou={} if estimated_miou is None else {"road": estimated_miou},
    )


@pytest.mark.parametrize(
    ("values", "kind", "numbers", "cells"),
    [
        ([(40, 30), (45, 31), (50, 29)], "measured", (1, 2), ("road", "45.0 (44.0-46.0)", "50.0 (49.0-51.0)", "+5.0")),
        ([(40, 30.0), (45, 31.0), (None, 29.0)], "estimated", (1, 2), ("road", "31.0", "29.0", "-2.0")),
        (
            [(40, None), (45, None), (None, None)],
            "measured",
            (0, 1),
            ("road", "40.0 (39.0-41.0)", "45.0 (44.0-46.0)", "+5.0"),
        ),
    ],
)
def test_only_values_of_one_kind_are_compared(
    values: list[tuple[float | None, float | None]],
    kind: str,
    numbers: tuple[int, int],
    cells: tuple[str, ...],
) -> None:
    models = [model(number, *pair) for number, pair in enumerate(values)]
    changes = class_changes(models)
    assert changes and (changes.kind, changes.before, changes.model) == (kind, *numbers) and changes.rows == [cells]
    column = 0 if kind == "measured" else 1
    assert [text for *_, text in curve(models)] == [
        f"{pair[column]:.1f}" for pair in values if pair[column] is not None
    ]


def test_a_class_that_occurs_once_has_no_change() -> None:
    before, last = model(0, 40, None), model(1, 45, None)
    last.measured_iou["tent"] = measured(9)
    changes = class_changes([before, last])
    assert changes and changes.rows[1] == ("tent", "-", "9.0 (8.0-10.0)", "-")


def test_a_single_value_is_no_comparison() -> None:
    assert class_changes([]) is None and not curve([])
    assert class_changes([model(0, 40, None), model(1, None, None)]) is None
