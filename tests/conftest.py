"""For all tests: the same examples each time, and no deadline, since machines are shared and first
calls are slow."""

from __future__ import annotations

from hypothesis import settings

import ebmvk  # noqa: F401  # before torch is imported

settings.register_profile("ebmvk", deadline=None, derandomize=True)
settings.load_profile("ebmvk")
