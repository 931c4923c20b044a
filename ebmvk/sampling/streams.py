"""Streams of random numbers, one per use: two uses of one stream would be correlated.

A number is a function of (seed, step, chain, stream), so a chain draws the same numbers however a
batch is split. The first streams belong to the engine (`ebmvk.engine.philox`).
"""

from __future__ import annotations

from ebmvk.engine.philox import STREAM_FREE

START = STREAM_FREE  # where chains begin
CHOICE = STREAM_FREE + 1  # which component the decoder picks
REST = STREAM_FREE + 2  # which token outside the candidates
EXACT = STREAM_FREE + 3  # the component of an exact sample; must differ from CHOICE: both may have one seed
GIBBS = STREAM_FREE + 4  # the component in a sweep of block Gibbs
SWAP = STREAM_FREE + 5  # whether two replicas exchange
