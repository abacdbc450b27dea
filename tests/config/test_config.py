"""Config files, methods and overrides: official YAML merges unchanged, no code is executed, errors name their key."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from fvcore.common.config import CfgNode as FvcoreNode

import tmt_d2
from tests.helpers.checkout import BASE_CONFIG, ROOT, TINY_CONFIG
from tests.helpers.errors import refuses
from tmt_d2.config import flatten, get_key, replace_keys
from tmt_d2.config.file import load_config_file
from tmt_d2.config.keys import RENAMED
from tmt_d2.errors import UserError

MODELS, METHODS = (
    sorted(path.stem for path in (ROOT / "configs" / folder).glob("*.yaml")) for folder in ("models", "methods")
)
OFFICIAL_SCALES = '!!python/object/apply:eval ["[int(x * 0.1 * 1024) for x in range(5, 21)]"]'


def write(folder: Path, text: str, name: str = "config.yaml") -> str:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_of_every_model_loads(method: str) -> None:
    for model in MODELS:
        cfg = tmt_d2.setup_cfg(f"configs/models/{model}.yaml", method=method)
        assert cfg.MODEL.META_ARCHITECTURE in ("MaskFormer", "TransferableMaskFormer")
        assert cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES == 19
        assert f"output/{model}/{method}" == cfg.OUTPUT_DIR


@pytest.mark.slow
def test_every_model_of_the_configs_builds() -> None:
    """One build for each different model; of the large ones one block a stage, or the smallest of their kind."""
    models: dict[str, CfgNode] = {}
    for model, method in itertools.product(MODELS, ("source", "tmt")):
        file = ROOT / "configs" / "models" / f"{model}.yaml"
        small = ["MODEL.SWIN.DEPTHS", [1, 1, 1, 1]]
        small += ["MODEL.TIMM.NAME", "vit_small_patch14_dinov2"] if "DINOv2" in model else []
        cfg = tmt_d2.setup_cfg(file, ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", *small], method)
        models[cfg.MODEL.dump()] = cfg
    assert len(models) >= 2
    backbones = set()
    for cfg in models.values():
        model = build_model(cfg)
        assert hasattr(model, "transferability") == (cfg.MODEL.META_ARCHITECTURE == "TransferableMaskFormer")
        shapes = model.backbone.output_shape()
        assert [shapes[f"res{i}"].stride for i in (2, 3, 4, 5)] == [4, 8, 16, 32]
        backbones.add((type(model.backbone).__name__, shapes["res5"].channels))
    assert {("ResNet", 2048), ("D2SwinTransformer", 1536)} <= backbones


def test_swin_has_official_feature_names() -> None:
    options = ["MODEL.DEVICE", "cpu", "MODEL.SWIN.DEPTHS", [1, 1, 1, 1], "MODEL.SWIN.EMBED_DIM", 24]
    options += ["MODEL.SWIN.NUM_HEADS", [1, 1, 2, 2]]
    cfg = tmt_d2.setup_cfg(str(ROOT / "configs/models/SwinL.yaml"), options)
    backbone = build_model(cfg).backbone.eval()
    assert {"patch_embed.proj.weight", "layers.0.blocks.0.attn.qkv.weight", "norm3.weight"} <= set(
        backbone.state_dict()
    )
    with torch.no_grad():
        image = torch.randn(1, 3, 64, 96)
        assert torch.equal(backbone(image)["res5"], backbone(image)["res5"])
        torch.manual_seed(0)
        drawn = [backbone.train()(image)["res5"] for _ in range(8)]  # DROP_PATH_RATE leaves blocks out
    assert any(not torch.equal(drawn[0], other) for other in drawn)
    with pytest.raises(UserError, match=r"MODEL\.SWIN\.OUT_FEATURES"):
        build_model(replace_keys(cfg, {"MODEL.SWIN.OUT_FEATURES": ["res2", "p5"]}))


def test_file_and_overrides(tmp_path: Path) -> None:
    path = write(tmp_path, f"_BASE_: {BASE_CONFIG}\nMODEL:\n  TMT:\n    P_T: 0.1\n    CELL_SIZES: [1, 2, 4]\n")
    cfg = tmt_d2.setup_cfg(path)
    assert cfg.MODEL.TMT.P_T == 0.1
    assert cfg.MODEL.TMT.CELL_SIZES == [1, 2, 4]
    assert cfg.MODEL.RESNETS.DEPTH == 50
    assert cfg.DATASETS.TRAIN == ("cityscapes_sem_seg_train",)
    assert tmt_d2.setup_cfg(path, ["MODEL.TMT.P_T", "0.5", "SOLVER.MAX_ITER", "7"]).MODEL.TMT.P_T == 0.5


def test_bases_of_bases(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    write(tmp_path, "A: {x: 1, y: 1, z: [1, 2]}\nB: 1\n", "base.yaml")
    write(tmp_path, "_BASE_: ../base.yaml\nA: {y: 2}\n", "sub/middle.yaml")
    leaf = write(tmp_path, "_BASE_: sub/middle.yaml\nA: {z: [3]}\nC: 3\n", "leaf.yaml")
    assert load_config_file(leaf) == {"A": {"x": 1, "y": 2, "z": [3]}, "B": 1, "C": 3}


def test_several_bases(tmp_path: Path) -> None:
    """Each is merged over those before it, and the file over all: as fvcore reads such a list."""
    write(tmp_path, "A: {x: 1, y: 1, z: 1}\nB: 1\n", "model.yaml")
    write(tmp_path, "A: {x: 0, y: 2, z: 2}\n", "method.yaml")
    leaf = write(tmp_path, "_BASE_: [model.yaml, method.yaml]\nA: {z: 3}\n", "leaf.yaml")
    assert load_config_file(leaf) == {"A": {"x": 0, "y": 2, "z": 3}, "B": 1}
    assert load_config_file(leaf) == FvcoreNode.load_yaml_with_base(leaf)
    with pytest.raises(FileNotFoundError, match=r"gone\.yaml .*leaf\.yaml"):
        load_config_file(write(tmp_path, "_BASE_: [model.yaml, gone.yaml]\n", "leaf.yaml"))


def test_a_method_over_a_model(tmp_path: Path) -> None:
    """_METHODS_ of the model are merged over the file of that method, and so hold for methods based on it."""
    own = "_METHODS_: {full: {SOLVER: {MAX_ITER: 7, BASE_LR: 0.5}}, none: {SEED: 9}}"
    model = write(tmp_path, f"_BASE_: {BASE_CONFIG}\nSOLVER: {{MAX_ITER: 5}}\n{own}\n", "model.yaml")
    full = write(tmp_path, "SOLVER: {MAX_ITER: 6, IMS_PER_BATCH: 2}\nTRANSFER: {METHOD: linear}\n", "full.yaml")
    mine = write(tmp_path, "_BASE_: full.yaml\nSOLVER: {BASE_LR: 0.25}\n", "mine.yaml")
    cfg = tmt_d2.setup_cfg(model, method=mine)
    solver = cfg.SOLVER
    assert (solver.MAX_ITER, solver.IMS_PER_BATCH, solver.BASE_LR) == (7, 2, 0.25)
    assert (cfg.TRANSFER.METHOD, cfg.SEED, cfg.OUTPUT_DIR) == ("linear", -1, "output/model/mine")
    assert tmt_d2.setup_cfg(model, ["OUTPUT_DIR", "x", "SOLVER.MAX_ITER", "8"], full).OUTPUT_DIR == "x"
    assert tmt_d2.setup_cfg(model).SOLVER.MAX_ITER == 5
    with pytest.raises(UserError) as error:
        tmt_d2.setup_cfg(model, method="tnt")
    assert error.value.key == "method" and "did you mean tmt?" in str(error.value)
    broken = write(tmp_path, "_METHODS_: {full: 3}\n", "broken.yaml")
    with refuses(broken):
        tmt_d2.setup_cfg(broken)


def test_circle_of_bases(tmp_path: Path) -> None:
    write(tmp_path, "_BASE_: b.yaml\n", "a.yaml")
    write(tmp_path, "_BASE_: a.yaml\n", "b.yaml")
    with pytest.raises(UserError, match="_BASE_") as error:
        load_config_file(tmp_path / "a.yaml")
    assert error.value.key == str(tmp_path / "a.yaml")


def test_files_that_do_not_exist(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.yaml"):
        tmt_d2.setup_cfg("nowhere.yaml")
    with pytest.raises(FileNotFoundError, match="--config-file configs/models/tiny.yaml --method full"):
        tmt_d2.setup_cfg("configs/tiny/full.yaml")  # a folder for each model, as configs were laid out before
    path = write(tmp_path, "_BASE_: gone.yaml\n")
    with pytest.raises(FileNotFoundError, match=r"gone\.yaml .*config\.yaml"):
        tmt_d2.setup_cfg(path)


def test_official_list_of_scales(tmp_path: Path) -> None:
    """The official configs' one Python expression gives what Python gave: 0.6 * 1024 is 614.4, 1.2 * 1024 1228.8."""
    path = write(tmp_path, f"INPUT:\n  MIN_SIZE_TRAIN: {OFFICIAL_SCALES}\n")
    official = [int(x * 0.1 * 1024) for x in range(5, 21)]
    assert list(tmt_d2.setup_cfg(path).INPUT.MIN_SIZE_TRAIN) == official
    assert official[:3] == [512, 614, 716]
    assert list(tmt_d2.setup_cfg(str(BASE_CONFIG)).INPUT.MIN_SIZE_TRAIN) == official  # the base writes them out


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("MODEL: [1\n", ""),
        ("- 1\n- 2\n", ""),
        ("", ""),
        ("_BASE_: [a.yaml, 1]\n", ""),
        ("_BASE_: {a: b.yaml}\n", ""),
        ("MODEL:\n  TMT:\n    P_TT: 0.1\n", "MODEL.TMT.P_TT"),
        ("MODEL:\n  TMT:\n    P_T: many\n", "MODEL.TMT.P_T"),
        ("MODEL:\n  TMT: 3\n", "MODEL.TMT"),
        ("MODEL:\n", "MODEL"),
        ("MODEL: &a {TMT: *a}\n", ""),
        ("SEED: {A: 3}\n", "SEED.A"),
    ],
)
def test_broken_files(text: str, key: str, tmp_path: Path) -> None:
    path = write(tmp_path, text)
    with pytest.raises(UserError) as error:
        tmt_d2.setup_cfg(path)
    assert error.value.key == (key or path)
    assert path in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("MODEL.TMT.P_TT", [0.1]),
        ("MODEL.TMT", [0.1]),
        ("MODEL.TMT.P_T", []),
        ("MODEL.TMT.P_T", ["many"]),
        ("MODEL.TMT.P_T", [1.0]),
        ("TRANSFER.STAGE", ["train"]),
        ("MODEL.TMT.MASK_RULE", ["both"]),
    ],
)
def test_broken_overrides(key: str, values: list[Any]) -> None:
    with refuses(key):
        tmt_d2.setup_cfg(str(BASE_CONFIG), [key, *values])


def test_a_config_is_frozen() -> None:
    cfg = tmt_d2.setup_cfg(BASE_CONFIG)
    with pytest.raises(AttributeError):
        cfg.SOLVER.MAX_ITER = 1
    changed = replace_keys(cfg, {"SOLVER.MAX_ITER": 1, "SEED": 2})
    assert (changed.SOLVER.MAX_ITER, changed.SEED, changed.is_frozen()) == (1, 2, True)
    assert cfg.SOLVER.MAX_ITER == 20000 and get_key(changed, "SOLVER.MAX_ITER") == 1
    with refuses("SOLVER.NOTHING"):
        get_key(cfg, "SOLVER.NOTHING")


@pytest.mark.parametrize(
    ("splits", "named"),
    [
        ({"TRAIN": "a"}, ["TEST"]),
        ({"TRAIN": "a", "TEST": "b"}, []),
        ({"TEST": "b"}, []),
        ({"TRAIN": "a", "SOURCE_TRAIN": "c"}, ["TEST", "SOURCE_TEST"]),
        ({}, []),
    ],
)
def test_a_test_split_left_from_the_files_is_named(
    splits: dict[str, str], named: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    opts = [item for key, name in splits.items() for item in (f"DATASETS.{key}", name)]
    cfg = tmt_d2.setup_cfg(TINY_CONFIG, opts, "estimator")
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == len(named)
    for key, message in zip(named, messages):
        assert f"DATASETS.{key} " in message and cfg.DATASETS[key][0] in message


def test_repeated_keys(tmp_path: Path) -> None:
    """YAML takes the last one without a word."""
    path = write(tmp_path, "SEED: 1\nSOLVER:\n  MAX_ITER: 5\n  BASE_LR: 0.1\n  'MAX_ITER': 6\n")
    with pytest.raises(UserError, match=r"MAX_ITER.*line 5") as error:
        tmt_d2.setup_cfg(path)
    assert error.value.key == path
    merged = write(tmp_path, "A: &a {x: 1, y: 1}\nB: {<<: *a, x: 2}\n")
    assert load_config_file(merged)["B"] == {"x": 2, "y": 1}  # an override, no repetition


def test_values_that_plainly_mean_another_kind() -> None:
    cfg = tmt_d2.setup_cfg(
        TINY_CONFIG, ["MODEL.TMT.P_T", "0", "DATASETS.TRAIN", "gtav_sem_seg_train", "DATASETS.CUSTOM", "a.yaml"]
    )
    assert cfg.MODEL.TMT.P_T == 0.0 and type(cfg.MODEL.TMT.P_T) is float
    assert tuple(cfg.DATASETS.TRAIN) == ("gtav_sem_seg_train",) and tuple(cfg.DATASETS.CUSTOM) == ("a.yaml",)
    assert tuple(tmt_d2.setup_cfg(TINY_CONFIG, ["DATASETS.TEST", "('a', 'b')"]).DATASETS.TEST) == ("a", "b")
    with pytest.raises(UserError, match="CELL_SIZES"):  # no list of names
        tmt_d2.setup_cfg(TINY_CONFIG, ["MODEL.TMT.CELL_SIZES", "many"])
    with pytest.raises(UserError, match="SOLVER.MAX_ITER"):  # the other way round something would be lost
        tmt_d2.setup_cfg(TINY_CONFIG, ["SOLVER.MAX_ITER", "1.5"])


def test_old_keys_are_answered_with_their_new_names(tmp_path: Path) -> None:
    known = flatten(tmt_d2.setup_cfg(TINY_CONFIG))
    for old, new in RENAMED.items():
        assert old not in known and new in known
        with pytest.raises(UserError, match=re.escape(new)) as answer:
            tmt_d2.setup_cfg(TINY_CONFIG, [old, "1"])
        assert answer.value.key == old
    (tmp_path / "old.yaml").write_text("TRANSFER: {SELF_TRAINING: {EMA: 0.9}}")
    with pytest.raises(UserError, match=r"SELF_TRAINING\.EMA_MOMENTUM"):
        tmt_d2.setup_cfg(str(tmp_path / "old.yaml"))


@pytest.mark.parametrize("text", ["TRANSFER: {METHOD: }", "SOLVER: {MAX_ITER: null}"])
def test_none_is_no_value(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(UserError, match="needs a value"):
        tmt_d2.setup_cfg(str(tmp_path / "a.yaml"))
    with pytest.raises(UserError, match="needs a value"):
        tmt_d2.setup_cfg(TINY_CONFIG, ["TRANSFER.METHOD", "None"])


def test_removed_keys_of_older_runs_are_left_out_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "old.yaml").write_text("SEED: 3\nSELF_TRAINING: {FEATURE_DISTANCE_WEIGHT: 0.1}")
    cfg = tmt_d2.setup_cfg(str(tmp_path / "old.yaml"))
    assert cfg.SEED == 3 and "FEATURE_DISTANCE_WEIGHT" not in cfg.SELF_TRAINING
    assert "SELF_TRAINING.FEATURE_DISTANCE_WEIGHT" in caplog.text
    with pytest.raises(UserError) as answer:  # not one that somebody types
        tmt_d2.setup_cfg(TINY_CONFIG, ["SELF_TRAINING.FEATURE_DISTANCE_WEIGHT", "0.1"])
    assert answer.value.key == "SELF_TRAINING.FEATURE_DISTANCE_WEIGHT"


@pytest.mark.parametrize(
    ("opts", "key", "hint"),
    [
        (["MODEL.TMT.PT", "0.3"], "MODEL.TMT.PT", "MODEL.TMT.P_T"),
        (["SEED"], "SEED", "KEY VALUE"),
        (["MODEL.TMT.ATTENTION", "ofd"], "MODEL.TMT.ATTENTION", "did you mean off"),
    ],
)
def test_mistakes_are_answered_with_the_nearest_name(opts: list[str], key: str, hint: str) -> None:
    with pytest.raises(UserError, match=hint) as error:
        tmt_d2.setup_cfg(TINY_CONFIG, opts)
    assert error.value.key == key


def test_a_module_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMT_IMPORT", "no_such_module")
    with refuses("TMT_IMPORT"):
        tmt_d2.setup_cfg(TINY_CONFIG)
