"""Settings of this process for threads and memory, which must be made before torch is loaded."""

from __future__ import annotations

import ctypes
import os
import sys
import threading
import warnings
from pathlib import Path

# From malloc.h of glibc; these names don't exist at run time.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
LARGEST = 32 << 20
"""Bytes of the largest array whose memory is reused: the upper limit of glibc. Larger arrays are
returned to the system when freed, even if a small one behind them is still in use.
"""
KEPT = 128 << 20
"""Freed bytes at the end of the heap that the process keeps."""
SPINS = "1000"
TORCH_CAME_FIRST = "torch" in sys.modules
"""True if torch was loaded before this module, so it has already read the environment."""
_quiet = False  # True once `spin_less` was called


def tune() -> None:
    """Shorten how long idle threads spin, and keep freed memory, unless the environment says
    otherwise.

    `import ebmvk` calls it; a second call changes nothing.
    """
    # torch reads this when it loads OpenMP: how often a waiting thread spins before it sleeps. By
    # default it spins for milliseconds. If another process is busy on a machine with two cores,
    # this keeps a delayed thread from running, and training got ten times slower. A spin this short
    # costs nothing on an idle machine; without any spin, speed falls by a sixth.
    if not TORCH_CAME_FIRST:
        os.environ.setdefault("GOMP_SPINCOUNT", SPINS)
    if not any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ):
        keep_freed_memory()


def keep_freed_memory() -> None:
    """With glibc, let the process keep up to `KEPT` freed bytes.

    By default glibc returns most of them to the system, which then fills the pages of the next
    arrays with zeros.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library; another system
        return
    mallopt(_M_MMAP_THRESHOLD, LARGEST)
    mallopt(_M_TRIM_THRESHOLD, KEPT)


def spin_less() -> None:
    """If torch was loaded first, make its threads spin as briefly as `tune` would have; warn if
    that's impossible.

    Opening a device calls this, before the first step.
    """
    global _quiet  # noqa: PLW0603  # once in a process
    if _quiet or not TORCH_CAME_FIRST or {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & os.environ.keys():
        return
    _quiet = True
    if sys.platform == "linux" and not _outnumber_processors():
        warnings.warn(
            "torch was imported before ebmvk: while other programs work, torch may run several times slower; "
            "import ebmvk first, or set GOMP_SPINCOUNT=1000",
            stacklevel=2,
        )


def _outnumber_processors() -> bool:
    """Start a team of threads that sleep for ever, so that GCC's OpenMP counts more threads than
    processors.

    OpenMP's waiting threads then spin for microseconds only. Returns False if GCC's OpenMP isn't
    loaded.
    """
    try:
        lines = Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
        library = ctypes.CDLL(next(line.split(maxsplit=5)[5] for line in lines if "libgomp" in line))
        parallel, nothing = library.GOMP_parallel, ctypes.cast(ctypes.CDLL(None).getpid, ctypes.c_void_p)
    except (AttributeError, OSError, StopIteration):
        return False
    parallel.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
    begun = threading.Event()

    def hold() -> None:
        parallel(nothing, None, (os.cpu_count() or 1) + 1, 0)
        begun.set()
        threading.Event().wait()  # the team lives as long as this thread

    threading.Thread(target=hold, name="ebmvk-openmp", daemon=True).start()
    begun.wait()
    return True
