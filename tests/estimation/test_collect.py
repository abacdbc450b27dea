"""Samples of a model: its scores at the grid, in every way of testing, and a model that is left as it was."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from tests.helpers.errors import refuses
from tests.helpers.models import Build, make_records, tiny_cfg
from tmt_d2.data.datasets.registration import labeled_records, read_record_label
from tmt_d2.data.reader import read_image_of
from tmt_d2.estimation import collect as collect_module
from tmt_d2.estimation.collect import Collector, spread
from tmt_d2.estimation.sample import PixelSample, at_grid
from tmt_d2.inference.predictor import Predictor

WAYS: dict[str, dict[str, Any]] = {
    "one pass": {},
    "windows": {"TEST__SLIDING_WINDOW__ENABLED": True, "TEST__SLIDING_WINDOW__SIZE": (32, 48)}
    | {"TEST__SLIDING_WINDOW__STRIDE": (24, 32)},
    "scales": {"TEST__AUG__ENABLED": True, "TEST__AUG__MIN_SIZES": (32, 64)},
}


def pixels_of(size: tuple[int, int] = (37, 91)) -> np.ndarray:
    (record,) = make_records([size])
    return np.ascontiguousarray(record["image"].permute(1, 2, 0).numpy())


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("architecture", ["TransferableMaskFormer", "MaskFormer"])
def test_a_sample_is_the_prediction_at_the_grid(way: str, architecture: str, build_tiny: Build) -> None:
    cfg = tiny_cfg(INPUT__MIN_SIZE_TEST=0, **WAYS[way])
    sample = Collector(cfg, build_tiny(architecture))(pixels_of())
    predictor = Predictor(cfg, build_tiny(architecture, MODEL__TMT__OUTPUT_TRANSFERABILITY=True))
    prediction = predictor(pixels_of())
    expected = PixelSample.of_image(prediction.scores, prediction.transferability)
    assert torch.allclose(sample.probabilities, expected.probabilities, atol=1e-5)
    assert torch.equal(sample.predicted[0], at_grid(prediction.labels[None])[0].long())
    assert sample.truth is None and (sample.domain is None) == (architecture == "MaskFormer")
    if sample.domain is not None:
        assert expected.domain is not None and sample.domain.shape == (1, len(sample.predicted[0]), 3)
        assert torch.allclose(sample.domain, expected.domain, atol=1e-3)


def test_a_model_that_reads_bgr_gets_bgr(build_tiny: Build) -> None:
    model, pixels = build_tiny(), pixels_of()
    rgb, bgr = (Collector(tiny_cfg(INPUT__MIN_SIZE_TEST=0, INPUT__FORMAT=order), model) for order in ("RGB", "BGR"))
    assert torch.equal(bgr(pixels).probabilities, rgb(pixels[:, :, ::-1]).probabilities)
    assert not torch.allclose(bgr(pixels).probabilities, rgb(pixels).probabilities)


def test_ways_of_testing_differ(build_tiny: Build) -> None:
    model = build_tiny()
    samples = [Collector(tiny_cfg(INPUT__MIN_SIZE_TEST=0, **options), model)(pixels_of()) for options in WAYS.values()]
    assert not torch.allclose(samples[0].probabilities, samples[1].probabilities, atol=1e-5)
    assert not torch.allclose(samples[0].probabilities, samples[2].probabilities, atol=1e-5)


def test_a_single_pixel(build_tiny: Build) -> None:
    sample = Collector(tiny_cfg(INPUT__MIN_SIZE_TEST=64), build_tiny())(np.zeros((1, 1, 3), np.uint8))
    assert torch.allclose(sample.probabilities.sum(-1), torch.ones(()))


def test_the_model_stays_as_it_was(build_tiny: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build_tiny().train()
    model.backbone.eval()
    modes = [part.training for part in model.modules()]
    statistics = {name: value.clone() for name, value in model.named_buffers()}
    collect = Collector(tiny_cfg(INPUT__MIN_SIZE_TEST=0), model)
    first = collect(pixels_of())
    assert torch.equal(first.probabilities, collect(pixels_of()).probabilities)

    def fail(*_: Any) -> Any:
        raise RuntimeError

    with monkeypatch.context() as patch, pytest.raises(RuntimeError):
        patch.setattr(model, "postprocess", fail)
        collect(pixels_of())
    assert [part.training for part in model.modules()] == modes
    assert model.output_transferability is False
    assert all(torch.equal(value, statistics[name]) for name, value in model.named_buffers())


@pytest.mark.usefixtures("data_root")
def test_records_and_their_labels(build_tiny: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    collect = Collector(tiny_cfg(INPUT__MIN_SIZE_TEST=32), build_tiny("MaskFormer"))
    records = labeled_records(["cityscapes_sem_seg_train"])[:3]
    sample = collect.of_records(records)
    assert torch.equal(sample.probabilities[0], collect(read_image_of(records[0])).probabilities[0])
    labels = [at_grid(torch.from_numpy(read_record_label(record))[None])[0] for record in records]
    assert sample.truth is not None and torch.equal(sample.truth, torch.stack(labels))
    monkeypatch.setattr(collect_module, "read_record_label", lambda record: np.full((9, 9), 255, np.uint8))
    with refuses("cityscapes_sem_seg_train"):
        collect.of_records(records)
    blind = collect.of_records(records, with_labels=False)
    assert blind.truth is None and torch.equal(blind.probabilities, sample.probabilities)


def test_images_are_evenly_spread() -> None:
    records = [{"image_id": index} for index in range(11)]
    assert [each["image_id"] for each in spread(records, 3)] == [0, 5, 10]
    assert spread(records, 11) == spread(records, 99) == records
    assert all(len(spread(records, limit)) == limit for limit in range(1, 12))
