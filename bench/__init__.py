"""Measurements of the engine: `python -m bench.ops` by itself, `python -m bench.peers` against other libraries."""

from ebmvk import terminal  # which imports ebmvk before torch, so that threads and memory are as in the commands

terminal.prepare()
