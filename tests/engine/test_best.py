"""The best weights by a metric and early stopping, also of a run that is killed and resumed."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from detectron2.modeling import build_model
from torch import nn

from tests.helpers.errors import refuses
from tests.helpers.small_runs import Killed, contents, differences, small_cfg
from tmt_d2.data.datasets.label_spaces import CLASSES
from tmt_d2.engine import trainer as trainer_module
from tmt_d2.engine.best import Best
from tmt_d2.engine.checkpoint.checkpointer import TMTCheckpointer, keep_weights
from tmt_d2.engine.run_stage import run_stage
from tmt_d2.engine.trainer import Trainer
from tmt_d2.errors import UserError

SPLIT = "bdd100k_sem_seg_val"
EVERY_STEP = {"TEST__EVAL_PERIOD": 1, "TEST__BEST__METRIC": "mIoU"}


def measuring(values: Callable[[int, nn.Module], float]) -> Callable[..., dict[str, Any]]:
    """An evaluation with invented results; values: number of the call, model -> mIoU."""
    calls = iter(range(10**6))
    return staticmethod(lambda cfg, model: {SPLIT: {"mIoU": values(next(calls), model)}})


def weights(path: Path) -> dict[str, Any]:
    return {name: value.tolist() for name, value in contents(path).items() if name.startswith("/model/")}


def test_the_best_follows_from_the_record(tmp_path: Path) -> None:
    best = Best(tmp_path, "mIoU", SPLIT, patience=3)
    assert best.iteration is None and not best.exhausted
    saved = []
    for index, value in enumerate((math.nan, 1.0, 3.0, 2.0, math.nan)):
        best.note(10 * index, {SPLIT: {"mIoU": value}}, lambda: saved.append(index))  # noqa: B023
        assert not best.exhausted
    assert saved == [1, 2] and best.iteration == 20
    best.note(50, {SPLIT: {"mIoU": 3.0}}, lambda: saved.append(5))  # no better than the first
    assert saved == [1, 2] and best.exhausted
    record = json.loads((tmp_path / "best.json").read_text())
    assert record["best"] == 20 and [each["value"] for each in record["evaluations"]] == [None, 1, 3, 2, None, 3]

    resumed = Best(tmp_path, "mIoU", SPLIT, patience=3)
    resumed.read(last=30)
    assert list(resumed.values) == [0, 10, 20, 30] and resumed.iteration == 20 and not resumed.exhausted
    with refuses(str(tmp_path / "best.json")):
        Best(tmp_path, "pACC", SPLIT, 0).read(30)


@pytest.mark.parametrize("last", [10, 15])
@pytest.mark.parametrize("again", [2.9, math.nan])
def test_the_record_names_the_weights_that_are_kept(tmp_path: Path, last: int, again: float) -> None:
    """The best evaluation came after the checkpoint to resume from, and is worse the second time."""
    kept = []

    def note(best: Best, iteration: int, value: float) -> None:
        best.note(iteration, {SPLIT: {"mIoU": value}}, lambda: kept.append(iteration))

    best = Best(tmp_path, "mIoU", SPLIT, patience=2)
    note(best, 10, 3.0)
    note(best, 20, 3.1)
    for iteration, value in ((20, again), (30, 2.5), (40, 2.95), (50, 2.8)):
        best = Best(tmp_path, "mIoU", SPLIT, patience=2)  # resumed each time
        best.read(last if iteration == 20 else iteration - 5)
        assert best.exhausted == (iteration > 30)  # as of a run that is not interrupted
        note(best, iteration, value)
        assert json.loads((tmp_path / "best.json").read_text())["best"] == best.iteration
        assert best.iteration in (kept[-1], None)
    assert kept == ([10, 20, 20, 40] if again == 2.9 else [10, 20, 30, 40])


@pytest.mark.slow
@pytest.mark.usefixtures("data_root")
class TestRuns:
    def test_the_best_weights_are_kept(self, start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(Trainer, "test", measuring(lambda call, _: [5, 7, 6, 6.5, 0][call]))
        run_stage(small_cfg("full", tmp_path, start, **EVERY_STEP))
        best = tmp_path / "model_best.pth"
        assert weights(best) == weights(tmp_path / "model_0000001.pth") != weights(tmp_path / "model_final.pth")
        assert not any(name.startswith("/trainer") for name in contents(best))
        classes = {name for name in contents(tmp_path / "model_final.pth") if name.startswith("/classes/")}
        assert classes and classes <= contents(best).keys()  # or nobody could tell what its rows mean
        assert (tmp_path / "last_checkpoint").read_text() == "model_final.pth"
        record = json.loads((tmp_path / "best.json").read_text())
        assert record["best"] == 2 and [each["after"] for each in record["evaluations"]] == [1, 2, 3, 4]
        TMTCheckpointer(build_model(small_cfg("full", tmp_path)), require_head=True).load(str(best))

    def test_early_stopping(self, start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        cfg = small_cfg("full", tmp_path, start, **EVERY_STEP, TEST__BEST__PATIENCE=2, SOLVER__MAX_ITER=9)
        values = [5, 7, 6, 6.5, 8]
        monkeypatch.setattr(Trainer, "test", measuring(lambda call, _: values[call]))
        assert run_stage(cfg) == {SPLIT: {"mIoU": 6.5}}
        final = tmp_path / "model_final.pth"
        assert weights(final) == weights(tmp_path / "model_0000003.pth")

        before = weights(final)
        monkeypatch.setattr(Trainer, "test", measuring(lambda *_: 6.5))
        assert run_stage(cfg, resume=True) == {SPLIT: {"mIoU": 6.5}}
        keep_weights(tmp_path)
        assert run_stage(cfg, resume=True) == {SPLIT: {"mIoU": 6.5}}
        assert weights(final) == before

    @pytest.mark.parametrize("in_evaluation", [1, 2])
    def test_killed_and_resumed_equals_uninterrupted(
        self, start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_evaluation: int
    ) -> None:
        def value(_: int, model: nn.Module) -> float:
            return float(model.sem_seg_head.predictor.query_feat.weight.detach().double().sum() * 1e4 % 7)

        def until_killed(call: int, model: nn.Module) -> float:
            if call == in_evaluation:
                raise Killed
            return value(call, model)

        options = {**EVERY_STEP, "SOLVER__CHECKPOINT_PERIOD": 2, "TEST__BEST__PATIENCE": 4}
        monkeypatch.setattr(Trainer, "test", measuring(value))
        run_stage(small_cfg("full", tmp_path / "straight", start, **options))
        monkeypatch.setattr(Trainer, "test", measuring(until_killed))
        with pytest.raises(Killed):
            run_stage(small_cfg("full", tmp_path / "killed", start, **options))
        monkeypatch.setattr(Trainer, "test", measuring(value))
        run_stage(small_cfg("full", tmp_path / "killed", start, **options), resume=True)
        assert (tmp_path / "killed" / "best.json").read_text() == (tmp_path / "straight" / "best.json").read_text()
        for name in ("model_best.pth", "model_final.pth"):
            assert not differences(tmp_path / "straight" / name, tmp_path / "killed" / name)

    @pytest.mark.parametrize(
        ("changes", "key"),
        [
            ({"TEST__BEST__METRIC": "mIou"}, "TEST.BEST.METRIC"),
            ({"TEST__BEST__SPLIT": "gtav_sem_seg_val"}, "TEST.BEST.SPLIT"),
            ({"TEST__EVAL_PERIOD": 0}, "TEST.EVAL_PERIOD"),
            ({"TEST__BEST__METRIC": "", "TEST__BEST__PATIENCE": 2}, "TEST.BEST.PATIENCE"),
        ],
    )
    def test_wrong_settings(self, start: Path, tmp_path: Path, changes: dict[str, Any], key: str) -> None:
        with pytest.raises(UserError, match=key):
            run_stage(small_cfg("full", tmp_path, start, **EVERY_STEP | changes))

    def test_without_it_nothing_is_written(self, start: Path, tmp_path: Path) -> None:
        run_stage(small_cfg("full", tmp_path, start, TEST__EVAL_PERIOD=1, SOLVER__MAX_ITER=2))
        assert not list(tmp_path.glob("*best*"))


ESTIMATED: dict[str, Any] = {
    "TEST__EVAL_PERIOD": 1,
    "TEST__BEST__METRIC": "estimated",
    "DATASETS__SOURCE_TEST": ("cityscapes_sem_seg_val",),
}
UNLABELED = "copy_sem_seg_val"


@pytest.fixture
def unlabeled(scenes: Path, tmp_path: Path, clean_catalogs: None) -> dict[str, Any]:
    """Settings that test on the images of ``SPLIT`` without their labels."""
    splits = {"val": {"unlabeled": "bdd100k/images/10k/val/{stem}.jpg"}}
    file = tmp_path / "copy.yaml"
    content = {"name": "copy", "root": str(scenes), "splits": splits, "classes": list(CLASSES)}
    file.write_text(yaml.safe_dump(content))
    return {**ESTIMATED, "DATASETS__CUSTOM": (str(file),), "DATASETS__TEST": (UNLABELED,)}


@pytest.mark.slow
@pytest.mark.usefixtures("data_root")
class TestEstimated:
    def test_no_label_of_the_split_is_read(self, start: Path, tmp_path: Path, unlabeled: dict[str, Any]) -> None:
        labeled, blind = (
            run_stage(small_cfg("tmt", tmp_path / name, start, **options), eval_only=True)
            for name, options in (("labeled", ESTIMATED), ("blind", unlabeled))
        )
        names = ("estimated-low", "estimated", "estimated-high")
        assert blind == {UNLABELED: {name: labeled[SPLIT][name] for name in names}}
        assert {"mIoU", "pACC"} < labeled[SPLIT].keys()
        low, value, high = (labeled[SPLIT][name] for name in names)
        assert 0 <= low <= value <= high <= 100

    def test_killed_and_resumed_equals_uninterrupted(
        self, start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unlabeled: dict[str, Any]
    ) -> None:
        options = {**unlabeled, "SOLVER__CHECKPOINT_PERIOD": 2, "LOGGING__IMAGES": 1}
        estimate, calls = trainer_module.estimated_metrics, iter(range(10))

        def until_third(*arguments: Any) -> dict[str, Any]:
            if next(calls) == 2:
                raise Killed
            return estimate(*arguments)

        run_stage(small_cfg("full", tmp_path / "straight", start, **options))
        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr(trainer_module, "estimated_metrics", until_third)
            run_stage(small_cfg("full", tmp_path / "killed", start, **options))
        run_stage(small_cfg("full", tmp_path / "killed", start, **options), resume=True)
        measured = {**options, "TEST__BEST__METRIC": "mIoU", "DATASETS__TEST": (SPLIT,)}
        run_stage(small_cfg("full", tmp_path / "measured", start, **measured))
        record = json.loads((tmp_path / "straight" / "best.json").read_text())
        assert (record["metric"], record["split"]) == ("estimated", UNLABELED) and len(record["evaluations"]) == 4
        assert len({each["value"] for each in record["evaluations"]}) > 1
        for name in ("best.json", "evaluation.json"):
            assert (tmp_path / "killed" / name).read_text() == (tmp_path / "straight" / name).read_text()
        for name in ("model_best.pth", "model_final.pth"):
            assert not differences(tmp_path / "straight" / name, tmp_path / "killed" / name)
        final = [tmp_path / name / "model_final.pth" for name in ("straight", "measured")]
        assert weights(final[0]) == weights(final[1])  # estimating changes no step

    def test_early_stopping(
        self, start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unlabeled: dict[str, Any]
    ) -> None:
        values = iter([5.0, 7.0, 6.0, 6.5, 8.0])
        monkeypatch.setattr(trainer_module, "estimated_metrics", lambda *_: {UNLABELED: {"estimated": next(values)}})
        options = {**unlabeled, "TEST__BEST__PATIENCE": 2, "SOLVER__MAX_ITER": 9}
        assert run_stage(small_cfg("full", tmp_path, start, **options)) == {UNLABELED: {"estimated": 6.5}}
        assert json.loads((tmp_path / "best.json").read_text())["best"] == 2

    def test_the_source_is_needed(self, start: Path, tmp_path: Path, unlabeled: dict[str, Any]) -> None:
        for changes, key in (
            ({"DATASETS__SOURCE_TEST": ()}, "DATASETS.SOURCE_TEST"),
            ({"DATASETS__SOURCE_TEST": (UNLABELED,)}, UNLABELED),
            ({"TEST__EVAL_PERIOD": 0}, "TEST.BEST.METRIC"),
            ({"TEST__BEST__METRIC": "mIoU"}, UNLABELED),
        ):
            with refuses(key):
                run_stage(small_cfg("full", tmp_path / "out", start, **unlabeled | changes))
        assert not (tmp_path / "out").exists()
