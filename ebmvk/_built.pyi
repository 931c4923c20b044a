"""How this copy was built; the build writes it."""

PYTHON: str
SIMD: bool
VULKAN_LEFT_OUT: str
"""Why the Vulkan engine was left out; empty if it was built."""
