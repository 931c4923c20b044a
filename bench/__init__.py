"""Measurements of the engine: `python -m bench.ops` by itself, `python -m bench.peers` against other libraries."""

from ebmvk.host import terminal  # imports ebmvk before torch, so that threads and memory are set up as in the commands

terminal.prepare()
