"""How T drifts while a model is fine-tuned: measured at every evaluation, kept over a resume."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from detectron2.modeling import build_model

from tests.helpers.small_runs import tmt_cfg
from tmt_d2.adaptation.drift import STEP_0, build_drift
from tmt_d2.engine.run_stage import run_stage

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("data_root")]


def test_drift_is_measured_at_every_evaluation_and_kept(tmp_path: Path, start: Path) -> None:
    changes = {"MODEL__TMT__FEATURES": "live", "SOLVER__BASE_LR": 0.05, "TEST__EVAL_PERIOD": 2}
    run_stage(tmt_cfg(tmp_path, start, **changes))
    results = json.loads((tmp_path / "transferability.json").read_text())
    lines = [json.loads(line) for line in (tmp_path / "metrics.json").read_text().splitlines()]
    assert sum("transferability/spearman_to_step_0/2" in line for line in lines) == 2
    assert all(len(values) == 3 for values in results.values())
    assert min(results["spearman_to_step_0"]) < 0.999
    assert set(results) == {"mean", "spread", "spearman_to_step_0", "error"}


def test_t_of_the_source_models_features_cannot_drift(tmp_path: Path, start: Path) -> None:
    cfg = tmt_cfg(tmp_path, start)
    assert build_drift(cfg, build_model(cfg)) is None


def test_a_resumed_run_knows_step_0(tmp_path: Path, start: Path) -> None:
    changes = {"MODEL__TMT__FEATURES": "live", "SOLVER__BASE_LR": 0.05}
    run_stage(tmt_cfg(tmp_path / "whole", start, **changes))
    run_stage(tmt_cfg(tmp_path / "parts", start, SOLVER__MAX_ITER=2, **changes))
    step_0 = (tmp_path / "parts" / STEP_0).stat().st_mtime_ns
    run_stage(tmt_cfg(tmp_path / "parts", start, SOLVER__MAX_ITER=4, **changes), resume=True)
    assert (tmp_path / "parts" / STEP_0).stat().st_mtime_ns == step_0
    drift = json.loads((tmp_path / "parts" / "transferability.json").read_text())["spearman_to_step_0"]
    assert min(drift) < 0.999
    (tmp_path / "parts" / STEP_0).unlink()
    run_stage(tmt_cfg(tmp_path / "parts", start, SOLVER__MAX_ITER=5, **changes), resume=True)
    assert "spearman_to_step_0" not in json.loads((tmp_path / "parts" / "transferability.json").read_text())


def test_step_0_of_other_sizes_is_not_compared_with(tmp_path: Path, start: Path) -> None:
    live = {"MODEL__TMT__FEATURES": "live"}
    run_stage(tmt_cfg(tmp_path, start, SOLVER__MAX_ITER=2, **live))
    run_stage(tmt_cfg(tmp_path, start, SOLVER__MAX_ITER=3, INPUT__MIN_SIZE_TEST=96, **live), resume=True)
    assert "spearman_to_step_0" not in json.loads((tmp_path / "transferability.json").read_text())
    assert STEP_0 in (tmp_path / "log.txt").read_text()
