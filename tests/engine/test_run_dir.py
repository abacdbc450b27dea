"""Folders that hold a run already."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.small_runs import differences, small_cfg
from tmt_d2.engine.hooks.evaluation_images import EvaluationImages
from tmt_d2.engine.run_dir import WITHOUT_EFFECT, RunDir
from tmt_d2.engine.run_stage import run_stage
from tmt_d2.errors import UserError


@pytest.mark.slow
@pytest.mark.usefixtures("data_root")
def test_keys_without_effect_change_no_result(start: Path, tmp_path: Path) -> None:
    others = {
        "DATALOADER__NUM_WORKERS": 1,
        "SOLVER__CHECKPOINT_PERIOD": 2,
        "SOLVER__CHECKPOINTS_KEPT": 1,
        "SOLVER__DETECT_ANOMALY": True,
        "LOGGING__IMAGES": 1,
    }
    assert {key.replace("__", ".") for key in others} == {*WITHOUT_EFFECT} - {"OUTPUT_DIR", "LOGGING.WANDB_PROJECT"}
    usual = {key.replace(".", "__"): value for key, value in WITHOUT_EFFECT.items() if key != "OUTPUT_DIR"}
    for name, changes in (("usual", usual), ("other", others)):
        cfg = small_cfg("tmt", tmp_path / name, start, MODEL__RESNETS__NORM="BN", TEST__EVAL_PERIOD=2, **changes)
        run_stage(cfg, hooks=[EvaluationImages(cfg)])
    assert not differences(*(tmp_path / name / "model_final.pth" for name in ("usual", "other")))
    usual_result, other_result = ((tmp_path / name / "evaluation.json").read_bytes() for name in ("usual", "other"))
    assert usual_result == other_result


@pytest.mark.slow
@pytest.mark.usefixtures("data_root")
def test_an_ended_run_keeps_its_config(start: Path, tmp_path: Path) -> None:
    cfg = small_cfg("full", tmp_path, start, SOLVER__MAX_ITER=1)
    run_stage(cfg)
    before = (tmp_path / "config.yaml").read_bytes()
    RunDir(cfg).check_same_settings()
    logged = small_cfg("full", tmp_path, start, SOLVER__MAX_ITER=1, LOGGING__IMAGES=1)
    RunDir(logged).check_same_settings()
    RunDir(logged).check(resume=True)
    with_t = small_cfg("full", tmp_path, start, SOLVER__MAX_ITER=1, MODEL__TMT__P_T=0.5)  # a plain model has no T
    RunDir(with_t).check_same_settings()
    other = small_cfg("full", tmp_path, start, SOLVER__MAX_ITER=1, INPUT__MIN_SIZE_TEST=32)
    with pytest.raises(UserError, match="INPUT.MIN_SIZE_TEST"):
        RunDir(other).check_same_settings()  # as a notebook does
    with pytest.raises(UserError, match="INPUT.MIN_SIZE_TEST"):
        run_stage(other, resume=True)
    newer = small_cfg("full", tmp_path, start, SOLVER__MAX_ITER=1, SOLVER__POLY_LR_POWER=0.5)
    lines = before.decode().splitlines()  # of a version without this key
    (tmp_path / "config.yaml").write_text("\n".join(line for line in lines if "POLY_LR_POWER" not in line))
    RunDir(cfg).check_same_settings()
    with pytest.raises(UserError, match="POLY_LR_POWER"):
        RunDir(newer).check_same_settings()
    (tmp_path / "config.yaml").write_bytes(before)
    run_stage(small_cfg("full", tmp_path, tmp_path / "model_final.pth", INPUT__MIN_SIZE_TEST=32), eval_only=True)
    assert (tmp_path / "config.yaml").read_bytes() == before
