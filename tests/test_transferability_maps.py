"""T made once of a whole picture and cropped with it, against the estimator that made it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch import Tensor

from tests.conftest import make_records
from tests.small_runs import small_cfg
from tmt_d2.data.augmentation import Crop
from tmt_d2.data.maps import STRIDES, TransferabilityMaps
from tmt_d2.data.reader import DataError
from tmt_d2.engine import run_stage
from tmt_d2.engine.drift import STEP_0
from tmt_d2.engine.transferability_maps import prepare_maps


@pytest.fixture
def record(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "i.png").write_bytes(b"a picture")
    return {"file_name": str(tmp_path / "i.png")}


def written(folder: Path, record: dict[str, str], size: tuple[int, int]) -> tuple[TransferabilityMaps, list[Tensor]]:
    maps = TransferabilityMaps(folder)
    levels = [torch.rand(-(-size[0] // stride), -(-size[1] // stride)) for stride in STRIDES]
    maps.write(record, levels, size)
    return maps, levels


def test_the_whole_picture_at_the_size_of_testing_has_the_whole_map(tmp_path: Path, record: dict[str, str]) -> None:
    size = (100, 230)
    maps, levels = written(tmp_path, record, size)
    whole = Crop((1000, 2300), size, 0, 0, *size)
    for level, cropped, mirrored in zip(levels, maps.crop(record, whole, False), maps.crop(record, whole, True)):
        assert torch.equal(cropped, level)
        assert mirrored.shape == level.shape


def test_mirrored_crops_are_mirrored_maps(tmp_path: Path, record: dict[str, str]) -> None:
    maps, levels = written(tmp_path, record, (96, 192))
    crop = Crop((96, 192), (96, 192), 32, 64, 64, 96)
    for level, stride, found in zip(levels, STRIDES, maps.crop(record, crop, True)):
        part = level[32 // stride : 96 // stride, 64 // stride : 160 // stride]
        assert torch.equal(found, part.flip(1))


def test_positions_of_an_enlarged_crop_by_hand(tmp_path: Path, record: dict[str, str]) -> None:
    """At twice the size, a crop from (64, 0): its positions of stride 32 lie at 80, 112, 128 + 11 = 139 of 200 rows."""
    maps, levels = written(tmp_path, record, (100, 100))
    found = maps.crop(record, Crop((50, 50), (200, 200), 64, 0, 86, 32), False)[0]
    rows = [int(80 / 2 / 32), int(112 / 2 / 32), int(139 / 2 / 32)]  # 1, 1, 2
    assert found.tolist() == [[levels[0][row, 0].item()] for row in rows]


def test_another_picture_under_the_name_has_another_map(tmp_path: Path, record: dict[str, str]) -> None:
    maps, _ = written(tmp_path, record, (64, 64))
    Path(record["file_name"]).write_bytes(b"another picture")
    assert not maps.path(record).is_file()
    with pytest.raises(DataError, match=r"transferability map of .*i\.png cannot be read"):
        maps.crop(record, Crop((64, 64), (64, 64), 0, 0, 64, 64), False)


def test_a_damaged_map_is_named(tmp_path: Path, record: dict[str, str]) -> None:
    maps, _ = written(tmp_path, record, (64, 64))
    path = maps.path(record)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DataError, match=path.name):
        maps.crop(record, Crop((64, 64), (64, 64), 0, 0, 64, 64), False)


def agreement(first: Tensor, second: Tensor) -> float:
    return float(spearmanr(first.flatten().numpy(), second.flatten().numpy()).statistic)


def unsettled(model: torch.nn.Module) -> torch.nn.Module:
    """Running statistics as of data unlike these images, as those of a source model are on the target."""
    generator = torch.Generator().manual_seed(0)
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            buffer.copy_(torch.randn(buffer.shape, generator=generator) * 0.3)
        if name.endswith("running_var"):
            buffer.copy_(torch.rand(buffer.shape, generator=generator) + 0.3)
    return model


@pytest.mark.parametrize("features", ["source", "live"])
def test_before_the_first_step_t_is_the_estimators_whatever_the_batch(features: str, build_tiny) -> None:
    changes = {"MODEL__TMT__FEATURES": features, "MODEL__MASK_FORMER__DROPOUT": 0.2}
    model = unsettled(build_tiny(**changes))
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 0.0  # running statistics move with training, and T of live features with them
    first, second, third = make_records([(64, 96)] * 3)

    def t_of(batch: list[dict[str, Any]]) -> list[Tensor]:
        images = model.preprocess(batch)
        encoded = model.encode(images)
        return [level.logits[0] for level in model.transferability_of(images, encoded)]

    with torch.no_grad():
        measured = t_of([first])
        model.train()
        for batch in ([first], [first, second], [first, third]):
            for before, now in zip(measured, t_of(batch)):
                assert agreement(before, now) >= 0.99
        assert model.backbone.training and model.sem_seg_head.pixel_decoder.training  # as it was
        images = model.preprocess([first, second])
        levels = model.encode(images).levels  # as they were used before: batch statistics and dropout
        old = [level.logits[0] for level in model.transferability(levels, None)]
    assert min(agreement(before, now) for before, now in zip(measured, old)) < 0.95


def test_a_backbone_that_training_does_not_change_is_not_run_twice(build_tiny, monkeypatch) -> None:
    model = build_tiny(
        MODEL__TMT__FEATURES="live", MODEL__RESNETS__NORM="FrozenBN", MODEL__MASK_FORMER__DROPOUT=0.0
    ).train()
    calls = []
    forward = model.backbone.forward
    monkeypatch.setattr(model.backbone, "forward", lambda x: calls.append(1) or forward(x))
    model(make_records())
    assert len(calls) == 1


def tmt(output: Path, start: Path, **changes: Any):
    values = {"DATASETS__SOURCE_TEST": ("cityscapes_sem_seg_val",)} | changes
    return small_cfg("tmt", output, start, **values)


@pytest.mark.usefixtures("data_root")
def test_maps_are_what_the_frozen_model_says_in_a_step(tmp_path: Path, start: Path) -> None:
    """Where the crop is the whole picture at the size of testing, reading T and making it are the same training."""
    whole = {
        "INPUT__CROP__SIZE": (64, 128),
        "INPUT__MIN_SIZE_TRAIN": (64,),
        "INPUT__RANDOM_FLIP": "none",
        "INPUT__COLOR_AUG_SSD": False,
        "SOLVER__MAX_ITER": 2,
    }
    run_stage(tmt(tmp_path / "read", start, TRANSFER__MAPS=str(tmp_path / "maps"), **whole))
    run_stage(tmt(tmp_path / "made", start, TRANSFER__MAPS="", **whole))
    assert len(list((tmp_path / "maps").rglob("*.npz"))) == 6
    losses = []
    for name in ("read", "made"):
        lines = [json.loads(line) for line in (tmp_path / name / "metrics.json").read_text().splitlines()]
        losses.append([line["total_loss"] for line in lines if "total_loss" in line])
    assert losses[0]
    assert np.allclose(*losses, rtol=1e-4)


@pytest.mark.usefixtures("data_root")
def test_maps_are_made_once_and_anew_for_other_settings(tmp_path: Path, start: Path) -> None:
    from detectron2.modeling import build_model

    def files(**changes: Any) -> set[Path]:
        cfg = tmt(tmp_path / "run", start, TRANSFER__MAPS=str(tmp_path / "maps"), **changes)
        maps = prepare_maps(cfg, build_model(cfg))
        assert maps is not None
        return set(maps.folder.glob("*.npz"))

    first = files(TRANSFER__LABEL_FRACTION=0.5)
    assert len(first) == 3  # of the labelled pictures only
    written = {path: path.stat().st_mtime_ns for path in first}
    second = files()
    assert len(second) == 6 and first < second
    assert all(path.stat().st_mtime_ns == written[path] for path in first)
    assert not files(INPUT__MIN_SIZE_TEST=72) & second
    assert prepare_maps(tmt(tmp_path, start, TRANSFER__MAPS=""), build_model(tmt(tmp_path, start))) is None
    live = tmt(tmp_path, start, MODEL__TMT__FEATURES="live")
    assert prepare_maps(live, build_model(live)) is None


@pytest.mark.usefixtures("data_root")
def test_drift_is_measured_at_every_evaluation_and_kept(tmp_path: Path, start: Path) -> None:
    results = {}
    for features in ("source", "live"):
        folder = tmp_path / features
        changes = {"MODEL__TMT__FEATURES": features, "SOLVER__BASE_LR": 0.05, "TEST__EVAL_PERIOD": 2}
        run_stage(tmt(folder, start, **changes))
        results[features] = json.loads((folder / "transferability.json").read_text())
        lines = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
        assert sum("transferability/spearman_to_step_0/2" in line for line in lines) == 2
        assert all(len(values) == 3 for values in results[features].values())
    assert results["source"]["spearman_to_step_0"] == pytest.approx([1, 1, 1])
    assert min(results["live"]["spearman_to_step_0"]) < 0.999
    assert set(results["live"]) == {"mean", "spread", "spearman_to_step_0", "error"}


@pytest.mark.usefixtures("data_root")
def test_a_resumed_run_knows_step_0(tmp_path: Path, start: Path) -> None:
    changes = {"MODEL__TMT__FEATURES": "live", "SOLVER__BASE_LR": 0.05}
    run_stage(tmt(tmp_path / "whole", start, **changes))
    run_stage(tmt(tmp_path / "parts", start, SOLVER__MAX_ITER=2, **changes))
    step_0 = (tmp_path / "parts" / STEP_0).stat().st_mtime_ns
    run_stage(tmt(tmp_path / "parts", start, SOLVER__MAX_ITER=4, **changes), resume=True)
    assert (tmp_path / "parts" / STEP_0).stat().st_mtime_ns == step_0
    drift = json.loads((tmp_path / "parts" / "transferability.json").read_text())["spearman_to_step_0"]
    assert min(drift) < 0.999
    (tmp_path / "parts" / STEP_0).unlink()
    run_stage(tmt(tmp_path / "parts", start, SOLVER__MAX_ITER=5, **changes), resume=True)
    assert "spearman_to_step_0" not in json.loads((tmp_path / "parts" / "transferability.json").read_text())


def test_controls_exclude_as_many_positions_but_others(build_tiny) -> None:
    models = {
        by: build_tiny(MODEL__TMT__RANK_BY=by, MODEL__TMT__CELL_SIZES=[1, 1, 1]) for by in ("T", "random", "inverted")
    }
    records = make_records([(64, 96), (64, 96)])
    excluded = {}
    with torch.no_grad():
        for by, model in models.items():
            images = model.preprocess(records)
            encoded = model.encode(images)
            excluded[by] = ~model.attended(model.transferability_of(images, encoded), encoded)[2]
    counts = {by: mask.sum().item() for by, mask in excluded.items()}
    assert len(set(counts.values())) == 1
    assert not (excluded["T"] & excluded["inverted"]).any()
    assert (excluded["T"] & excluded["random"]).sum() < 0.6 * counts["T"]
    assert torch.equal(excluded["random"][0], excluded["random"][1])  # in evaluation one pattern
    model = models["random"].train()
    level = model.estimate(images, encoded)[2]
    assert not torch.equal(model._ranked(level).logits, model._ranked(level).logits)  # in training a new one


@pytest.mark.usefixtures("data_root")
def test_masks_in_inference_only_are_the_training_of_full(tmp_path: Path, start: Path) -> None:
    run_stage(small_cfg("full", tmp_path / "full", start))
    run_stage(small_cfg("tmt-inference", tmp_path / "inference", start))
    full, inference = (
        torch.load(tmp_path / name / "model_final.pth", weights_only=True)["model"] for name in ("full", "inference")
    )
    assert all(torch.equal(full[name], inference[name]) for name in full)
