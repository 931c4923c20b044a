"""How this copy was built; the build writes it."""

PYTHON: str
SIMD: bool
VULKAN_LEFT_OUT: str
"""Why there is no Vulkan engine; empty if there is one."""
