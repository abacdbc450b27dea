"""Classes that labels are imported to, and the labels of a tool matched with them by name."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tmt_d2.data.class_lists import MAX_CLASSES, ClassList
from tmt_d2.data.datasets.custom import read_custom
from tmt_d2.data.datasets.label_spaces import IGNORE
from tmt_d2.data.datasets.registration import DATA_SETS
from tmt_d2.errors import UserError, did_you_mean

BACKGROUND = "background"  # the tools' name of pixels without a label
NO_CLASS = "ignore"
YAML = (".yaml", ".yml")


@dataclass(frozen=True)
class LabelClasses:
    """
    Attributes:
        classes: names and colors.
        ids: in label files, of each class; below 254.
    """

    classes: ClassList
    ids: tuple[int, ...]

    def by_name(self) -> dict[str, int]:
        return dict(zip(self.classes.names, self.ids, strict=True))


def read_classes(place: str) -> LabelClasses:
    """Read ``classes.json`` of ``tools/predict.py``, the YAML file of a data set, or the classes of a registered one.

    The ids of a data set's classes are train ids: 0, 1, ...

    Raises:
        UserError: ``place`` is none of these, or its content is wrong.
    """
    if Path(place).suffix.lower() == ".json":
        try:
            return classes_of_json(place, Path(place).read_text(encoding="utf-8"))
        except OSError as error:
            raise UserError(f"cannot be read ({error.strerror})", key="--classes", value=place) from error
        except UnicodeDecodeError as error:
            raise UserError("is no text in UTF-8", key="--classes", value=place) from error
    if Path(place).suffix.lower() in YAML:
        classes = read_custom(place).label_space.classes
    elif place in DATA_SETS:
        classes = DATA_SETS[place].label_space.classes
    else:
        hint = f"name a classes.json, the YAML file of a data set, or one of {', '.join(DATA_SETS)}"
        raise UserError("is no list of classes", key="--classes", value=place, hint=hint)
    return LabelClasses(classes, tuple(range(len(classes))))


def classes_of_json(key: str, text: str) -> LabelClasses:
    """Return the content of a ``classes.json``.

    Raises:
        UserError: about ``key``: it is no such file, or repeats a name or an id.
    """
    try:
        entries = json.loads(text)["classes"]
        names = tuple(str(entry["name"]) for entry in entries)
        ids = tuple(int(entry["id"]) for entry in entries)
        colors = tuple((int(red), int(green), int(blue)) for red, green, blue in (entry["color"] for entry in entries))
    except (ValueError, LookupError, TypeError) as error:
        raise UserError("is no classes.json of tools/predict.py", key=key) from error
    if not ids or len({*names}) < len(names) or len({*ids}) < len(ids) or not 0 <= min(ids) <= max(ids) < MAX_CLASSES:
        raise UserError(f"should hold different names with different ids 0 to {MAX_CLASSES - 1}", key=key)
    if not all(0 <= value <= 255 for color in colors for value in color):
        raise UserError("should hold colors [r, g, b] of numbers 0 to 255", key=key)
    return LabelClasses(ClassList(names, colors), ids)


def read_mapping(words: Sequence[str]) -> dict[str, str]:
    """Return the mapping in words LABEL=CLASS.

    Raises:
        UserError: a word is none.
    """
    for word in words:
        if "=" not in word:
            raise UserError("should be LABEL=CLASS", key="--map", value=word)
    return {label: name for label, _, name in (word.partition("=") for word in words)}


class LabelNames:
    """Class ids of the labels of an export.

    A label is the class of the same name, otherwise the one that differs only in case. ``ignore`` is 255.

    Attributes:
        background: id of pixels without a label: 255, unless ``mapping`` has the label ``background``.
    """

    def __init__(self, classes: Mapping[str, int], mapping: Mapping[str, str] | None = None) -> None:
        """
        Args:
            classes: name -> id. mapping: label of the export -> class name or ``ignore``.

        Raises:
            UserError: ``mapping`` names an unknown class.
        """
        self._classes, self._mapping = classes, mapping or {}
        for label, name in self._mapping.items():
            if self._by_name(name) is None:
                hint = f"the classes are {', '.join(classes)}{did_you_mean(name, classes)}"
                raise UserError("is no class", key="--map", value=f"{label}={name}", hint=hint)
        self.background = self.ids([BACKGROUND], "--map")[BACKGROUND] if BACKGROUND in self._mapping else IGNORE

    def find(self, label: str) -> int | None:
        """Return the id of a label; None if it is unknown."""
        return self._by_name(self._mapping.get(label, label))

    def _by_name(self, name: str) -> int | None:
        if name in self._classes:
            return self._classes[name]
        same = [value for known, value in self._classes.items() if known.casefold() == name.strip().casefold()]
        if not same and name.strip().casefold() == NO_CLASS:
            return IGNORE
        return same[0] if len(same) == 1 else None

    def ids(self, labels: Iterable[str], key: str) -> dict[str, int]:
        """Return label -> id of the labels that a file uses.

        Args:
            key: file, for the message.

        Raises:
            UserError: some are unknown.
        """
        found = {label: self.find(label) for label in labels}
        unknown = sorted(label for label, value in found.items() if value is None)
        if unknown:
            hint = f"map each by --map {unknown[0]!r}=CLASS, or to ignore; the classes are {', '.join(self._classes)}"
            raise UserError(f"its labels {', '.join(unknown)} are no classes", key=key, hint=hint)
        return {label: value for label, value in found.items() if value is not None}

    def table(self, labels: Mapping[int, str], no_label: str = BACKGROUND) -> np.ndarray:
        """Return the (256,) int table from an export's values, whose labels are given, to ids; -1 for unknown labels.

        Args:
            no_label: the label, in lower case, of pixels without a label.

        Raises:
            UserError: it is a class, too, and ``mapping`` does not have it.
        """
        if no_label not in self._mapping and self._by_name(no_label) is not None:
            message = f"the tool also calls pixels without a label {no_label}, which is a class"
            raise UserError(message, key="--map", hint=f"give {no_label}={no_label}, or {no_label}={NO_CLASS}")
        table = np.full(256, -1)
        for value, label in labels.items():
            found = self.background if label.casefold() == no_label else self.find(label)
            table[value] = -1 if found is None else found
        return table
