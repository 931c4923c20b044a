"""Measurements of the engine: `python -m bench.ops` by itself, `python -m bench.peers` against other libraries."""

from ebmvk import process, terminal

process.tune()  # as the commands do, before torch is imported
terminal.prepare()
