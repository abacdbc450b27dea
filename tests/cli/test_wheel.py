"""An installed wheel is usable anywhere: its commands, its configs, the renderer; nothing of the checkout is needed."""

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
RUN = "import sys; from importlib.metadata import entry_points; sys.argv[0] = sys.argv.pop(1); "
RUN += "(command,) = entry_points(group='console_scripts', name=sys.argv[0]); command.load()()"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel's content, and nothing else."""
    pytest.importorskip("setuptools")
    sources, target = tmp_path_factory.mktemp("sources"), tmp_path_factory.mktemp("installed")
    for name in CONTENTS:
        copy: Any = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, sources / name)
    pip = [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-deps", "--no-index"]
    options = ["--no-build-isolation", "--target", str(target), str(sources)]
    answer = subprocess.run([*pip, *options], capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr
    return target


def run(installed: Path, folder: Path, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """A command by its installed name, in an empty folder."""
    options: dict[str, Any] = {"cwd": folder, "capture_output": True, "text": True, "timeout": 300}
    return subprocess.run(
        [sys.executable, "-c", RUN, *words], env=environment(**variables) | {"PYTHONPATH": str(installed)}, **options
    )


def test_commands_run_outside_of_a_checkout(installed: Path, tmp_path: Path) -> None:
    words = "tmt-render-data --root data --train 4 --val 1 --size 64x128 --workers 1"
    drawn = run(installed, tmp_path, *words.split())
    assert drawn.returncode == 0, drawn.stderr
    checked = run(installed, tmp_path, "tmt-check-data", "--root", "data", "--data-sets", "bdd100k", "--workers", "1")
    assert checked.returncode in (0, 1) and "bdd100k" in checked.stdout, checked.stderr
    words = "tmt-train --config-file configs/tiny/source.yaml SOLVER.MAX_ITER 1 SOLVER.IMS_PER_BATCH 1 OUTPUT_DIR out"
    trained = run(installed, tmp_path, *words.split(), "DATALOADER.NUM_WORKERS", "0", DETECTRON2_DATASETS="data")
    assert trained.returncode == 0, trained.stderr
    assert (tmp_path / "out" / "model_final.pth").is_file() and "commit: not a checkout" in trained.stdout
    words = "tmt-train-matrix --config configs/matrix/tiny-3.yaml --output matrix --dry-run"
    listed = run(installed, tmp_path, *words.split())
    assert listed.returncode == 0 and "finetune/" in listed.stdout, listed.stderr


def test_every_command_is_there(installed: Path, tmp_path: Path) -> None:
    listing = "import importlib.metadata as m, importlib as i\n"
    listing += "for e in m.entry_points(group='console_scripts'):\n"
    listing += "    if e.name.startswith('tmt-'): e.load(); print(e.name)"
    answer = subprocess.run(
        [sys.executable, "-c", listing],
        cwd=tmp_path,
        env=environment() | {"PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
    )
    assert answer.returncode == 0, answer.stderr
    names = {f"tmt-{path.stem.replace('_', '-')}" for path in (ROOT / "tmt_d2" / "commands").glob("[a-z]*.py")}
    assert names | {"tmt-export", "tmt-convert", "tmt-check-data", "tmt-render-data"} == set(answer.stdout.split())
    templates = (path.relative_to(ROOT) for path in (ROOT / "tmt_d2").rglob("templates/**/*.html"))
    assert all((installed / path).is_file() for path in templates)
