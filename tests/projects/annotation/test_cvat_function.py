"""Shapes for CVAT's auto-annotation, and with CVAT's SDK the function that its command line loads."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from tests.helpers.errors import refuses
from tests.helpers.small_runs import exif
from tmt_d2.inference import Predictor
from tmt_d2.projects.annotation import cvat_function
from tmt_d2.projects.annotation.cvat_function import DetectionFunction, mask_points, shapes_of

LABELS = np.array([[3, 3, 255, 3], [3, 0, 0, 0], [3, 0, 0, 0]], np.uint8)


def test_points_by_hand() -> None:
    assert mask_points(np.array([[True, False], [True, True]]), 5, 7) == [0, 1, 1, 2, 5, 7, 6, 8]
    assert mask_points(np.array([[False, True]]), 0, 0) == [1, 1, 0, 0, 1, 0]
    assert mask_points(np.ones((2, 3), bool), 1, 0) == [0, 6, 1, 0, 3, 1]


def test_regions_by_hand() -> None:
    by_hand = [(0, [0, 6, 1, 1, 3, 2]), (3, [0, 3, 1, 1, 1, 0, 0, 1, 2]), (3, [0, 1, 3, 0, 3, 0])]
    assert list(shapes_of(LABELS, np.ones(LABELS.shape))) == by_hand
    assert not list(shapes_of(np.full((4, 5), 255, np.uint8), np.ones((4, 5))))


def test_confidence_is_checked() -> None:
    with refuses("confidence", "1.5"):
        cvat_function.create("", "", confidence="1.5")


def test_regions_lie_on_the_image_as_cvat_shows_it(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((4, 6, 3), np.uint8)).save(tmp_path / "a.png", exif=exif(6))

    def predict(image: Image.Image) -> SimpleNamespace:
        size = image.size[::-1]
        return SimpleNamespace(labels=torch.zeros(size, dtype=torch.uint8), confidence=lambda: torch.ones(size))

    predict.classes = SimpleNamespace(names=())  # type: ignore[attr-defined]
    sdk = SimpleNamespace(DetectionFunctionSpec=dict, mask=lambda index, points: points)
    context = SimpleNamespace(conf_threshold=None, conv_mask_to_poly=False)
    with Image.open(tmp_path / "a.png") as image:
        (points,) = DetectionFunction(predict, 0.0, sdk).detect(context, image)  # type: ignore[arg-type]
    assert points == [0, 24, 0, 0, 3, 5]  # one run, in a box of four columns and six rows


@pytest.mark.slow
def test_the_function_with_the_sdk(model_files: Path) -> None:
    """The function is loaded as cvat-cli does it: from the file, outside of its package."""
    pytest.importorskip("cvat_sdk")
    from cvat_sdk.auto_annotation import DetectionFunctionSpec
    from cvat_sdk.masks import decode_mask

    spec = importlib.util.spec_from_file_location("__cvat_function__", cvat_function.__file__)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    files = {"config": str(model_files / "tmt.yaml"), "weights": str(model_files / "tmt.pth")}
    function = module.create(**files, confidence=0.0)
    predictor = Predictor.from_config(*files.values())
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (45, 70, 3), np.uint8))
    prediction = predictor(image)
    expected, confidence = prediction.labels.numpy(), prediction.confidence().numpy()
    assert isinstance(function.spec, DetectionFunctionSpec)
    assert [(each.id, each.name) for each in function.spec.labels] == [*enumerate(predictor.classes.names)]
    middle = float(np.median(confidence))
    for threshold, labels in ((None, expected), (middle, np.where(confidence >= middle, expected, 255))):
        shapes = function.detect(SimpleNamespace(conf_threshold=threshold, conv_mask_to_poly=False), image)
        painted = np.full((45, 70), 255, np.uint8)
        for shape in shapes:
            assert (shape.type.value, shape.frame) == ("mask", 0)
            painted[decode_mask(shape.points, image_width=70, image_height=45)] = shape.label_id
        assert np.array_equal(painted, labels)
    outlines = function.detect(SimpleNamespace(conf_threshold=None, conv_mask_to_poly=True), image)
    assert {shape.type.value for shape in outlines} == {"polygon"}
