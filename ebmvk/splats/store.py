"""Memory splats as sums over contexts, and everything derived from them (model sections 3 and 8).

A splat sums up contexts that lie near one another: their number n_k (mass), R_k = sum of r x
(resultant), and n_k(v), how often each token followed (sparse counts). These statistics add, so
merging splats loses none of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from functools import cached_property

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from ebmvk.errors import ArgumentError, CheckpointError
from ebmvk.sphere.geometry import projx
from ebmvk.sphere.vmf import inverse_mean_cosine, log_c_ratio, mean_cosine

BETA = 2.0
"""beta of the splats of a training text.

Pooled with the lexical law, it keeps tokens possible that followed no context.
"""
_ROWS = 1 << 16  # states converted to float64 at once


def fit_kappa(mass: Tensor, length: Tensor, d: int, low: float, high: float) -> Tensor:
    """kappa_hat = clip(A_d^-1(r), low, high) from mass n and length |R|, of any shape, float64.

    r^2 = max(0, (n |R/n|^2 - 1)/(n - 1)) corrects the bias of the mean resultant, which for n
    points is longer by chance than that of their law. A single point says nothing, so r = 0 for it.
    """
    square = ((length.square() / mass.clamp_min(1e-12) - 1) / (mass - 1).clamp_min(1e-12)).clamp(0, 1)
    r = torch.where(mass > 1, square, 0.0).sqrt()
    # For a longer r, kappa_hat is `high`
    ceiling = mean_cosine(torch.tensor(high, dtype=r.dtype, device=r.device), d)
    return inverse_mean_cosine(torch.minimum(r, ceiling), d).clamp(low, high)


@dataclass(frozen=True)
class SplatStore:
    """M splats over a vocabulary of V tokens on S^{d-1}.

    Args:
        mass: (M,) float64 > 0.
        resultant: (M, d) float32.
        count_start, count_token, count: CSR rows of token counts: (M+1,) int64, (nnz,) int64 rising
            within a row, (nnz,) float64. The sum of a row is the splat's mass.
        background: nu, the mass of the uniform background; its weight is alpha_inf = nu/(N+nu),
            where N is the mass of all splats.
        beta: smoothing mass of the token distributions.
        kappa_min, kappa_max: bounds of kappa_hat. (The original system has the bounds 1 and
            50; divide them by its splat temperature to compare.)
        vocab_size: V.
        frequency: (M,) float64 >= 0, how often each splat was recalled in training: the sum of its
            posterior probabilities. It never fades.
        birth, last_use: (M,) int64, the training steps of a splat's birth and of its last recall.
            These two and `frequency` are 0 in a store that was built from a whole text, and not
            during training.
    """

    mass: Tensor
    resultant: Tensor
    count_start: Tensor
    count_token: Tensor
    count: Tensor
    background: float
    beta: float
    kappa_min: float
    kappa_max: float
    vocab_size: int
    frequency: Tensor
    birth: Tensor
    last_use: Tensor

    @classmethod
    def gather(
        cls,
        states: Tensor,
        tokens: Tensor,
        owner: Tensor,
        *,
        vocab_size: int,
        beta: float,
        kappa: tuple[float, float],
        weight: Tensor | None = None,
        step: int = 0,
    ) -> SplatStore:
        """A store built from states, each of which belongs to one splat.

        The background starts at nu = N, which means alpha_inf = 1/2.

        Args:
            states: (n, d), of any floating dtype.
            tokens: (n,) int64, the token that followed each context.
            owner: (n,) int64, the splat of each state; renumbered in order without gaps.
            kappa: the bounds of kappa_hat.
            weight: (n,) float64 > 0, the weight of each state; None means 1.
            step: the training step of the splats' birth.
        """
        check_states(states, tokens)
        row = torch.unique(owner, return_inverse=True)[1]
        weight = torch.ones(len(row), dtype=torch.float64) if weight is None else weight
        mass = torch.bincount(row, weight)
        # In float64 and in order, so that sums of many unit vectors are exact and the same in every
        # run.
        resultant = torch.zeros(len(mass), states.shape[1], dtype=torch.float64)
        for rows, part, own in zip(*(torch.split(part, _ROWS) for part in (row, states, weight)), strict=True):
            resultant.index_add_(0, rows, part.double() * own[:, None])
        cell, inverse = torch.unique(row * vocab_size + tokens, return_inverse=True)
        return cls(
            mass,
            resultant.float(),
            *_rows_of(cell, torch.bincount(inverse, weight), len(mass), vocab_size),
            background=float(mass.sum()),
            beta=beta,
            kappa_min=kappa[0],
            kappa_max=kappa[1],
            vocab_size=vocab_size,
            frequency=torch.zeros_like(mass),
            birth=torch.full((len(mass),), step),
            last_use=torch.full((len(mass),), step),
        )

    @property
    def n(self) -> int:
        return len(self.mass)

    @property
    def d(self) -> int:
        return int(self.resultant.shape[1])

    @cached_property
    def row(self) -> Tensor:
        """The splat that each count belongs to: (nnz,) int64."""
        return torch.repeat_interleave(torch.arange(self.n), self.count_start.diff())

    @cached_property
    def length(self) -> Tensor:
        """|R_k|: (M,) float64."""
        length: Tensor = torch.linalg.vector_norm(self.resultant.double(), dim=1)
        return length

    @cached_property
    def mu(self) -> Tensor:
        """The directions of the splats: (M, d) float32 unit rows."""
        return projx(self.resultant)

    @cached_property
    def kappa(self) -> Tensor:
        """kappa_hat within its bounds: (M,) float32. C_d, exponents and A_d all use it."""
        if self.kappa_min == self.kappa_max:
            return torch.full((self.n,), self.kappa_max, dtype=torch.float32)
        return fit_kappa(self.mass, self.length, self.d, self.kappa_min, self.kappa_max).float()

    @cached_property
    def logw(self) -> Tensor:
        """log n_k + log C_d(kappa_hat_k) - log C_d(0), (M,) float32, for a mass n_k.

        The background isn't among them; its weight is log nu.
        """
        return (self.mass.log() + log_c_ratio(self.kappa.double(), self.d)).float()

    def at(self, kappa: float) -> SplatStore:
        """The same splats, all with concentration kappa."""
        return replace(self, kappa_min=kappa, kappa_max=kappa)

    def scrambled(self, seed: int) -> SplatStore:
        """A control for experiments: splats keep token laws and masses, but swap directions."""
        other = torch.randperm(self.n, generator=torch.Generator().manual_seed(seed))
        return replace(self, resultant=self.mu[other] * self.length[:, None].float())

    # ---- adding up -------------------------------------------------------------------------------

    def scaled(self, factor: Tensor) -> SplatStore:
        """Each splat's statistics times its factor (M,) float64 > 0."""
        resultant = (self.resultant.double() * factor[:, None]).float()
        return replace(self, mass=self.mass * factor, resultant=resultant, count=self.count * factor[self.row])

    def kept(self, keep: Tensor) -> SplatStore:
        """Only the splats that `keep` marks. keep: (M,) bool, at least one is True."""
        cells = keep[self.row]
        length = self.count_start.diff()[keep]
        return replace(
            self,
            mass=self.mass[keep],
            resultant=self.resultant[keep],
            count_start=torch.cat((torch.zeros(1, dtype=torch.int64), length.cumsum(0))),
            count_token=self.count_token[cells],
            count=self.count[cells],
            frequency=self.frequency[keep],
            birth=self.birth[keep],
            last_use=self.last_use[keep],
        )

    def joined(self, other: SplatStore) -> SplatStore:
        """The splats of both stores, this one's first, with this one's settings."""
        return replace(
            self,
            mass=torch.cat((self.mass, other.mass)),
            resultant=torch.cat((self.resultant, other.resultant)),
            count_start=torch.cat((self.count_start, other.count_start[1:] + self.count_start[-1])),
            count_token=torch.cat((self.count_token, other.count_token)),
            count=torch.cat((self.count, other.count)),
            frequency=torch.cat((self.frequency, other.frequency)),
            birth=torch.cat((self.birth, other.birth)),
            last_use=torch.cat((self.last_use, other.last_use)),
        )

    def merged(self, owner: Tensor) -> SplatStore:
        """Merge the splats of each owner: statistics add; earliest birth and latest use stay.

        owner: (M,) int64, renumbered without gaps.
        """
        group = torch.unique(owner, return_inverse=True)[1]
        n = int(group.max()) + 1
        cell, inverse = torch.unique(group[self.row] * self.vocab_size + self.count_token, return_inverse=True)
        count = torch.zeros(len(cell), dtype=torch.float64).index_add_(0, inverse, self.count)
        resultant = torch.zeros(n, self.d, dtype=torch.float64).index_add_(0, group, self.resultant.double())
        start, token, count = _rows_of(cell, count, n, self.vocab_size)
        return replace(
            self,
            mass=torch.zeros(n, dtype=torch.float64).index_add_(0, group, self.mass),
            resultant=resultant.float(),
            count_start=start,
            count_token=token,
            count=count,
            frequency=torch.zeros(n, dtype=torch.float64).index_add_(0, group, self.frequency),
            birth=torch.zeros(n, dtype=torch.int64).scatter_reduce_(0, group, self.birth, "amin", include_self=False),
            last_use=torch.zeros(n, dtype=torch.int64).scatter_reduce_(
                0, group, self.last_use, "amax", include_self=False
            ),
        )

    def absorbed(self, x: Tensor, tokens: Tensor, ids: Tensor, weights: Tensor, step: int) -> SplatStore:
        """Add contexts x (B, d) and the tokens (B,) that followed to splats, with weights.

        ids, weights: (B, K), weights >= 0.

        The weights also count as recalls of the splats at training step `step`.
        """
        use = weights > 0
        splat, weight = ids[use], weights[use].double()
        member = torch.arange(len(x))[:, None].expand_as(ids)[use]
        mass = torch.zeros_like(self.mass).index_add_(0, splat, weight)
        resultant = self.resultant.double()
        for rows, w, m in zip(*(torch.split(part, _ROWS) for part in (splat, weight, member)), strict=True):
            resultant.index_add_(0, rows, w[:, None] * x[m].double())
        cells = torch.cat((self.row * self.vocab_size + self.count_token, splat * self.vocab_size + tokens[member]))
        cell, inverse = torch.unique(cells, return_inverse=True)
        count = torch.zeros(len(cell), dtype=torch.float64).index_add_(0, inverse, torch.cat((self.count, weight)))
        start, token, count = _rows_of(cell, count, self.n, self.vocab_size)
        return replace(
            self,
            mass=self.mass + mass,
            resultant=resultant.float(),
            count_start=start,
            count_token=token,
            count=count,
            frequency=self.frequency + mass,
            last_use=torch.where(mass > 0, step, self.last_use),
        )

    def trimmed(self, floor: float) -> SplatStore:
        """Drop token counts below `floor`, with their share of mass and resultant.

        Otherwise faded counts would never reach zero, and ever more cells would be stored. A splat
        may end with mass 0.
        """
        use = self.count >= floor
        mass = torch.zeros_like(self.mass).index_add_(0, self.row[use], self.count[use])
        length = torch.bincount(self.row[use], minlength=self.n)
        return replace(
            self,
            mass=mass,
            resultant=(self.resultant.double() * (mass / self.mass)[:, None]).float(),
            count_start=torch.cat((torch.zeros(1, dtype=torch.int64), length.cumsum(0))),
            count_token=self.count_token[use],
            count=self.count[use],
        )

    # ---- token laws ------------------------------------------------------------------------------

    def token_law(self, ids: Tensor, weights: Tensor) -> Tensor:
        """sum_k weights_k V_k with V_k = (n_k(v) + beta/V) / (n_k + beta): (B, V).

        ids, weights: (B, K).
        """
        share = weights / (self.mass[ids] + self.beta).to(weights.dtype)
        rows = np.arange(0, ids.numel() + 1, ids.shape[1])
        chosen = sparse.csr_array((share.flatten().numpy(), ids.flatten().numpy(), rows), shape=(len(ids), self.n))
        law = torch.from_numpy((chosen @ self._counts).toarray())
        return law.add_(share.sum(1, keepdim=True) * (self.beta / self.vocab_size))

    @cached_property
    def _counts(self) -> sparse.csr_array:
        """n_k(v), (M, V) float32, sparse. Its products take a sixth of the time of sums by
        index."""
        parts = (self.count.float().numpy(), self.count_token.int().numpy(), self.count_start.int().numpy())
        return sparse.csr_array(parts, shape=(self.n, self.vocab_size))

    def count_of(self, ids: Tensor, tokens: Tensor) -> Tensor:
        """n_k(v) for pairs of splats and tokens, (B,); 0 if the splat never met the token."""
        cells, wanted = self.row * self.vocab_size + self.count_token, ids * self.vocab_size + tokens
        place = torch.searchsorted(cells, wanted).clamp_max(len(cells) - 1)
        return torch.where(cells[place] == wanted, self.count[place], 0.0)

    # ---- files -----------------------------------------------------------------------------------

    def state(self) -> dict[str, Tensor]:
        """Everything as tensors, for safetensors."""
        return {
            entry.name: value.contiguous() if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float64)
            for entry in fields(self)
            for value in [getattr(self, entry.name)]
        }

    @classmethod
    def from_state(cls, state: dict[str, Tensor], source: str) -> SplatStore:
        """The store that `state` saved, checked. source: the file, for messages.

        Files of earlier versions lack frequency, birth and last use; they become 0.

        Raises:
            CheckpointError: a tensor is missing or has the wrong shape or dtype, or tensors
                contradict each other.
        """
        if not state.keys() & {"frequency", "birth", "last_use"} and "mass" in state:
            steps = torch.zeros(len(state["mass"]), dtype=torch.int64)
            state = state | {"frequency": steps.double(), "birth": steps, "last_use": steps}
        missing = sorted({entry.name for entry in fields(cls)} - set(state))
        if missing:
            raise _damaged(source, f"lacks {missing[0]!r}")
        numbers = {name: float(state[name]) for name in ("background", "beta", "kappa_min", "kappa_max", "vocab_size")}
        tensors = {e.name: state[e.name] for e in fields(cls) if e.name not in numbers}
        vocab_size = int(numbers.pop("vocab_size"))
        store = cls(**tensors, **numbers, vocab_size=vocab_size)  # type: ignore[arg-type]
        store._check(source)
        return store

    def _check(self, source: str) -> None:
        m, nnz = len(self.mass), len(self.count)
        expected = {
            "mass": ((m,), torch.float64),
            "resultant": ((m, *self.resultant.shape[1:2]), torch.float32),
            "count_start": ((m + 1,), torch.int64),
            "count_token": ((nnz,), torch.int64),
            "count": ((nnz,), torch.float64),
            "frequency": ((m,), torch.float64),
            "birth": ((m,), torch.int64),
            "last_use": ((m,), torch.int64),
        }
        for name, (shape, dtype) in expected.items():
            value: Tensor = getattr(self, name)
            if value.shape != shape or value.dtype != dtype or m == 0:
                raise _damaged(source, f"{name} is {tuple(value.shape)} {value.dtype}, not {shape} {dtype}")
            if not bool(torch.isfinite(value).all()):
                raise _damaged(source, f"{name} is not finite")
        numbers = (self.background, self.beta, self.kappa_min, self.kappa_max - self.kappa_min)
        if not (min(numbers[:3]) > 0 and numbers[3] >= 0 and all(map(math.isfinite, numbers)) and self.vocab_size > 0):
            raise _damaged(source, "background, beta, kappa bounds or vocab_size are not positive, or not in order")
        start, token = self.count_start, self.count_token
        if start[0] != 0 or start[-1] != nnz or bool((start.diff() < 0).any()):
            raise _damaged(source, "count_start is not a rising list of row starts")
        if nnz and not (int(token.min()) >= 0 and int(token.max()) < self.vocab_size):
            raise _damaged(source, f"count_token is outside [0, {self.vocab_size})")
        if bool(((self.row * self.vocab_size + token).diff() <= 0).any()):
            raise _damaged(source, "count_token does not rise within rows")
        sums = torch.zeros_like(self.mass).index_add_(0, self.row, self.count)
        if not bool((self.mass > 0).all()) or not torch.allclose(sums, self.mass, rtol=1e-9):
            raise _damaged(source, "token counts do not add up to the masses")
        if bool((self.length > self.mass * (1 + 1e-3)).any()):
            raise _damaged(source, "a resultant is longer than its mass")
        if bool((self.frequency < 0).any()) or bool((self.birth < 0).any()) or bool((self.last_use < self.birth).any()):
            raise _damaged(source, "frequency or birth is negative, or a last use comes before the splat's birth")


def _rows_of(cell: Tensor, count: Tensor, n: int, vocab_size: int) -> tuple[Tensor, Tensor, Tensor]:
    """(start, token, count) of a CSR matrix from sorted cells, each row V + token."""
    start = torch.zeros(n + 1, dtype=torch.int64)
    start[1:] = torch.bincount(cell // vocab_size, minlength=n).cumsum(0)
    return start, cell % vocab_size, count


def _damaged(source: str, what: str) -> CheckpointError:
    return CheckpointError(f"{source}: the splats' {what}", hint="use another checkpoint, or build the memory again")


def check_states(states: Tensor, tokens: Tensor) -> None:
    """Raise ArgumentError unless states are (n, d) and tokens (n,), n >= 1."""
    if states.dim() != 2 or tokens.shape != states.shape[:1] or not len(states):
        raise ArgumentError(
            f"states {tuple(states.shape)} and tokens {tuple(tokens.shape)} do not belong together",
            hint="pass one token per state, and at least one",
        )
