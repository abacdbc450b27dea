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

So far the classes are among the 19 of Cityscapes, and the model has these. A class list of its own, of 1 to 254:

    classes: [lawn, {name: pond, color: [0, 90, 255]}, ignore, shed]   # ids 0, 1, 2, 3; train ids 0, 1, -, 2
    # a label file may also be an RGB PNG in the colors that the list gives, `{name: ignore, color: ...}` among them
    class_list: garden_classes.yaml       # or these entries in a file of their own, relative to this one
    train_ids: {3: lawn, 4: lawn, 9: shed}      # with either: other ids in the label files -> its names, or `ignore`

A list is one of its own where a name is not among the 19, an entry has a colour, ``train_ids`` stands beside it, or it
is a ``class_list``. Splits of several data sets go together in one run where their lists are the same: one
``class_list``, and ``train_ids`` in each.

Of a split:

    images: ["a/{stem}.jpg", "b/{stem}.jpg"]    # several patterns; labels and unlabeled likewise
    list: train.txt                       # only these: stems, or paths below root, one a line, # comments
    subset: true                          # images without a label, and names in the list without an image, are left out
    unlabeled: "more/{stem}.jpg"         # images without a label; with images and labels, or alone
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from tmt_d2.config.file import UniqueKeys
from tmt_d2.data.class_lists import MAX_CLASSES, RGB, ClassList
from tmt_d2.data.datasets.custom_files import PATTERN_KEYS, CustomDataSet, CustomSplit
from tmt_d2.data.datasets.label_spaces import CLASSES, IGNORE, TRAIN_ID, LabelSpace, class_list
from tmt_d2.data.datasets.layouts import CAPTURE
from tmt_d2.data.reader import DataError
from tmt_d2.errors import did_you_mean

logger = logging.getLogger(__name__)

KEYS = {"name", "root", "splits", "train_ids", "classes", "class_list", "ignore_ids"}
SPLIT_KEYS = {*PATTERN_KEYS, "list", "subset"}


def read_custom(yaml_path: str | Path) -> CustomDataSet:
    """Read and check the YAML file; see the head of this module for its keys.

    Raises:
        FileNotFoundError: there is no such file.
        DataError: it is wrong; the message names the key and the reason.
    """
    file = Path(yaml_path).expanduser()
    content = _mapping(file, "the file", _load_yaml(file, "the description of a custom data set"), KEYS)
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


def _load_yaml(file: Path, what: str) -> Any:
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such file ({what})")
    try:
        return yaml.load(file.read_text(encoding="utf-8"), UniqueKeys)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: not valid YAML: {' '.join(str(error).split())}") from error


def _read_splits(file: Path, content: Any) -> dict[str, CustomSplit]:
    splits = {}
    for split, values in _mapping(file, "splits", content).items():
        key = f"splits.{split}"
        if not isinstance(split, str) or not re.fullmatch(r"\w+", split):
            raise _wrong(file, key, "the name of a split should be a word, such as train", split)
        values = _mapping(file, key, values, SPLIT_KEYS)
        wanted = ("images", "labels") if {"images", "labels"} & values.keys() or "unlabeled" not in values else ()
        patterns = {
            what: _read_patterns(file, f"{key}.{what}", values.get(what))
            for what in PATTERN_KEYS
            if what in wanted or what in values
        }
        for what in wanted:
            for pattern in patterns[what]:
                first = patterns["images"][0]
                if set(CAPTURE.findall(pattern)) != set(CAPTURE.findall(first)):
                    raise _wrong(file, f"{key}.{what}", f"should capture the same as images ({first!r})", pattern)
        splits[split] = CustomSplit(patterns, _read_list_file(file, key, values), _read_subset(file, key, values))
    return splits


def _read_list_file(file: Path, key: str, values: Mapping[str, Any]) -> Path | None:
    path = values.get("list")
    if path is not None and not isinstance(path, str):
        raise _wrong(file, f"{key}.list", "should be a text file, relative to this file", path)
    return None if path is None else (file.parent / Path(path).expanduser()).resolve()


def _read_subset(file: Path, key: str, values: Mapping[str, Any]) -> bool:
    subset = values.get("subset", False)
    if not isinstance(subset, bool):
        raise _wrong(file, f"{key}.subset", "should be true or false", subset)
    return subset


def _read_patterns(file: Path, key: str, patterns: Any) -> tuple[str, ...]:
    if isinstance(patterns, list) and patterns:
        return tuple(_read_pattern(file, f"{key}.{index}", pattern) for index, pattern in enumerate(patterns))
    return (_read_pattern(file, key, patterns),)


def _read_pattern(file: Path, key: str, pattern: Any) -> str:
    if not isinstance(pattern, str) or not CAPTURE.search(pattern):
        raise _wrong(file, key, "should be a pattern with {stem}, such as images/{stem}.png", pattern)
    if "**" in pattern:
        raise _wrong(file, key, "** is not known; write one */ for each level of folders", pattern)
    if pattern.startswith(("/", "~")) or "\\" in pattern or ".." in pattern.split("/"):
        raise _wrong(file, key, "should stay below root: no leading / or ~, no \\ and no ..", pattern)
    return pattern


def _read_label_space(file: Path, name: str, content: Mapping[str, Any]) -> LabelSpace:
    lists = [key for key in ("classes", "class_list") if key in content]
    if len(lists) != 1 and ("train_ids" not in content or lists):
        raise DataError(
            f"{file}: give train_ids, or one of the keys classes and class_list, with train_ids or alone; "
            f"there is {' and '.join(lists) or 'none of them'}"
        )
    classes, own_ids = None, content.get("train_ids")
    colors: dict[RGB, int] = {}
    if lists:
        (key,) = lists
        values, source = content[key], file
        if key == "class_list":
            source = _class_list_file(file, values)
            values = _load_yaml(source, f"class_list of {file}")
        if not isinstance(values, list) or not values:
            where = key if source == file else "the file"
            raise _wrong(source, where, "should be a list of class names, in the order of the ids from 0", values)
        if key == "class_list" or own_ids is not None or any(map(_is_own, values)):
            names, classes, colors = _read_classes(source, key, values)
            _warn_of_near_names(source, key, classes)
            values = names
        if own_ids is None:
            own_ids = dict(enumerate(values))
        else:
            key = "train_ids"
    else:
        key = "train_ids"
    train_ids: dict[int, int] = {}
    ignored = set()
    for value, meaning in _mapping(file, key, own_ids).items():
        train_id = _read_train_id(file, f"{key}.{value}", meaning, classes)
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
    space = LabelSpace(name, train_ids, frozenset(ignored), colors=colors)
    if classes is not None:
        space = replace(space, classes=classes)
    return replace(space, never_occurs=tuple(sorted(set(range(len(space.classes))) - set(train_ids.values()))))


def _is_own(entry: Any) -> bool:
    """Whether an entry of ``classes`` cannot be meant as one of the 19."""
    return isinstance(entry, dict) or (isinstance(entry, str) and entry != "ignore" and entry not in TRAIN_ID)


def _warn_of_near_names(file: Path, key: str, classes: ClassList) -> None:
    """One misspelt name among the 19 would make all a class list of its own, without a word."""
    others = [name for name in classes.names if name not in TRAIN_ID]
    hints = {name: did_you_mean(name, set(CLASSES) - set(classes.names)) for name in others}
    if 2 * len(others) < len(classes) and any(hints.values()):
        said = ", ".join(f"{name}{hint}" for name, hint in hints.items() if hint)
        logger.warning("%s: %s: %s (read as a class list of its own, since not all are of the 19)", file, key, said)


def _class_list_file(file: Path, path: Any) -> Path:
    if not isinstance(path, str):
        raise _wrong(file, "class_list", "should be a YAML file with a list of classes, relative to this file", path)
    return file.parent / Path(path).expanduser()


def _read_classes(file: Path, key: str, entries: list[Any]) -> tuple[list[str], ClassList, dict[RGB, int]]:
    """The name of each entry, `ignore` among them, the class list, and the train ids of the given colors, but of those
    that several classes have."""
    names: list[str] = []
    colors: dict[str, RGB] = {}
    owners: dict[RGB, set[str]] = {}
    for index, entry in enumerate(entries):
        where = f"{key}.{index}"
        name, color = entry, None
        if isinstance(entry, dict):
            _mapping(file, where, entry, {"name", "color"})
            name, color = entry.get("name"), entry.get("color")
        if name == IGNORE and not isinstance(entry, dict):
            name = "ignore"
        if not isinstance(name, str) or not name.strip() or not name.isprintable():
            raise _wrong(file, where, "should be ignore, a class name, or {name: ..., color: [r, g, b]}", entry)
        if name != "ignore" and name in names:
            raise _wrong(file, where, f"is already the name of {key}.{names.index(name)}", name)
        if color is not None:
            colors[name] = _read_color(file, f"{where}.color", color)
            owners.setdefault(colors[name], set()).add(name)
        names.append(name)
    classes = [name for name in names if name != "ignore"]
    if not 1 <= len(classes) <= MAX_CLASSES:
        raise _wrong(file, key, f"should have 1 to {MAX_CLASSES} classes", len(classes))
    train_ids = {**{name: index for index, name in enumerate(classes)}, "ignore": IGNORE}
    train_id_of_color = {color: train_ids[min(own)] for color, own in owners.items() if len(own) == 1}
    return names, class_list(classes, colors), train_id_of_color


def _read_color(file: Path, key: str, color: Any) -> RGB:
    if isinstance(color, list) and len(color) == 3 and all(type(value) is int and 0 <= value <= 255 for value in color):
        red, green, blue = color
        return red, green, blue
    raise _wrong(file, key, "should be [red, green, blue], whole numbers 0-255", color)


def _read_train_id(file: Path, key: str, meaning: Any, classes: ClassList | None) -> int:
    """classes: the list of its own; None: the 19, which train ids may stand for, too."""
    if meaning == "ignore" or (meaning == IGNORE and not isinstance(meaning, bool)):
        return IGNORE
    if classes is not None:
        if isinstance(meaning, str) and meaning in classes.names:
            return classes.names.index(meaning)
        raise _wrong(file, key, f"should be ignore, or a name of the class list: {classes}", meaning)
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
