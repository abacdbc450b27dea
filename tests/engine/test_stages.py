"""Every kind of task, run once on a handful of small scenes: what is trained, written and refused."""

from __future__ import annotations

import json
import logging
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from torch import Tensor, nn

from tests.helpers.errors import refuses
from tests.helpers.small_runs import small_cfg
from tmt_d2.data.datasets.registration import label_space_of, register_split
from tmt_d2.engine.run_stage import run_stage
from tmt_d2.engine.trainer import Trainer
from tmt_d2.errors import UserError

pytestmark = pytest.mark.usefixtures("data_root")
NEEDS = {"source": "", "estimator": "source", "linear": "source", "full": "source", "tmt": "estimator"}


def stage_cfg(name: str, folder: Path, start: Path | str = "", **changes: Any) -> CfgNode:
    """The smallest model by a method, in ``folder/<name>``, from the weights ``start``."""
    changes = {"SOLVER__MAX_ITER": 2, "MODEL__RESNETS__NORM": "BN", "MODEL__MASK_FORMER__DEC_LAYERS": 3, **changes}
    return small_cfg(name, folder / name, start, **changes)


@pytest.fixture(scope="module")
def stages(data_root: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of each task."""
    output = tmp_path_factory.mktemp("stages")
    for name, need in NEEDS.items():
        run_stage(stage_cfg(name, output, output / need / "model_final.pth" if need else ""))
    return output


def recorded(folder: Path) -> dict[str, Any]:
    (file,) = [*folder.glob("evaluation.json"), *folder.glob("estimator.json")]
    return json.loads(file.read_text())


def weights(path: Path) -> dict[str, Tensor]:
    return torch.load(path, weights_only=True)["model"]


@pytest.mark.slow
def test_stages_write_what_they_measured(stages):
    for name in ("source", "linear", "full", "tmt"):
        values = recorded(stages / name)["bdd100k_sem_seg_val"]
        assert all(0 <= values[metric] <= 100 for metric in ("mIoU", "fwIoU", "mACC", "pACC"))
    distances = recorded(stages / "estimator")["proxy_a_distance"]
    assert len(distances) == 3 and all(-2 <= distance <= 2 for distance in distances)


@pytest.mark.slow
def test_estimator_stage_changes_nothing_but_discriminators(stages):
    before, after = (weights(stages / name / "model_final.pth") for name in ("source", "estimator"))
    estimator = ("transferability.discriminators.", "transferability._extra_state")  # weights and settings
    assert set(after) - set(before) == {name for name in after if name.startswith(estimator)}
    assert all(torch.equal(after[name], before[name]) for name in before)  # normalization statistics included
    first, last = (weights(stages / "estimator" / name) for name in ("model_0000000.pth", "model_final.pth"))
    assert any(not torch.equal(first[name], last[name]) for name in last if name.startswith("transferability."))


@pytest.mark.slow
def test_fine_tuning_by_tmt_keeps_the_estimator_and_changes_the_rest(stages):
    before, after = (weights(stages / name / "model_final.pth") for name in ("estimator", "tmt"))
    assert before.keys() <= after.keys()
    kept = {"transferability.backbone.": "backbone.", "transferability.pixel_decoder.": "sem_seg_head.pixel_decoder."}
    for name in after:
        source = name
        for prefix, own in kept.items():  # the frozen copy is what the source model was
            source = own + name.removeprefix(prefix) if name.startswith(prefix) else source
        if name.startswith("transferability."):
            assert torch.equal(before[source], after[name]), name
    assert not torch.equal(before["backbone.stem.conv1.weight"], after["backbone.stem.conv1.weight"])


@pytest.mark.slow
def test_linear_probing_changes_only_the_prediction_layers(stages):
    before, after = (weights(stages / name / "model_final.pth") for name in ("source", "linear"))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    layers = ("sem_seg_head.predictor.class_embed.", "sem_seg_head.predictor.mask_embed.")
    assert all(name.startswith(layers) for name in changed)  # normalization statistics are frozen too


@pytest.mark.slow
def test_eval_only_gives_the_results_of_the_training_run(stages, tmp_path):
    run_stage(stage_cfg("tmt", tmp_path, stages / "tmt" / "model_final.pth"), eval_only=True)
    assert recorded(tmp_path / "tmt") == recorded(stages / "tmt")


@pytest.mark.slow
def test_eval_only_of_an_estimator_gives_its_results(stages, tmp_path, caplog):
    def measured(stage: str) -> dict[str, list[float]]:
        cfg = stage_cfg("estimator", tmp_path / stage, stages / stage / "model_final.pth")
        return run_stage(cfg, eval_only=True)

    caplog.set_level(logging.INFO, "tmt_d2")
    results = measured("estimator")
    assert results == recorded(stages / "estimator")
    (line,) = [each.getMessage() for each in caplog.records if "A-distance" in each.getMessage()]
    assert re.findall(r"-?\d\.\d\d", line) == [f"{distance:.2f}" for distance in results["proxy_a_distance"]]
    fine_tuned = measured("tmt")  # the discriminators are in it, their twins are not
    assert all(math.isnan(value) for value in fine_tuned["rank_stability"])
    assert not any(math.isnan(value) for value in fine_tuned["proxy_a_distance"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("tmt", {}, r"source/model_final.pth.*estimator"),
        ("full", {"MODEL__MASK_FORMER__HIDDEN_DIM": 64}, r"predictor.*\(.*32.*\).*\(.*64.*\)"),
        ("full", {"MODEL__MASK_FORMER__DEC_LAYERS": 2}, r"layers\.1\."),  # the file has every name of the model
    ],
)
def test_a_checkpoint_of_another_architecture_is_refused(stages, tmp_path, name, changes, message):
    with pytest.raises(UserError, match=message):
        run_stage(stage_cfg(name, tmp_path, stages / "source" / "model_final.pth", **changes))
    assert not list((tmp_path / name).glob("*.pth"))


@pytest.mark.parametrize(
    ("name", "changes", "key"),
    [
        ("full", {"MODEL__WEIGHTS": ""}, "MODEL.WEIGHTS"),
        ("full", {"TRANSFER__METHOD": "tmt"}, "MODEL.META_ARCHITECTURE"),
        ("full", {"TRANSFER__METHOD": "magic"}, "TRANSFER.METHOD"),
        ("source", {"DATASETS__TRAIN": ("paris_sem_seg_train",)}, "DATASETS.TRAIN"),
    ],
)
def test_errors_before_anything_is_built(tmp_path, name, changes, key):
    with pytest.raises(UserError, match=key):
        run_stage(stage_cfg(name, tmp_path, "x.pth", **changes))
    assert not list(tmp_path.iterdir())


def test_missing_files_are_named(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="nowhere.pth"):
        run_stage(stage_cfg("full", tmp_path, "nowhere.pth"))
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "empty"))
    with pytest.raises(FileNotFoundError, match="DETECTRON2_DATASETS"):
        run_stage(stage_cfg("source", tmp_path))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("key", "domain"), [("SOURCE_TEST", "cityscapes"), ("TEST", "bdd100k")])
def test_an_estimator_is_not_measured_where_it_was_trained(tmp_path, key, domain):
    val, train = f"{domain}_sem_seg_val", f"{domain}_sem_seg_train"
    with refuses(f"DATASETS.{key}", train):
        run_stage(stage_cfg("estimator", tmp_path, "nowhere.pth", **{f"DATASETS__{key}": (val, train)}))
    for name, split in (("estimator", val), ("tmt", train)):  # control: the weights are refused next
        with pytest.raises(FileNotFoundError, match="nowhere"):
            run_stage(stage_cfg(name, tmp_path, "nowhere.pth", **{f"DATASETS__{key}": (split,)}))


def test_another_ignored_id_is_refused(tmp_path: Path) -> None:
    with refuses("MODEL.SEM_SEG_HEAD.IGNORE_VALUE", 65):
        run_stage(stage_cfg("full", tmp_path, "nowhere.pth", MODEL__SEM_SEG_HEAD__IGNORE_VALUE=65))


@pytest.mark.usefixtures("clean_catalogs")
def test_an_image_of_two_splits_is_not_held_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    train, other = "bdd100k_sem_seg_train", "part_sem_seg_val"
    register_split(other, lambda: DatasetCatalog.get(train)[:1], label_space_of(train))
    with refuses("DATASETS.TEST", other):
        run_stage(stage_cfg("estimator", tmp_path, "nowhere.pth", DATASETS__TEST=(other,)))
    with caplog.at_level("WARNING"), pytest.raises(FileNotFoundError, match="nowhere"):
        run_stage(stage_cfg("full", tmp_path, "nowhere.pth", DATASETS__TEST=(other,)))
    assert DatasetCatalog.get(train)[0]["file_name"] in caplog.text


@pytest.mark.skipif(torch.cuda.is_available(), reason="a machine without a GPU")
def test_without_a_gpu_it_trains_on_the_cpu(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        run_stage(stage_cfg("source", tmp_path, MODEL__DEVICE="cuda", SOLVER__MAX_ITER=1))
    assert "MODEL.DEVICE" in caplog.text and (tmp_path / "source" / "evaluation.json").is_file()


def test_parts_of_the_trainer_can_be_replaced(start: Path, tmp_path: Path) -> None:
    class Mine(Trainer):
        @classmethod
        def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
            return torch.optim.SGD(model.parameters(), lr=0.0)

        @classmethod
        def test(cls, cfg: CfgNode, model: nn.Module, folder: str = "", title: str = "") -> dict[str, dict[str, float]]:
            return {"mine": {"mIoU": 7.0}}

    assert run_stage(small_cfg("full", tmp_path, start, SOLVER__MAX_ITER=1), trainer=Mine) == {"mine": {"mIoU": 7.0}}
    before, after = weights(start), weights(tmp_path / "model_final.pth")
    assert all(torch.equal(before[name], value) for name, value in after.items())
    with pytest.raises(KeyError):  # control
        run_stage(small_cfg("full", tmp_path / "plain", start, SOLVER__MAX_ITER=1))["mine"]
