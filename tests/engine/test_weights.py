"""Weights of any origin: read completely, whatever wraps them, and refused if they do not fit the model."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from detectron2.modeling import build_model
from safetensors.torch import save_file
from torch import nn

from tests.helpers.models import tiny_cfg
from tests.helpers.small_runs import small_cfg
from tmt_d2.engine.checkpoint.checkpointer import TMTCheckpointer, read_state
from tmt_d2.engine.checkpoint.files import strip_wrappers
from tmt_d2.engine.loading import load_model
from tmt_d2.engine.run_stage import run_stage
from tmt_d2.errors import UserError
from tmt_d2.modeling.official import write_official

Build = Callable[..., nn.Module]
PREFIXES = ("module.", "student.", "module._orig_mod.", "net.inner.")


@pytest.fixture(scope="module")
def whole() -> dict[str, Any]:
    """A whole checkpoint with another class list than the data sets have."""
    torch.manual_seed(1)
    return dict(build_model(tiny_cfg(MODEL__META_ARCHITECTURE="MaskFormer")).state_dict())


def save(path: Path, weights: Any, **others: Any) -> str:
    torch.save({"model": weights, **others}, path)
    return str(path)


def holds(model: nn.Module, weights: dict[str, Any]) -> bool:
    return all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("prefix", PREFIXES)
def test_wrapped_names_are_loaded(prefix: str, whole: dict[str, Any], build_tiny: Build, tmp_path: Path) -> None:
    file = save(tmp_path / "wrapped.pth", {prefix + name: value for name, value in whole.items()})
    model = build_tiny("MaskFormer")
    assert not holds(model, whole)
    TMTCheckpointer(model, require_head=True).load(file)
    assert holds(model, whole)
    assert read_state(file).keys() == whole.keys()


def test_wrappers_of_parts_and_of_models_with_a_frozen_copy(build_tiny: Build) -> None:
    names = list(build_tiny().state_dict())
    assert any(name.startswith("transferability.backbone.") for name in names)
    for wrap in (
        lambda name: f"module.{name}",
        lambda name: name.replace("backbone.", "backbone._orig_mod.").replace("predictor.", "predictor._orig_mod."),
        lambda name: f"_fsdp_wrapped_module.{name}",
    ):
        wrapped = {wrap(name): index for index, name in enumerate(names)}
        assert strip_wrappers(wrapped, "file")
        assert list(wrapped.items()) == [(name, index) for index, name in enumerate(names)]


@pytest.mark.parametrize("names", [["backbone.a", "sem_seg_head.b"], ["patch_embed.backbone.a", "blocks.0.b"], ["0.w"]])
def test_names_without_a_wrapper_stay(names: list[str]) -> None:
    weights = dict.fromkeys(names, 0)
    assert strip_wrappers(weights, "file") == "" and list(weights) == names


@pytest.mark.parametrize("key", ["state_dict", "teacher"])
def test_weights_below_another_entry(key: str, whole: dict[str, Any], build_tiny: Build, tmp_path: Path) -> None:
    torch.save({key: whole, "epoch": 3, "optimizer": {"state": {}}}, tmp_path / "other.pth")
    model = build_tiny("MaskFormer")
    TMTCheckpointer(model, require_head=True).load(str(tmp_path / "other.pth"))
    assert holds(model, whole)


def test_several_models_in_a_file_are_refused(whole: dict[str, Any], build_tiny: Build, tmp_path: Path) -> None:
    torch.save({"student": whole, "teacher": whole}, tmp_path / "entries.pth")
    both = {f"{who}.{name}": value for who in ("student", "teacher") for name, value in whole.items()}
    save(tmp_path / "names.pth", both)
    for file in ("entries.pth", "names.pth"):
        with pytest.raises(UserError, match=file):
            TMTCheckpointer(build_tiny("MaskFormer")).load(str(tmp_path / file))


def test_files_without_arrays_are_refused(build_tiny: Build, tmp_path: Path) -> None:
    for index, content in enumerate(({"epoch": 3}, {"model": {"a": 1}}, [torch.zeros(2)])):
        torch.save(content, tmp_path / f"{index}.pth")
        with pytest.raises(UserError, match=f"{index}.pth"):
            TMTCheckpointer(build_tiny("MaskFormer")).load(str(tmp_path / f"{index}.pth"))


def headless(whole: dict[str, Any], folder: Path) -> str:
    return save(folder / "headless.pth", {name: v for name, v in whole.items() if name.startswith("backbone.")})


def test_a_file_that_fits_nothing_is_refused(whole: dict[str, Any], build_tiny: Build, tmp_path: Path) -> None:
    model = build_tiny("MaskFormer")
    few = {name: whole[name] for name in list(whole)[:3]}
    wider = {n: torch.cat([v, v]) if n == "backbone.stem.conv1.weight" else v for n, v in whole.items()}
    wider = {name: value for name, value in wider.items() if name.startswith("backbone.")}
    for weights in ({"layer1.0.conv1.weight": torch.zeros(3)}, {}, few, wider):
        with pytest.raises(UserError, match=r"foreign\.pth"):
            TMTCheckpointer(model).load(save(tmp_path / "foreign.pth", weights))


def test_missing_weights_of_a_backbone_are_warned_of(
    whole: dict[str, Any], build_tiny: Build, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = build_tiny("MaskFormer")
    with caplog.at_level(logging.WARNING):
        TMTCheckpointer(model).load(headless(whole, tmp_path))
    assert not caplog.records
    part = torch.load(tmp_path / "headless.pth", weights_only=True)["model"]
    counts = [name for name in part if name.endswith("num_batches_tracked")]
    assert counts
    for name in [*counts, "backbone.stem.conv1.weight"]:
        del part[name]
    with caplog.at_level(logging.WARNING):
        TMTCheckpointer(model).load(save(tmp_path / "part.pth", part))
    (record,) = caplog.records
    assert "backbone.stem.conv1.weight" in record.getMessage()


def test_prediction_needs_a_head(whole: dict[str, Any], tmp_path: Path) -> None:
    file = headless(whole, tmp_path)
    for architecture in ("MaskFormer", "TransferableMaskFormer"):
        with pytest.raises(UserError, match=r"headless\.pth"):
            load_model(tiny_cfg(MODEL__META_ARCHITECTURE=architecture, MODEL__WEIGHTS=file))


@pytest.mark.usefixtures("data_root")
@pytest.mark.parametrize("stage", ["full", "estimator", "leep"])
def test_no_stage_measures_a_random_head(stage: str, start: Path, tmp_path: Path) -> None:
    weights = torch.load(start, weights_only=True)["model"]
    file = headless(weights, tmp_path)
    with pytest.raises(UserError, match=r"headless\.pth"):
        run_stage(small_cfg(stage, tmp_path / stage, file), eval_only=stage == "full")


def test_weights_of_imagenet_initialize_backbones(build_tiny: Build, tmp_path: Path) -> None:
    """timm's and torchvision's names by timm's backbone, Detectron2's by matching names."""
    state = timm.create_model("resnet18").state_dict()  # torchvision's names
    torch.save(state, tmp_path / "torchvision.pth")
    torch.save({"state_dict": {f"module.{n}": v for n, v in state.items()}}, tmp_path / "moco.pth")
    save_file(state, tmp_path / "timm.safetensors")
    for file in ("torchvision.pth", "moco.pth", "timm.safetensors"):
        model = build_model(tiny_cfg(MODEL__BACKBONE__NAME="timm", MODEL__TIMM__NAME="resnet18", INPUT__FORMAT="RGB"))
        TMTCheckpointer(model).load(str(tmp_path / file))
        assert torch.equal(model.backbone.net.layer1[0].conv1.weight, state["layer1.0.conv1.weight"])
    source = build_tiny("MaskFormer")
    nn.init.ones_(source.backbone.stem.conv1.weight)
    write_official(source.state_dict(), tmp_path / "d2.pkl")
    content = pickle.loads((tmp_path / "d2.pkl").read_bytes())
    content["model"] = {
        n.removeprefix("backbone."): v for n, v in content["model"].items() if n.startswith("backbone.")
    }
    content["model"] |= {"stem.fc.weight": content["model"]["stem.conv1.weight"][0, 0]}
    (tmp_path / "R-18.pkl").write_bytes(pickle.dumps(content | {"matching_heuristics": True}))
    model = build_tiny("MaskFormer", MODEL__RESNETS__NORM="BN")
    nn.init.zeros_(model.backbone.stem.conv1.weight)
    TMTCheckpointer(model).load(str(tmp_path / "R-18.pkl"))
    assert torch.all(model.backbone.stem.conv1.weight == 1)


def test_weights_matched_by_order_are_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    state = timm.create_model("resnet18").state_dict()
    torch.save(
        {f"part{index}.{n.rpartition('.')[2]}": v for index, (n, v) in enumerate(state.items())}, tmp_path / "a.pth"
    )
    model = build_model(tiny_cfg(MODEL__BACKBONE__NAME="timm", MODEL__TIMM__NAME="resnet18", INPUT__FORMAT="RGB"))
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        TMTCheckpointer(model).load(str(tmp_path / "a.pth"))
    assert [record.levelname for record in caplog.records if "a.pth" in record.getMessage()] == ["WARNING"]
    assert torch.equal(model.backbone.net.layer1[0].conv1.weight, state["layer1.0.conv1.weight"])
