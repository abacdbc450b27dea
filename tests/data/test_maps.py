"""T made once of a whole image and cropped with it, against the estimator that made it."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.helpers.small_runs import contents, metrics_of, tmt_cfg
from tmt_d2.adaptation import map_cache as precompute
from tmt_d2.adaptation.map_cache import maps_of, prepare_maps
from tmt_d2.data.augmentation import Crop
from tmt_d2.data.maps import TransferabilityMaps
from tmt_d2.data.reader import DataError
from tmt_d2.engine.run_stage import run_stage
from tmt_d2.engine.trainer import load_weights
from tmt_d2.errors import UserError
from tmt_d2.modeling.pixel_decoder import STRIDES


@pytest.fixture
def record(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "i.png").write_bytes(b"a image")
    return {"file_name": str(tmp_path / "i.png")}


def written(folder: Path, record: dict[str, str], size: tuple[int, int]) -> tuple[TransferabilityMaps, list[Tensor]]:
    maps = TransferabilityMaps(folder)
    levels = [torch.rand(-(-size[0] // stride), -(-size[1] // stride)) for stride in STRIDES]
    maps.write(record, levels, size)
    return maps, levels


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


def test_another_image_under_the_name_has_another_map(tmp_path: Path, record: dict[str, str]) -> None:
    maps, _ = written(tmp_path, record, (64, 64))
    Path(record["file_name"]).write_bytes(b"another image")
    assert not maps.path(record).is_file()
    with pytest.raises(DataError, match="i.png"):
        maps.crop(record, Crop((64, 64), (64, 64), 0, 0, 64, 64), False)


def test_a_damaged_map_is_named(tmp_path: Path, record: dict[str, str]) -> None:
    maps, _ = written(tmp_path, record, (64, 64))
    path = maps.path(record)
    whole = path.read_bytes()
    for content in (b"", whole[:100], whole[: len(whole) // 2], whole[:200] + b"x" * 50 + whole[250:]):
        path.write_bytes(content)
        with pytest.raises(DataError, match=path.name):
            maps.crop(record, Crop((64, 64), (64, 64), 0, 0, 64, 64), False)


@pytest.mark.slow
@pytest.mark.usefixtures("data_root")
def test_maps_are_what_the_frozen_model_says_in_a_step(tmp_path: Path, start: Path) -> None:
    """Cached and computed T train equally if the crop is the whole image at the test size."""
    whole = {
        "INPUT__CROP__SIZE": (64, 128),
        "INPUT__MIN_SIZE_TRAIN": (64,),
        "INPUT__RANDOM_FLIP": "none",
        "INPUT__COLOR_AUG_SSD": False,
        "SOLVER__MAX_ITER": 2,
    }
    run_stage(tmt_cfg(tmp_path / "read", start, TRANSFER__MAP_CACHE=str(tmp_path / "maps"), **whole))
    run_stage(tmt_cfg(tmp_path / "made", start, TRANSFER__MAP_CACHE="", **whole))
    assert len(list((tmp_path / "maps").rglob("*.npz"))) == 6
    losses = [
        [line["total_loss"] for line in metrics_of(tmp_path / name) if "total_loss" in line]
        for name in ("read", "made")
    ]
    assert losses[0]
    assert np.allclose(*losses, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.usefixtures("data_root")
def test_a_process_whose_share_of_missing_maps_is_empty_makes_none(
    tmp_path: Path, start: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One image is missing, and this is the second of two processes."""
    from detectron2.modeling import build_model

    cfg = tmt_cfg(tmp_path, start, TRANSFER__MAP_CACHE=str(tmp_path / "maps"), TRANSFER__LABEL_COUNT=1)
    model = build_model(cfg)
    for rank, maps_made in ((1, 0), (0, 1)):
        monkeypatch.setattr(
            precompute,
            "comm",
            SimpleNamespace(get_rank=lambda rank=rank: rank, get_world_size=lambda: 2, synchronize=lambda: None),
        )
        maps = prepare_maps(cfg, model, partial(load_weights, cfg))
        assert maps is not None and len(list(maps.folder.glob("*.npz"))) == maps_made


@pytest.mark.slow
@pytest.mark.usefixtures("data_root")
@pytest.mark.parametrize("changed", ["transferability.discriminators.", "backbone.", "sem_seg_head.pixel_decoder."])
def test_a_resumed_run_reads_no_maps_of_an_estimator_made_since(tmp_path: Path, start: Path, changed: str) -> None:
    """Its encoder may be the model's own, of which it is a copy."""
    weights, other, moved = (tmp_path / f"{name}.pth" for name in ("source", "other", "moved"))
    content = torch.load(start, weights_only=True)
    copied = ("transferability.backbone.", "transferability.pixel_decoder.")
    content["model"] = {name: value for name, value in content["model"].items() if not name.startswith(copied)}
    for path in (weights, moved):
        torch.save(content, path)
    run_stage(tmt_cfg(tmp_path / "run", weights, SOLVER__MAX_ITER=1))
    content["model"][next(name for name in content["model"] if name.startswith(changed))] += 1
    for path in (other, weights):  # another name, and the name that the run began with
        torch.save(content, path)
        with pytest.raises(UserError, match=path.name):
            run_stage(tmt_cfg(tmp_path / "run", path, SOLVER__MAX_ITER=2), resume=True)
    assert len({path.parent for path in tmp_path.rglob("transferability/*/*.npz")}) == 1  # none was made of the other
    run_stage(tmt_cfg(tmp_path / "run", moved, SOLVER__MAX_ITER=2), resume=True)
    assert contents(tmp_path / "run" / "model_final.pth")["/trainer/iteration"] == 1


@pytest.mark.slow
@pytest.mark.usefixtures("data_root")
def test_maps_are_made_once_and_anew_for_other_settings(tmp_path: Path, start: Path) -> None:
    from detectron2.modeling import build_model

    def files(**changes: Any) -> set[Path]:
        cfg = tmt_cfg(tmp_path / "run", start, TRANSFER__MAP_CACHE=str(tmp_path / "maps"), **changes)
        maps = prepare_maps(cfg, build_model(cfg), partial(load_weights, cfg))
        assert maps is not None
        return set(maps.folder.glob("*.npz"))

    first = files(TRANSFER__LABEL_FRACTION=0.5)
    assert len(first) == 3  # of the labeled images only
    written = {path: path.stat().st_mtime_ns for path in first}
    second = files()
    assert len(second) == 6 and first < second
    assert all(path.stat().st_mtime_ns == written[path] for path in first)
    for other in ({"INPUT__MIN_SIZE_TEST": 72}, {"MODEL__RESNETS__STRIDE_IN_1X1": True}):
        assert not files(**other) & second
    assert not files(MODEL__MASK_FORMER__SIZE_DIVISIBILITY=128) & second
    assert maps_of(tmt_cfg(tmp_path, start, TRANSFER__MAP_CACHE="")) is None
    assert maps_of(tmt_cfg(tmp_path, start, MODEL__TMT__FEATURES="live")) is None
