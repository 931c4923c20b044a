"""How this process runs its threads and keeps its memory: settings that have to come before torch is loaded."""

from __future__ import annotations

import ctypes
import os
import sys
import warnings

# Of malloc.h of glibc, which has no names for them at run time.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
LARGEST = 32 << 20
"""Bytes of the largest array whose memory is used again: as many as glibc itself comes to by default. Larger ones are
given back when they are freed, so that a small one beside them can never hold them."""
KEPT = 128 << 20
"""Bytes at the end of the heap that stay when they are freed."""
SPINS = "1000"
_TUNED_BY = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")  # what sets how long threads spin


def tune() -> None:
    """Sets what the environment does not; a second call changes nothing. `import ebmvk` calls it."""
    if "torch" not in sys.modules:
        # Read when torch loads its OpenMP. A waiting thread spins so often before it sleeps; by default it spins for
        # milliseconds, which on two cores keeps a thread that one other busy process has put off from running: training
        # got ten times slower. So short a spin costs an idle machine nothing, no spin at all a sixth of the speed.
        os.environ.setdefault("GOMP_SPINCOUNT", SPINS)
    if not any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ):
        keep_freed_memory()


def keep_freed_memory() -> None:
    """Up to `KEPT` bytes that are freed stay with the process, where its C library is glibc.

    By default glibc gives more of them back, and the system fills the pages of the next arrays with zeros.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library; another system
        return
    mallopt(_M_MMAP_THRESHOLD, LARGEST)
    mallopt(_M_TRIM_THRESHOLD, KEPT)
