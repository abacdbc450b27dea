"""An installed wheel works outside of a checkout: commands, config files, templates, the scene renderer."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.checkout import ROOT, environment

pytestmark = pytest.mark.slow

CONTENTS = ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "tmt_d2", "configs")
COMMANDS = """
tmt-render-data --root data --train 4 --val 1 --size 64x128 --workers 1
tmt-train --config-file CONFIG SOLVER.MAX_ITER 1 SOLVER.IMS_PER_BATCH 1 OUTPUT_DIR out DATALOADER.NUM_WORKERS 0
"""
SCRIPT = """
import sys
sys.modules["numba"] = None  # it would compile its kernel again for the installed file
from importlib.metadata import entry_points
commands = {each.name: each.load() for each in entry_points(group="console_scripts") if each.name.startswith("tmt-")}
print("commands:", *commands)
for line in sys.argv[1].strip().splitlines():
    sys.argv[:] = line.split()
    try:
        commands[sys.argv[0]]()
    except SystemExit as end:
        assert not end.code, line
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the content of the wheel and nothing else."""
    pytest.importorskip("setuptools")
    sources, target = tmp_path_factory.mktemp("sources"), tmp_path_factory.mktemp("installed")
    for name in CONTENTS:
        copy: Any = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, sources / name)
    pip = [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-deps", "--no-index"]
    options = ["--no-build-isolation", "--target", str(target), str(sources)]
    process = subprocess.run([*pip, *options], capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    return target


def test_commands_load_render_and_train_in_an_empty_folder(installed: Path, tmp_path: Path) -> None:
    variables = environment(DETECTRON2_DATASETS="data") | {"PYTHONPATH": str(installed)}
    lines = COMMANDS.replace("CONFIG", "configs/models/tiny.yaml")
    process = subprocess.run(
        [sys.executable, "-c", SCRIPT, lines], cwd=tmp_path, env=variables, capture_output=True, text=True, timeout=300
    )
    assert process.returncode == 0, process.stderr
    assert (tmp_path / "out" / "model_final.pth").is_file()
    names = next(line for line in process.stdout.splitlines() if line.startswith("commands:")).split()[1:]
    tools = {f"tmt-{path.stem.replace('_', '-')}" for path in (ROOT / "tools").glob("[a-z]*.py")}
    assert tools <= {*names} and len(names) == len({*names}) > len(tools)


def test_templates_are_installed(installed: Path) -> None:
    templates = [path.relative_to(ROOT) for path in (ROOT / "tmt_d2").rglob("templates/**/*.html")]
    assert templates and all((installed / path).is_file() for path in templates)
