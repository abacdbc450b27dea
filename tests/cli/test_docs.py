"""Runs the examples of docs/deployment.md with small models."""

from __future__ import annotations

import json
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
from tmt_d2.data.datasets.label_spaces import CLASSES, PALETTE
from tmt_d2.inference.export import FixedSizeModel, sample_image
from tmt_d2.inference.predictor import Predictor
from tmt_d2.modeling.mask_former import MaskFormer
from tmt_d2.projects.huggingface import checkpoint as huggingface
from tmt_d2.projects.huggingface import convert

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
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
    code, _ = examples("python")
    names: dict[str, Any] = {}
    exec(compile(code, PAGE.name, "exec"), names)
    predictor = Predictor.from_config("output/R50/tmt/config.yaml", "output/R50/tmt/model_final.pth")
    expected = predictor("street.png").labels.numpy()
    assert len(np.unique(expected)) > 1
    assert (names["labels"] == expected).mean() >= 0.99
    check_onnx_file(workplace / "tmt.onnx", predictor.model)


def check_onnx_file(path: Path, model: MaskFormer) -> None:
    """Compare the file with the model on another image."""
    assert any(node.op_type == "GridSample" for node in onnx.load(path).graph.node)
    session = onnxruntime.InferenceSession(path)
    metadata = {key: json.loads(value) for key, value in session.get_modelmeta().custom_metadata_map.items()}
    assert metadata["classes"] == {"names": list(CLASSES), "colors": [list(color) for color in PALETTE]}
    (entry,) = session.get_inputs()
    size = entry.shape[2:]
    expected_input = {"name": entry.name, "layout": "NCHW", "channels": "RGB", "range": [0, 255], "dtype": "float32"}
    assert metadata["input"] == expected_input | {"size": size}
    image, fixed = sample_image(tuple(size), 99), FixedSizeModel(model)
    names = [output.name for output in session.get_outputs()]
    assert names == fixed.names == ["labels", "scores", "class_logits", "mask_logits"]
    exported = dict(zip(names, map(torch.from_numpy, session.run(None, {"image": image.numpy()}))))
    expected = dict(zip(names, fixed(image)))
    for name in ("class_logits", "mask_logits"):
        assert (exported[name] - expected[name]).abs().max() < 1e-3
    assert (exported["labels"] == expected["labels"]).double().mean() > 0.999


def test_predictor(workplace: Path) -> None:
    _, code = examples("python")
    names: dict[str, Any] = {}
    exec(compile(code, PAGE.name, "exec"), names)
    assert names["labels"].shape == (40, 60)
    assert names["scores"].shape == (19, 40, 60)
    assert names["transferability"].shape == (3, 40, 60)
    assert [prediction.labels.shape for prediction in names["batch"]] == [(40, 60), (45, 31)]
