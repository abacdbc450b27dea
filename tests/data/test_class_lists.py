"""Names and colors of classes, and a model's own from its data sets through its checkpoint to whatever reads it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image
from torch import nn

from tests.helpers.checkout import TINY_CONFIG
from tests.helpers.errors import refuses
from tests.helpers.models import Build
from tests.helpers.small_runs import options, small_cfg
from tmt_d2.adaptation.checks import check_task
from tmt_d2.data import register_custom
from tmt_d2.data.class_lists import ClassList, unnamed, with_colors
from tmt_d2.data.datasets.label_spaces import CITYSCAPES_CLASSES, CLASSES, PALETTE, class_list_of
from tmt_d2.data.datasets.registration import common_classes
from tmt_d2.engine.checkpoint.checkpointer import TMTCheckpointer
from tmt_d2.engine.checkpoint.classes import read_classes
from tmt_d2.engine.checkpoint.files import DamagedCheckpoint
from tmt_d2.engine.run_stage import run_stage
from tmt_d2.errors import UserError
from tmt_d2.inference import Predictor
from tmt_d2.inference.attention import report_image
from tmt_d2.inference.images import InputImage
from tmt_d2.visualization.figures import report_figures

pytestmark = pytest.mark.usefixtures("clean_catalogs")
ENTRY = "classes"  # of a checkpoint

# ---- Names and colors


def test_generated_colors_are_the_farthest() -> None:
    """Brute force, with the distance in floats as its author wrote it, from black, white and the given one."""

    def distance(a: tuple[int, ...], b: tuple[int, ...]) -> float:
        mean = (a[0] + b[0]) / 2
        red, green, blue = ((x - y) ** 2 for x, y in zip(a, b))
        return (2 + mean / 256) * red + 4 * green + (2 + (255 - mean) / 256) * blue

    levels = [int(255 * i / 8) for i in range(9)]
    grid = [(r, g, b) for r in levels for g in levels for b in levels]
    taken: list[tuple[int, ...]] = [(0, 0, 0), (255, 255, 255), (250, 10, 10)]
    classes = with_colors(["a", "b", "c", "d"], {"b": (250, 10, 10)})
    assert classes.colors[1] == (250, 10, 10)
    for index in (0, 2, 3):
        farthest = max(min(distance(color, other) for other in taken) for color in grid)
        assert min(distance(classes.colors[index], other) for other in taken) == pytest.approx(farthest)
        taken.append(classes.colors[index])


def test_colors_are_distinct_and_stay() -> None:
    many = unnamed(254)
    assert len({*many.colors, (0, 0, 0), (255, 255, 255)}) == 256
    assert unnamed(5).colors == many.colors[:5]  # whoever adds a class keeps the colors of the others


def test_palette_and_legend() -> None:
    classes = ClassList(("a", "b"), ((1, 2, 3), (4, 5, 6)))
    assert classes.palette()[:3].tolist() == [[1, 2, 3], [4, 5, 6], [0, 0, 0]] and classes.palette()[255].sum() == 0
    assert classes.legend(np.array([[1, 1], [0, 1]])) == [("a", (1, 2, 3)), ("b", (4, 5, 6))]
    assert (CITYSCAPES_CLASSES.names, CITYSCAPES_CLASSES.colors) == (CLASSES, PALETTE)


# ---- In checkpoints

SEVEN = with_colors(["road", "mud", "animal", "car", "kerb", "hill", "sky"], {"mud": (90, 60, 30)})
FIVE = with_colors(["sky", "water", "road", "boat", "car"], {})


def save(build_tiny: Build, path: Path, classes: ClassList | None, count: int) -> nn.Module:
    """A checkpoint whose class head can be told row by row."""
    model = build_tiny("MaskFormer", MODEL__SEM_SEG_HEAD__NUM_CLASSES=count)
    head = model.sem_seg_head.predictor.class_embed
    with torch.no_grad():
        head.weight.copy_(100 + torch.arange(count + 1.0)[:, None].expand_as(head.weight))
        head.bias.copy_(200 + torch.arange(count + 1.0))
    model.classes = classes
    TMTCheckpointer(model, str(path.parent)).save(path.stem)
    return model


def new_model(build_tiny: Build, classes: ClassList | None, count: int) -> nn.Module:
    model = build_tiny("MaskFormer", MODEL__SEM_SEG_HEAD__NUM_CLASSES=count)
    model.classes = classes
    return model


@pytest.mark.parametrize(
    ("classes", "rows"),
    [
        (FIVE, [6, None, 0, None, 3, 7]),  # water and boat are new; the last row is "no object"
        (with_colors(SEVEN.names[::-1], {}), [6, 5, 4, 3, 2, 1, 0, 7]),
    ],
)
def test_rows_of_the_class_head_go_by_name(
    build_tiny: Build, tmp_path: Path, classes: ClassList, rows: list[int | None]
) -> None:
    path = str(tmp_path / "start.pth")
    save(build_tiny, tmp_path / "start.pth", SEVEN, 7)
    model = new_model(build_tiny, classes, len(classes))
    with pytest.raises(UserError) as error:
        TMTCheckpointer(model).load(path)
    assert error.value.key == path and "REINIT_CLASS_HEAD" in error.value.hint
    head = model.sem_seg_head.predictor.class_embed
    weight, bias = head.weight.detach().clone(), head.bias.detach().clone()
    TMTCheckpointer(model, reinit_class_head=True).load(path)
    for index, row in enumerate(rows):
        expected = (weight[index], bias[index]) if row is None else (100.0 + row, 200.0 + row)
        assert (head.weight[index] == expected[0]).all() and head.bias[index] == expected[1]
    assert model.classes == classes and model.criterion.empty_weight.shape == (len(rows),)


def test_equal_names_are_loaded_whatever_the_colors(build_tiny: Build, tmp_path: Path) -> None:
    save(build_tiny, tmp_path / "start.pth", SEVEN, 7)
    model = new_model(build_tiny, ClassList(SEVEN.names, unnamed(7).colors), 7)
    TMTCheckpointer(model).load(str(tmp_path / "start.pth"))
    assert model.sem_seg_head.predictor.class_embed.bias.tolist() == list(range(200, 208))
    assert model.classes.colors == unnamed(7).colors


def test_checkpoints_without_names_are_as_they_were(build_tiny: Build, tmp_path: Path) -> None:
    """By size alone; tests/modeling/test_official.py has the message."""
    path = tmp_path / "old.pth"
    save(build_tiny, path, None, 7)
    assert ENTRY not in torch.load(path, weights_only=True) and read_classes(str(path)) is None
    kept, anew = new_model(build_tiny, SEVEN, 7), new_model(build_tiny, FIVE, 5)
    before = anew.sem_seg_head.predictor.class_embed.bias.tolist()
    for model in (kept, anew):
        TMTCheckpointer(model, reinit_class_head=True).load(str(path))
    assert kept.sem_seg_head.predictor.class_embed.bias.tolist() == list(range(200, 208)) and kept.classes == SEVEN
    assert anew.sem_seg_head.predictor.class_embed.bias.tolist() == before


def test_a_model_that_does_not_know_its_classes_takes_those_of_the_file(build_tiny: Build, tmp_path: Path) -> None:
    save(build_tiny, tmp_path / "start.pth", SEVEN, 7)
    assert read_classes(str(tmp_path / "start.pth")) == SEVEN
    model = new_model(build_tiny, None, 7)
    assert class_list_of(model) == unnamed(7)
    TMTCheckpointer(model).load(str(tmp_path / "start.pth"))
    assert model.classes == class_list_of(model) == SEVEN
    assert class_list_of(new_model(build_tiny, None, 19)) == CITYSCAPES_CLASSES


@pytest.mark.parametrize(
    "entry",
    [
        3,
        {"names": ["a"]},
        {"names": list("abcdef"), "colors": [[0, 0, 0]] * 6},  # a class less than the head has
        {"names": list("abcdefa"), "colors": [[0, 0, 0]] * 7},
        {"names": list("abcdefg"), "colors": [[0, 0, 300]] * 7},
    ],
)
def test_an_entry_that_is_no_list_of_classes_is_damage(build_tiny: Build, tmp_path: Path, entry: Any) -> None:
    model = new_model(build_tiny, None, 7)
    torch.save({"model": model.state_dict(), ENTRY: entry}, tmp_path / "bad.pth")
    with pytest.raises(DamagedCheckpoint, match="bad.pth"):
        TMTCheckpointer(model).load(str(tmp_path / "bad.pth"))


# ---- From data sets to everything that reads them


def garden(folder: Path, name: str, **content: Any) -> Path:
    """A data set of five training images and one to evaluate on, of noise; labels are 0, 1, ... in columns."""
    rng = np.random.default_rng(0)
    ids = content.pop("ids", 2)
    for split, count in (("train", 5), ("val", 1)):
        for index in range(count):
            for kind, pixels in (
                ("rgb", rng.integers(0, 256, (64, 128, 3))),
                ("ids", np.broadcast_to(np.arange(128) * ids // 128, (64, 128))),
            ):
                path = folder / name / split / kind / f"{index}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels.astype(np.uint8)).save(path)
    splits = {
        split: {"images": f"{split}/rgb/{{s}}.png", "labels": f"{split}/ids/{{s}}.png"} for split in ("train", "val")
    }
    splits["more"] = {"unlabeled": "train/rgb/{s}.png"}
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump({"name": name, "root": name, "splits": splits, **content}))
    return file


def on(*files: Path, train: str, test: str, **changes: Any) -> dict[str, Any]:
    splits = {"DATASETS__TRAIN": (train,), "DATASETS__TEST": (test,), "DATASETS__CUSTOM": tuple(map(str, files))}
    return splits | changes


def test_splits_of_one_run_share_a_class_list(tmp_path: Path) -> None:
    one, other = garden(tmp_path, "one", classes=["lawn", "pond"]), garden(tmp_path, "other", classes=["lawn", "shed"])
    register_custom(one)
    register_custom(other)
    with pytest.raises(UserError, match="one_sem_seg_train has 2 classes .* other_sem_seg_val has 2 classes"):
        run_stage(small_cfg("source", tmp_path / "out", **on(train="one_sem_seg_train", test="other_sem_seg_val")))
    assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match="and cityscapes_sem_seg_val has 19 classes"):
        common_classes(["one_sem_seg_train", "cityscapes_sem_seg_val"])


def test_the_number_of_classes_follows_from_the_data_sets(tmp_path: Path) -> None:
    file = garden(tmp_path, "one", classes=["lawn", "pond"])
    register_custom(file)
    splits = on(train="one_sem_seg_train", test="one_sem_seg_val")
    for count in (2, 19):  # 19 is what the base configs say
        cfg = small_cfg("source", tmp_path, **splits, MODEL__SEM_SEG_HEAD__NUM_CLASSES=count)
        assert check_task(cfg).names == ("lawn", "pond")
    with refuses("MODEL.SEM_SEG_HEAD.NUM_CLASSES", 7):
        check_task(small_cfg("source", tmp_path, **splits, MODEL__SEM_SEG_HEAD__NUM_CLASSES=7))


def test_unlabeled_splits_serve_the_estimator_alone(tmp_path: Path) -> None:
    register_custom(garden(tmp_path, "one", classes=["lawn", "pond"]))
    register_custom(garden(tmp_path, "two", classes=["lawn", "pond"]))
    start, refused = tmp_path / "start.pth", "two_sem_seg_more"
    for stage, train, test in (("source", "more", "val"), ("source", "train", "more"), ("full", "more", "val")):
        splits = on(train=f"two_sem_seg_{train}", test=f"two_sem_seg_{test}")
        with pytest.raises(UserError, match=refused):
            check_task(small_cfg(stage, tmp_path, start, **splits))
    sources = {"DATASETS__SOURCE_TRAIN": ("one_sem_seg_train",), "DATASETS__SOURCE_TEST": ("one_sem_seg_val",)}
    splits = on(train="two_sem_seg_more", test="two_sem_seg_val")
    assert len(check_task(small_cfg("estimator", tmp_path, start, **splits, **sources))) == 2


def train(tmp_path: Path, stage: str, file: Path, start: Path | str = "", **changes: Any) -> CfgNode:
    name = file.stem
    splits = on(file, train=f"{name}_sem_seg_train", test=f"{name}_sem_seg_val", SOLVER__MAX_ITER=1)
    return small_cfg(stage, tmp_path / f"{stage}-{name}", start, **{**splits, **changes})


@pytest.mark.slow
def test_a_model_of_its_own_classes(tmp_path: Path) -> None:
    """Trained, evaluated, drawn and predicted with; whoever comes later needs neither the data set nor its number."""
    names = [f"thing/{index}" for index in range(150)]
    file = garden(tmp_path, "own", ids=100, classes=[{"name": names[0], "color": [1, 2, 3]}, *names[1:]])
    queries = {"MODEL__MASK_FORMER__NUM_OBJECT_QUERIES": 150}
    cfg = train(tmp_path, "source", file, **queries)
    metrics = run_stage(cfg)["own_sem_seg_val"]
    assert [key for key in metrics if key.startswith("IoU-")] == [f"IoU-{name}" for name in names]
    report = json.loads((Path(cfg.OUTPUT_DIR) / "inference/own_sem_seg_val/sem_seg_evaluation.json").read_text())
    assert report["absent_classes"] == names[100:]
    weights = f"{cfg.OUTPUT_DIR}/model_final.pth"
    base = str(TINY_CONFIG)  # it says 19
    plain = [*options(**queries), "DATASETS.TEST", "()", "DATASETS.TRAIN", "()"]
    predictor = Predictor.from_config(base, weights, plain)
    assert predictor.classes.names == tuple(names) and predictor.classes.colors[0] == (1, 2, 3)
    image = tmp_path / "own/val/rgb/0.png"
    assert predictor(image).scores.shape[0] == 150
    file.unlink()  # the run's own config names it
    predictor = Predictor.from_config(f"{cfg.OUTPUT_DIR}/config.yaml", weights)
    drawn = report_image(predictor, InputImage.of({"file_name": str(image)}), [names[1]])
    assert drawn.queries[0].name == names[1] and drawn.classes == predictor.classes
    files = [suffix for suffix, _ in report_figures([drawn], "image", ())]
    assert files[-1].endswith("_thing-1_class")
    with pytest.raises(UserError, match="car"):
        report_image(predictor, InputImage.of({"file_name": str(image)}), ["car"])
    with refuses("cityscapes_sem_seg_val"):
        predictor.label_space_of("cityscapes_sem_seg_val")


@pytest.mark.slow
def test_from_one_class_list_to_another(tmp_path: Path) -> None:
    """Source training on seven classes, an estimator for an unlabeled target, TMT; then five classes by name."""
    seven, five = (
        garden(tmp_path, "seven", ids=7, classes=list(SEVEN.names)),
        garden(tmp_path, "five", ids=5, classes=list(FIVE.names)),
    )
    common = garden(tmp_path, "common", classes=list(SEVEN.names), train_ids={0: "sky", 1: "mud"})
    source = train(tmp_path, "source", seven)
    run_stage(source)
    sources = {
        "DATASETS__SOURCE_TRAIN": ("seven_sem_seg_train",),
        "DATASETS__SOURCE_TEST": ("seven_sem_seg_val",),
        "DATASETS__CUSTOM": (str(seven), str(common)),
    }
    estimator = train(
        tmp_path, "estimator", common, f"{source.OUTPUT_DIR}/model_final.pth", **sources,
        DATASETS__TRAIN=("common_sem_seg_more",),
    )  # fmt: skip
    measured = run_stage(estimator)
    assert all(set(means) == {"sky", "mud"} for means in measured["mean_t_by_class"])
    start = f"{estimator.OUTPUT_DIR}/model_final.pth"
    fine_tuned = run_stage(train(tmp_path, "tmt", common, start, **sources))["common_sem_seg_val"]
    assert np.isnan(fine_tuned["IoU-car"]) and not np.isnan(fine_tuned["IoU-mud"])  # absent, not 0
    with pytest.raises(UserError, match="REINIT_CLASS_HEAD"):
        run_stage(train(tmp_path, "full", five, start))
    # The source model's classes stay its own while it learns to tell the domains apart, whatever the target's are.
    other = {"DATASETS__CUSTOM": (str(seven), str(five))}
    measured = run_stage(train(tmp_path, "estimator", five, f"{source.OUTPUT_DIR}/model_final.pth", **sources | other))
    assert all(set(means) == {*FIVE.names} for means in measured["mean_t_by_class"])
    start = str(tmp_path / "estimator-five/model_final.pth")
    assert read_classes(start).names == SEVEN.names  # type: ignore[union-attr]
    run_stage(train(tmp_path, "tmt", five, start, TRANSFER__REINIT_CLASS_HEAD=True, **sources | other))
    assert read_classes(str(tmp_path / "tmt-five/model_final.pth")).names == FIVE.names  # type: ignore[union-attr]


@pytest.mark.slow
def test_self_training_on_images_without_labels(tmp_path: Path) -> None:
    file = garden(tmp_path, "own", classes=["lawn", "pond"])
    start = train(tmp_path, "source", file)
    run_stage(start)
    (tmp_path / "own/few.txt").write_text("1\n3\n")
    content = yaml.safe_load(file.read_text())
    content["splits"]["few"] = content["splits"]["train"] | {"list": "own/few.txt", "unlabeled": "train/rgb/{s}.png"}
    file.write_text(yaml.safe_dump(content))
    splits = {"DATASETS__TRAIN": ("own_sem_seg_few",), "DATASETS__UNLABELED": ("own_sem_seg_more",)}
    for name in [name for name in DatasetCatalog.list() if name.startswith("own")]:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    weights = f"{start.OUTPUT_DIR}/model_final.pth"
    with pytest.raises(UserError, match=r"SOURCE_TRAIN.*SELF_TRAINING.SOURCE_RATIO"):
        run_stage(train(tmp_path, "self-training", file, weights, **splits))
    cfg = train(tmp_path, "self-training", file, weights, **splits, SELF_TRAINING__SOURCE_RATIO=0.0)
    assert set(run_stage(cfg)["own_sem_seg_val"]) >= {"IoU-lawn", "IoU-pond"}
