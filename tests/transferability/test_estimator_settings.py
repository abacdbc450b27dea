"""An estimator is used as it was trained, or refused: its checkpoint remembers the settings."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.helpers.checkout import TINY_CONFIG
from tests.helpers.small_runs import contents, options, small_cfg
from tmt_d2.cli.export import main as export
from tmt_d2.engine.checkpoint.checkpointer import TMTCheckpointer, keep_weights
from tmt_d2.engine.checkpoint.files import DamagedCheckpoint
from tmt_d2.engine.run_stage import run_stage
from tmt_d2.errors import UserError
from tmt_d2.inference.predictor import Predictor
from tmt_d2.modeling.official import plain_state
from tmt_d2.transferability.settings import decode_settings, encode_settings

pytestmark = pytest.mark.slow

Build = Callable[..., nn.Module]
STATE = "transferability._extra_state"
STAGE = {"estimator_training": {}}  # what tells a checkpoint of the estimator stage


def save(model: nn.Module, path: Path, **others: Any) -> str:
    torch.save({"model": model.state_dict(), **others}, path)
    return str(path)


@pytest.mark.parametrize(
    ("key", "there", "here"),
    [
        ("REGIONS", "adaptive", "square"),
        ("CELL_SIZES", [1, 2, 4], [2, 2, 4]),
        ("ITERATIONS", 6, 2),
        ("KAPPA", 10.0, 3.0),
        ("DISCRIMINATOR.NORMALIZE", True, False),
        ("DISCRIMINATOR.HIDDEN_DIM", 64, 0),  # the key is named, not the shape of a tensor
    ],
)
def test_an_estimator_of_other_settings_is_refused(
    key: str, there: Any, here: Any, build_tiny: Build, tmp_path: Path
) -> None:
    path = save(build_tiny(), tmp_path / "estimator.pth", **STAGE)
    model = build_tiny(**{f"MODEL__TMT__{key.replace('.', '__')}": here})
    with pytest.raises(UserError, match=rf"MODEL\.TMT\.{key} ") as error:
        TMTCheckpointer(model).load(path)
    assert error.value.key == path and str(there) in str(error.value) and str(here) in str(error.value)
    TMTCheckpointer(build_tiny()).load(path)  # control
    TMTCheckpointer(build_tiny("MaskFormer")).load(path)  # has no estimator that it could mistake


def test_squares_have_no_kappa_and_no_iterations(build_tiny: Build, tmp_path: Path) -> None:
    square = {"MODEL__TMT__REGIONS": "square"}
    path = save(build_tiny(**square), tmp_path / "estimator.pth", **STAGE)
    TMTCheckpointer(build_tiny(**square, MODEL__TMT__KAPPA=3.0, MODEL__TMT__ITERATIONS=2)).load(path)


@pytest.mark.parametrize(("there", "here"), [("live", "source"), ("source", "live")])
def test_features_may_be_chosen_until_the_model_is_fine_tuned(
    there: str, here: str, build_tiny: Build, tmp_path: Path
) -> None:
    trained, other = build_tiny(MODEL__TMT__FEATURES=there), build_tiny(MODEL__TMT__FEATURES=here)
    TMTCheckpointer(other).load(save(trained, tmp_path / "estimator.pth", **STAGE))
    path = save(trained, tmp_path / "tmt.pth")
    with pytest.raises(UserError, match=rf"MODEL\.TMT\.FEATURES {there} ") as error:
        TMTCheckpointer(other).load(path)
    assert error.value.key == path
    TMTCheckpointer(trained).load(path)
    fine_tuned = save(other, tmp_path / "fine_tuned.pth")
    TMTCheckpointer(build_tiny(MODEL__TMT__FEATURES=here)).load(fine_tuned)  # what it was fine-tuned with counts


@pytest.mark.parametrize("state", [torch.tensor([1, 2]), torch.zeros(3), encode_settings({})[:1], torch.tensor(-1)])
def test_damaged_settings_are_damage(state: torch.Tensor, build_tiny: Build, tmp_path: Path) -> None:
    model = build_tiny()
    torch.save({"model": model.state_dict() | {STATE: state}}, tmp_path / "damaged.pth")
    with pytest.raises(DamagedCheckpoint, match="damaged.pth"):
        TMTCheckpointer(model).load(str(tmp_path / "damaged.pth"))


def test_state_dicts_are_guarded_too(build_tiny: Build) -> None:
    state = build_tiny().state_dict()
    build_tiny().load_state_dict(state)
    build_tiny().load_state_dict(build_tiny(MODEL__TMT__P_T=0.1).state_dict())  # not a matter of the estimator
    with pytest.raises(UserError, match=r"MODEL\.TMT\.REGIONS"):
        build_tiny(MODEL__TMT__REGIONS="square").load_state_dict(state)
    assert not any(name.startswith("transferability") for name in plain_state(state))


def test_settings_survive_the_file() -> None:
    settings = {"REGIONS": "adaptive", "CELL_SIZES": [2, 4, 8], "KAPPA": 0.1, "DISCRIMINATOR.NORMALIZE": True}
    assert decode_settings(encode_settings(settings)) == settings
    assert decode_settings(encode_settings(settings).numpy()) == settings  # as a .pkl file has it


@pytest.mark.usefixtures("data_root")
def test_every_run_that_uses_an_estimator_looks(start: Path, tmp_path: Path) -> None:
    message = r"MODEL\.TMT\.REGIONS adaptive"
    squares = {"MODEL__TMT__REGIONS": "square"}
    for stage, eval_only in (("tmt", False), ("tmt", True), ("estimator", True), ("estimator", False)):
        cfg = small_cfg(stage, tmp_path / stage, start, **squares)
        with pytest.raises(UserError, match=message):
            run_stage(cfg, eval_only=eval_only)
    opts = options(**squares)
    with pytest.raises(UserError, match=message):
        Predictor.from_config(str(TINY_CONFIG), str(start), opts, "tmt")
    command = ["--config-file", str(TINY_CONFIG), "--method", "tmt", "--weights", str(start), "--size", "64x64"]
    with pytest.raises(UserError, match=message):
        export([*command, "--output", str(tmp_path / "x.onnx"), *opts])
    run_stage(small_cfg("full", tmp_path / "full", start, **squares, SOLVER__MAX_ITER=1))  # uses none


@pytest.mark.usefixtures("data_root")
def test_stages_hand_the_settings_on(start: Path, tmp_path: Path) -> None:
    estimator = tmp_path / "estimator" / "model_final.pth"
    run_stage(small_cfg("estimator", estimator.parent, start, SOLVER__MAX_ITER=1, MODEL__TMT__FEATURES="source"))
    keep_weights(estimator.parent)
    tuned = tmp_path / "tmt" / "model_final.pth"
    run_stage(small_cfg("tmt", tuned.parent, estimator, SOLVER__MAX_ITER=1, MODEL__TMT__FEATURES="live"))
    keep_weights(tuned.parent)
    found = [decode_settings(contents(path)[f"/model/{STATE}"]) for path in (estimator, tuned)]
    assert found[0]["FEATURES"] == "source" and found[1]["FEATURES"] == "live"
    assert found[0] | {"FEATURES": "live"} == found[1]
    for stage in ("tmt", "estimator"):
        with pytest.raises(UserError, match=r"MODEL\.TMT\.FEATURES live "):
            run_stage(small_cfg(stage, tmp_path / stage, tuned, MODEL__TMT__FEATURES="source"), eval_only=True)
    with pytest.raises(UserError, match=r"MODEL\.TMT\.KAPPA 10\.0"):  # resumes with other settings
        cfg = small_cfg("estimator", estimator.parent, start, SOLVER__MAX_ITER=1, MODEL__TMT__KAPPA=3.0)
        run_stage(cfg, resume=True)
