"""Rooms stand on one another (docs/architecture.md): no module of the package imports from a room above its own."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.checkout import ROOT

PACKAGE = ROOT / "tmt_d2"
FLOORS = (  # from below; rooms of one floor do not know each other, but for those on the ground
    {"errors", "cli", "files", "randomness", "config_file", "config"},
    {"data", "transferability"},
    {"modeling"},
    {"evaluation", "processes"},
    {"methods"},
    {"training"},
    {"deployment"},
    {"pictures", "interop"},
    {"experiments"},
)
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}


def room_of(module: str) -> str:
    """ "data" of "tmt_d2.data.loaders"; "" of the package itself, which imports what its users expect to be there."""
    return module.partition(".")[2].partition(".")[0]


def imports(source: str, module: str) -> Iterator[str]:
    """Modules of the package that ``source`` imports, wherever in it. ``module`` is its own name."""
    for node in ast.walk(ast.parse(source)):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{module} imports relatively"
            names = [f"{node.module}.{alias.name}" for alias in node.names]  # alias: a room, or something in it
        yield from (name for name in names if name.split(".")[0] == "tmt_d2")


def upward(source: str, module: str) -> set[tuple[str, str]]:
    """(module, room) for each room that it must not import from."""
    own = room_of(module)
    rooms = {room_of(name) for name in imports(source, module)} - {own}
    return {
        (module, room) for room in rooms if not (FLOOR_OF[room] < FLOOR_OF[own] or FLOOR_OF[own] == FLOOR_OF[room] == 0)
    }


def modules() -> dict[str, Path]:
    files = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in PACKAGE.rglob("*.py")}
    return {name.removesuffix(".__init__"): path for name, path in files.items()}


def test_nothing_imports_upwards() -> None:
    found = {pair for name, path in modules().items() if room_of(name) for pair in upward(path.read_text(), name)}
    assert not found


def test_every_room_has_its_floor() -> None:
    assert {room_of(name) for name in modules()} - {""} == set(FLOOR_OF)


@pytest.mark.parametrize(
    ("source", "rooms"),
    [
        ("from tmt_d2.training.step import TrainingStep", {"training"}),
        ("def f():\n    import tmt_d2.experiments.plan as p", {"experiments"}),
        ("from tmt_d2 import interop, files", {"interop"}),
        ("from tmt_d2.processes import signals", {"processes"}),  # a neighbour
        ("from tmt_d2.evaluation.semantic import metrics\nfrom tmt_d2.data import reader\nimport torch", set()),
    ],
)
def test_imports_are_seen(source: str, rooms: set[str]) -> None:
    assert {room for _, room in upward(source, "tmt_d2.evaluation.inference")} == rooms


def test_nothing_in_the_package_imports_commands_or_tests() -> None:
    outside = {path.stem if path.is_file() else path.name for path in ROOT.iterdir()} - {"tmt_d2"}
    found = {
        (name, other)
        for name, path in modules().items()
        for node in ast.walk(ast.parse(path.read_text()))
        for other in (
            [node.module] if isinstance(node, ast.ImportFrom) else [a.name for a in getattr(node, "names", ())]
        )
        if other and other.split(".")[0] in outside
    }
    assert not found
