"""Runs the examples of docs/deployment.md with small models."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from PIL import Image

from tests.helpers.checkout import ROOT
from tests.helpers.models import tiny_cfg
from tmt_d2.cli import export
from tmt_d2.inference.export import sample_image
from tmt_d2.inference.predictor import Predictor
from tmt_d2.projects.huggingface import checkpoint as huggingface
from tmt_d2.projects.huggingface import convert

pytestmark = pytest.mark.slow

PAGE = ROOT / "docs" / "deployment.md"
COMMANDS = {"tmt_d2.projects.huggingface.convert": convert.main, "tmt_d2.cli.export": export.main}


def examples(language: str) -> list[str]:
    """Code blocks of the page in one language, about conversion or deployment."""
    blocks = re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)
    return [
        block
        for block in blocks
        if "tmt_d2.projects.huggingface" in block or "tmt_d2.inference" in block or "tmt_d2.cli" in block
    ]


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the files of the examples, and a hub with one model."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    cfg = tiny_cfg(
        MODEL__META_ARCHITECTURE="TransferableMaskFormer",
        MODEL__MASK_FORMER__DEC_LAYERS=2,
        MODEL__TMT__ITERATIONS=1,
        INPUT__MIN_SIZE_TEST=32,
    )
    for folder in ("configs/models", "output/R50/tmt", "hub"):
        (tmp_path / folder).mkdir(parents=True)
    for file in ("configs/models/R50.yaml", "output/R50/tmt/config.yaml"):
        (tmp_path / file).write_text(cfg.dump())
    model = build_model(cfg)
    with torch.no_grad():  # an untrained model sees one class everywhere
        model.sem_seg_head.predictor.class_embed.weight.normal_(0, 3)
        model.sem_seg_head.predictor.mask_embed.layers[-1].weight.mul_(5)
    state = model.state_dict()
    torch.save({"model": state}, tmp_path / "output/R50/tmt/model_final.pth")
    huggingface.write_huggingface(cfg, state, tmp_path / "hub")
    monkeypatch.setattr(huggingface, "_download", lambda name: tmp_path / "hub")
    for name, size in (("street.png", (60, 40)), ("other.png", (31, 45))):
        image = sample_image(size[::-1], 0)[0].permute(1, 2, 0).byte().numpy()
        Image.fromarray(image).save(tmp_path / name)
    return tmp_path


def test_commands(workplace: Path) -> None:
    lines = "".join(examples("bash")).replace("\\\n", " ").splitlines()
    calls = [shlex.split(line, comments=True) for line in lines if line.startswith("python -m tmt_d2.")]
    assert len(calls) >= 4
    for call in calls:
        COMMANDS[call[2]](call[3:])
    for file in ("swin_tiny.pth", "swin_tiny.yaml", "swin_tiny_hf/model.safetensors", "plain.pkl", "tmt.onnx"):
        assert (workplace / file).stat().st_size > 0
    # The ONNX file as the page reads it, against the predictor.
    onnx, _ = examples("python")
    names: dict[str, Any] = {}
    exec(compile(onnx, PAGE.name, "exec"), names)
    predictor = Predictor.from_config("output/R50/tmt/config.yaml", "output/R50/tmt/model_final.pth")
    expected = predictor("street.png").labels.numpy()
    assert len(np.unique(expected)) > 1
    assert (names["labels"] == expected).mean() >= 0.99


def test_predictor(workplace: Path) -> None:
    _, code = examples("python")
    names: dict[str, Any] = {}
    exec(compile(code, PAGE.name, "exec"), names)
    assert names["labels"].shape == (40, 60)
    assert names["scores"].shape == (19, 40, 60)
    assert names["transferability"].shape == (3, 40, 60)
    assert [prediction.labels.shape for prediction in names["batch"]] == [(40, 60), (45, 31)]
