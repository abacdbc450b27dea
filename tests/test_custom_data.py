"""Data sets of your own from one YAML file: what it says, and every mistake in it by name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from tests.helpers.checkout import CONFIGS
from tests.helpers.small_runs import unit_options
from tmt_d2.commands import train_pair
from tmt_d2.data import label_space_of, register_custom
from tmt_d2.data.custom import read_custom
from tmt_d2.data.label_spaces import IGNORE, OUTSIDE
from tmt_d2.data.reader import DataError, UndefinedIdError, read_pair

SPLITS = {"train": {"images": "rgb/{stem}.png", "labels": "ids/{stem}_ids.png"}}


@pytest.fixture(autouse=True)
def clean_catalogs():
    before = set(DatasetCatalog.list())
    yield
    for name in set(DatasetCatalog.list()) - before:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def write(folder: Path, content: object = None, file: str = "town.yaml", **changes: object) -> Path:
    """A right file, with `changes` to its keys; None removes a key."""
    folder.mkdir(parents=True, exist_ok=True)
    if content is None:
        content = {"name": "town", "splits": SPLITS, "train_ids": {7: "road", 8: 1}} | changes
        content = {key: value for key, value in content.items() if value is not None}
    (folder / file).write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return folder / file


def save(path: Path, ids: list[list[int]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.array(ids, np.uint8)).save(path)


def test_a_data_set_from_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for stem in ("b", "a"):
        save(tmp_path / "data" / "rgb" / f"{stem}.png", [[0, 0, 0, 0]])
        save(tmp_path / "data" / "ids" / f"{stem}_ids.png", [[7, 8, 9, 255]])
    file = write(tmp_path / "settings", root="../data", ignore_ids=[9, 255])
    monkeypatch.chdir(tmp_path / "settings")
    assert register_custom("town.yaml") == ["town_sem_seg_train"]
    assert register_custom(file) == ["town_sem_seg_train"]  # the same file once more
    monkeypatch.chdir(tmp_path)  # paths are relative to the file, not to where the command runs
    records = DatasetCatalog.get("town_sem_seg_train")
    assert [(r["image_id"], r["dataset"]) for r in records] == [(stem, "town_sem_seg_train") for stem in "ab"]
    image, label = read_pair(records[0], label_space_of("town_sem_seg_train"))
    assert image.shape == (1, 4, 3) and label.tolist() == [[0, 1, 255, 255]]
    metadata = MetadataCatalog.get("town_sem_seg_train")
    assert (metadata.evaluator_type, metadata.ignore_label, len(metadata.stuff_classes)) == ("sem_seg", 255, 19)


def test_an_id_that_the_file_does_not_name_is_an_error(tmp_path: Path) -> None:
    save(tmp_path / "rgb" / "a.png", [[0, 0]])
    save(tmp_path / "ids" / "a_ids.png", [[7, 9]])
    register_custom(write(tmp_path))
    (record,) = DatasetCatalog.get("town_sem_seg_train")
    with pytest.raises(UndefinedIdError, match=r"a_ids\.png: ids 9 are not defined in town"):
        read_pair(record, label_space_of("town_sem_seg_train"))


def test_the_two_ways_to_give_the_classes(tmp_path: Path) -> None:
    by_id = read_custom(write(tmp_path, train_ids={0: "ignore", 1: "sky", 2: 13, 3: 255})).label_space
    by_list = read_custom(write(tmp_path, train_ids=None, classes=["ignore", "sky", "car", "ignore"])).label_space
    assert by_id == by_list
    assert by_id.lookup()[:5].tolist() == [IGNORE, 10, 13, IGNORE, OUTSIDE]
    assert by_id.never_occurs == tuple(i for i in range(19) if i not in (10, 13))


def test_several_captures_tell_frames_of_several_drives_apart(tmp_path: Path) -> None:
    for drive in ("1", "2"):
        save(tmp_path / "rgb" / drive / "0.png", [[0]])
        save(tmp_path / "ids" / drive / "x" / "0.png", [[7]])
    splits = {"train": {"images": "rgb/{drive}/{stem}.png", "labels": "ids/{drive}/*/{stem}.png"}}
    register_custom(write(tmp_path, splits=splits))
    records = DatasetCatalog.get("town_sem_seg_train")
    assert [r["image_id"] for r in records] == ["1_0", "2_0"]
    assert records[1]["sem_seg_file_name"] == f"{tmp_path}/ids/2/x/0.png"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"colour": 1}, "the file: knows only the keys classes, ignore_ids, name, root, splits, train_ids"),
        ({"name": None}, "name: should be a word .* (it is None)"),
        ({"name": "my/town"}, "name: should be a word .* (it is 'my/town')"),
        ({"root": 3}, "root: should be a folder"),
        ({"splits": None}, "splits: should hold `key: value` lines (it is None)"),
        ({"splits": {"train": "x"}}, "splits.train: should hold `key: value` lines"),
        ({"splits": {"train": {"image": "x"}}}, "splits.train: knows only the keys images, labels (it is 'image')"),
        ({"splits": {"train": {"images": "{stem}.png"}}}, "splits.train.labels: should be a pattern .* (it is None)"),
        ({"splits": {"train": {"images": "*.png", "labels": "{stem}.png"}}}, "splits.train.images: .*{stem}"),
        ({"splits": {"train": {"images": "**/{stem}.png", "labels": "x"}}}, "splits.train.images: ** is not known"),
        ({"splits": {"a b": {"images": "{stem}", "labels": "{stem}"}}}, "splits.a b: the name of a split"),
        ({"splits": {1: {"images": "{a}", "labels": "{a}"}}}, "splits.1: the name of a split"),
        ({"splits": {"t": {"images": "{a}/{b}.png", "labels": "{b}.png"}}}, "splits.t.labels: should capture the same"),
        ({"train_ids": None}, "give one of the keys train_ids and classes"),
        ({"classes": ["road"]}, "give one of the keys train_ids and classes"),
        ({"train_ids": ["road"]}, "train_ids: should hold `key: value` lines"),
        (
            {"train_ids": {7: "raod"}},
            "train_ids.7: should be ignore, a train id 0-18, or one of road, .* (it is 'raod')",
        ),
        ({"train_ids": {7: 19}}, "train_ids.7: .* (it is 19)"),
        ({"train_ids": {7: True}}, "train_ids.7: .* (it is True)"),
        ({"train_ids": {7: ["road"]}}, "train_ids.7: .* (it is ['road'])"),
        ({"train_ids": {256: "road"}}, "train_ids: an id in a label file should be a whole number 0-255 (it is 256)"),
        ({"train_ids": {"road": 7}}, "train_ids: an id in a label file should be a whole number 0-255 (it is 'road')"),
        ({"train_ids": {7: "ignore"}}, "train_ids: should name at least one class"),
        ({"train_ids": None, "classes": {0: "road"}}, "classes: should be a list of class names"),
        ({"train_ids": None, "classes": ["road", None]}, "classes.1: should be ignore"),
        ({"ignore_ids": 255}, "ignore_ids: should be a list of ids (it is 255)"),
        ({"ignore_ids": [7]}, "ignore_ids: train_ids gives this id a class (it is 7)"),
        ({"ignore_ids": [-1]}, "ignore_ids: an id in a label file should be a whole number 0-255 (it is -1)"),
    ],
)
def test_a_wrong_key_is_named_with_the_reason(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    file = write(tmp_path, **changes)
    with pytest.raises(DataError) as error:
        register_custom(file)
    text = str(error.value)
    assert text.startswith(f"{file}: ") and "\n" not in text
    position = 0
    for part in message.split(".*"):
        position = text.find(part, position) + 1
        assert position, f"{part!r} is not in {text!r}"
    assert "town_sem_seg_train" not in DatasetCatalog


@pytest.mark.parametrize("pattern", ["../{stem}.png", "a/../../{stem}.png", "/etc/{stem}", "~/{stem}", "..\\{stem}"])
@pytest.mark.parametrize("key", ["images", "labels"])
def test_a_pattern_stays_below_the_root(tmp_path: Path, key: str, pattern: str) -> None:
    file = write(tmp_path, splits={"train": SPLITS["train"] | {key: pattern}})
    with pytest.raises(DataError, match=rf"splits\.train\.{key}: should stay below root"):
        register_custom(file)


@pytest.mark.parametrize("link", ["a folder", "a file"])
def test_a_link_that_leads_out_of_the_root_is_an_error(tmp_path: Path, link: str) -> None:
    save(tmp_path / "elsewhere" / "a.png", [[0]])
    save(tmp_path / "root" / "ids" / "a_ids.png", [[7]])
    if link == "a folder":
        (tmp_path / "root" / "rgb").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    else:
        (tmp_path / "root" / "rgb").mkdir()
        (tmp_path / "root" / "rgb" / "a.png").symlink_to(tmp_path / "elsewhere" / "a.png")
    register_custom(write(tmp_path, root="root"))
    with pytest.raises(
        DataError, match=r"splits\.train\.images: .*rgb/a\.png leads to .*elsewhere/a\.png, outside root"
    ):
        DatasetCatalog.get("town_sem_seg_train")


def test_links_that_stay_inside_and_a_root_that_is_a_link_are_fine(tmp_path: Path) -> None:
    save(tmp_path / "disk" / "real" / "a.png", [[0]])
    save(tmp_path / "disk" / "ids" / "a_ids.png", [[7]])
    (tmp_path / "disk" / "rgb").symlink_to("real", target_is_directory=True)
    (tmp_path / "root").symlink_to("disk", target_is_directory=True)
    register_custom(write(tmp_path, root="root"))
    assert len(DatasetCatalog.get("town_sem_seg_train")) == 1


def test_files_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"gone\.yaml: no such file"):
        register_custom(tmp_path / "gone.yaml")
    register_custom(write(tmp_path))  # nothing on disk is looked at yet
    with pytest.raises(
        FileNotFoundError, match=r"town\.yaml: splits\.train\.images: no file like .*/rgb/\{stem\}\.png"
    ):
        DatasetCatalog.get("town_sem_seg_train")
    save(tmp_path / "rgb" / "a.png", [[0]])
    save(tmp_path / "rgb" / "b.png", [[0]])
    with pytest.raises(FileNotFoundError, match=r"splits\.train\.labels: no file like"):
        DatasetCatalog.get("town_sem_seg_train")
    save(tmp_path / "ids" / "b_ids.png", [[7]])
    with pytest.raises(DataError, match=r"town_sem_seg_train: 1 images have no label, the first is .*/rgb/a\.png"):
        DatasetCatalog.get("town_sem_seg_train")


def test_a_file_that_is_no_yaml_or_would_run_code(tmp_path: Path) -> None:
    for content in ("name: [", "name: !!python/object/apply:os.system ['true']", "- name", "", "\x00"):
        with pytest.raises(DataError, match=r"town\.yaml: ") as error:
            register_custom(write(tmp_path, content))
        assert "\n" not in str(error.value)


def test_a_name_that_is_taken_is_an_error(tmp_path: Path) -> None:
    register_custom(write(tmp_path))
    with pytest.raises(DataError, match=r"other\.yaml: name: town_sem_seg_train is already registered"):
        register_custom(write(tmp_path, file="other.yaml"))
    with pytest.raises(DataError, match="name: gtav_sem_seg_train is already registered"):
        register_custom(write(tmp_path, name="gtav"))


@pytest.mark.slow
def test_a_pair_of_custom_data_sets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Their files are named on the command line, and nothing else has registered them."""
    rng = np.random.default_rng(0)
    for name in ("town", "village"):
        for split, count in (("train", 4), ("val", 1)):
            for index in range(count):
                save(tmp_path / name / split / "rgb" / f"{index}.png", rng.integers(0, 256, (64, 128, 3)).tolist())
                save(tmp_path / name / split / "ids" / f"{index}_ids.png", rng.integers(7, 9, (64, 128)).tolist())
        splits = {
            split: {key: f"{split}/{path}" for key, path in SPLITS["train"].items()} for split in ("train", "val")
        }
        write(tmp_path / name, name=name, splits=splits)
    files = tuple(str(tmp_path / name / "town.yaml") for name in ("town", "village"))
    command = ["train_pair.py", "--configs", str(CONFIGS), "--source", "town", "--target", "village", "--output"]
    overrides = [*unit_options(SOLVER__MAX_ITER=1), "DATASETS.CUSTOM", str(files)]
    monkeypatch.setattr("sys.argv", [*command, str(tmp_path / "pair"), "--", *overrides])
    train_pair.main()
    lines = capsys.readouterr().out
    assert "fine-tuned: tmt" in lines and "village" in lines
    assert (tmp_path / "pair" / "finetune" / "town-village" / "tmt" / "labels1" / "seed3" / "stage.json").is_file()
