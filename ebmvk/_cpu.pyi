"""CPU kernels; use them through `ebmvk.engine.cpu`, which checks arguments. Arrays are
C-contiguous."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_Floats = NDArray[np.float32]
_Ids = NDArray[np.int64]

def rows(operation: str, arguments: list[_Floats]) -> _Floats:
    """An operation that works row by row: (B, d) arrays to (B, d), or to (B,)."""

class CoarsePoints:
    """Points (N, d) in 8 bits per coordinate. `topk` uses them to find candidates."""

    def __init__(self, points: _Floats) -> None: ...
    @property
    def nbytes(self) -> int: ...

def use_coarse() -> bool:
    """True if the coarse kernel and the instruction set in use can work with CoarsePoints."""

def coarse_kernels() -> list[str]:
    """The compiled kernels for 8-bit products that this processor can run, best first: some of
    "amx", "vnni" and "avx2", and always "none" as the last."""

def coarse_kernel() -> str: ...
def use_coarse_kernel(name: str) -> None:
    """For tests. Every kernel gives the same results, bit for bit."""

def topk(
    queries: _Floats, points: _Floats, k: int, scale: _Floats | None, bias: _Floats | None, coarse: CoarsePoints | None
) -> tuple[_Floats, _Ids, int]:
    """scores, ids, and the number of rows that the coarse product could not prove. Scores and ids
    are the same, bit for bit, with and without `coarse`."""

def vmf_place(mu: _Floats, deficit: NDArray[np.float64], seed: int, first_row: int) -> _Floats:
    """Samples whose cosine with mu is 1 - deficit."""

def accumulate(
    x: _Floats, ids: _Ids, responsibilities: _Floats, tokens: _Ids, n: int
) -> tuple[_Floats, _Floats, _Ids, _Floats]:
    """mass, resultant, splat_token, counts."""

def normals(seed: int, first_step: int, steps: int, first_chain: int, chains: int, stream: int, d: int) -> _Floats:
    """Normals (steps, chains, d), as the chains of `langevin` draw them."""

def dropout(x: _Floats, out: _Floats, seed: int, step: int, place: int, first: int, threshold: int) -> None:
    """Write to `out`, which has the size of x. An element becomes zero if its random byte is below
    threshold, else x times 256 / (256 - threshold). first: the number of x's first element."""

def dropout_bfloat16(
    x: NDArray[np.uint16], out: NDArray[np.uint16], seed: int, step: int, place: int, first: int, threshold: int
) -> None:
    """`dropout` for bfloat16 values, which are passed as their bits."""

def threads() -> int: ...
def set_threads(threads: int) -> None: ...
def targets() -> list[str]:
    """The instruction sets with compiled kernels that this processor can run, best first."""

def target() -> str: ...
def use_target(name: str) -> None: ...

# Made from operations.toml by csrc/operations.py:

def energy_score(
    x: _Floats, points: _Floats, ids: _Ids, logw: _Floats, kappa: _Floats, log_background: _Floats
) -> tuple[_Floats, _Floats, _Floats, _Floats]:
    """energy (B,), score (B, d), responsibilities (B, K), background (B,)."""

def energy_score_backward(
    x: _Floats,
    points: _Floats,
    ids: _Ids,
    logw: _Floats,
    kappa: _Floats,
    log_background: _Floats,
    grad_energy: _Floats,
    grad_score: _Floats,
) -> tuple[_Floats, _Floats, _Floats, _Floats, _Floats]:
    """x (B, d), points (N, d), logw (B, K), kappa (B, K), log_background (B,)."""

def langevin(
    x: _Floats,
    v: _Floats,
    points: _Floats,
    ids: _Ids,
    logw: _Floats,
    kappa: _Floats,
    log_background: _Floats,
    kappa_scale: _Floats,
    logw_shift: _Floats,
    step_size: _Floats,
    gamma: _Floats,
    steps: Sequence[int],
    seed: int,
    first_step: int,
    first_chain: int,
    temperature: float,
    scheme: str,
    leapfrogs: int,
) -> tuple[_Floats, _Floats, _Floats, _Floats, _Floats, _Floats, _Floats]:
    """x (B, d), v (B, d), energy (B,), kinetic_temperature (B,), energy_error (B,), acceptance
    (B,), tangency (B,)."""
