"""Measurements of the engine: `python -m bench.ops` by itself, `python -m bench.peers` against other libraries."""
