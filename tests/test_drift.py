"""How T drifts while a model is fine-tuned: measured at every evaluation, kept over a resume."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.helpers.small_runs import tmt_cfg
from tmt_d2.methods.drift import STEP_0
from tmt_d2.training.stages import run_stage

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("data_root")]


def test_drift_is_measured_at_every_evaluation_and_kept(tmp_path: Path, start: Path) -> None:
    results = {}
    for features in ("source", "live"):
        folder = tmp_path / features
        changes = {"MODEL__TMT__FEATURES": features, "SOLVER__BASE_LR": 0.05, "TEST__EVAL_PERIOD": 2}
        run_stage(tmt_cfg(folder, start, **changes))
        results[features] = json.loads((folder / "transferability.json").read_text())
        lines = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
        assert sum("transferability/spearman_to_step_0/2" in line for line in lines) == 2
        assert all(len(values) == 3 for values in results[features].values())
    assert results["source"]["spearman_to_step_0"] == pytest.approx([1, 1, 1])
    assert min(results["live"]["spearman_to_step_0"]) < 0.999
    assert set(results["live"]) == {"mean", "spread", "spearman_to_step_0", "error"}


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


def test_step_0_of_other_pictures_is_not_compared_with(tmp_path: Path, start: Path) -> None:
    run_stage(tmt_cfg(tmp_path, start, SOLVER__MAX_ITER=2))
    run_stage(tmt_cfg(tmp_path, start, SOLVER__MAX_ITER=3, INPUT__MIN_SIZE_TEST=96), resume=True)
    assert "spearman_to_step_0" not in json.loads((tmp_path / "transferability.json").read_text())
    assert f"{STEP_0} is of other pictures or sizes" in (tmp_path / "log.txt").read_text()
