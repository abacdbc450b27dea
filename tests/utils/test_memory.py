"""Freed memory is reused without page faults."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys
from tmt_d2.utils.memory import reuse_freed_memory
assert reuse_freed_memory() if sys.argv[1] == "reuse" else True
for _ in range(3):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    b"x" * (64 * 2**20)
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(faults)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_a_block_that_was_freed_causes_no_page_faults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MALLOC_TRIM_THRESHOLD_", raising=False)
    monkeypatch.delenv("MALLOC_MMAP_THRESHOLD_", raising=False)

    def faults(mode: str) -> int:
        return int(subprocess.check_output([sys.executable, "-c", PROGRAM, mode], text=True))

    assert faults("reuse") < 100
    assert faults("default") > 1000  # negative control


def test_settings_of_the_user_win(monkeypatch: pytest.MonkeyPatch) -> None:
    from tmt_d2.utils.memory import reuse_freed_memory

    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "131072")
    assert not reuse_freed_memory()
