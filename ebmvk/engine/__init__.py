"""The engine: one table of operations, several backends that implement it, and a float64 oracle.

| module | what it does |
|---|---|
| `api` | `Backend` with all operations, `Points`, `Schedule` and the results |
| `select` | `select(device)` opens a backend, `explain(device)` says which one and why |
| `reference` | every operation in plain torch: the oracle, and the path on CUDA |
| `operations` | operations.toml: the arguments and results of every operation |
| `native` | what the extensions' functions take and return, from that table |
| `examples` | arguments for any operation, made from that table, for tests |
| `integrators` | the splittings of integrators.toml, which all backends follow |
| `reference_chains`, `reference_math` | Langevin chains and formulas of `reference` |
| `cpu` | SIMD kernels on a thread pool (extension `ebmvk._cpu`) |
| `vulkan` | kernels on a Vulkan device (extension `ebmvk._vulkan`) |
| `device_tensor` | `DeviceTensor`, a result that stays on a Vulkan device |
| `recording` | programs of a caller's own kernels on a Vulkan device |
| `chained` | further operations, with which tokens are sampled on a device |
| `vulkan_devices` | the Vulkan devices of this machine |
| `sharded` | points spread over the processes of a run, with an exact top-k |
| `approximate` | spherical k-means, and approximate search for very many points (FAISS) |
| `autograd` | `energy(...)` and `energy_score(...)`, differentiable, on any backend |
| `library`, `dropout`, `normals` | operations that torch can trace as one node, and two of them |
| `traceable` | the reference without checks, for steps that are traced |
| `philox` | counter-based random numbers, the same on every backend |
| `wood` | the cosine of a von Mises-Fisher sample, for every backend's `vmf_sample` |
| `checks`, `counting` | argument checks; calls and seconds per operation |
| `selftest` | compares every operation of a backend with the oracle |
| `device`, `seeds` | the engine and torch on one `--device`; seeds and determinism |
| `missing` | why an extension can't be imported |

Importing this package loads no extension. `select` does.
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
