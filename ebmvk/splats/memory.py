"""Memory as part of the exact token law (model section 5).

    p(v|c) = g_0 p_lex(v|c) + sum over tiers g_i p_i(v|c)
    p_i = p_mem^s p_lex^(1 - s) / Z,    p_mem = sum_k q_k V_k + q_inf / V

Every part is normalised, so the mixture is too. Within a tier energies add: the share s weighs the splats against the
lexical law. At s = 1 the tier is p_mem alone. The two tiers are static memory, from training text only, and episodic
memory, of the text that has just been read.
"""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from ebmvk.engine.api import Backend
from ebmvk.errors import CheckpointError
from ebmvk.splats.episodic import Episodic, EpisodicConfig
from ebmvk.splats.gate import LEXICAL, Gate, lexical_features, mix
from ebmvk.splats.recall import FEATURES, Recall, Splats
from ebmvk.splats.store import SplatStore

KNN_K = 256  # static splats looked up for each context
SHARE = 0.5  # of the static splats' law in the pool with the lexical one, where nothing is fitted yet
Tier = Literal["static", "episodic"]
Mode = Literal["none", "static", "episodic", "both"]
TIERS: dict[Mode, tuple[Tier, ...]] = {
    "none": (),
    "static": ("static",),
    "episodic": ("episodic",),
    "both": ("static", "episodic"),
}


@dataclass(frozen=True)
class Memory:
    """static: splats of the training text, if any; k: neighbours looked up among them; share: of their law in the pool
    with the lexical one; episodic: how to read; gates: of each mode that can be used but "none". d, vocab_size: of the
    model that the memory belongs to."""

    d: int
    vocab_size: int
    static: SplatStore | None
    k: int
    share: float
    episodic: EpisodicConfig
    gates: Mapping[Mode, Gate]

    @classmethod
    def unfitted(cls, static: SplatStore | None, *, d: int, vocab_size: int) -> Memory:
        """A memory without gates yet."""
        return cls(d, vocab_size, static, KNN_K, SHARE, EpisodicConfig(), {})

    def using(self, capacity: int | None, *, scramble: bool) -> Memory:
        """With another episodic capacity (None: as it is); `scramble`: the control, in which splats keep their places
        and get one another's token laws."""
        own = self.episodic.capacity if capacity is None else capacity
        episodic = replace(self.episodic, capacity=own, scramble=scramble)
        static = self.static.scrambled(seed=0) if self.static is not None and scramble else self.static
        return replace(self, static=static, episodic=episodic)

    def with_kappa(self, tier: Tier, kappa: float) -> Memory:
        """With another concentration of a tier's splats."""
        if tier == "episodic":
            return replace(self, episodic=replace(self.episodic, kappa=kappa))
        return replace(self, static=None if self.static is None else self.static.at(kappa))

    def with_share(self, tier: Tier, share: float) -> Memory:
        """With another share of a tier's law in the pool with the lexical one."""
        if tier == "episodic":
            return replace(self, episodic=replace(self.episodic, share=share))
        return replace(self, share=share)

    def share_of(self, tier: Tier) -> float:
        """Of a tier's splats in the pool with the lexical law."""
        return self.episodic.share if tier == "episodic" else self.share

    def state(self) -> dict[str, Tensor]:
        """Everything as tensors, for safetensors."""
        tensors = {f"static.{name}": value for name, value in (self.static.state() if self.static else {}).items()}
        for mode, gate in self.gates.items():
            tensors |= {f"gate.{mode}.{name}": value.contiguous() for name, value in vars(gate).items()}
        numbers = {"d": self.d, "vocab_size": self.vocab_size, "k": self.k, "share": self.share}
        numbers |= {f"episodic.{name}": value for name, value in dataclasses.asdict(self.episodic).items()}
        return tensors | {f"number.{name}": torch.tensor(value, dtype=torch.float64) for name, value in numbers.items()}

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor], source: str) -> Memory:
        """The memory of `state`, checked. source: the file, for messages.

        Raises:
            CheckpointError: a tensor is missing, or has the wrong shape, or values it must not have.
        """
        number = _numbers(state, source)
        d, vocab_size, k = (int(number[name]) for name in ("d", "vocab_size", "k"))
        kinds = {"capacity": int, "k": int, "scramble": bool}
        episodic = {
            entry.name: kinds.get(entry.name, float)(number[f"episodic.{entry.name}"])
            for entry in dataclasses.fields(EpisodicConfig)
        }
        own = {name[7:]: value for name, value in state.items() if name.startswith("static.")}
        static = SplatStore.from_state(own, source) if own else None
        if static and (static.d, static.vocab_size) != (d, vocab_size):
            raise _damaged(source, f"has splats of d {static.d}, {static.vocab_size} tokens, not {d}, {vocab_size}")
        modes = [mode for mode, tiers in TIERS.items() if tiers and (static or "static" not in tiers)]
        gates = {mode: _gate(state, mode, source) for mode in modes}
        return cls(d, vocab_size, static, k, number["share"], EpisodicConfig(**episodic), gates)


def _numbers(state: Mapping[str, Tensor], source: str) -> dict[str, float]:
    """Every number of a memory, finite and not negative (a half-life may be infinite). Files written before laws were
    pooled with the lexical one have neither share: 1."""
    shares = {f"number.{name}": torch.ones(()) for name in ("share", "episodic.share")}
    state = state if state.keys() & shares.keys() else {**state, **shares}
    episodic = [f"episodic.{entry.name}" for entry in dataclasses.fields(EpisodicConfig)]
    found = {}
    for name in ("d", "vocab_size", "k", "share", *episodic):
        value = state.get(f"number.{name}")
        if value is None or value.numel() != 1:
            raise _damaged(source, f"lacks {name!r}")
        found[name] = float(value)
        most = 1.0 if name.endswith("share") else math.inf if name == "episodic.half_life" else sys.float_info.max
        if not 0 <= found[name] <= most:
            raise _damaged(source, f"has {name} {found[name]}")
    return found


def _gate(state: Mapping[str, Tensor], mode: Mode, source: str) -> Gate:
    tiers = len(TIERS[mode])
    wide = LEXICAL + FEATURES * tiers
    for name, shape in (("weight", (tiers, wide)), ("bias", (tiers,)), ("mean", (wide,)), ("scale", (wide,))):
        value = state.get(f"gate.{mode}.{name}")
        if value is None or value.shape != shape or not bool(torch.isfinite(value).all()):
            raise _damaged(source, f"gate.{mode}.{name} is missing, not of shape {shape}, or not finite")
    return Gate(*(state[f"gate.{mode}.{name}"] for name in ("weight", "bias", "mean", "scale")))


def _damaged(source: str, what: str) -> CheckpointError:
    return CheckpointError(f"{source}: the memory {what}", hint="build the memory again with `ebmvk memory`")


@dataclass(frozen=True)
class Terms:
    """Of n tokens that followed n contexts: log_p (n, J) under J laws, features (n, F) of those laws for a gate."""

    log_p: Tensor
    features: Tensor

    @classmethod
    def empty(cls, n: int, tiers: int) -> Terms:
        """Of n tokens, under the lexical law and so many tiers; `put` fills them in."""
        return cls(torch.empty(n, 1 + tiers), torch.empty(n, LEXICAL + FEATURES * tiers))

    def put(self, rows: slice, part: Terms) -> None:
        """Sets some of the tokens' terms."""
        self.log_p[rows], self.features[rows] = part.log_p, part.features


def laws_at_once(vocab_size: int) -> int:
    """How many contexts' token laws are held at once: some 16 MiB of each."""
    return max(1, min(2048, (1 << 22) // vocab_size))


class Reader:
    """Reads one text, from its beginning, with the tiers of a memory that a mode names."""

    def __init__(self, memory: Memory, mode: Mode, backend: Backend) -> None:
        self.memory, self.mode, self.backend = memory, mode, backend
        static = memory.static if "static" in TIERS[mode] else None
        self.static = None if static is None else Splats.open(static, backend, memory.k)
        self.episodic = self._episodic()

    def again(self) -> Reader:
        """A reader of another text, with the same static splats."""
        other = copy(self)
        other.episodic = self._episodic()
        return other

    def _episodic(self) -> Episodic | None:
        memory = self.memory
        if "episodic" not in TIERS[self.mode]:
            return None
        return Episodic(memory.episodic, self.backend, memory.d, memory.vocab_size)

    def read(self, h: Tensor, log_p_lex: Tensor, tokens: Tensor) -> Terms:
        """Contexts h (n, d), in the order of the text, their log p_lex (n, V), and the tokens (n,) that followed.

        Context b is told of the text before b and of nothing else. Returns the lexical law's terms, then the tiers'.
        """
        h, tokens = h.float().cpu().contiguous(), tokens.cpu()
        terms, at_once = Terms.empty(len(tokens), len(TIERS[self.mode])), laws_at_once(self.memory.vocab_size)
        for first in range(0, len(tokens), at_once):
            rows = slice(first, first + at_once)
            following = tokens[rows]
            laws, features = self._laws(log_p_lex[rows].float().cpu(), self._recalls(h[rows], following))
            own = torch.cat([law.gather(1, following[:, None]) for law in laws], dim=1)
            terms.put(rows, Terms(own, features))
        return terms

    def _recalls(self, h: Tensor, following: Tensor | None) -> list[tuple[Recall, float]]:
        """What each tier says of contexts h (n, d), and its share. following: as of `log_prob`."""
        memory, recalls = self.memory, []
        if self.static:
            recalls.append((self.static.recall(h), memory.share_of("static")))
        if self.episodic:
            said = self.episodic.recall(h) if following is None else self.episodic.read(h, following)
            recalls.append((said, memory.share_of("episodic")))
        return recalls

    def _laws(self, lexical: Tensor, recalls: Sequence[tuple[Recall, float]]) -> tuple[list[Tensor], Tensor]:
        """log p (n, V) under the lexical law and each tier, and the features (n, F) of all of them for a gate."""
        pools = [recall.pooled(lexical, share) for recall, share in recalls]
        features = torch.cat([lexical_features(lexical), *(own for _, own in pools)], dim=1)
        return [lexical, *(law for law, _ in pools)], features

    def remember(self, h: Tensor, tokens: Tensor) -> None:
        """`read`, where nobody asks how likely the tokens were."""
        if self.episodic:
            h, tokens = h.float().cpu().contiguous(), tokens.cpu()
            at_once = laws_at_once(self.memory.vocab_size)
            for rows, following in zip(torch.split(h, at_once), torch.split(tokens, at_once), strict=True):
                self.episodic.read(rows, following)

    def splats(self) -> dict[Tier, int]:
        """How many there are in each tier."""
        static: dict[Tier, int] = {} if self.static is None else {"static": self.static.store.n}
        return static | ({} if self.episodic is None else {"episodic": self.episodic.n})

    def log_prob(self, h: Tensor, log_p_lex: Tensor, following: Tensor | None = None) -> Tensor:
        """log p(v|c) (n, V) after the text read so far, in the dtype and on the device of log_p_lex.

        following: the tokens (n,) that followed; the contexts are then read too, each after those before it.
        """
        own = h.float().cpu().contiguous()
        recalls = self._recalls(own, None if following is None else following.cpu())
        laws, features = self._laws(log_p_lex.float().cpu(), recalls)
        return mix(self.memory.gates[self.mode].log_weights(features), torch.stack(laws, dim=1)).to(log_p_lex)


def log_probs(terms: Terms, gates: Mapping[Mode, Gate], mode: Mode) -> dict[Mode, Tensor]:
    """log p (n,) of the tokens under each mode that uses no more tiers than `mode`, which the terms were read with."""
    have = TIERS[mode]
    found: dict[Mode, Tensor] = {"none": terms.log_p[:, 0].double()}
    for other, tiers in TIERS.items():
        if tiers and set(tiers) <= set(have):
            part = part_of(terms, have, tiers)
            found[other] = mix(gates[other].log_weights(part.features), part.log_p).double()
    return found


def part_of(terms: Terms, have: tuple[Tier, ...], tiers: tuple[Tier, ...]) -> Terms:
    """The lexical law and some of the tiers that the terms were read with."""
    places = [have.index(tier) for tier in tiers]
    columns = [*range(LEXICAL), *(LEXICAL + FEATURES * place + i for place in places for i in range(FEATURES))]
    return Terms(terms.log_p[:, [0, *(1 + place for place in places)]], terms.features[:, columns])
