"""The token law of a model with memory, which is exact and normalised (model section 5).

    p(v|c) = g_0 p_lex(v|c) + sum over tiers g_i p_i(v|c)
    p_i = p_mem^s p_lex^(1 - s) / Z,    p_mem = sum_k q_k V_k + q_inf / V

p_lex is the model's own (lexical) law. Every part is normalised, so the mixture is too. Within a
tier, energies add. The share s is the weight of the splats, and 1 - s that of the lexical law; at s
= 1 the tier is p_mem alone. There are two tiers: static memory, of the training text, and episodic
memory, of the text that is being read.
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
from ebmvk.memory import calibration
from ebmvk.memory.calibration import Calibration
from ebmvk.memory.episodic import Episodic, EpisodicConfig
from ebmvk.memory.gate import LEXICAL, Gate, lexical_features, mix
from ebmvk.splats.recall import FEATURES, Recall, Splats
from ebmvk.splats.store import SplatStore

KNN_K = 256  # static splats looked up for each context
SHARE = 0.5  # of the static splats in the pool with the lexical law, before it is fitted
Tier = Literal["static", "episodic"]
Mode = Literal["none", "static", "episodic", "both"]
Law = Literal["none", "calibrated", "static", "episodic", "both"]
"""The laws that can score a text. `none` and `calibrated` use no memory."""
TIERS: dict[Mode, tuple[Tier, ...]] = {
    "none": (),
    "static": ("static",),
    "episodic": ("episodic",),
    "both": ("static", "episodic"),
}


@dataclass(frozen=True)
class Control:
    """Shares and gates of the scrambled memory, fitted like the memory's and on the same tokens.

    Positions, concentrations and the background stay, because scrambling doesn't change them.
    """

    share: float
    episodic_share: float
    gates: Mapping[Mode, Gate]


@dataclass(frozen=True)
class Memory:
    """The memory of one model.

    d, vocab_size: those of the model.
    static: splats of the training text; None without any. k: number of splats looked up per
        context. share: weight of their law in the pool with the lexical law.
    episodic: how to remember the text that is being read.
    gates: one for each usable mode except "none".
    calibration, control: fitted with the memory, for comparison; None in files of earlier versions.
    """

    d: int
    vocab_size: int
    static: SplatStore | None
    k: int
    share: float
    episodic: EpisodicConfig
    gates: Mapping[Mode, Gate]
    calibration: Calibration | None = None
    control: Control | None = None

    @classmethod
    def unfitted(cls, static: SplatStore | None, *, d: int, vocab_size: int) -> Memory:
        """A memory before anything is fitted, without gates."""
        return cls(d, vocab_size, static, KNN_K, SHARE, EpisodicConfig(), {})

    def using(self, capacity: int | None, *, scramble: bool) -> Memory:
        """This memory with another episodic capacity (None: unchanged), or scrambled.

        scramble: True for the control, where splats keep their positions but swap token laws. It
            has its own shares and gates if the file contains them.
        """
        own = self.episodic.capacity if capacity is None else capacity
        found = replace(self, episodic=replace(self.episodic, capacity=own))
        return found.scrambled() if scramble else found

    def scrambled(self) -> Memory:
        """The control, see `using`."""
        static = None if self.static is None else self.static.scrambled(seed=0)
        found = replace(self, static=static, episodic=replace(self.episodic, scramble=True))
        if self.control is None:
            return found
        own = replace(found, share=self.control.share, gates=self.control.gates)
        return own.with_share("episodic", self.control.episodic_share)

    def with_kappa(self, tier: Tier, kappa: float) -> Memory:
        """This memory with another concentration of a tier's splats."""
        if tier == "episodic":
            return replace(self, episodic=replace(self.episodic, kappa=kappa))
        return replace(self, static=None if self.static is None else self.static.at(kappa))

    def with_share(self, tier: Tier, share: float) -> Memory:
        """This memory with another share of a tier in its pool with the lexical law."""
        if tier == "episodic":
            return replace(self, episodic=replace(self.episodic, share=share))
        return replace(self, share=share)

    def share_of(self, tier: Tier) -> float:
        """The weight of a tier's splats in its pool with the lexical law."""
        return self.episodic.share if tier == "episodic" else self.share

    def kappa_of(self, tier: Tier) -> float:
        """The concentration of a tier's splats.

        For static splats it is the largest one: until a memory is fitted, splats that training
        consolidated each have their own.
        """
        if tier == "episodic":
            return self.episodic.kappa
        return math.nan if self.static is None else self.static.kappa_max

    def state(self) -> dict[str, Tensor]:
        """Everything as tensors, for safetensors."""
        tensors = {f"static.{name}": value for name, value in (self.static.state() if self.static else {}).items()}
        gates = {f"gate.{mode}": gate for mode, gate in self.gates.items()}
        if self.calibration:
            gates["calibration.gate"] = self.calibration.gate
        if self.control:
            gates |= {f"control.gate.{mode}": gate for mode, gate in self.control.gates.items()}
        for key, gate in gates.items():
            tensors |= {f"{key}.{name}": value.contiguous() for name, value in vars(gate).items()}
        numbers = {"d": self.d, "vocab_size": self.vocab_size, "k": self.k, "share": self.share}
        numbers |= {f"episodic.{name}": value for name, value in dataclasses.asdict(self.episodic).items()}
        if self.calibration:
            numbers["calibration.power"] = self.calibration.power
        if self.control:
            numbers |= {"control.share": self.control.share, "control.episodic.share": self.control.episodic_share}
        return tensors | {f"number.{name}": torch.tensor(value, dtype=torch.float64) for name, value in numbers.items()}

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor], source: str) -> Memory:
        """The memory that `state` saved, checked. source: the file, for messages.

        Raises:
            CheckpointError: a tensor is missing, or has the wrong shape or impossible values.
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
            raise _damaged(
                source,
                f"has splats of {static.d} dimensions and {static.vocab_size} tokens, not of {d} and {vocab_size}",
            )
        modes = [mode for mode, tiers in TIERS.items() if tiers and (static or "static" not in tiers)]
        gates = {mode: _gate(state, f"gate.{mode}", _shape(mode), source) for mode in modes}
        memory = cls(d, vocab_size, static, k, number["share"], EpisodicConfig(**episodic), gates)
        return replace(memory, calibration=_calibration(state, source), control=_control(state, modes, source))


def _numbers(state: Mapping[str, Tensor], source: str) -> dict[str, float]:
    """The numbers of a memory, checked to be finite and not negative (a half-life may be infinite).

    Files of earlier versions have no shares, which means 1.
    """
    shares = {f"number.{name}": torch.ones(()) for name in ("share", "episodic.share")}
    state = state if state.keys() & shares.keys() else {**state, **shares}
    episodic = [f"episodic.{entry.name}" for entry in dataclasses.fields(EpisodicConfig)]
    return {name: _number(state, name, source) for name in ("d", "vocab_size", "k", "share", *episodic)}


def _number(state: Mapping[str, Tensor], name: str, source: str) -> float:
    value = state.get(f"number.{name}")
    if value is None or value.numel() != 1:
        raise _damaged(source, f"lacks {name!r}")
    found = float(value)
    most = 1.0 if name.endswith("share") else math.inf if name == "episodic.half_life" else sys.float_info.max
    if not 0 <= found <= most:
        raise _damaged(source, f"has {name} {found}")
    return found


def _calibration(state: Mapping[str, Tensor], source: str) -> Calibration | None:
    """The saved calibration; None if an earlier version wrote the file."""
    if not any(name.startswith(("calibration.", "number.calibration.")) for name in state):
        return None
    gate = _gate(state, "calibration.gate", (1, calibration.FEATURES), source)
    return Calibration(_number(state, "calibration.power", source), gate)


def _control(state: Mapping[str, Tensor], modes: Sequence[Mode], source: str) -> Control | None:
    """The saved control; None if an earlier version wrote the file."""
    if not any(name.startswith(("control.", "number.control.")) for name in state):
        return None
    gates = {mode: _gate(state, f"control.gate.{mode}", _shape(mode), source) for mode in modes}
    share, episodic = (_number(state, name, source) for name in ("control.share", "control.episodic.share"))
    return Control(share, episodic, gates)


def _shape(mode: Mode) -> tuple[int, int]:
    """(number of tiers that a mode's gate weighs, number of its features)."""
    tiers = len(TIERS[mode])
    return tiers, LEXICAL + FEATURES * tiers


def _gate(state: Mapping[str, Tensor], key: str, shape: tuple[int, int], source: str) -> Gate:
    tiers, wide = shape
    for name, size in (("weight", shape), ("bias", (tiers,)), ("mean", (wide,)), ("scale", (wide,))):
        value = state.get(f"{key}.{name}")
        if value is None or value.shape != size or not bool(torch.isfinite(value).all()):
            raise _damaged(source, f"{key}.{name} is missing, not of shape {size}, or not finite")
    return Gate(*(state[f"{key}.{name}"] for name in ("weight", "bias", "mean", "scale")))


def _damaged(source: str, what: str) -> CheckpointError:
    return CheckpointError(f"{source}: the memory {what}", hint="build the memory again with `ebmvk memory`")


@dataclass(frozen=True)
class Terms:
    """What a gate needs to know about n tokens that followed n contexts.

    log_p: (n, J), the tokens' log probabilities under J laws. features: (n, F), of these laws.
    calibrated: (n,), log p_cal under the calibrated law, if the memory has one.
    """

    log_p: Tensor
    features: Tensor
    calibrated: Tensor | None = None

    @classmethod
    def empty(cls, n: int, tiers: int, *, calibrated: bool) -> Terms:
        """Terms for n tokens under the lexical law and `tiers` tiers, for `put` to fill in."""
        own = torch.empty(n) if calibrated else None
        return cls(torch.empty(n, 1 + tiers), torch.empty(n, LEXICAL + FEATURES * tiers), own)

    def put(self, rows: slice, part: Terms) -> None:
        """Set the terms of some tokens."""
        self.log_p[rows], self.features[rows] = part.log_p, part.features
        if self.calibrated is not None:
            assert part.calibrated is not None  # otherwise these rows would stay uninitialised
            self.calibrated[rows] = part.calibrated


def laws_at_once(vocab_size: int) -> int:
    """The number of contexts whose token laws are in memory at once: about 16 MiB for each law."""
    return max(1, min(2048, (1 << 22) // vocab_size))


class Reader:
    """Reads one text from its beginning. The mode says which tiers of the memory it uses."""

    def __init__(self, memory: Memory, mode: Mode, backend: Backend) -> None:
        self.memory, self.mode, self.backend = memory, mode, backend
        static = memory.static if "static" in TIERS[mode] else None
        self.static = None if static is None else Splats.open(static, backend, memory.k)
        self.episodic = self._episodic()

    def again(self) -> Reader:
        """A reader for another text, with the same static splats."""
        other = copy(self)
        other.episodic = self._episodic()
        return other

    def _episodic(self) -> Episodic | None:
        memory = self.memory
        if "episodic" not in TIERS[self.mode]:
            return None
        return Episodic(memory.episodic, self.backend, memory.d, memory.vocab_size)

    def read(self, h: Tensor, log_p_lex: Tensor, tokens: Tensor) -> Terms:
        """Read contexts and the tokens that followed; returns their terms, the lexical law's first.

        Args:
            h: (n, d), contexts in the order of the text. Each one sees only the text before it.
            log_p_lex: (n, V).
            tokens: (n,) int64, the token that followed each context.
        """
        return self.read_at(h, log_p_lex, tokens, [self.shares])[0]

    def read_at(self, h: Tensor, log_p_lex: Tensor, tokens: Tensor, shares: Sequence[Sequence[float]]) -> list[Terms]:
        """`read` for several sets of shares, one share per tier; splats are looked up only once."""
        h, tokens = h.float().cpu().contiguous(), tokens.cpu()
        own, at_once = self.memory.calibration, laws_at_once(self.memory.vocab_size)
        found = [self.empty_terms(len(tokens), share) for share in shares]
        for first in range(0, len(tokens), at_once):
            rows = slice(first, first + at_once)
            lexical, following = log_p_lex[rows].float().cpu(), tokens[rows]
            recalls = self.recalls(h[rows], following)
            calibrated = own.of_tokens(lexical, following) if own else None
            for terms, share in zip(found, shares, strict=True):
                laws, features = self._laws(lexical, recalls, share)
                log_p = torch.cat([law.gather(1, following[:, None]) for law in laws], dim=1)
                terms.put(rows, Terms(log_p, features, calibrated))
        return found

    def empty_terms(self, n: int, shares: Sequence[float] | None = None) -> Terms:
        """`Terms` for n tokens, to be filled in. shares: one for each tier."""
        tiers = len(self.shares if shares is None else shares)
        return Terms.empty(n, tiers, calibrated=self.memory.calibration is not None)

    @property
    def shares(self) -> list[float]:
        """The shares of the tiers that this reader uses, each in the tier's pool with the lexical
        law.
        """
        return [self.memory.share_of(tier) for tier in TIERS[self.mode] if tier == "episodic" or self.static]

    @property
    def laws(self) -> list[Law]:
        """The laws that `log_probs` returns for a text that was read, in the same order."""
        own: list[Law] = ["calibrated"] if self.memory.calibration else []
        tiers = set(TIERS[self.mode])
        return ["none", *own, *(mode for mode, some in TIERS.items() if some and tiers.issuperset(some))]

    def recalls(self, h: Tensor, following: Tensor | None) -> list[Recall]:
        """Each tier's law for contexts h (n, d), float32 on the CPU. following: see `log_prob`."""
        said = [] if self.static is None else [self.static.recall(h)]
        if self.episodic:
            said.append(self.episodic.recall(h) if following is None else self.episodic.read(h, following))
        return said

    @staticmethod
    def _laws(lexical: Tensor, recalls: Sequence[Recall], shares: Sequence[float]) -> tuple[list[Tensor], Tensor]:
        """(log p (n, V) under the lexical law and each tier, features (n, F) of all of them)."""
        pools = [recall.pooled(lexical, share) for recall, share in zip(recalls, shares, strict=True)]
        features = torch.cat([lexical_features(lexical), *(own for _, own in pools)], dim=1)
        return [lexical, *(law for law, _ in pools)], features

    def remember(self, h: Tensor, tokens: Tensor) -> None:
        """Like `read`, for callers that don't need the probabilities of the tokens."""
        if self.episodic:
            h, tokens = h.float().cpu().contiguous(), tokens.cpu()
            at_once = laws_at_once(self.memory.vocab_size)
            for rows, following in zip(torch.split(h, at_once), torch.split(tokens, at_once), strict=True):
                self.episodic.read(rows, following)

    def splats(self) -> dict[Tier, int]:
        """{tier: number of its splats}."""
        static: dict[Tier, int] = {} if self.static is None else {"static": self.static.store.n}
        return static | ({} if self.episodic is None else {"episodic": self.episodic.n})

    def log_prob(self, h: Tensor, log_p_lex: Tensor, following: Tensor | None = None) -> Tensor:
        """log p(v|c) (n, V) after the text read so far, with dtype and device of log_p_lex.

        following: the tokens (n,) that followed. With them, each context is also read after it was
            looked up. None: only look up.
        """
        own = h.float().cpu().contiguous()
        recalls = self.recalls(own, None if following is None else following.cpu())
        laws, features = self._laws(log_p_lex.float().cpu(), recalls, self.shares)
        return mix(self.memory.gates[self.mode].log_weights(features), torch.stack(laws, dim=1)).to(log_p_lex)


def log_probs(terms: Terms, gates: Mapping[Mode, Gate], mode: Mode) -> dict[Law, Tensor]:
    """{law: log p (n,) of the tokens} for every mode whose tiers are among those of `mode`.

    terms: read with `mode`. The result also has the calibrated law, if the memory has one.
    """
    have = TIERS[mode]
    found: dict[Law, Tensor] = {"none": terms.log_p[:, 0].double()}
    if terms.calibrated is not None:
        found["calibrated"] = terms.calibrated.double()
    for other, tiers in TIERS.items():
        if tiers and set(tiers) <= set(have):
            part = part_of(terms, have, tiers)
            found[other] = mix(gates[other].log_weights(part.features), part.log_p).double()
    return found


def part_of(terms: Terms, have: tuple[Tier, ...], tiers: tuple[Tier, ...]) -> Terms:
    """Select the terms that belong to the lexical law or to one of `tiers`. have: the tiers in
    `terms`."""
    places = [have.index(tier) for tier in tiers]
    columns = [*range(LEXICAL), *(LEXICAL + FEATURES * place + i for place in places for i in range(FEATURES))]
    return Terms(terms.log_p[:, [0, *(1 + place for place in places)]], terms.features[:, columns])
