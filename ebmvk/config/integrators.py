"""The integrators that `--langevin-scheme` offers: the rows of the engine's table.

The table is read as data, so that `--help` answers without the engine.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

LEAPFROGS = 4
"""Leapfrogs of a trajectory, after which a Metropolis integrator accepts or rejects."""

METROPOLIS: Mapping[str, bool] = MappingProxyType(
    {
        name: bool(row.get("metropolis", False))
        for name, row in tomllib.loads(
            (Path(__file__).parents[1] / "engine" / "integrators.toml").read_text(encoding="utf-8")
        ).items()
    }
)
"""{name: True if the integrator accepts or rejects trajectories; False if it accepts all steps}."""

AUTO = "auto"
"""Lets each sampler use its own integrator."""

HELP = (
    f"Integrator of Langevin chains. {', '.join(name for name, exact in METROPOLIS.items() if not exact)}: every step "
    f"is accepted. {', '.join(name for name, exact in METROPOLIS.items() if exact)}: trajectories of {LEAPFROGS} steps "
    f"are accepted or rejected, so steps add no bias. {AUTO}: gbaoab for --sampler langevin and coarse, ghmc for "
    "tempering, which needs an integrator that rejects."
)
