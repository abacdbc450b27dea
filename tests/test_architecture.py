"""Folders stand on one another (docs/architecture.md), and the core imports no project."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.checkout import ROOT, run_python

PACKAGE = ROOT / "tmt_d2"
FLOORS = (  # from below; folders of one floor do not import each other, but for those on the ground
    {"errors", "utils", "config"},
    {"transferability"},
    {"modeling"},
    {"data"},
    {"evaluation"},
    {"adaptation", "visualization"},
    {"estimation"},
    {"engine"},
    {"inference"},
    {"experiments"},
    {"cli", "notebook"},
    {"projects"},
)
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}


COMMANDS = {"benchmarks", "datasets", "demo", "tests", "tools", "train_net"}


def room_of(module: str) -> str:
    """Such as data of tmt_d2.data.loaders; empty for the package itself, which imports what users expect."""
    return module.partition(".")[2].partition(".")[0]


def imports(source: str) -> Iterator[str]:
    """Dotted names of all that ``source`` imports, wherever in it; the last part may be something in a module."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports are absolute here"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def upward(source: str, module: str) -> set[tuple[str, str]]:
    """(module, room) for each room that ``module``, of this source, must not import from."""
    own = room_of(module)
    rooms = {room_of(name) for name in imports(source) if name.startswith("tmt_d2.")} - {own}
    ground = FLOORS[0] if own in FLOORS[0] else set()
    return {(module, room) for room in rooms - ground if FLOOR_OF[room] >= FLOOR_OF[own]}


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
        ("from tmt_d2.engine.step import TrainingStep", {"engine"}),
        ("def f():\n    import tmt_d2.experiments.plan as p", {"experiments"}),
        ("if True:\n    def f():\n        from tmt_d2.projects.report import command", {"projects"}),
        ("from tmt_d2 import inference, errors", {"inference"}),
        ("from tmt_d2.visualization import grid", {"visualization"}),
        ("from tmt_d2.evaluation.semantic import metrics\nfrom tmt_d2.data import reader\nimport torch", set()),
    ],
)
def test_imports_are_seen(source: str, rooms: set[str]) -> None:
    assert {room for _, room in upward(source, "tmt_d2.evaluation.inference")} == rooms


@pytest.mark.slow
def test_a_project_is_imported_when_its_name_is_used() -> None:
    code = (
        "import sys, tmt_d2, tmt_d2.cli.train\n"
        "tmt_d2.setup_cfg\n"
        "print([name for name in sys.modules if name.startswith('tmt_d2.projects')])\n"
        "print(tmt_d2.adapt.__module__)\n"
    )
    assert run_python("-c", code).stdout.split() == ["[]", "tmt_d2.projects.loop.starting"]


def test_nothing_in_the_package_imports_a_command_or_a_test() -> None:
    roots = {(name, other.split(".")[0]) for name, path in modules().items() for other in imports(path.read_text())}
    assert not [(name, other) for name, other in roots if other in COMMANDS]
    assert ("tmt_d2.config", "tmt_d2") in roots  # control
