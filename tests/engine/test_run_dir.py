"""Folders that hold a run already."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.small_runs import small_cfg
from tmt_d2.engine.run_dir import RunDir
from tmt_d2.engine.run_stage import run_stage
from tmt_d2.errors import UserError


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
