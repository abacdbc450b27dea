"""bfloat16 on a CPU: what runs in it, what does not, and where a run falls back to float32."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from tests.helpers.models import Build, make_records, tiny_cfg
from tests.helpers.small_runs import contents, small_cfg
from tmt_d2.engine.run_stage import run_stage
from tmt_d2.evaluation.inference import build_inference
from tmt_d2.modeling import precision
from tmt_d2.modeling.precision import cpu_has_bfloat16, mixed_precision


def test_what_is_slow_in_bfloat16_runs_in_float32() -> None:
    x = torch.randn(2, 4, 6, 6)
    plain, depthwise, groups = nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3, groups=4), nn.GroupNorm(2, 4)
    with mixed_precision("cpu", torch.bfloat16):
        half = plain(x)
        assert half.dtype == torch.bfloat16
        assert groups(half).dtype == torch.float32
        found = depthwise(x)
        with torch.autocast("cpu", enabled=False):
            assert depthwise(x).dtype == plain(x).dtype == torch.float32
    assert torch.equal(found, depthwise(x).bfloat16())  # its products are those of float32, rounded once
    with torch.autocast("cpu", torch.bfloat16):  # control: PyTorch's own
        assert not torch.equal(depthwise(x), found)
        assert groups(half).dtype == torch.bfloat16


def test_evaluation_in_bfloat16(build_tiny: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    records = make_records()
    model = build_tiny(MODEL__TMT__OUTPUT_TRANSFERABILITY=True, MODEL__TMT__P_T=0.0)
    seen: list[torch.dtype] = []
    model.backbone.register_forward_hook(lambda module, inputs, output: seen.append(output["res5"].dtype))
    cfg = tiny_cfg(TEST__PRECISION="bfloat16")
    monkeypatch.setattr(precision, "cpu_has_bfloat16", lambda: True)
    exact = build_inference(tiny_cfg(), model)(records)
    close = build_inference(cfg, model)(records)
    assert seen == [torch.float32] * 2 + [torch.bfloat16] * 2
    for found, expected in zip(close, exact):
        assert found["sem_seg"].dtype == torch.float32
        assert not torch.equal(found["sem_seg"], expected["sem_seg"])
        assert (found["sem_seg"] - expected["sem_seg"]).abs().mean() < 0.05 * expected["sem_seg"].abs().mean()
        assert len(found["sem_seg"].unique()) > len(found["sem_seg"].bfloat16().unique())  # nor were they rounded
        assert all(level.dtype == torch.float32 for level in found["transferability"])
    monkeypatch.setattr(precision, "cpu_has_bfloat16", lambda: False)
    for found, expected in zip(build_inference(cfg, model)(records), exact):
        assert torch.equal(found["sem_seg"], expected["sem_seg"])


@pytest.mark.parametrize(
    ("capabilities", "answer"), [({"avx512_bf16": True}, True), ({"amx_bf16": True}, True), ({"avx512_f": True}, False)]
)
def test_processors(capabilities: dict[str, bool], answer: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert cpu_has_bfloat16() is answer


@pytest.mark.slow
@pytest.mark.usefixtures("data_root")
@pytest.mark.parametrize(
    ("has_it", "dtype", "falls_back"),
    [(True, "bfloat16", False), (False, "bfloat16", True), (True, "float16", True)],  # float16 is for GPUs
)
def test_a_run_uses_what_the_processor_has(
    has_it: bool,
    dtype: str,
    falls_back: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(precision, "cpu_has_bfloat16", lambda: has_it)
    changes = {"SOLVER__MAX_ITER": 1, "SOLVER__AMP__ENABLED": True}
    run_stage(small_cfg("source", tmp_path / "run", SOLVER__AMP__DTYPE=dtype, **changes))
    run_stage(small_cfg("source", tmp_path / "float32", **changes | {"SOLVER__AMP__ENABLED": False}))
    weights = [
        contents(tmp_path / each / "model_final.pth")["/model/backbone.stem.conv1.weight"]
        for each in ("run", "float32")
    ]
    assert torch.equal(*weights) == falls_back
