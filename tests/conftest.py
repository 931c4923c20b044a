"""For all tests: the same examples each time, no deadline, since machines are shared and first
calls are slow, and no compiled programs of an earlier run."""

from __future__ import annotations

import os

from hypothesis import settings

import ebmvk  # noqa: F401  # before torch is imported

settings.register_profile("ebmvk", deadline=None, derandomize=True)
settings.load_profile("ebmvk")

os.environ.setdefault("EBMVK_CACHE_DIR", "off")
