"""How a process that does nothing but our work, a command, a benchmark or a test, runs its threads and its memory."""

from __future__ import annotations

import ctypes
import os

# Of malloc.h of glibc, which has no names for them at run time.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_KEPT, _LARGEST = (1 << 31) - 1, 1 << 30  # bytes: kept when freed, and of an array that is


def tune() -> None:
    """Sets what the environment does not. To be called before torch is imported."""
    # Read when torch loads its OpenMP. A waiting thread spins so often before it sleeps; by default it spins for
    # milliseconds, which on two cores keeps a thread that one other busy process has put off from running: training got
    # ten times slower. So short a spin costs an idle machine nothing, and no spin at all a sixth of the speed.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    if not any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ):
        keep_freed_memory()


def keep_freed_memory() -> None:
    """Memory of arrays that are freed stays with the process, where its C library is glibc.

    By default glibc gives large arrays back, and the system fills the pages of the next ones with zeros. With 50,258
    tokens that takes a third of a training step; a small model's takes 4 to 8 %.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library; another system
        return
    mallopt(_M_MMAP_THRESHOLD, _LARGEST)
    mallopt(_M_TRIM_THRESHOLD, _KEPT)
