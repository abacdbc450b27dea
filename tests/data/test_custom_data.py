"""Data sets of your own from one YAML file: what it says, and every mistake in it by name."""

from __future__ import annotations

from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from tests.helpers.custom_data import SPLITS, save, write
from tests.helpers.models import tiny_cfg
from tmt_d2.data import label_space_of, register_custom, register_data
from tmt_d2.data.datasets.custom import read_custom
from tmt_d2.data.datasets.label_spaces import CLASSES, IGNORE, OUTSIDE
from tmt_d2.data.reader import DataError, UndefinedIdError, read_pair
from tmt_d2.errors import UserError

pytestmark = pytest.mark.usefixtures("clean_catalogs")


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
    save(tmp_path / "data" / "ids" / "a_ids.png", [[7, 8, 9, 10]])
    with pytest.raises(UndefinedIdError, match=r"a_ids\.png"):
        read_pair(records[0], label_space_of("town_sem_seg_train"))
    metadata = MetadataCatalog.get("town_sem_seg_train")
    assert (metadata.evaluator_type, metadata.ignore_label, len(metadata.stuff_classes)) == ("sem_seg", 255, 19)


def test_the_two_ways_to_give_the_classes(tmp_path: Path) -> None:
    by_id = read_custom(write(tmp_path, train_ids={0: "ignore", 1: "sky", 2: 13, 3: 255})).label_space
    by_list = read_custom(write(tmp_path, train_ids=None, classes=["ignore", "sky", "car", "ignore"])).label_space
    assert by_id == by_list
    assert by_id.lookup()[:5].tolist() == [IGNORE, 10, 13, IGNORE, OUTSIDE]
    assert by_id.never_occurs == tuple(i for i in range(19) if i not in (10, 13))


TRAIN = SPLITS["train"]
OWN = {"train_ids": None}


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"colors": 1}, "colors"),
        ({"name": None}, "name"),
        ({"name": "my/town"}, "name"),
        ({"root": 3}, "root"),
        ({"splits": None}, "splits"),
        ({"splits": {"train": "x"}}, "splits.train"),
        ({"splits": {"train": {"image": "x"}}}, "splits.train.image"),
        ({"splits": {"train": {"images": "{stem}.png"}}}, "splits.train.labels"),
        ({"splits": {"train": {"images": "*.png", "labels": "{stem}.png"}}}, "splits.train.images"),
        ({"splits": {"train": {"images": "**/{stem}.png", "labels": "x"}}}, "splits.train.images"),
        ({"splits": {"train": {"images": "{1}.png", "labels": "{1}.png"}}}, "splits.train.images"),
        ({"splits": {"a b": {"images": "{stem}", "labels": "{stem}"}}}, "splits.a b"),
        ({"splits": {1: {"images": "{a}", "labels": "{a}"}}}, "splits.1"),
        ({"splits": {"t": {"images": "{a}/{b}.png", "labels": "{b}.png"}}}, "splits.t.labels"),
        ({"splits": {"train": TRAIN | {"images": []}}}, "splits.train.images"),
        ({"splits": {"train": TRAIN | {"images": ["{stem}.png", "x"]}}}, "splits.train.images.1"),
        ({"splits": {"train": TRAIN | {"unlabeled": "*.png"}}}, "splits.train.unlabeled"),
        ({"splits": {"train": TRAIN | {"subset": 1}}}, "splits.train.subset"),
        ({"splits": {"train": TRAIN | {"list": ["a"]}}}, "splits.train.list"),
        *[
            ({"splits": {"train": TRAIN | {"labels": pattern}}}, "splits.train.labels")  # below the root
            for pattern in ("../{stem}.png", "a/../../{stem}.png", "/etc/{stem}", "~/{stem}", "..\\{stem}")
        ],
        (OWN, ""),
        ({"classes": ["lawn"], "class_list": "a.yaml"}, ""),
        ({"train_ids": {0: "road"}, "classes": ["lawn"]}, "train_ids.0"),
        ({"train_ids": {0: "ignore"}, "classes": ["lawn"]}, "train_ids"),
        ({"classes": ["lawn", "pond", "lawn"]}, "classes.2"),
        *[(OWN | {"classes": ["lawn", name]}, "classes.1") for name in (13, True, "a\nb", "")],
        (OWN | {"classes": [{"color": [0, 0, 0]}]}, "classes.0"),
        (OWN | {"classes": [{"name": "a", "colour": 1}]}, "classes.0.colour"),
        (OWN | {"classes": [{"name": "a", "color": [0, 256, 0]}]}, "classes.0.color"),
        (OWN | {"classes": [{"name": "a", "color": "red"}]}, "classes.0.color"),
        (OWN | {"classes": [f"c{i}" for i in range(255)]}, "classes"),
        (OWN | {"classes": [{"name": "ignore"}]}, "classes"),
        (OWN | {"classes": ["lawn"], "ignore_ids": [0]}, "ignore_ids"),
        (OWN | {"class_list": 3}, "class_list"),
        *[({"train_ids": {7: meaning}}, "train_ids.7") for meaning in ("raod", 19, True, ["road"])],
        *[({"train_ids": ids}, "train_ids") for ids in (["road"], {256: "road"}, {"road": 7}, {7: "ignore"})],
        (OWN | {"classes": {0: "road"}}, "classes"),
        (OWN | {"classes": ["road", None]}, "classes.1"),
        *[({"ignore_ids": ids}, "ignore_ids") for ids in (255, [7])],
    ],
)
def test_a_wrong_key_is_named(tmp_path: Path, changes: dict[str, object], key: str) -> None:
    file = write(tmp_path, **changes)
    with pytest.raises(DataError) as error:
        register_custom(file)
    assert error.value.key == (f"{file}: {key}" if key else str(file)) and "\n" not in str(error.value)
    assert "town_sem_seg_train" not in DatasetCatalog


def test_an_id_in_two_places_of_a_mapping_is_an_error(tmp_path: Path) -> None:
    """YAML readers take the last."""
    text = (
        "name: town\nsplits: {train: {images: '{stem}.png', labels: '{stem}.gif'}}\ntrain_ids:\n  7: road\n  7: sky\n"
    )
    with pytest.raises(DataError, match=r"town\.yaml.*line 5"):
        read_custom(write(tmp_path, text))


def test_merge_keys(tmp_path: Path) -> None:
    """Keys beside ``<<`` win over those of the base, also where they stand before it."""
    text = (
        "name: town\nsplits:\n  train: &base {images: 'a/{stem}.png', labels: 'b/{stem}.png', subset: true}\n"
        "  val: &val {images: 'c/{stem}.png', <<: *base}\n  test: {<<: *val, subset: false}\nclasses: [road, sky]\n"
    )
    splits = read_custom(write(tmp_path, text)).splits
    assert [each.patterns["images"] for each in splits.values()] == [("a/{stem}.png",), ("c/{stem}.png",)] + [
        ("c/{stem}.png",)
    ]
    assert all(each.patterns["labels"] == ("b/{stem}.png",) for each in splits.values())
    assert [each.subset for each in splits.values()] == [True, True, False]
    with pytest.raises(DataError, match="subset"):
        read_custom(write(tmp_path, text.replace("subset: false", "subset: false, subset: true")))


def test_a_file_that_is_no_yaml_or_would_run_code(tmp_path: Path) -> None:
    for content in ("name: [", "name: !!python/object/apply:os.system ['true']", "- name", ""):
        with pytest.raises(DataError, match=r"town\.yaml") as error:
            register_custom(write(tmp_path, content))
        assert "\n" not in str(error.value)


# ---- Class lists of its own


def test_a_list_of_its_own(tmp_path: Path) -> None:
    classes = ["lawn", "ignore", {"name": "pond", "color": [0, 90, 255]}, "sky", "ignore", {"name": "shed"}]
    space = read_custom(write(tmp_path, train_ids=None, classes=classes, ignore_ids=[200])).label_space
    assert space.classes.names == ("lawn", "pond", "sky", "shed")
    assert space.classes.colors[1:3] == ((0, 90, 255), (70, 130, 180))  # given, and that of the 19
    assert space.lookup()[:7].tolist() == [0, IGNORE, 1, 2, IGNORE, 3, OUTSIDE]
    assert space.lookup()[200] == IGNORE and space.never_occurs == ()


def test_colors_of_a_list_are_those_of_label_files(tmp_path: Path) -> None:
    classes = [{"name": "lawn", "color": [0, 9, 0]}, "pond", {"name": "ignore", "color": [0, 0, 0]}]
    classes += [{"name": "ignore", "color": [9, 9, 9]}]
    twice = [{"name": "shed", "color": [7, 0, 0]}, {"name": "barn", "color": [7, 0, 0]}]
    space = read_custom(write(tmp_path, train_ids={5: "shed"}, classes=[*classes, *twice])).label_space
    assert space.colors == {(0, 9, 0): 0, (0, 0, 0): IGNORE, (9, 9, 9): IGNORE}  # one of two classes is of neither


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"classes": ["road", "sky"], "train_ids": None}, CLASSES),  # names of the 19 are the 19, as they always were
        ({"classes": ["road", "sky"], "train_ids": {4: "sky", 5: "road"}}, ("road", "sky")),
        ({"classes": ["road", {"name": "sky"}], "train_ids": None}, ("road", "sky")),
        ({"classes": ["road", "sky", "roof"], "train_ids": None}, ("road", "sky", "roof")),
        ({"train_ids": {4: "sky"}}, CLASSES),
    ],
)
def test_when_a_list_is_one_of_its_own(tmp_path: Path, changes: dict[str, object], names: tuple[str, ...]) -> None:
    assert read_custom(write(tmp_path, **changes)).label_space.classes.names == names


@pytest.mark.parametrize(
    ("classes", "is_warned"),
    [
        (["road", "sidewlak", "sky"], True),
        (["road", "sky", "lawn"], False),  # similar to none
        (["road", "wall", "walls"], False),  # the similar one is in the list as well
    ],
)
def test_a_misspelt_name_of_the_19(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, classes: list[str], is_warned: bool
) -> None:
    read_custom(write(tmp_path, train_ids=None, classes=classes))
    assert ["sidewalk" in message for message in caplog.messages] == [True] * is_warned


def test_two_data_sets_on_a_common_list(tmp_path: Path) -> None:
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "common.yaml").write_text("[lawn, {name: pond, color: [1, 2, 3]}, shed]")
    first = read_custom(write(tmp_path, train_ids=None, class_list="lists/common.yaml")).label_space
    mapping = {3: "shed", 4: "lawn", 5: "lawn", 9: "ignore"}
    second = read_custom(write(tmp_path, class_list="lists/common.yaml", train_ids=mapping)).label_space
    assert first.classes == second.classes and first.classes.names == ("lawn", "pond", "shed")
    assert first.lookup()[:4].tolist() == [0, 1, 2, OUTSIDE]
    assert second.lookup()[3:10].tolist() == [2, 0, 0, OUTSIDE, OUTSIDE, OUTSIDE, IGNORE]
    assert second.never_occurs == (1,)  # no id leads to the pond: absent, not 0


def test_a_wrong_class_list_is_named_itself(tmp_path: Path) -> None:
    file = write(tmp_path, train_ids=None, class_list="common.yaml")
    with pytest.raises(FileNotFoundError, match=r"common\.yaml"):
        read_custom(file)
    for text, key in (("[lawn, lawn]", "common.yaml: 1"), ("lawn: 1", "common.yaml")):
        (tmp_path / "common.yaml").write_text(text)
        with pytest.raises(DataError) as error:
            read_custom(file)
        assert error.value.key == f"{tmp_path}/{key}"


@pytest.mark.parametrize("count", [1, 254])
def test_any_number_of_classes(tmp_path: Path, count: int) -> None:
    save(tmp_path / "rgb" / "a.png", [[0] * count])
    save(tmp_path / "ids" / "a_ids.png", [list(range(count))])
    register_custom(write(tmp_path, train_ids=None, classes=[f"thing {i}" for i in range(count)]))
    (record,) = DatasetCatalog.get("town_sem_seg_train")
    assert read_pair(record, label_space_of("town_sem_seg_train"))[1].tolist() == [list(range(count))]
    metadata = MetadataCatalog.get("town_sem_seg_train")
    assert len(metadata.stuff_classes) == len({tuple(color) for color in metadata.stuff_colors}) == count


def test_a_subset_of_a_built_in_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    for stem in ("a", "b"):
        save(tmp_path / "mapillary_vistas" / "training" / "images" / f"{stem}.jpg", [[0]])
    save(tmp_path / "mapillary_vistas" / "training" / "labels" / "b.png", [[13]])
    name = "mapillary_sem_seg_train"
    with pytest.raises(DataError, match="DATASETS.SUBSETS"):
        DatasetCatalog.get(name)
    try:
        register_data(tiny_cfg(DATASETS__SUBSETS=(name,)))
        assert [record["image_id"] for record in DatasetCatalog.get(name)] == ["b"]
    finally:
        del MetadataCatalog.get(name).subset
    with pytest.raises(UserError, match="DATASETS.SUBSETS"):
        register_data(tiny_cfg(DATASETS__SUBSETS=("mapilary_sem_seg_train",)))


# ---- Registration


def test_a_name_that_is_taken_is_an_error(tmp_path: Path) -> None:
    register_custom(write(tmp_path))
    with pytest.raises(DataError, match=r"other\.yaml: name is 'town_sem_seg_train'"):
        register_custom(write(tmp_path, file="other.yaml"))


def test_a_file_that_was_edited_counts_as_it_is_now(tmp_path: Path) -> None:
    """As in a notebook; its splits are registered in the same process."""
    register_custom(write(tmp_path))
    (name,) = register_custom(write(tmp_path))
    before = label_space_of(name).train_ids
    register_custom(write(tmp_path, train_ids={7: "building"}))
    assert label_space_of(name).train_ids != before == {**before}
    assert list(label_space_of(name).train_ids) == [7]
