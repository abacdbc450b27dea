"""The examples of docs/deployment.md are run as they stand there, with small models."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.modeling import build_model
from PIL import Image

from tests.helpers.checkout import ROOT
from tests.helpers.models import tiny_cfg
from tmt_d2.deployment import export
from tmt_d2.interop import convert, huggingface

pytestmark = pytest.mark.slow

PAGE = ROOT / "docs" / "deployment.md"
COMMANDS = {"tmt_d2.interop.convert": convert.main, "tmt_d2.deployment.export": export.main}


def examples(language: str) -> list[str]:
    """The page's code blocks in one language that show conversion or deployment."""
    blocks = re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)
    return [block for block in blocks if "tmt_d2.interop" in block or "tmt_d2.deployment" in block]


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with what the examples name, small, and a hub that holds one model."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    cfg = tiny_cfg(
        MODEL__META_ARCHITECTURE="TransferableMaskFormer",
        MODEL__MASK_FORMER__DEC_LAYERS=2,
        MODEL__TMT__ITERATIONS=1,
        INPUT__MIN_SIZE_TEST=32,
    )
    for folder in ("configs/R50", "output/R50/tmt", "hub"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "configs/R50/tmt.yaml").write_text(cfg.dump())
    state = build_model(cfg).state_dict()
    torch.save({"model": state}, tmp_path / "output/R50/tmt/model_final.pth")
    huggingface.write_huggingface(cfg, state, tmp_path / "hub")
    monkeypatch.setattr(huggingface, "_download", lambda name: tmp_path / "hub")
    for name, size in (("street.png", (60, 40)), ("other.png", (31, 45))):
        Image.new("RGB", size, (90, 120, 60)).save(tmp_path / name)
    return tmp_path


def test_commands(workplace: Path) -> None:
    lines = "".join(examples("bash")).replace("\\\n", " ").splitlines()
    calls = [shlex.split(line, comments=True) for line in lines if line.startswith("python -m tmt_d2.")]
    assert len(calls) >= 4
    for call in calls:
        arguments = ["32x64" if word == "512x1024" else word for word in call[3:]]  # a small model, a small image
        COMMANDS[call[2]](arguments)
    for file in ("swin_tiny.pth", "swin_tiny.yaml", "swin_tiny_hf/model.safetensors", "plain.pkl", "tmt.onnx"):
        assert (workplace / file).stat().st_size > 0


def test_predictor(workplace: Path) -> None:
    (code,) = examples("python")
    names: dict[str, Any] = {}
    exec(compile(code, PAGE.name, "exec"), names)
    assert names["labels"].shape == (40, 60)
    assert names["scores"].shape == (19, 40, 60)
    assert names["transferability"].shape == (3, 40, 60)
    assert [prediction.labels.shape for prediction in names["batch"]] == [(40, 60), (45, 31)]
