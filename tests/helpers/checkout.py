"""Where the files of the checkout under test are, and how a test starts a command of it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
TINY_CONFIG = ROOT / "configs" / "models" / "tiny.yaml"
BASE_CONFIG = ROOT / "configs" / "models" / "R50.yaml"


def environment(**more: str) -> dict[str, str]:
    """Of a process that imports this checkout, whatever else is installed, and computes with one thread."""
    return os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | more


def run_python(*arguments: str, timeout: float = 300, **variables: str) -> subprocess.CompletedProcess[str]:
    """``python ARGUMENTS`` with the checkout as working directory and its output as text."""
    options: dict[str, Any] = {"cwd": ROOT, "env": environment(**variables), "capture_output": True, "text": True}
    return subprocess.run([sys.executable, *arguments], timeout=timeout, **options)
