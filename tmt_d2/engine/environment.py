"""Versions, machine, commit and command of a run, for its log."""

from __future__ import annotations

import functools
import importlib.metadata
import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path

import detectron2
import torch
from detectron2.utils import comm

import tmt_d2

PACKAGES = ("torch", "torchvision", "numpy", "opencv-python-headless", "Pillow", "scipy", "numba", "deformops", "timm")


def environment() -> list[str]:
    """Return lines for the log."""
    versions = [f"Python {platform.python_version()}", f"Detectron2 {detectron2.__version__}"]
    for name in PACKAGES:
        try:
            versions.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    processor = f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return [
        f"command: {shlex.join(sys.argv)}",
        f"versions: {', '.join(versions)}",
        f"machine: {platform.node()}, {platform.system()} {platform.release()}, {processor}, GPUs: "
        f"{', '.join(gpus) or 'none'}, {comm.get_world_size()} process(es)",
        f"commit: {commit() or 'not a checkout'}",
    ]


@functools.cache
def commit() -> str:
    """Return the commit of the checkout that the package is imported from, with "-dirty" if files differ; else ""."""
    folder = Path(tmt_d2.__file__).parent
    tracked = _git(folder, "ls-files", "__init__.py")
    return _git(folder, "describe", "--always", "--dirty", "--exclude", "*") if tracked else ""


def _git(folder: Path, *arguments: str) -> str:
    try:
        answer = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):  # there is no git
        return ""
    return answer.stdout.strip()
