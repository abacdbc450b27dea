"""Reading a YAML config with its ``_BASE_`` files, without executing anything in it.

Official Mask2Former configs write one value as a Python expression,
``!!python/object/apply:eval ["[int(x * 0.1 * 1024) for x in range(5, 21)]"]``. That one form is recognized by a
pattern and computed here; every other Python tag is refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from tmt_d2.errors import UserError, did_you_mean

_SCALES = re.compile(r"\[\s*int\(\s*x \* ([0-9.]+) \* ([0-9]+)\s*\) for x in range\((\d+), (\d+)\)\s*\]")

METHODS = "configs/methods"
MERGE_KEY = "tag:yaml.org,2002:merge"


class UniqueKeys(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """YAML's safe loader, in C if PyYAML has it, with an error for repeated keys of a mapping.

    YAML's own takes the last. A merge key (``<<: *base``) is not resolved before the comparison: a mapping may override
    keys of the base.
    """

    def get_single_node(self) -> yaml.Node | None:
        root: yaml.Node | None = super().get_single_node()
        for mapping in _mappings(root):
            self._check_keys(mapping)
        return root

    def _check_keys(self, node: yaml.MappingNode) -> None:
        keys: list[Any] = []
        for key_node, _ in node.value:
            if key_node.tag == MERGE_KEY:
                continue
            key = self.construct_object(key_node, deep=True)
            if key in keys:
                raise yaml.constructor.ConstructorError(
                    problem=f"the key {key!r} is repeated", problem_mark=key_node.start_mark
                )
            keys.append(key)


def _mappings(node: yaml.Node | None) -> Iterator[yaml.MappingNode]:
    """Yield each mapping of a document once; aliases may lead back to a mapping that contains them."""
    nodes, visited = [node], set()
    while nodes:
        node = nodes.pop()
        if id(node) in visited:
            continue
        visited.add(id(node))
        if isinstance(node, yaml.MappingNode):
            yield node
            nodes += [each for pair in node.value for each in pair]
        elif isinstance(node, yaml.SequenceNode):
            nodes += node.value


class ConfigLoader(UniqueKeys):
    """``UniqueKeys`` with the one arithmetic list of official configs."""


def _scale_list(loader: ConfigLoader, node: yaml.Node) -> list[int]:
    values = loader.construct_sequence(node) if isinstance(node, yaml.SequenceNode) else []
    match = _SCALES.fullmatch(values[0]) if len(values) == 1 and isinstance(values[0], str) else None
    if match is None or int(match[4]) - int(match[3]) > 1000:
        raise yaml.constructor.ConstructorError(
            None, None, f"refusing to evaluate {values!r}: write the list out", node.start_mark
        )
    step, size, start, stop = float(match[1]), int(match[2]), int(match[3]), int(match[4])
    return [int(x * step * size) for x in range(start, stop)]


ConfigLoader.add_constructor("tag:yaml.org,2002:python/object/apply:eval", _scale_list)


def find_config(path: str | Path) -> Path:
    """Return ``path`` if it exists, else the file of that name in the checkout or in the installed package.

    So ``configs/models/tiny.yaml`` is found from any working directory. A path without a file is returned as it is.
    """
    path = Path(path)
    if path.exists() or path.is_absolute() or path.parts[:1] != ("configs",):
        return path
    package = Path(__file__).parents[1]
    inside = (folder / path for folder in (package, package.parent))
    return next((each for each in inside if each.exists()), path)


def find_method(method: str, folder: Path = Path()) -> Path:
    """Return the config file of a method: a name of ``configs/methods``, or a YAML file, relative to ``folder``.

    Raises:
        UserError: there is no method of that name.
    """
    if method.endswith(".yaml"):
        return find_config(folder / method)
    path = find_config(f"{METHODS}/{method}.yaml")
    if not path.is_file():
        known = sorted(each.stem for each in find_config(METHODS).glob("*.yaml"))
        hint = f"choose one of {', '.join(known)}, or name a YAML file{did_you_mean(method, known)}"
        raise UserError("there is no such method", key="method", value=method, hint=hint)
    return path


def load_config_file(path: str | Path, method: str | Path = "") -> dict[str, Any]:
    """Return the keys of a config file as nested dictionaries.

    ``_BASE_`` is a file, relative to this one, or as in fvcore a list of them, of which later ones win. The keys of a
    method's file and of its bases are merged over those of ``path``. ``_METHODS_`` of ``path`` holds settings for
    single methods, such as budgets: each is merged over the file of that method, and so holds for methods based on it.

    Args:
        method: as for ``find_method``; empty: ``path`` alone.

    Raises:
        FileNotFoundError: a file or a base does not exist.
        UserError: not YAML, not a mapping, a repeated key, an executable tag, or a circle of bases; the message
            names file and line.
    """
    merged: dict[str, Any] = {}
    for _, values in _layers(Path(path)):
        _merge(merged, values)
    own = merged.pop("_METHODS_", {})
    if not isinstance(own, dict) or not all(isinstance(values, dict) for values in own.values()):
        raise UserError("_METHODS_ must hold keys of the config by method", key=path)
    for file, values in _layers(find_method(str(method))) if method else ():
        _merge(merged, values)
        _merge(merged, own.get(file.stem, {}))
    return merged


def _layers(path: Path, including: tuple[Path, ...] = ()) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yield each base of a file, from the bottom up, and the file itself, with its own keys."""
    if path.resolve() in including:
        raise UserError("_BASE_ leads back to the file itself", key=path)
    if not path.is_file():
        included_by = f" (the _BASE_ of {including[-1]})" if including else ""
        model = path.parent.parent / "models" / f"{path.parent.name}.yaml"
        hint = f": write --config-file {model} --method {path.stem}" if find_config(model).is_file() else ""
        raise FileNotFoundError(f"config file {path} does not exist{included_by}{hint}")
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), Loader=ConfigLoader)  # a SafeLoader subclass
        json.dumps(values, default=str, skipkeys=True)  # ValueError: an alias leads back to its own mapping
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(" ".join(str(error).split()), key=path) from error
    if not isinstance(values, dict):
        raise UserError(f"a config is a mapping of keys, this file holds {type(values).__name__}", key=path)
    bases = values.pop("_BASE_", [])
    bases = [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise UserError(f"_BASE_ must be a file name or a list of file names, got {bases!r}", key=path)
    for base in bases:
        yield from _layers(path.parent / Path(base).expanduser(), (*including, path.resolve()))
    yield path, values


def _merge(into: dict[str, Any], values: dict[str, Any]) -> None:
    for key, value in values.items():
        if isinstance(value, dict):
            if not isinstance(into.get(key), dict):
                into[key] = {}
            _merge(into[key], value)
        else:
            into[key] = value
