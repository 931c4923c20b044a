"""Measurements of the engine: `python -m bench.ops` by itself, `python -m bench.peers` against other libraries."""

import ebmvk  # noqa: F401  # before torch is imported
