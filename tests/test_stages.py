"""The three stages and the pair runner on a handful of small scenes: what is trained, written, skipped and refused."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from datasets.render import render
from tmt_d2 import setup_cfg
from tmt_d2.engine.checkpoint import TMTCheckpointer
from tmt_d2.engine.estimator import balanced_loss
from tmt_d2.engine.pair import METRICS, results_table, run_pair, stage_cfg
from tmt_d2.engine.stages import apply_method, run_stage

CONFIGS = Path(__file__).parents[1] / "configs" / "tiny"
SMALL = (
    "SOLVER.MAX_ITER", "2", "SOLVER.IMS_PER_BATCH", "2", "SOLVER.CHECKPOINT_PERIOD", "1", "MODEL.SEM_SEG_HEAD.CONVS_DIM", "32",
    "MODEL.SEM_SEG_HEAD.MASK_DIM", "32", "MODEL.MASK_FORMER.HIDDEN_DIM", "32", "MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS", "1",
    "MODEL.MASK_FORMER.TRAIN_NUM_POINTS", "64", "INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.CROP.SIZE", "(64, 128)",
    "INPUT.MIN_SIZE_TEST", "64",
)  # fmt: skip


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    root = tmp_path_factory.mktemp("scenes")
    render(root, ["cityscapes", "bdd100k"], train=4, val=2, size=(64, 128), workers=1)
    return root


@pytest.fixture(autouse=True)
def data_root(scenes, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(scenes))


@pytest.fixture(scope="module")
def pair(scenes, tmp_path_factory):
    """One pair, run once: (output folder, results)."""
    output = tmp_path_factory.mktemp("pair")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DETECTRON2_DATASETS", str(scenes))
        results = run_pair(CONFIGS, "cityscapes", "bdd100k", ["linear", "full", "tmt"], output, SMALL)
    return output, results


def weights(path):
    return torch.load(path, weights_only=True)["model"]


def test_results_file_has_what_the_table_shows(pair):
    output, results = pair
    assert json.loads((output / "results.json").read_text()) == results
    assert list(results) == [
        "source", "target", "source_on_source", "source_on_target", "methods", "proxy_a_distance", "seconds",
    ]  # fmt: skip
    assert set(results["methods"]) == {"linear", "full", "tmt"}
    for values in (results["source_on_source"], results["source_on_target"], *results["methods"].values()):
        assert tuple(values) == METRICS
        assert all(0 <= value <= 100 for value in values.values())
    assert len(results["proxy_a_distance"]) == 3
    assert all(-2 <= distance <= 2 for distance in results["proxy_a_distance"])
    assert set(results["seconds"]) == {"source", "estimator", "linear", "full", "tmt"}
    assert f"{results['methods']['tmt']['mIoU']:.1f}" in results_table(results)


def test_estimator_stage_changes_nothing_but_discriminators(pair, tmp_path):
    output, _ = pair
    before, after = (weights(output / name / "model_final.pth") for name in ("source", "estimator"))
    estimator = ("transferability.discriminators.", "transferability._extra_state")  # weights and settings
    assert set(after) - set(before) == {name for name in after if name.startswith(estimator)}
    assert all(torch.equal(after[name], before[name]) for name in before)  # normalisation statistics included
    source = str(output / "source" / "model_final.pth")
    run_stage(stage_cfg(CONFIGS, "estimator", "cityscapes", "bdd100k", tmp_path, source, SMALL))
    first, last = (weights(tmp_path / "estimator" / name) for name in ("model_0000000.pth", "model_final.pth"))
    assert any(not torch.equal(first[name], last[name]) for name in last if name.startswith("transferability."))


def test_fine_tuning_by_tmt_keeps_the_estimator_and_changes_the_rest(pair):
    output, _ = pair
    before, after = (weights(output / name / "model_final.pth") for name in ("estimator", "tmt"))
    assert before.keys() <= after.keys()
    kept = {"transferability.backbone.": "backbone.", "transferability.pixel_decoder.": "sem_seg_head.pixel_decoder."}
    for name in after:
        source = name
        for prefix, own in kept.items():  # the frozen copy is what the source model was
            source = own + name.removeprefix(prefix) if name.startswith(prefix) else source
        if name.startswith("transferability."):
            assert torch.equal(before[source], after[name]), name
    assert not torch.equal(before["backbone.stem.conv1.weight"], after["backbone.stem.conv1.weight"])


def test_linear_probing_changes_only_the_prediction_layers(pair):
    output, _ = pair
    before, after = (weights(output / name / "model_final.pth") for name in ("source", "linear"))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    layers = ("sem_seg_head.predictor.class_embed.", "sem_seg_head.predictor.mask_embed.")
    assert all(name.startswith(layers) for name in changed)  # normalisation statistics are frozen too


def test_finished_stages_are_not_run_again(pair):
    output, results = pair

    def run(cfg):
        raise AssertionError(f"{cfg.OUTPUT_DIR} was run again")

    assert run_pair(CONFIGS, "cityscapes", "bdd100k", ["linear", "full", "tmt"], output, SMALL, run) == results


def test_a_stage_of_other_settings_is_refused_not_overwritten(pair):
    output, _ = pair
    with pytest.raises(ValueError, match=r"holds stage source run with other settings .*--output"):
        run_pair(CONFIGS, "cityscapes", "bdd100k", ["full"], output, [*SMALL, "SEED", "7"])


def test_an_interrupted_stage_goes_on(pair, tmp_path):
    cfg = stage_cfg(CONFIGS, "source", "cityscapes", "bdd100k", tmp_path, "", [*SMALL, "SOLVER.MAX_ITER", "1"])
    run_stage(cfg)
    cfg = stage_cfg(CONFIGS, "source", "cityscapes", "bdd100k", tmp_path, "", [*SMALL, "SOLVER.MAX_ITER", "3"])
    run_stage(cfg, resume=True)
    iterations = [
        json.loads(line)["iteration"] for line in (tmp_path / "source" / "metrics.json").read_text().splitlines()
    ]
    assert iterations[-1] >= 2
    saved = torch.load(tmp_path / "source" / "model_final.pth", weights_only=True)
    assert saved["trainer"]["iteration"] == 2


def test_eval_only_gives_the_figures_of_the_training_run(pair, tmp_path):
    output, results = pair
    weights_file = str(output / "tmt" / "model_final.pth")
    cfg = stage_cfg(CONFIGS, "tmt", "cityscapes", "bdd100k", tmp_path, weights_file, SMALL)
    values = run_stage(cfg, eval_only=True)["bdd100k_sem_seg_val"]
    assert {metric: values[metric] for metric in METRICS} == results["methods"]["tmt"]


def test_eval_only_of_an_estimator_gives_its_figures_or_says_what_is_unknown(pair, tmp_path, caplog):
    output, _ = pair

    def measured(stage: str) -> dict[str, list[float]]:
        start = str(output / stage / "model_final.pth")
        cfg = stage_cfg(CONFIGS, "estimator", "cityscapes", "bdd100k", tmp_path / stage, start, SMALL)
        return run_stage(cfg, eval_only=True)

    wanted = json.loads((output / "estimator" / "estimator.json").read_text())
    assert measured("estimator") == wanted
    assert "rank stability" not in caplog.text
    fine_tuned = measured("tmt")  # the discriminators are in it, their twins are not
    assert all(math.isnan(value) for value in fine_tuned["rank_stability"])
    assert not any(math.isnan(value) for value in fine_tuned["proxy_a_distance"])
    assert "tmt/model_final.pth holds one set of discriminators" in caplog.text


def test_tmt_without_an_estimator_is_refused(pair, tmp_path):
    output, _ = pair
    source_only = str(output / "source" / "model_final.pth")
    cfg = stage_cfg(CONFIGS, "tmt", "cityscapes", "bdd100k", tmp_path, source_only, SMALL)
    with pytest.raises(ValueError, match=r"source/model_final.pth has no estimator .*run the estimator stage"):
        run_stage(cfg)
    assert not list((tmp_path / "tmt").glob("*.pth"))


def test_checkpoint_of_another_architecture_is_refused(pair, tmp_path):
    output, _ = pair
    wider = [*SMALL, "MODEL.MASK_FORMER.HIDDEN_DIM", "64"]
    cfg = stage_cfg(
        CONFIGS, "full", "cityscapes", "bdd100k", tmp_path, str(output / "source" / "model_final.pth"), wider
    )
    with pytest.raises(
        ValueError, match=r"another architecture: .*predictor.* is \(.*32.*\) in the file and \(.*64.*\) in"
    ):
        run_stage(cfg)


def test_deeper_checkpoint_is_refused_although_it_holds_every_name(pair, tmp_path):
    output, _ = pair
    shallow = [*SMALL, "MODEL.MASK_FORMER.DEC_LAYERS", "3"]
    cfg = stage_cfg(
        CONFIGS, "full", "cityscapes", "bdd100k", tmp_path, str(output / "source" / "model_final.pth"), shallow
    )
    with pytest.raises(ValueError, match=r"layers\.2\..* is not in the model"):
        run_stage(cfg)


@pytest.mark.parametrize("damage", ["truncated", "empty", "text"])
def test_damaged_checkpoint_is_named(pair, tmp_path, damage):
    output, _ = pair
    content = (output / "source" / "model_final.pth").read_bytes()
    path = tmp_path / "damaged.pth"
    path.write_bytes({"truncated": content[: len(content) // 2], "empty": b"", "text": b"not a checkpoint"}[damage])
    cfg = stage_cfg(CONFIGS, "full", "cityscapes", "bdd100k", tmp_path, str(path), SMALL)
    with pytest.raises(ValueError, match=r"damaged.pth is damaged or holds more than arrays"):
        run_stage(cfg)


def test_pickles_that_would_run_code_are_refused(pair, tmp_path):
    import os
    import pickle

    class Hostile:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path}/ran",)

    output, _ = pair
    for name in ("hostile.pkl", "hostile.pth"):
        path = tmp_path / name
        if name.endswith("pkl"):
            path.write_bytes(pickle.dumps({"model": {}, "__author__": "x", "extra": Hostile()}))
        else:
            torch.save({"model": Hostile()}, path)
        cfg = stage_cfg(CONFIGS, "full", "cityscapes", "bdd100k", tmp_path, str(path), SMALL)
        with pytest.raises(ValueError, match=f"{name} is damaged or holds more than arrays"):
            run_stage(cfg)
    assert not (tmp_path / "ran").exists()


def test_a_checkpoint_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    model = torch.nn.Linear(2, 2)
    checkpointer = TMTCheckpointer(model, str(tmp_path))
    checkpointer.save("model")
    before = (tmp_path / "model.pth").read_bytes()

    def half(state, file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(OSError, match=r"disk full while writing .*model.pth: \d+ MiB free"):
        checkpointer.save("model")
    assert (tmp_path / "model.pth").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last_checkpoint", "model.pth"]


def test_one_line_errors_before_anything_is_built(tmp_path, monkeypatch):
    def cfg(name, *opts):
        return setup_cfg(str(CONFIGS / f"{name}.yaml"), ["OUTPUT_DIR", str(tmp_path / "out"), *opts])

    with pytest.raises(ValueError, match="MODEL.WEIGHTS is empty: stage finetune starts from a checkpoint"):
        run_stage(cfg("full"))
    with pytest.raises(FileNotFoundError, match="nowhere.pth does not exist"):
        run_stage(cfg("full", "MODEL.WEIGHTS", "nowhere.pth"))
    with pytest.raises(ValueError, match="METHOD tmt needs MODEL.META_ARCHITECTURE TransferableMaskFormer"):
        run_stage(cfg("full", "TRANSFER.METHOD", "tmt", "MODEL.WEIGHTS", "x.pth"))
    with pytest.raises(ValueError, match="DATASETS.TRAIN names 'paris_sem_seg_train', which is not registered"):
        run_stage(cfg("source", "DATASETS.TRAIN", "('paris_sem_seg_train',)"))
    with pytest.raises(ValueError, match="unknown method magic"):
        run_pair(CONFIGS, "cityscapes", "bdd100k", ["magic"], tmp_path)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "empty"))
    with pytest.raises(FileNotFoundError, match="DETECTRON2_DATASETS"):
        run_stage(cfg("source"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("eval_only", [False, True])
@pytest.mark.parametrize("split", ["cityscapes_sem_seg_train", "bdd100k_sem_seg_train"])
@pytest.mark.parametrize("key", ["SOURCE_TEST", "TEST"])
def test_an_estimator_is_not_measured_where_it_was_trained(tmp_path, key, split, eval_only):
    def cfg(stage, *names):
        paths = ["OUTPUT_DIR", str(tmp_path / "out"), "MODEL.WEIGHTS", "nowhere.pth"]
        return setup_cfg(str(CONFIGS / f"{stage}.yaml"), [*paths, f"DATASETS.{key}", str(names)])

    message = rf"^DATASETS.{key} names '{split}', on which the discriminators are trained: .*, name a held-out split$"
    with pytest.raises(ValueError, match=message):
        run_stage(cfg("estimator", "bdd100k_sem_seg_val", split), eval_only=eval_only)
    with pytest.raises(FileNotFoundError, match="nowhere"):  # control: the next thing to be refused
        run_stage(cfg("estimator", "bdd100k_sem_seg_val"), eval_only=eval_only)
    with pytest.raises(FileNotFoundError, match="nowhere"):  # on which pictures a model is tested is up to you
        run_stage(cfg("tmt", split), eval_only=eval_only)


def test_balanced_loss_by_hand():
    logits = torch.zeros(3, 1, 2)
    logits[0] = 1.0  # the source image's two regions
    domain, exists = torch.tensor([0, 1, 1]), torch.ones(3, 1, 2, dtype=torch.bool)
    exists[2] = False
    source, target = torch.nn.functional.softplus(torch.tensor(1.0)), torch.tensor(2.0).log()
    torch.testing.assert_close(balanced_loss(logits, domain, exists), (source + target) / 2)


def test_every_method_freezes_the_estimator(pair):
    from detectron2.modeling import build_model

    output, _ = pair
    model = build_model(stage_cfg(CONFIGS, "tmt", "cityscapes", "bdd100k", output, "x.pth", SMALL))
    apply_method(model, "tmt")
    assert not any(parameter.requires_grad for parameter in model.transferability.parameters())
    assert model.backbone.stem.conv1.weight.requires_grad


def test_windows_are_used_where_the_config_asks_for_them(pair, tmp_path):
    output, results = pair
    weights_file = str(output / "full" / "model_final.pth")
    window = ["TEST.SLIDING_WINDOW.ENABLED", "True", "TEST.SLIDING_WINDOW.SIZE", "(64, 64)"]
    window += ["TEST.SLIDING_WINDOW.STRIDE", "(64, 32)"]
    cfg = stage_cfg(CONFIGS, "full", "cityscapes", "bdd100k", tmp_path, weights_file, [*SMALL, *window])
    values = run_stage(cfg, eval_only=True)["bdd100k_sem_seg_val"]
    assert values["pACC"] != results["methods"]["full"]["pACC"]  # other windows, other scores
