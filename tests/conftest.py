"""For all tests: the same examples each time; no deadline, since machines are shared and first
calls are slow; no compiled programs of an earlier run; no garbage collections that look at
modules and tests; and no more threads than processors if several processes run the tests."""

from __future__ import annotations

import contextlib
import gc
import os
import sys

import pytest
from hypothesis import settings

import ebmvk  # noqa: F401  # before torch is imported

PROCESSES = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
"""The number of processes that run the tests; each runs a part of them."""
PROCESSORS = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
THREADS = max(1, PROCESSORS // PROCESSES)
"""Threads of each process. With more threads than processors, threads wait for others that have no
processor: a small model took twice the processor time. Tests of several threads set their own
number."""
if PROCESSES > 1:
    for name in ("OMP_NUM_THREADS", "RAYON_NUM_THREADS"):  # of torch and of tokenizers, here and in programs that start
        os.environ.setdefault(name, str(THREADS))

settings.register_profile("ebmvk", deadline=None, derandomize=True)
settings.load_profile("ebmvk")

os.environ.setdefault("EBMVK_CACHE_DIR", "off")
gc.disable()  # nothing that pytest collects becomes garbage


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of the system come first, because they fork most: the more memory earlier tests have
    left in use, the longer a fork takes (75 ms of processor time with 1.2 GB, 18 with 0.4)."""
    items.sort(key=lambda item: item.path.parent.name != "system")


def pytest_collection_finish() -> None:
    """Take modules and tests out of garbage collection: they are a million objects that stay until
    the end. Also set the number of the kernels' threads, which the environment doesn't set."""
    with contextlib.suppress(ImportError):  # the extension may not be built
        from ebmvk import _cpu

        _cpu.set_threads(THREADS)
    capture = sys.modules.get("ebmvk.compute.capture")
    if capture is not None:
        capture.note_caches()  # which looks for caches among objects that aren't frozen
    gc.collect()
    gc.freeze()
    gc.enable()
