"""Reading a YAML config with its ``_BASE_`` files, without executing anything in it.

Official Mask2Former configs write one value as a Python expression,
``!!python/object/apply:eval ["[int(x * 0.1 * 1024) for x in range(5, 21)]"]``. That one form is recognised by a
pattern and computed here; every other Python tag is refused.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from tmt_d2.errors import UserError

_SCALES = re.compile(r"\[\s*int\(\s*x \* ([0-9.]+) \* ([0-9]+)\s*\) for x in range\((\d+), (\d+)\)\s*\]")

MERGE_KEY = "tag:yaml.org,2002:merge"


class UniqueKeys(yaml.SafeLoader):
    """YAML's safe loader, for which equal keys of one mapping are an error: it takes the last one without a word.

    Keys are compared as written, before a merge key (``<<: *base``) is resolved: those may override keys of the base.
    """

    def compose_mapping_node(self, anchor: str | None) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)  # type: ignore[no-untyped-call]
        keys: list[Any] = []
        for key_node, _ in node.value:
            if key_node.tag == MERGE_KEY:
                continue
            key = self.construct_object(key_node, deep=True)  # type: ignore[no-untyped-call]
            if key in keys:
                raise yaml.constructor.ConstructorError(
                    problem=f"the key {key!r} stands there twice", problem_mark=key_node.start_mark
                )
            keys.append(key)
        return node


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """YAML's safe loader, in C where PyYAML has it, plus the one arithmetic list of official configs."""


def _scale_list(loader: _Loader, node: yaml.Node) -> list[int]:
    values = loader.construct_sequence(node) if isinstance(node, yaml.SequenceNode) else []
    match = _SCALES.fullmatch(values[0]) if len(values) == 1 and isinstance(values[0], str) else None
    if match is None or int(match[4]) - int(match[3]) > 1000:
        raise yaml.constructor.ConstructorError(
            None, None, f"refusing to evaluate {values!r}: write the list out", node.start_mark
        )
    step, size, start, stop = float(match[1]), int(match[2]), int(match[3]), int(match[4])
    return [int(x * step * size) for x in range(start, stop)]


_Loader.add_constructor("tag:yaml.org,2002:python/object/apply:eval", _scale_list)


def find_config(path: str | Path) -> Path:
    """``path``, or what lies there in a checkout's ``configs`` or in those of an installed package; a file or a folder.

    So ``configs/tiny/tmt.yaml`` is found from any working directory. What is nowhere is returned as it is.
    """
    path = Path(path)
    if path.exists() or path.is_absolute():
        return path
    package = Path(__file__).parents[1]
    inside = (folder / path for folder in (package, package.parent))
    return next((found for found in inside if path.parts[:1] == ("configs",) and found.exists()), path)


def load_config_file(path: str | Path, _including: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The file's keys merged over those of its ``_BASE_``, as nested dictionaries.

    ``_BASE_`` is a file, relative to this one, or as in fvcore a list of them, of which later ones win.

    Raises:
        FileNotFoundError: the file or a base does not exist.
        UserError: not YAML, not a mapping, an executable tag, or a circle of bases; the message names file and line.
    """
    path = Path(path)
    if path.resolve() in _including:
        raise UserError(f"{path}: _BASE_ leads back to the file itself")
    if not path.is_file():
        included_by = f" (the _BASE_ of {_including[-1]})" if _including else ""
        raise FileNotFoundError(f"config file {path} does not exist{included_by}")
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)  # a SafeLoader subclass
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{path}: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise UserError(f"{path}: a config is a mapping of keys, this file holds {type(values).__name__}")
    bases = values.pop("_BASE_", [])
    bases = [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise UserError(f"{path}: _BASE_ must be a file name or a list of file names, got {bases!r}")
    merged: dict[str, Any] = {}
    for base in bases:
        _merge(merged, load_config_file(path.parent / Path(base).expanduser(), (*_including, path.resolve())))
    _merge(merged, values)
    return merged


def _merge(into: dict[str, Any], values: dict[str, Any]) -> None:
    for key, value in values.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        else:
            into[key] = value
