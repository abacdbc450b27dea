"""Sliding windows: where they lie, what covers what, and one window that is the whole image."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.config.config import CfgNode
from detectron2.evaluation import DatasetEvaluator
from torch import Tensor, nn
from torch.nn import functional as F

from tests.helpers.errors import refuses
from tmt_d2.evaluation import inference
from tmt_d2.evaluation.inference import MultiScaleFlip, SinglePass, SlidingWindow, build_inference
from tmt_d2.evaluation.semantic import evaluate_split, labels_at_size

CLASSES = 3


class Pointwise(nn.Module):
    """Scores that depend on each pixel alone, so that windows change nothing; notes what it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[tuple[tuple[int, int], tuple[int, int]]] = []

    def forward(self, batch: list[dict[str, Any]]) -> list[dict[str, Tensor]]:
        answers = []
        for item in batch:
            image = item["image"].float()
            size = (item.get("height", image.shape[1]), item.get("width", image.shape[2]))
            self.asked.append((tuple(image.shape[1:]), size))
            scores = torch.stack([image[0], 255 - image[1], image[2].sqrt() * 10])
            if size != tuple(image.shape[1:]):
                scores = F.interpolate(scores[None], size, mode="bilinear", align_corners=False)[0]
            answers.append({"sem_seg": scores})
        return answers


class LeftSide(nn.Module):
    """Scores that grow to the right whatever the image shows: mirrored and averaged, they are flat."""

    def forward(self, batch: list[dict[str, Any]]) -> list[dict[str, Tensor]]:
        item = batch[0]
        return [{"sem_seg": torch.arange(float(item["width"])).expand(CLASSES, item["height"], -1)}]


def smooth(height: int, width: int) -> Tensor:
    noise = torch.rand(1, 3, 5, 6, generator=torch.Generator().manual_seed(0)) * 255
    return F.interpolate(noise, (height, width), mode="bicubic", align_corners=False)[0].clamp(0, 255).byte()


@pytest.mark.parametrize("size", [(37, 53), (16, 16), (15, 90)])
@pytest.mark.parametrize("stride", [(16, 16), (11, 7)])
def test_windows_of_a_pointwise_model_equal_one_pass(size: tuple[int, int], stride: tuple[int, int]) -> None:
    item = {"image": smooth(*size)}
    (expected,) = Pointwise()([item])
    model = Pointwise()
    (result,) = SlidingWindow(model, (16, 16), stride)([item])
    assert torch.allclose(result["sem_seg"], expected["sem_seg"], atol=1e-3)
    assert all(shape[0] <= 16 and shape[1] <= 16 for shape, _ in model.asked)


def test_overlap_is_the_mean_by_hand() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.calls = 0

        def forward(self, batch: list[dict[str, Any]]) -> list[dict[str, Tensor]]:
            self.calls += 1
            return [{"sem_seg": torch.full((1, batch[0]["height"], batch[0]["width"]), float(self.calls))}]

    (result,) = SlidingWindow(Counting(), (1, 4), (1, 2))([{"image": torch.zeros(3, 1, 7)}])
    assert result["sem_seg"].flatten().tolist() == [1, 1, 1.5, 2, 2.5, 2.5, 3]  # windows at 0, 2 and 3


def test_output_size_is_followed() -> None:
    item = {"image": smooth(30, 40), "height": 60, "width": 81}
    for wrapped in (SinglePass(Pointwise()), SlidingWindow(Pointwise(), (16, 16), (8, 8))):
        assert wrapped([item])[0]["sem_seg"].shape == (CLASSES, 60, 81)
    assert MultiScaleFlip(Pointwise(), (30,), 99, False)([item])[0]["sem_seg"].shape == (CLASSES, 60, 81)


def test_one_unmirrored_scale_is_one_pass() -> None:
    item = {"image": smooth(30, 40)}
    (expected,) = Pointwise()([item])
    (result,) = MultiScaleFlip(Pointwise(), (30,), 99, flip=False)([item])
    assert torch.allclose(result["sem_seg"], expected["sem_seg"], atol=1e-3)


def test_scales_and_mirrors_are_asked_for() -> None:
    model = Pointwise()
    (result,) = MultiScaleFlip(model, (15, 30, 60), 70, flip=True)([{"image": smooth(30, 40)}])
    assert [shape for shape, _ in model.asked] == [(15, 20)] * 2 + [(30, 40)] * 2 + [(53, 70)] * 2
    assert {size for _, size in model.asked} == {(30, 40)}
    (expected,) = Pointwise()([{"image": smooth(30, 40)}])
    assert (result["sem_seg"] - expected["sem_seg"]).abs().mean() < 3


def test_mirror_images_are_turned_back() -> None:
    item = {"image": torch.zeros(3, 4, 9)}
    (both,) = MultiScaleFlip(LeftSide(), (4,), 99, flip=True)([item])
    assert torch.allclose(both["sem_seg"], torch.full((CLASSES, 4, 9), 4.0))
    (one,) = MultiScaleFlip(LeftSide(), (4,), 99, flip=False)([item])
    assert one["sem_seg"].std() > 1  # negative control


@pytest.mark.parametrize(
    "wrap",
    [SinglePass, lambda m: SlidingWindow(m, (24, 24), (16, 16)), lambda m: MultiScaleFlip(m, (46,), 200, True)],
    ids=["single", "window", "scales"],
)
def test_large_outputs_come_as_labels_and_no_large_scores_are_asked_for(
    monkeypatch: pytest.MonkeyPatch, wrap: Any
) -> None:
    item = {"image": smooth(46, 61), "height": 92, "width": 122}
    (full,) = Pointwise()([item])
    expected = full["sem_seg"].argmax(0)
    monkeypatch.setattr(inference, "MAX_SCORE_PIXELS", 46 * 61 // 3)
    model = Pointwise()
    (result,) = wrap(model)([item])
    assert "sem_seg" not in result
    assert result["sem_seg_labels"].shape == (92, 122)
    assert all(h * w <= 46 * 61 // 3 for _, (h, w) in model.asked)
    assert (result["sem_seg_labels"].long() == expected).float().mean() > 0.95


def test_large_output_of_a_small_input_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    item = {"image": smooth(20, 30), "height": 77, "width": 91}
    (full,) = Pointwise()([item])
    monkeypatch.setattr(inference, "MAX_SCORE_PIXELS", 600)
    (result,) = SinglePass(Pointwise())([item])
    (scores,) = Pointwise()([{"image": item["image"]}])
    assert torch.equal(result["sem_seg_labels"], labels_at_size(scores["sem_seg"], (77, 91)))
    assert (result["sem_seg_labels"].long() == full["sem_seg"].argmax(0)).float().mean() > 0.9999


@pytest.mark.parametrize("stride", [(17, 16), (16, 0)])
def test_stride_that_leaves_gaps_is_named(stride: tuple[int, int]) -> None:
    with refuses("TEST.SLIDING_WINDOW.STRIDE", stride):
        SlidingWindow(Pointwise(), (16, 16), stride)


def test_no_scale_is_named() -> None:
    with refuses("TEST.AUG.MIN_SIZES"):
        MultiScaleFlip(Pointwise(), (), 99, True)


def test_config_chooses_the_wrappers() -> None:
    cfg = get_cfg()
    cfg.TEST.PRECISION = "float32"
    cfg.TEST.SLIDING_WINDOW = CfgNode({"ENABLED": False, "SIZE": [16, 16], "STRIDE": [8, 8]})
    model = Pointwise()
    assert type(build_inference(cfg, model)) is SinglePass
    cfg.TEST.SLIDING_WINDOW.ENABLED = True
    assert type(build_inference(cfg, model)) is SlidingWindow
    cfg.TEST.AUG.ENABLED = True
    wrapped = build_inference(cfg, model)
    assert type(wrapped) is MultiScaleFlip
    assert type(wrapped.model) is SlidingWindow
    assert wrapped.eval().model.model is model and not model.training


def test_an_evaluation_leaves_every_part_in_its_mode() -> None:
    """A teacher is in evaluation mode while the run it belongs to trains, and a wrapper begins in training mode."""

    class Idle(DatasetEvaluator):
        def reset(self) -> None: ...

        def process(self, inputs: Any, outputs: Any) -> None: ...

    model = nn.Sequential(nn.Dropout(), nn.Sequential(nn.Dropout()))
    for mode, inner in ((False, False), (True, False), (True, True)):
        model.train(mode)[1].train(inner)
        evaluate_split(SinglePass(model), [], Idle())
        assert [part.training for part in model.modules()] == [mode, mode, inner, inner]
