"""Folders that hold a run already, and values that a plan and the config read alike."""

from __future__ import annotations

import gc
import multiprocessing
import os
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers.small_runs import small_cfg, small_units
from tmt_d2.engine.run_dir import RunDir
from tmt_d2.engine.run_stage import run_stage
from tmt_d2.errors import UserError
from tmt_d2.experiments.plan import PLANNED
from tmt_d2.experiments.running import run_all
from tmt_d2.modeling.ops import deformable_attention
from tmt_d2.modeling.ops.deformable_attention import ms_deform_attn

P_T = "MODEL.TMT.P_T"


def test_an_overridden_seed_is_the_one_recorded(tmp_path: Path) -> None:
    units = small_units(tmp_path, "SEED", "7")
    assert {(unit.cfg.SEED, unit.about["seed"]) for unit in units} == {(7, 7)}


@pytest.mark.parametrize("override", [("TRANSFER.LABEL_COUNT", "3"), ("TRANSFER.LABEL_FRACTION", "0.5")])
def test_overrides_that_a_plan_varies_are_refused(tmp_path: Path, override: tuple[str, str]) -> None:
    with pytest.raises(UserError, match=override[0]):
        small_units(tmp_path, *override, label_counts=[2, 4])


@pytest.mark.parametrize("key", PLANNED)
def test_overrides_that_units_have_themselves_are_refused(tmp_path: Path, key: str) -> None:
    with pytest.raises(UserError, match=key):
        small_units(tmp_path, key, "gtav_sem_seg_train")


def test_a_sweep_has_the_values_that_the_config_reads(tmp_path: Path) -> None:
    sweep = {"rate": {"key": "SOLVER.BASE_LR", "values": ["1e-2", 0.01, 0.02], "methods": ["full"]}}
    units = [unit for unit in small_units(tmp_path, sweeps=sweep) if "sweep" in unit.about]
    assert [unit.about["value"] for unit in units] == [0.01, 0.02]
    assert [unit.cfg.SOLVER.BASE_LR for unit in units] == [0.01, 0.02]


def test_the_model_of_a_failed_unit_is_freed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tmt_d2.experiments.running.check_units", lambda units: None)
    models: list[Any] = []

    def fail(unit: Any) -> None:
        model = torch.nn.Linear(1, 1)
        models.append(weakref.ref(model))
        raise UserError("no")

    progress = run_all(small_units(tmp_path, methods=["full"])[:1], tmp_path / "out", fail, {})
    gc.collect()
    assert isinstance(progress.first_error, UserError) and models[0]() is None


def _attend(queue: Any) -> None:
    torch.set_num_threads(1)
    queue.put(ms_deform_attn(*_inputs()).tolist())


def _inputs() -> tuple[torch.Tensor, list[tuple[int, int]], torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    locations = torch.rand(1, 3, 1, 1, 2, 2, generator=generator)
    return torch.rand(1, 6, 1, 4, generator=generator), [(2, 3)], locations, torch.ones(1, 3, 1, 1, 2)


def test_a_forked_process_does_without_numba(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("numba")
    monkeypatch.setattr(deformable_attention, "_numba_process", None)
    expected = ms_deform_attn(*_inputs())
    assert deformable_attention._numba_process == os.getpid()
    assert deformable_attention._fastest_backend(expected) == "numba"
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    child = context.Process(target=_attend, args=(queue,))
    child.start()
    child.join(60)
    assert child.exitcode == 0
    torch.testing.assert_close(torch.tensor(queue.get()), expected)


@pytest.mark.slow
@pytest.mark.usefixtures("data_root")
def test_an_ended_run_keeps_its_config(start: Path, tmp_path: Path) -> None:
    cfg = small_cfg("full", tmp_path, start, SOLVER__MAX_ITER=1)
    run_stage(cfg)
    before = (tmp_path / "config.yaml").read_bytes()
    RunDir(cfg).check_same_settings()
    other = small_cfg("full", tmp_path, start, SOLVER__MAX_ITER=1, INPUT__MIN_SIZE_TEST=32)
    with pytest.raises(UserError, match="INPUT.MIN_SIZE_TEST"):
        RunDir(other).check_same_settings()  # as a notebook does
    with pytest.raises(UserError, match="INPUT.MIN_SIZE_TEST"):
        run_stage(other, resume=True)
    run_stage(small_cfg("full", tmp_path, tmp_path / "model_final.pth", INPUT__MIN_SIZE_TEST=32), eval_only=True)
    assert (tmp_path / "config.yaml").read_bytes() == before
