"""Whole runs of self-training: resumed, split, saved, refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.engine.test_resume import FINAL, run_killed, trainer_of
from tests.helpers.errors import refuses
from tests.helpers.models import tiny_cfg
from tests.helpers.small_runs import contents, differences, small_cfg
from tmt_d2.adaptation.checks import check_task
from tmt_d2.adaptation.self_training.checks import check_source_classes
from tmt_d2.data import register_data
from tmt_d2.data.datasets.label_spaces import LabelSpace
from tmt_d2.data.datasets.registration import register_split
from tmt_d2.engine.checkpoint.checkpointer import keep_weights
from tmt_d2.engine.run_stage import run_stage
from tmt_d2.errors import UserError

STUDENT = "/method_training/student."
FEW: dict[str, Any] = {"TRANSFER__LABEL_COUNT": 2, "SELF_TRAINING__BURN_IN": 0.25}
CAREFUL: dict[str, Any] = {
    "SELF_TRAINING__CONFIDENCE_THRESHOLD": 0.05,
    "SELF_TRAINING__IGNORE_UNCONFIDENT": True,
    "SELF_TRAINING__WEIGHT_BY": "pixel",
    "SELF_TRAINING__MIC_WEIGHT": 1.0,
}


def self_training_cfg(output: Path, start: Path, method: str = "self-training", **changes: Any) -> Any:
    return small_cfg(method, output, start, **FEW | changes)


@pytest.mark.slow
@pytest.mark.usefixtures("data_root")
@pytest.mark.parametrize(("accumulation", "source"), [(1, 0.0), (2, 0.5)])
def test_resumed_equals_uninterrupted(start: Path, tmp_path: Path, accumulation: int, source: float) -> None:
    changes: dict[str, Any] = {"SOLVER__CHECKPOINT_PERIOD": 2, "SOLVER__ACCUMULATION_STEPS": accumulation}
    changes |= {"SELF_TRAINING__SOURCE_RATIO": source, "DATASETS__SOURCE_TRAIN": ("cityscapes_sem_seg_train",)}
    if source:
        settings = {
            "FDA_BETA": 0.05,
            "RARE_CLASS_TEMPERATURE": 0.1,
        }
        changes |= CAREFUL | {f"SELF_TRAINING__{key}": value for key, value in settings.items()}
    run_stage(self_training_cfg(tmp_path / "straight", start, **changes))
    run_killed(self_training_cfg(tmp_path / "killed", start, **changes), 3)
    run_stage(self_training_cfg(tmp_path / "killed", start, **changes), resume=True)
    assert not differences(tmp_path / "straight" / FINAL, tmp_path / "killed" / FINAL)
    saved = contents(tmp_path / "killed" / FINAL)
    assert saved["/method_training/average._extra_state/steps"] == 4
    names = [name for name in saved if name.startswith("/model/")]
    assert any((saved[name] != saved[STUDENT + name.removeprefix("/model/")]).any() for name in names)
    scores = json.loads((tmp_path / "killed" / "evaluation.json").read_text())["bdd100k_sem_seg_val"]
    assert {"mIoU", "mIoU-student", "fwIoU-student", "mACC-student", "pACC-student"} <= scores.keys()


@pytest.mark.slow
@pytest.mark.usefixtures("data_root")
def test_full_ema_trains_as_full_and_saves_the_average(start: Path, tmp_path: Path) -> None:
    changes = {"TRANSFER__LABEL_COUNT": 2, "MODEL__RESNETS__NORM": "BN"}
    run_stage(small_cfg("full", tmp_path / "full", start, **changes))
    run_stage(small_cfg("full-ema", tmp_path / "ema", start, **changes))
    full, ema = contents(tmp_path / "full" / FINAL), contents(tmp_path / "ema" / FINAL)
    names = [name.removeprefix("/model/") for name in full if name.startswith("/model/")]
    assert all(torch.equal(full[f"/model/{name}"], ema[STUDENT + name]) for name in names)
    scores = [
        json.loads((tmp_path / name / "evaluation.json").read_text())["bdd100k_sem_seg_val"] for name in ("full", "ema")
    ]
    assert scores[0]["mIoU"] == scores[1]["mIoU-student"]
    moved = [name for name in names if not torch.equal(full[f"/model/{name}"], ema[f"/model/{name}"])]
    assert any("running_mean" in name for name in moved)
    mean = ema["/model/sem_seg_head.predictor.class_embed.bias"]  # min(1 - 1 / (i + 1), m): so far the plain mean
    steps = [contents(tmp_path / "full" / f"model_000000{i}.pth") for i in (1, 2)] + [full]
    first = small_cfg("full", tmp_path / "one", start, SOLVER__CHECKPOINT_PERIOD=1, **changes)
    run_killed(first, 1)
    steps.insert(0, contents(tmp_path / "one" / "model_0000000.pth"))
    values = [each["/model/sem_seg_head.predictor.class_embed.bias"] for each in steps]
    torch.testing.assert_close(mean, torch.stack(values).mean(0))


@pytest.mark.slow
@pytest.mark.usefixtures("data_root")
def test_gradients_do_not_depend_on_the_split(start: Path, tmp_path: Path) -> None:
    def gradients(steps: int) -> tuple[dict[str, float], list[Tensor]]:
        cfg = self_training_cfg(tmp_path, start, SOLVER__ACCUMULATION_STEPS=steps, **CAREFUL)
        run, records = trainer_of(cfg)
        for name, parameter in run.task.student.named_parameters():
            if name.endswith("sampling_offsets.bias"):
                parameter.data += 0.3  # as in test_resume
        values, _ = run.step.backward(records)
        return {name: float(value) for name, value in values.items()}, [p.grad.clone() for p in run.step.parameters]

    (whole_losses, whole), (split_losses, split) = gradients(1), gradients(2)
    assert whole_losses == pytest.approx(split_losses, rel=1e-4)
    assert max(float((a - b).abs().max()) for a, b in zip(whole, split)) < 1e-4


@pytest.mark.slow
@pytest.mark.usefixtures("data_root")
def test_the_checkpoint_of_a_stage_that_ended_holds_the_teacher_alone(start: Path, tmp_path: Path) -> None:
    run_stage(self_training_cfg(tmp_path, start, SOLVER__MAX_ITER=1))
    keep_weights(tmp_path)
    kept = ("/model/", "/classes/", "/ended_after")
    assert not [name for name in contents(tmp_path / FINAL) if not name.startswith(kept)]


def test_a_source_of_other_classes(caplog: Any) -> None:
    """Cityscapes as source and target, and two sources that have some and none of its classes."""
    for name, ids in (("some", {0: 0}), ("none", {0: 3})):
        register_split(name, list, LabelSpace(name, ids, frozenset({255})))
    register_split("target", list, LabelSpace("target", {0: 0, 1: 1}, frozenset({255})))
    cfg = tiny_cfg(DATASETS__TRAIN=("target",), DATASETS__SOURCE_TRAIN=("some",))
    check_source_classes(cfg)
    assert "sidewalk" in caplog.text
    with refuses("DATASETS.SOURCE_TRAIN"):
        check_source_classes(tiny_cfg(DATASETS__TRAIN=("target",), DATASETS__SOURCE_TRAIN=("none",)))


@pytest.mark.slow
@pytest.mark.usefixtures("data_root")
@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"TRANSFER__LABEL_COUNT": 7}, "LABEL_COUNT"),
        ({"SELF_TRAINING__SOURCE_RATIO": 1.0, "DATASETS__SOURCE_TRAIN": ()}, "DATASETS.SOURCE_TRAIN"),
        ({"SELF_TRAINING__UNLABELED_RATIO": 0.3}, "UNLABELED_RATIO"),
        ({"TRANSFER__LABEL_LIST": "some.txt"}, "LABEL_LIST"),
        ({"SOLVER__ACCUMULATION_STEPS": 4}, "ACCUMULATION_STEPS"),
    ],
)
def test_bad_input_is_refused(start: Path, tmp_path: Path, changes: dict[str, Any], key: str) -> None:
    with pytest.raises(UserError, match=key):
        run_stage(self_training_cfg(tmp_path, start, **changes))


@pytest.mark.slow
@pytest.mark.usefixtures("data_root")
def test_another_methods_run_is_not_resumed(start: Path, tmp_path: Path) -> None:
    """Neither by its config nor, where that is gone, by its checkpoint; and it can still be resumed."""
    changes: dict[str, Any] = {"TRANSFER__LABEL_COUNT": 2, "SELF_TRAINING__BURN_IN": 0.25}
    run_killed(small_cfg("full", tmp_path, start, **changes), 2)
    config = (tmp_path / "config.yaml").read_text()
    with pytest.raises(UserError, match="TRANSFER.METHOD full"):
        run_stage(self_training_cfg(tmp_path, start), resume=True)
    assert (tmp_path / "config.yaml").read_text() == config
    (tmp_path / "config.yaml").unlink()
    with pytest.raises(UserError, match="model_0000001.pth"):
        run_stage(self_training_cfg(tmp_path, start), resume=True)
    run_stage(small_cfg("full", tmp_path, start, **changes), resume=True)
    assert (tmp_path / "config.yaml").read_text() == config


@pytest.mark.slow
@pytest.mark.usefixtures("data_root")
def test_a_refused_command_leaves_the_config_of_the_run_before(start: Path, tmp_path: Path) -> None:
    run_stage(self_training_cfg(tmp_path, start, SOLVER__MAX_ITER=1))
    config = (tmp_path / "config.yaml").read_text()
    with pytest.raises(UserError, match="CONFIDENCE_THRESHOLD"):
        run_stage(self_training_cfg(tmp_path, start, SELF_TRAINING__CONFIDENCE_THRESHOLD=0.9))
    assert (tmp_path / "config.yaml").read_text() == config


@pytest.mark.usefixtures("data_root")
def test_tested_splits_that_are_trained_on_are_named(
    start: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    both = ("bdd100k_sem_seg_val", "cityscapes_sem_seg_val")
    cfg = self_training_cfg(tmp_path, start, DATASETS__UNLABELED=both, DATASETS__TEST=both)
    register_data(cfg)
    with caplog.at_level("WARNING", logger="tmt_d2"):
        check_task(cfg)
    assert len(caplog.messages) == 1 and "DATASETS.UNLABELED" in caplog.text
