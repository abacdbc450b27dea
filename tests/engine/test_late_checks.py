"""What can be refused at once is refused before a model is read, or at least before it looks at an image."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from tests.helpers.checkout import BASE_CONFIG
from tests.helpers.models import tiny_cfg
from tmt_d2.cli import export, predict, score, show_attention
from tmt_d2.config import replace_keys
from tmt_d2.data.datasets.registration import check_registered
from tmt_d2.engine.run_stage import run_stage
from tmt_d2.errors import UserError
from tmt_d2.experiments import scoring as scoring_module
from tmt_d2.inference import Predictor
from tmt_d2.projects.label_selection import command as select_labels
from tmt_d2.projects.viewer import command as app

CONFIG = ("--config-file", str(BASE_CONFIG))


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: Any, **__: Any) -> None:
        raise AssertionError("the model was loaded first")

    monkeypatch.setattr(Predictor, "from_config", load)
    monkeypatch.setattr(scoring_module, "score_checkpoint", load)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for index in range(3):
        cv2.imwrite(str(folder / f"{index}.png"), np.full((32, 40, 3), 60 * index, np.uint8))
    (tmp_path / "known.txt").write_text("1.png\n2.png\n")
    (tmp_path / "unknown.txt").write_text("7.png\n")
    return folder


def select(photos: Path, budget: int, *more: str) -> None:
    words = ["--target", str(photos), "--output", str(photos.parent / "out"), "--budget", str(budget)]
    select_labels.main([*CONFIG, *words, *more])


@pytest.mark.usefixtures("no_model")
def test_budget_and_labels_of_a_selection(photos: Path, tmp_path: Path) -> None:
    for budget, labeled, match in (
        (4, "", "--budget"),
        (2, "known.txt", "--budget"),
        (1, "unknown.txt", "--labeled"),
    ):
        with pytest.raises(UserError, match=match):
            select(photos, budget, *(["--labeled", str(tmp_path / labeled)] if labeled else []))
    with pytest.raises(AssertionError):  # control
        select(photos, 1, "--labeled", str(tmp_path / "known.txt"))
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("no_model")
def test_inputs_and_places_for_results(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nowhere, out = str(tmp_path / "nowhere"), str(tmp_path / "out")

    def scoring(*words: str) -> None:
        monkeypatch.setattr(sys, "argv", ["score", *CONFIG, "--target", "bdd100k", *words])
        score.main()

    there = str(photos / "0.png")
    cases: tuple[tuple[Callable[[], Any], str], ...] = (
        (lambda: predict.main([*CONFIG, "--input", nowhere, "--output", out]), "nowhere"),
        (lambda: show_attention.main([*CONFIG, "--input", nowhere, "--output", out]), "nowhere"),
        (lambda: show_attention.main([*CONFIG, "--statistics", "magic", "--output", out]), "--statistics"),
        (lambda: export.main([*CONFIG, "--size", "64x64", "--output", f"{nowhere}/a.onnx"]), "--output"),
        (lambda: scoring("--checkpoints", there, nowhere), "nowhere"),
        (lambda: scoring("--checkpoints", there, "--json", f"{nowhere}/a.json"), "--json"),
        (lambda: scoring("--checkpoints", there, "--images", "1"), "--images"),
    )
    for run, match in cases:
        with pytest.raises((UserError, FileNotFoundError), match=match):
            run()


def test_ports_of_the_page() -> None:
    for port in ("99999", "0"):
        with pytest.raises(UserError, match="--port"):
            app.main(["--port", port])


def test_names_of_detectron2_itself() -> None:
    for name in ("cityscapes_fine_sem_seg_train", "cityscapes_fine_instance_seg_val"):
        with pytest.raises(UserError, match=name):
            check_registered(name, "DATASETS.TRAIN")


def test_no_stage_begins_that_has_no_step(tmp_path: Path) -> None:
    cfg = replace_keys(tiny_cfg(OUTPUT_DIR=str(tmp_path / "out")), {"SOLVER.MAX_ITER": -3})
    with pytest.raises(UserError, match=r"SOLVER\.MAX_ITER"):
        run_stage(cfg)
    assert not (tmp_path / "out").exists()
