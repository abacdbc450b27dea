"""A user's own data set from one small YAML file.

    name: my_city                         # registers my_city_sem_seg_train and my_city_sem_seg_val
    root: my_city                         # relative to this file; this file's folder where left out
    splits:
      train: {images: "rgb/train/{stem}.jpg", labels: "ids/train/{stem}_ids.png"}
      val: {images: "rgb/val/{stem}.jpg", labels: "ids/val/{stem}_ids.png"}
    train_ids: {7: road, 8: sidewalk, 26: 13}   # id in the label files -> class name, train id, or `ignore`
    ignore_ids: [0, 255]                  # further ids that may occur and are ignored

In a pattern ``*`` is any text within one name, and ``{stem}`` captures what image and label share; where names
repeat between folders, capture the folder as well: ``rgb/{drive}/{stem}.jpg``. Instead of ``train_ids`` there may be
``classes: [road, ignore, sky]``, the names of ids 0, 1, 2, ... An id that the file does not name is an error where it
occurs in a label.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from detectron2.data import DatasetCatalog, MetadataCatalog

from tmt_d2.data.label_spaces import CLASSES, IGNORE, TRAIN_ID, LabelSpace
from tmt_d2.data.layouts import CAPTURE, Listing, find, pair
from tmt_d2.data.reader import DataError
from tmt_d2.data.registration import Record, register_split, split_name, to_records

KEYS = {"name", "root", "splits", "train_ids", "classes", "ignore_ids"}
SPLIT_KEYS = {"images", "labels"}


@dataclass(frozen=True)
class CustomDataSet:
    """What one YAML file says.

    Attributes:
        file: the YAML file, absolute.
        root: the folder below which all files lie, absolute, symbolic links resolved.
        splits: split -> (pattern of the images, pattern of the labels), both below `root`.
    """

    file: Path
    name: str
    root: Path
    splits: Mapping[str, tuple[str, str]]
    label_space: LabelSpace

    def listing(self, split: str) -> Listing:
        """Pair the files of one split.

        Raises:
            FileNotFoundError: no image, or no label, matches its pattern.
            DataError: a file lies outside the root, or two have the same name.
        """
        found = []
        for key, pattern in zip(("images", "labels"), self.splits[split]):
            files = find(self.root, pattern)
            if not files:
                raise FileNotFoundError(f"{self.file}: splits.{split}.{key}: no file like {self.root}/{pattern}")
            self._check_inside(files, f"splits.{split}.{key}")
            found.append(files)
        return pair(*found)

    def _check_inside(self, files: Mapping[str, str], key: str) -> None:
        """A pattern cannot climb out of the root, but a symbolic link can."""
        inside: dict[str, bool] = {}  # by folder: resolving every file of a large set would take seconds
        for path in files.values():
            folder = os.path.dirname(path)
            if folder not in inside:
                inside[folder] = Path(folder).resolve().is_relative_to(self.root)
            if not inside[folder] or (os.path.islink(path) and not Path(path).resolve().is_relative_to(self.root)):
                raise DataError(
                    f"{self.file}: {key}: {path} leads to {os.path.realpath(path)}, outside root {self.root}; "
                    "set root to a folder that holds both"
                )


def register_custom(yaml_path: str | Path) -> list[str]:
    """Register ``<name>_sem_seg_<split>`` for every split of the file; a second call changes nothing.

    The folders are looked at when a split is used.

    Returns:
        The registered names.

    Raises:
        FileNotFoundError: there is no such file.
        DataError: the file is wrong (the message names the key and the reason), or a name is already taken.
    """
    data_set = read_custom(yaml_path)
    names = [split_name(data_set.name, split) for split in data_set.splits]
    for name in names:
        if name in DatasetCatalog and MetadataCatalog.get(name).get("custom_file") != str(data_set.file):
            raise DataError(f"{yaml_path}: name: {name} is already registered by another data set; choose another name")
    for split, name in zip(data_set.splits, names):
        register_split(name, partial(_load, data_set, split), data_set.label_space)
        MetadataCatalog.get(name).set(custom_file=str(data_set.file))
    return names


def read_custom(yaml_path: str | Path) -> CustomDataSet:
    """Read and check the YAML file; see the head of this module for its keys.

    Raises: as `register_custom`.
    """
    file = Path(yaml_path).expanduser()
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such file (the description of a custom data set)")
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: not valid YAML: {' '.join(str(error).split())}") from error
    content = _mapping(file, "the file", content, KEYS)
    name = content.get("name")
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z]\w*", name):
        raise _wrong(file, "name", "should be a word of letters, digits and _", name)
    root = content.get("root", ".")
    if not isinstance(root, str):
        raise _wrong(file, "root", "should be a folder, relative to this file", root)
    return CustomDataSet(
        file=file.resolve(),
        name=name,
        root=(file.parent / Path(root).expanduser()).resolve(),
        splits=_read_splits(file, content.get("splits")),
        label_space=_read_label_space(file, name, content),
    )


def _load(data_set: CustomDataSet, split: str) -> list[Record]:
    return to_records(split_name(data_set.name, split), data_set.listing(split), data_set.label_space)


def _read_splits(file: Path, content: Any) -> dict[str, tuple[str, str]]:
    splits = {}
    for split, patterns in _mapping(file, "splits", content).items():
        key = f"splits.{split}"
        if not isinstance(split, str) or not re.fullmatch(r"\w+", split):
            raise _wrong(file, key, "the name of a split should be a word, such as train", split)
        patterns = _mapping(file, key, patterns, SPLIT_KEYS)
        images, labels = (_read_pattern(file, f"{key}.{what}", patterns.get(what)) for what in ("images", "labels"))
        if set(CAPTURE.findall(images)) != set(CAPTURE.findall(labels)):
            raise _wrong(file, f"{key}.labels", f"should capture the same as images ({images!r})", labels)
        splits[split] = (images, labels)
    return splits


def _read_pattern(file: Path, key: str, pattern: Any) -> str:
    if not isinstance(pattern, str) or not CAPTURE.search(pattern):
        raise _wrong(file, key, "should be a pattern with {stem}, such as images/{stem}.png", pattern)
    if "**" in pattern:
        raise _wrong(file, key, "** is not known; write one */ for each level of folders", pattern)
    if pattern.startswith(("/", "~")) or "\\" in pattern or ".." in pattern.split("/"):
        raise _wrong(file, key, "should stay below root: no leading / or ~, no \\ and no ..", pattern)
    return pattern


def _read_label_space(file: Path, name: str, content: Mapping[str, Any]) -> LabelSpace:
    if ("train_ids" in content) == ("classes" in content):
        raise DataError(f"{file}: give one of the keys train_ids and classes, and not both")
    key = "train_ids" if "train_ids" in content else "classes"
    values = content[key]
    if key == "classes":
        if not isinstance(values, list) or not values:
            raise _wrong(file, key, "should be a list of class names, in the order of the ids from 0", values)
        values = dict(enumerate(values))
    train_ids: dict[int, int] = {}
    ignored = set()
    for value, meaning in _mapping(file, key, values).items():
        train_id = _read_train_id(file, f"{key}.{value}", meaning)
        if train_id == IGNORE:
            ignored.add(_read_id(file, key, value))
        else:
            train_ids[_read_id(file, key, value)] = train_id
    ignore_ids = content.get("ignore_ids", [])
    if not isinstance(ignore_ids, list):
        raise _wrong(file, "ignore_ids", "should be a list of ids", ignore_ids)
    for value in ignore_ids:
        if _read_id(file, "ignore_ids", value) in train_ids:
            raise _wrong(file, "ignore_ids", f"{key} gives this id a class", value)
        ignored.add(value)
    if not train_ids:
        raise _wrong(file, key, "should name at least one class", content[key])
    missing = tuple(sorted(set(range(len(CLASSES))) - set(train_ids.values())))
    return LabelSpace(name, train_ids, frozenset(ignored), never_occurs=missing)


def _read_train_id(file: Path, key: str, meaning: Any) -> int:
    if meaning in ("ignore", IGNORE):
        return IGNORE
    if isinstance(meaning, str) and meaning in TRAIN_ID:
        return TRAIN_ID[meaning]
    if isinstance(meaning, int) and not isinstance(meaning, bool) and 0 <= meaning < len(CLASSES):
        return meaning
    raise _wrong(
        file, key, f"should be ignore, a train id 0-{len(CLASSES) - 1}, or one of {', '.join(CLASSES)}", meaning
    )


def _read_id(file: Path, key: str, value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= 255:
        raise _wrong(file, key, "an id in a label file should be a whole number 0-255", value)
    return value


def _mapping(file: Path, key: str, content: Any, known: set[str] | None = None) -> Mapping[Any, Any]:
    if not isinstance(content, dict) or not content:
        raise _wrong(file, key, "should hold `key: value` lines", content)
    for name in content:
        if known is not None and name not in known:
            raise _wrong(file, key, f"knows only the keys {', '.join(sorted(known))}", name)
    return content


def _wrong(file: Path, key: str, reason: str, value: Any) -> DataError:
    return DataError(f"{file}: {key}: {reason} (it is {value!r})")
