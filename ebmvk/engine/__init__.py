"""The engine: one table of operations (`api`), several backends, one oracle.

| module | what is in it |
|---|---|
| `api` | the table: `Backend`, `Points`, `Schedule` and the results |
| `select` | `select(device)` opens a backend, `explain(device)` says which one and why |
| `reference` | every operation in plain torch: the float64 oracle, and the path on CUDA |
| `cpu` | SIMD kernels on a thread pool (extension `ebmvk._cpu`) |
| `vulkan` | kernels on a Vulkan device (extension `ebmvk._vulkan`) |
| `sharded` | points spread over the processes of a run, and exact top-k among them |
| `approximate` | spherical k-means, and approximate search where exact top-k is out of reach (FAISS) |
| `autograd` | `energy(...)` and `energy_score(...)`, differentiable, on any backend |
| `philox` | counter-based random numbers, the same on every backend |
| `wood` | the cosine of a vMF sample, for every backend's `vmf_sample` |
| `checks`, `counting` | argument checks; calls and seconds per operation |

Importing this package loads no extension; `select` does.
"""

from __future__ import annotations

from ebmvk.engine.api import (
    Accumulated,
    Backend,
    EnergyGradients,
    EnergyScore,
    LangevinDiagnostics,
    LangevinResult,
    OpCount,
    Points,
    Schedule,
    Scheme,
    Storage,
    TopK,
)
from ebmvk.engine.select import explain, select

__all__ = [
    "Accumulated",
    "Backend",
    "EnergyGradients",
    "EnergyScore",
    "LangevinDiagnostics",
    "LangevinResult",
    "OpCount",
    "Points",
    "Schedule",
    "Scheme",
    "Storage",
    "TopK",
    "explain",
    "select",
]
