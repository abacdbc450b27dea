"""Reuse of freed memory."""

from __future__ import annotations

import ctypes
import os

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h of glibc
LARGE = 2**30  # bytes
LARGEST_OF_OLD_VERSIONS = 2**25  # of M_MMAP_THRESHOLD, before glibc 2.36


def reuse_freed_memory() -> bool:
    """Let glibc keep freed memory for later use, in the whole process, instead of giving it back to the system.

    By default it gives large blocks back at once, and a forward pass on the CPU touches all its memory anew: 250,000
    page faults, a tenth of its time. The price is that freed memory, up to 1 GiB, stays with the process.
    Environment variables MALLOC_... of the user win.

    Returns:
        False with another C library, or if the user has set a threshold.
    """
    if any(name.startswith("MALLOC_") and name.endswith("THRESHOLD_") for name in os.environ):
        return False
    try:
        libc = ctypes.CDLL(None)
        libc.gnu_get_libc_version  # noqa: B018  # raises AttributeError with other C libraries
        mallopt = libc.mallopt
    except (AttributeError, OSError, TypeError):
        return False
    sizes = (LARGE, LARGEST_OF_OLD_VERSIONS)
    return bool(mallopt(M_TRIM_THRESHOLD, LARGE)) and any(mallopt(M_MMAP_THRESHOLD, size) for size in sizes)
