"""Runs demo/notebook.ipynb cell by cell with small models; further hooks, images in TensorBoard, Weights & Biases."""

from __future__ import annotations

import ast
import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from detectron2.engine import HookBase
from matplotlib.figure import Figure
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.helpers.checkout import ROOT
from tests.helpers.errors import refuses
from tests.helpers.small_runs import TINIEST, metrics_of, small_cfg, tmt_cfg
from tmt_d2 import notebook
from tmt_d2.engine.hooks.evaluation_images import EvaluationImages
from tmt_d2.engine.run_stage import run_stage
from tmt_d2.errors import UserError
from tmt_d2.inference import Prediction
from tmt_d2.modeling.tmt import TransferableMaskFormer

pytestmark = pytest.mark.slow

SMALL = {key: value for key, value in TINIEST.items() if not key.startswith("DATASETS")} | {"SOLVER.MAX_ITER": 2}


def shown(cell: str, names: dict[str, Any]) -> Any:
    """Run a cell; the value of its last line, as a notebook would show it."""
    tree = ast.parse(cell)
    last = tree.body[-1]
    if not isinstance(last, ast.Expr):
        exec(compile(tree, "cell", "exec"), names)
        return None
    exec(compile(ast.Module(tree.body[:-1], []), "cell", "exec"), names)
    return eval(compile(ast.Expression(last.value), "cell", "eval"), names)


def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DETECTRON2_DATASETS", "")
    monkeypatch.setattr("tmt_d2.visualization.panels.DPI", 40)
    for name in ("train", "adapt"):
        original = getattr(notebook, name)
        monkeypatch.setattr(
            notebook, name, lambda *args, options, _do=original: _do(*args, options=SMALL)
        )  # what a cell says about iterations stands for more that makes it small
    cells = json.loads((ROOT / "demo" / "notebook.ipynb").read_text())["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    assert all(not cell.get("outputs") for cell in cells) and "FRAMES, ITERATIONS = 160, 300" in code[0]
    code[0] = code[0].replace("160, 300", "4, 2").replace("val=20", "val=1, size=(64, 128), workers=1")
    names: dict[str, Any] = {}
    values = [shown(cell, names) for cell in code]
    assert 0 <= values[1] <= 100 and 0 <= values[2] <= 100
    assert isinstance(values[3], Prediction) and values[3].labels.shape == (64, 128)
    assert isinstance(values[4], Figure) and isinstance(values[5], Figure)
    assert isinstance(names["model"].show_prediction(names["street"]), Figure)
    with refuses(names["source"].weights):
        names["source"].show_transferability(names["street"])


class Counting(HookBase):
    def __init__(self) -> None:
        self.steps = 0

    def before_train(self) -> None:
        assert isinstance(self.trainer.model, TransferableMaskFormer)  # as in Detectron2's own trainers

    def after_step(self) -> None:
        self.steps += 1
        self.trainer.storage.put_scalar("mine", self.steps, smoothing_hint=False)


@pytest.mark.usefixtures("data_root")
def test_hooks_of_ones_own_and_pictures(start: Path, tmp_path: Path) -> None:
    cfg = tmt_cfg(tmp_path / "with", start, LOGGING__IMAGES=1, TEST__EVAL_PERIOD=2)
    mine = Counting()
    run_stage(cfg, hooks=[EvaluationImages(cfg), mine])
    assert mine.steps == 4
    assert any(line.get("mine") == 4 for line in metrics_of(tmp_path / "with"))
    events = EventAccumulator(str(tmp_path / "with"), size_guidance={"images": 0}).Reload()
    assert events.Tags()["images"] == ["bdd100k_sem_seg_val/0 prediction", "bdd100k_sem_seg_val/0 T"]
    assert len(events.Images("bdd100k_sem_seg_val/0 T")) == 2  # after two steps and after four
    run_stage(tmt_cfg(tmp_path / "without", start, TEST__EVAL_PERIOD=2))
    a, b = ((tmp_path / name / "evaluation.json").read_text() for name in ("with", "without"))
    assert a == b  # looking changes nothing


@pytest.mark.usefixtures("data_root")
def test_a_used_folder_of_other_data_or_options_is_refused(tmp_path: Path) -> None:
    once = {**SMALL, "SOLVER.MAX_ITER": 1}
    source = notebook.train("cityscapes", tmp_path / "source", options=once)
    for _ in range(2):  # the same again is no other run
        notebook.adapt(source, "bdd100k", tmp_path / "full", "full", once)
    before = {path: path.read_bytes() for path in tmp_path.glob("*/config.yaml")}
    with pytest.raises(UserError, match="DATASETS.TRAIN"):
        notebook.train("bdd100k", tmp_path / "source", options=once)
    with pytest.raises(UserError, match="SOLVER.BASE_LR"):
        notebook.train("cityscapes", tmp_path / "source", options=once | {"SOLVER.BASE_LR": 0.5})
    with pytest.raises(UserError, match="DATASETS.TRAIN"):
        notebook.adapt(source, "cityscapes", tmp_path / "full", "full", once)
    with pytest.raises(UserError, match="TRANSFER.METHOD"):
        notebook.adapt(source, "bdd100k", tmp_path / "full", "linear", once)
    shutil.copytree(source.folder, tmp_path / "other")
    before[tmp_path / "other" / "config.yaml"] = before[source.folder / "config.yaml"]
    with pytest.raises(UserError, match="MODEL.WEIGHTS"):
        notebook.adapt(replace(source, folder=tmp_path / "other"), "bdd100k", tmp_path / "full", "full", once)
    assert before == {path: path.read_bytes() for path in tmp_path.glob("*/config.yaml")}


@pytest.mark.usefixtures("data_root")
def test_weights_and_biases(start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logged: dict[int, dict[str, Any]] = {}
    started: list[dict[str, Any]] = []
    run = SimpleNamespace(log=lambda values, step: logged.setdefault(step, {}).update(values), finish=lambda: None)
    fake = SimpleNamespace(init=lambda **options: started.append(options) or run, Image=np.shape)
    cfg = small_cfg("full", tmp_path, start, LOGGING__WANDB_PROJECT="street", LOGGING__IMAGES=1, SOLVER__MAX_ITER=2)
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match="LOGGING.WANDB_PROJECT"):
        run_stage(cfg)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    for resume in (False, True):
        run_stage(cfg, resume, hooks=[EvaluationImages(cfg)])
    first, second = started
    assert first["project"] == "street" and first["config"]["SOLVER"]["MAX_ITER"] == 2
    assert first["id"] == second["id"] and first["resume"] == "allow"
    assert any("total_loss" in values for values in logged.values())
    assert any(values.get("bdd100k_sem_seg_val/0 prediction", ())[2:] == (3,) for values in logged.values())
