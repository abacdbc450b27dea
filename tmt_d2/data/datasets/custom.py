"""Custom data sets: a YAML file says where images and labels lie and what the label ids mean.

    name: my_city                         # registers my_city_sem_seg_train and my_city_sem_seg_val
    root: my_city                         # relative to this file; this file's folder where left out
    splits:
      train: {images: "rgb/train/{stem}.jpg", labels: "ids/train/{stem}_ids.png"}
      val: {images: "rgb/val/{stem}.jpg", labels: "ids/val/{stem}_ids.png"}
    train_ids: {7: road, 8: sidewalk, 26: 13}   # id in the label files -> class name, train id, or `ignore`
    ignore_ids: [0, 255]                  # further ids that may occur and are ignored

In a pattern ``*`` is any text within one name, and ``{stem}`` captures the text that image and label share; where
names repeat between folders, capture the folder as well: ``rgb/{drive}/{stem}.jpg``. Instead of ``train_ids`` there may
be ``classes: [road, ignore, sky]``, the names of ids 0, 1, 2, ... A label with an id that the file does not name is an
error.

These classes are among the 19 of Cityscapes. A class list of the data set's own has 1 to 254 classes:

    classes: [lawn, {name: pond, color: [0, 90, 255]}, ignore, shed]   # ids 0, 1, 2, 3; train ids 0, 1, -, 2
    # label files may then be RGB PNG in the given colors; `{name: ignore, color: ...}` gives that of ignored pixels
    class_list: garden_classes.yaml       # or these entries in a file of their own, relative to this one
    train_ids: {3: lawn, 4: lawn, 9: shed}      # with either: other ids in the label files -> its names, or `ignore`

A list is one of its own where a name is not among the 19, an entry has a color, ``train_ids`` stands beside it, or it
is a ``class_list``. Splits of several data sets go together in one run where their lists are equal: one
``class_list``, and ``train_ids`` in each.

Keys of a split:

    images: ["a/{stem}.jpg", "b/{stem}.jpg"]    # several patterns; labels and unlabeled likewise
    list: train.txt                       # only these: stems, or paths below root, one a line, # comments
    subset: true                          # images without a label, and names in the list without an image, are left out
    unlabeled: "more/{stem}.jpg"         # images without a label; with images and labels, or alone
"""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from tmt_d2.config.file import UniqueKeys
from tmt_d2.data.class_lists import MAX_CLASSES, RGB, ClassList
from tmt_d2.data.datasets.custom_files import PATTERN_KEYS, CustomDataSet, CustomSplit
from tmt_d2.data.datasets.label_spaces import CITYSCAPES_CLASSES, CLASSES, IGNORE, TRAIN_ID, LabelSpace, class_list
from tmt_d2.data.datasets.layouts import CAPTURE
from tmt_d2.data.datasets.registration import Record, check_registered, register_split, split_name, to_records
from tmt_d2.data.reader import DataError, MissingDataError
from tmt_d2.errors import did_you_mean

logger = logging.getLogger(__name__)

KEYS = {"name", "root", "splits", "train_ids", "classes", "class_list", "ignore_ids"}
SPLIT_KEYS = {*PATTERN_KEYS, "list", "subset"}


def register_custom(yaml_path: str | Path) -> list[str]:
    """Register ``<name>_sem_seg_<split>`` for every split of the file; again where the file has changed.

    The folders are searched when a split is used.

    Returns:
        The registered names.

    Raises:
        DataError: the file is missing or wrong, or a name is taken by another data set.
    """
    data_set = read_custom(yaml_path)
    names = [split_name(data_set.name, split) for split in data_set.splits]
    for name in names:
        known = MetadataCatalog.get(name)
        if name in DatasetCatalog and known.get("custom_file") != str(data_set.file):
            raise DataError("is already registered by another data set", key=f"{yaml_path}: name", value=name)
        if known.get("custom", data_set) != data_set:
            DatasetCatalog.pop(name, None)
            MetadataCatalog.remove(name)
    for split, name in zip(data_set.splits, names):
        register_split(name, partial(_load, data_set, split), data_set.label_space)
        MetadataCatalog.get(name).set(custom_file=str(data_set.file), custom=data_set)
    return names


def register_data(cfg: CfgNode, missing_ok: bool = False) -> None:
    """Register DATASETS.CUSTOM and mark DATASETS.SUBSETS; a second call changes nothing.

    Args:
        missing_ok: skip missing files with a warning, for commands that can do without their splits.

    Raises:
        DataError: as ``register_custom``.
        UserError: a subset is not registered.
    """
    for path in cfg.DATASETS.CUSTOM:
        if missing_ok and not Path(path).expanduser().is_file():
            logger.warning("DATASETS.CUSTOM: %s does not exist, its splits are not registered", path)
        else:
            register_custom(path)
    for name in cfg.DATASETS.SUBSETS:
        if not missing_ok:
            check_registered(name, "DATASETS.SUBSETS")
        MetadataCatalog.get(name).set(subset=True)


def _load(data_set: CustomDataSet, split: str) -> list[Record]:
    return to_records(split_name(data_set.name, split), data_set.listing(split), data_set.label_space)


@dataclass(frozen=True)
class _Entry:
    """A value of a YAML file with its dotted key."""

    file: Path
    key: str
    value: Any

    def error(self, message: str) -> DataError:
        key = f"{self.file}: {self.key}" if self.key else str(self.file)
        return DataError(message, key=key, value=self.value)

    def __getitem__(self, name: Any) -> _Entry:
        return _Entry(self.file, f"{self.key}.{name}".lstrip("."), self.value.get(name))

    def __contains__(self, name: str) -> bool:
        return name in self.value

    def mapping(self, known: set[str] | None = None) -> _Entry:
        """Return the entry itself, which must be a mapping with no other keys than ``known``."""
        if not isinstance(self.value, dict) or not self.value:
            raise self.error("should hold `key: value` lines")
        for name in self.value:
            if known is not None and name not in known:
                raise self[name].error(f"is unknown; the keys are {', '.join(sorted(known))}")
        return self

    def children(self) -> list[_Entry]:
        """Return the values of a list."""
        return [_Entry(self.file, f"{self.key}.{index}".lstrip("."), value) for index, value in enumerate(self.value)]

    def path(self, purpose: str) -> Path:
        """Return a path that is relative to the YAML file."""
        if not isinstance(self.value, str):
            raise self.error(f"should be {purpose}, relative to this file")
        return self.file.parent / Path(self.value).expanduser()


def read_custom(yaml_path: str | Path) -> CustomDataSet:
    """Read and check the YAML file; see the top of this module for its keys.

    Raises:
        MissingDataError: the file, or its class list, does not exist.
        DataError: a key or value is wrong.
    """
    file = Path(yaml_path).expanduser()
    content = _load_yaml(file).mapping(KEYS)
    name = content["name"]
    if not isinstance(name.value, str) or not re.fullmatch(r"[A-Za-z]\w*", name.value):
        raise name.error("should be a word of letters, digits and _")
    root = content["root"].path("a folder") if "root" in content else file.parent
    return CustomDataSet(
        file=file.resolve(),
        name=name.value,
        root=root.resolve(),
        splits={split: _read_split(content["splits"], split) for split in content["splits"].mapping().value},
        label_space=_read_label_space(name.value, content),
    )


def read_class_list(yaml_path: str | Path) -> ClassList | None:
    """Return the classes in a file that ``class_list`` may name; None if it holds something else than a list.

    Raises:
        DataError: the file is missing, or an entry is wrong.
    """
    entries = _load_yaml(Path(yaml_path))
    if not isinstance(entries.value, list):
        return None
    _, classes, _ = _read_classes(entries)
    _warn_of_near_names(entries, classes)
    return classes


def _load_yaml(file: Path) -> _Entry:
    if not file.is_file():
        raise MissingDataError("does not exist", key=file)
    try:
        return _Entry(file, "", yaml.load(file.read_text(encoding="utf-8"), UniqueKeys))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DataError(f"is not valid YAML: {' '.join(str(error).split())}", key=file) from error


def _read_split(splits: _Entry, name: Any) -> CustomSplit:
    if not isinstance(name, str) or not re.fullmatch(r"\w+", name):
        raise splits[name].error("should have a word as its name, such as train")
    split = splits[name].mapping(SPLIT_KEYS)
    required = {"images", "labels"} if "unlabeled" not in split or {"images", "labels"} & split.value.keys() else set()
    patterns = {key: _read_patterns(split[key]) for key in PATTERN_KEYS if key in required or key in split}
    for key in required:
        for pattern in patterns[key]:
            if set(CAPTURE.findall(pattern)) != set(CAPTURE.findall(patterns["images"][0])):
                raise split[key].error(f"should capture the same as images ({patterns['images'][0]!r})")
    if not isinstance(split.value.get("subset", False), bool):
        raise split["subset"].error("should be true or false")
    list_file = split["list"].path("a text file").resolve() if "list" in split else None
    return CustomSplit(patterns, list_file, split.value.get("subset", False))


def _read_patterns(entry: _Entry) -> tuple[str, ...]:
    patterns = entry.children() if isinstance(entry.value, list) and entry.value else [entry]
    for each in patterns:
        pattern = each.value
        if not isinstance(pattern, str) or not CAPTURE.search(pattern):
            raise each.error("should be a pattern with {stem}, such as images/{stem}.png")
        if "**" in pattern:
            raise each.error("** is not supported; write one */ for each level of folders")
        if pattern.startswith(("/", "~")) or "\\" in pattern or ".." in pattern.split("/"):
            raise each.error("should stay below root: no leading / or ~, no \\ and no ..")
    return tuple(each.value for each in patterns)


def _read_label_space(name: str, content: _Entry) -> LabelSpace:
    lists = [key for key in ("classes", "class_list") if key in content]
    if len(lists) == 2 or not (lists or "train_ids" in content):
        raise DataError(
            "needs train_ids, or one of classes and class_list, or train_ids with one of them", key=content.file
        )
    meanings, classes = content["train_ids"], CITYSCAPES_CLASSES
    own, colors = False, dict[RGB, int]()
    if lists:
        entries = content[lists[0]]
        if "class_list" in content:
            entries = _load_yaml(entries.path("a YAML file with a list of classes"))
        if not isinstance(entries.value, list) or not entries.value:
            raise entries.error("should be a list of class names, in the order of the ids from 0")
        names = entries.value
        own = "class_list" in content or "train_ids" in content or any(map(_is_own, names))
        if own:
            names, classes, colors = _read_classes(entries)
            _warn_of_near_names(entries, classes)
        if "train_ids" not in content:
            meanings = _Entry(content.file, lists[0], dict(enumerate(names)))
    train_ids = {
        _read_id(meanings, value): _read_train_id(meanings[value], classes, own) for value in meanings.mapping().value
    }
    ignored = {value for value, train_id in train_ids.items() if train_id == IGNORE}
    train_ids = {value: train_id for value, train_id in train_ids.items() if train_id != IGNORE}
    further = content["ignore_ids"]
    if not isinstance(further.value, list | None):
        raise further.error("should be a list of ids")
    for value in further.value or ():
        if _read_id(further, value) in train_ids:
            raise further.error(f"holds {value}, to which {meanings.key} gives a class")
        ignored.add(value)
    if not train_ids:
        raise meanings.error("should name at least one class")
    absent = tuple(sorted(set(range(len(classes))) - set(train_ids.values())))
    return LabelSpace(name, train_ids, frozenset(ignored), classes, never_occurs=absent, colors=colors)


def _is_own(entry: Any) -> bool:
    """Return True if an entry of ``classes`` cannot be one of the 19."""
    return isinstance(entry, dict) or (isinstance(entry, str) and entry != "ignore" and entry not in TRAIN_ID)


def _warn_of_near_names(entries: _Entry, classes: ClassList) -> None:
    """Warn where a misspelled name among the 19 makes the list one of its own."""
    others = [name for name in classes.names if name not in TRAIN_ID]
    hints = {name: did_you_mean(name, set(CLASSES) - set(classes.names)) for name in others}
    if 2 * len(others) < len(classes) and any(hints.values()):
        names = ", ".join(f"{name}{hint}" for name, hint in hints.items() if hint)
        logger.warning("%s: not all classes are among the 19 of Cityscapes: %s", entries.file, names)


def _read_classes(entries: _Entry) -> tuple[list[str], ClassList, dict[RGB, int]]:
    """Return the name of each entry, with `ignore`; the class list; and color -> train id of the given colors that
    only one class has."""
    names: list[str] = []
    colors: dict[str, RGB] = {}
    owners: dict[RGB, set[str]] = {}
    for entry in entries.children():
        name, color = entry.value, None
        if isinstance(name, dict):
            name, color = entry.mapping({"name", "color"})["name"].value, entry["color"].value
        elif name == IGNORE:
            name = "ignore"
        if not isinstance(name, str) or not name.strip() or not name.isprintable():
            raise entry.error("should be ignore, a class name, or {name: ..., color: [r, g, b]}")
        if name != "ignore" and name in names:
            raise entry.error(f"has the same name as entry {names.index(name)}")
        if color is not None:
            colors[name] = _read_color(entry["color"])
            owners.setdefault(colors[name], set()).add(name)
        names.append(name)
    classes = [name for name in names if name != "ignore"]
    if not 1 <= len(classes) <= MAX_CLASSES:
        raise entries.error(f"should have 1 to {MAX_CLASSES} classes, not {len(classes)}")
    train_ids = {**{name: index for index, name in enumerate(classes)}, "ignore": IGNORE}
    train_id_of_color = {color: train_ids[min(own)] for color, own in owners.items() if len(own) == 1}
    return names, class_list(classes, colors), train_id_of_color


def _read_color(entry: _Entry) -> RGB:
    color = entry.value
    if isinstance(color, list) and len(color) == 3 and all(type(value) is int and 0 <= value <= 255 for value in color):
        red, green, blue = color
        return red, green, blue
    raise entry.error("should be [red, green, blue], whole numbers 0-255")


def _read_train_id(entry: _Entry, classes: ClassList, own: bool) -> int:
    """own: the class list is the data set's own, so that numbers are no train ids."""
    meaning = entry.value
    if meaning in ("ignore", IGNORE):
        return IGNORE
    if meaning in classes.names:
        return classes.names.index(meaning)
    if not own and type(meaning) is int and 0 <= meaning < len(classes):
        return meaning
    raise entry.error(f"should be ignore, {'' if own else 'a train id, '}or one of {', '.join(classes.names)}")


def _read_id(entry: _Entry, value: Any) -> int:
    if type(value) is not int or not 0 <= value <= 255:
        raise entry.error(f"should hold ids 0-255, not {value!r}")
    return value
