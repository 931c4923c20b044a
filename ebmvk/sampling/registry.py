"""Every sampler that `--sampler` names.

To add one, write its module and add an entry to `SAMPLERS`.

`generate`, `compare-decoding`, `harness`, `diagnose`, `certify` and `Model.generate` read this
table. Nothing heavy is imported here, so that `--help` answers at once: a sampler's module is
loaded when it is first used.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal

from ebmvk.config.integrators import METROPOLIS
from ebmvk.config.schema import LangevinConfig, nearest
from ebmvk.errors import ArgumentError

if TYPE_CHECKING:
    from ebmvk.sampling.interface import TokenFunction


@dataclass(frozen=True)
class Sampler:
    """One sampler of tokens.

    title: what it does, for `--help` and the documentation.
    module: its module in `ebmvk.sampling`, which defines `tokens`, a `TokenFunction`. None if it
        draws from p(v|c) itself; then it needs no points on the sphere.
    follows: how close the law of its tokens is to p(v|c), whose perplexity is reported.
        "exactly": equal. "in the limit": its chain keeps the latent law exactly; the only bias
        comes from starting at uniform states, and it shrinks with more sweeps or rounds.
        "closely": the chain's finite steps add another bias, which `ebmvk certify` bounds.
    any_temperature: True if its chains may run at a temperature other than 1 (`--langevin-T`).
    rejects: True if its chains must accept or reject; not every `--langevin-scheme` does.
    rates: what `Drawn.rates` of this sampler are, as a label for users; "" if it has none.
    diagnosed: the n for which `ebmvk diagnose` gives it 1/n of annealed Langevin's chains; 0: none.
    certificate: the tests of `ebmvk certify` that cover it. If it names none, the suite compares
        its tokens with p(v|c) in a test of its own.
    """

    title: str
    module: str | None
    follows: Literal["exactly", "in the limit", "closely"]
    any_temperature: bool = True
    rejects: bool = False
    rates: str = ""
    diagnosed: int = 4
    certificate: tuple[str, ...] = ()

    def conflict(self, settings: LangevinConfig) -> str:
        """The name of a setting with a value that this sampler can't have; empty if all suit it."""
        if settings.langevin_T != 1 and not self.any_temperature:
            return "langevin_T"
        if self.rejects and not METROPOLIS.get(settings.langevin_scheme, True):
            return "langevin_scheme"
        return ""


SAMPLERS: Mapping[str, Sampler] = MappingProxyType(
    {
        "langevin": Sampler(
            "annealed Langevin chains on the sphere",
            "annealed",
            "closely",
            diagnosed=1,
            certificate=("8 tokens", "8 tokens with memory"),
        ),
        "exact": Sampler(
            "straight from the model's probabilities, without chains",
            None,
            "exactly",
            diagnosed=0,
        ),
        "tempering": Sampler(
            "chains at several concentrations that exchange their states",
            "tempering",
            "in the limit",
            rejects=True,
            rates="accepted exchanges, by pair of rungs",
            certificate=("7 tempering",),
        ),
        "gibbs": Sampler(
            "block Gibbs: a token for the state, a state for the token, in turn",
            "gibbs",
            "in the limit",
            any_temperature=False,
            rates="changes of the component",
            certificate=("7 block Gibbs",),
        ),
        "coarse": Sampler(
            "Langevin chains for a group of tokens, then for a token of the group",
            "coarse",
            "closely",
            diagnosed=0,
            certificate=("8 tokens, coarse to fine",),
        ),
    }
)

if TYPE_CHECKING:
    SamplerName = str
else:
    SamplerName = Literal[tuple(SAMPLERS)]
"""The type of a sampler's name. For the command line it is the choice among the names."""

HELP = f"How tokens are drawn. {'; '.join(f'{name}: {sampler.title}' for name, sampler in SAMPLERS.items())}."

USUAL, WITHOUT_STATES = "langevin", "exact"
"""The usual sampler of models with points on the sphere, and the one that needs no such points."""


def named(name: str) -> Sampler:
    """The sampler with this name.

    Raises:
        ArgumentError: no sampler has this name.
    """
    if not (isinstance(name, str) and name in SAMPLERS):
        close = nearest(name, SAMPLERS) if isinstance(name, str) else None
        known = f"use one of {', '.join(SAMPLERS)}"
        raise ArgumentError(f"sampler {name!r} is not known", hint=f"did you mean {close}? {known}" if close else known)
    return SAMPLERS[name]


def token_function(name: str) -> TokenFunction:
    """The function of a sampler of states; loads its module.

    Raises:
        ArgumentError: no sampler has this name, or this one has no states.
    """
    module = named(name).module
    if module is None:
        raise ArgumentError(f"sampler {name!r} has no states", hint="draw from p(v|c) itself")
    found: TokenFunction = importlib.import_module(f"ebmvk.sampling.{module}").tokens
    return found
