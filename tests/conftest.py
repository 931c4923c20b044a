"""For all tests: the same examples each time; no deadline, since machines are shared and first
calls are slow; no compiled programs of an earlier run; and no garbage collections that look at
modules and tests."""

from __future__ import annotations

import gc
import os
import sys

from hypothesis import settings

import ebmvk  # noqa: F401  # before torch is imported

settings.register_profile("ebmvk", deadline=None, derandomize=True)
settings.load_profile("ebmvk")

os.environ.setdefault("EBMVK_CACHE_DIR", "off")
gc.disable()  # nothing that is collected becomes garbage


def pytest_collection_finish() -> None:
    """Modules and tests are a million objects that stay until the end."""
    capture = sys.modules.get("ebmvk.compute.capture")
    if capture is not None:
        capture.note_caches()  # which looks for caches among objects that aren't frozen
    gc.collect()
    gc.freeze()
    gc.enable()
