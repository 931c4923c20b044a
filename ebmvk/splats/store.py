"""Memory splats as additive statistics, and what is derived from them (model sections 3 and 8).

A splat gathers contexts: n_k (mass), R_k = sum of r x (resultant), n_k(v) (token counts, sparse). They
add, so nothing is lost by merging splats, and one context can be taken out again, exactly (`leave_one_out`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from functools import cached_property

import torch
from torch import Tensor

from ebmvk.errors import ArgumentError, CheckpointError
from ebmvk.sphere.geometry import projx
from ebmvk.sphere.vmf import inverse_mean_cosine, log_c_ratio, mean_cosine

KAPPA_MIN, KAPPA_MAX = 1.0, 50.0


def fit_kappa(mass: Tensor, length: Tensor, d: int, tau: float) -> Tensor:
    """kappa_hat = clip(tau A_d^-1(r), 1, 50) / tau from mass n and |R|, with r^2 = max(0, (n |R/n|^2 - 1)/(n - 1)).

    The mean resultant of n points is longer than the law's by chance; a single point says nothing, so r = 0 there.
    mass, length: any shape, float64.
    """
    low, high = KAPPA_MIN / tau, KAPPA_MAX / tau
    square = ((length.square() / mass.clamp_min(1e-12) - 1) / (mass - 1).clamp_min(1e-12)).clamp(0, 1)
    r = torch.where(mass > 1, square, 0.0).sqrt()
    ceiling = mean_cosine(torch.tensor(high, dtype=r.dtype, device=r.device), d)  # beyond it the answer is `high`
    return inverse_mean_cosine(torch.minimum(r, ceiling), d).clamp(low, high)


@dataclass(frozen=True)
class LeftOut:
    """Statistics of a splat without one of its own members: mass, cosine of that member to the mean direction that is
    left, kappa_hat, and the count of the member's token. All (B,) float64; a splat left empty has mass 0, cosine 0."""

    mass: Tensor
    cosine: Tensor
    kappa: Tensor
    count: Tensor


@dataclass(frozen=True)
class SplatStore:
    """M splats over a vocabulary of V tokens on S^{d-1}.

    Args:
        mass: (M,) float64 > 0.
        resultant: (M, d) float32.
        count_start, count_token, count: CSR rows of token counts, (M+1,) int64, (nnz,) int64 rising within a row,
            (nnz,) float64. A row's sum is the mass.
        frequency: (M,) float64, responsibility received since birth; age, last_use: (M,) int64, in training steps.
        background: nu, the mass of the uniform background, alpha_inf = nu/(N+nu).
        beta: smoothing of the token distributions. tau: splat temperature. vocab_size: V.
    """

    mass: Tensor
    resultant: Tensor
    count_start: Tensor
    count_token: Tensor
    count: Tensor
    frequency: Tensor
    age: Tensor
    last_use: Tensor
    background: float
    beta: float
    tau: float
    vocab_size: int

    @classmethod
    def gather(
        cls, states: Tensor, tokens: Tensor, owner: Tensor, *, vocab_size: int, beta: float, tau: float
    ) -> SplatStore:
        """Statistics of states (n, d) followed by tokens (n,), each owned by one splat, owner (n,) int64.

        Owners are renumbered in order, without gaps. The background starts at nu = N, alpha_inf = 1/2.
        """
        row = torch.unique(owner, return_inverse=True)[1]
        mass = torch.bincount(row).to(torch.float64)
        # float64 and in order: sums of many unit vectors, the same on every run.
        resultant = torch.zeros(len(mass), states.shape[1], dtype=torch.float64).index_add_(0, row, states.double())
        cell, count = torch.unique(row * vocab_size + tokens, return_counts=True)
        start = torch.zeros(len(mass) + 1, dtype=torch.int64)
        start[1:] = torch.bincount(cell // vocab_size, minlength=len(mass)).cumsum(0)
        zero = torch.zeros(len(mass), dtype=torch.int64)
        return cls(
            mass=mass,
            resultant=resultant.float(),
            count_start=start,
            count_token=cell % vocab_size,
            count=count.double(),
            frequency=mass.clone(),
            age=zero,
            last_use=zero.clone(),
            background=float(mass.sum()),
            beta=beta,
            tau=tau,
            vocab_size=vocab_size,
        )

    @property
    def n(self) -> int:
        return len(self.mass)

    @property
    def d(self) -> int:
        return int(self.resultant.shape[1])

    @cached_property
    def mu(self) -> Tensor:
        """(M, d) float32 unit rows."""
        return projx(self.resultant)

    @cached_property
    def kappa(self) -> Tensor:
        """kappa_hat (M,) float32, in [1, 50] / tau: what enters C_d, exponents and A_d."""
        length = torch.linalg.vector_norm(self.resultant.double(), dim=1)
        return fit_kappa(self.mass, length, self.d, self.tau).float()

    @cached_property
    def logw(self) -> Tensor:
        """(M,) float32: log alpha_k + log C_d(kappa_hat_k) - log C_d(0), the weight of an engine candidate."""
        total = self.mass.sum() + self.background
        return ((self.mass / total).log() + log_c_ratio(self.kappa.double(), self.d)).float()

    @property
    def log_background(self) -> float:
        """log alpha_inf."""
        return math.log(self.background / (float(self.mass.sum()) + self.background))

    def token_law(self, ids: Tensor, weights: Tensor) -> Tensor:
        """sum_k weights_k V_k, with V_k = (n_k(v) + beta/V) / (n_k + beta). ids, weights: (B, K). Returns (B, V)."""
        rows, width = ids.shape
        share = weights.double() / (self.mass[ids] + self.beta)
        law = (share.sum(1, keepdim=True) * self.beta / self.vocab_size).expand(rows, self.vocab_size).contiguous()
        first, length = self.count_start[ids].flatten(), (self.count_start[ids + 1] - self.count_start[ids]).flatten()
        pair = torch.repeat_interleave(torch.arange(rows * width), length)
        place = torch.arange(len(pair)) - (length.cumsum(0) - length)[pair] + first[pair]
        cell = pair // width * self.vocab_size + self.count_token[place]
        law.view(-1).index_add_(0, cell, share.flatten()[pair] * self.count[place])
        return law

    def leave_one_out(self, x: Tensor, ids: Tensor, tokens: Tensor, weight: float = 1.0) -> LeftOut:
        """What splat ids_b is without context x_b, of the given weight, and its token (model section 8's trap).

        A training query that meets its own entry gains nats that no other text will. x: (B, d) unit; ids, tokens (B,).
        """
        resultant, x = self.resultant[ids].double(), x.double()
        along = (resultant * x).sum(1)
        mass = (self.mass[ids] - weight).clamp_min(0)
        square = (resultant.square().sum(1) - 2 * weight * along + weight**2).clamp_min(0)
        left = mass > 1e-9
        length = torch.where(left, square, 0.0).sqrt()
        cosine = torch.where(length > 0, (along - weight) / length.clamp_min(1e-12), 0.0)
        kappa = fit_kappa(mass, length, self.d, self.tau)
        return LeftOut(mass, cosine.clamp(-1, 1), kappa, (self._count_of(ids, tokens) - weight).clamp_min(0))

    def _count_of(self, ids: Tensor, tokens: Tensor) -> Tensor:
        """n_k(v) for pairs (B,), 0 where a splat never met the token."""
        row = torch.repeat_interleave(torch.arange(self.n), self.count_start.diff())
        cells, wanted = row * self.vocab_size + self.count_token, ids * self.vocab_size + tokens
        place = torch.searchsorted(cells, wanted).clamp_max(len(cells) - 1)
        return torch.where(cells[place] == wanted, self.count[place], 0.0)

    def state(self) -> dict[str, Tensor]:
        """Everything as tensors, for safetensors."""
        return {
            entry.name: value.contiguous() if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float64)
            for entry in fields(self)
            for value in [getattr(self, entry.name)]
        }

    @classmethod
    def from_state(cls, state: dict[str, Tensor], source: str) -> SplatStore:
        """The store of `state`, checked. source: the file, for messages.

        Raises:
            CheckpointError: a tensor is missing, or has the wrong shape or dtype, or they contradict each other.
        """
        missing = sorted({entry.name for entry in fields(cls)} - set(state))
        if missing:
            raise _damaged(source, f"lacks {missing[0]!r}")
        numbers = {name: float(state[name]) for name in ("background", "beta", "tau", "vocab_size")}
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
            "age": ((m,), torch.int64),
            "last_use": ((m,), torch.int64),
        }
        for name, (shape, dtype) in expected.items():
            value: Tensor = getattr(self, name)
            if value.shape != shape or value.dtype != dtype or m == 0:
                raise _damaged(source, f"{name} is {tuple(value.shape)} {value.dtype}, not {shape} {dtype}")
            if not bool(torch.isfinite(value).all()):
                raise _damaged(source, f"{name} is not finite")
        if not (min(self.background, self.beta, self.tau) > 0 and self.vocab_size > 0):
            raise _damaged(source, "background, beta, tau and vocab_size have to be positive")
        start, token = self.count_start, self.count_token
        if start[0] != 0 or start[-1] != nnz or bool((start.diff() < 0).any()):
            raise _damaged(source, "count_start is not a rising list of row starts")
        if nnz and not (int(token.min()) >= 0 and int(token.max()) < self.vocab_size):
            raise _damaged(source, f"count_token is outside [0, {self.vocab_size})")
        row = torch.repeat_interleave(torch.arange(m), start.diff())
        if bool(((row * self.vocab_size + token).diff() <= 0).any()):
            raise _damaged(source, "count_token does not rise within rows")
        sums = torch.zeros_like(self.mass).index_add_(0, row, self.count)
        if not bool((self.mass > 0).all()) or not torch.allclose(sums, self.mass, rtol=1e-9):
            raise _damaged(source, "token counts do not add up to the masses")
        if bool((torch.linalg.vector_norm(self.resultant.double(), dim=1) > self.mass * (1 + 1e-3)).any()):
            raise _damaged(source, "a resultant is longer than its mass")


def _damaged(source: str, what: str) -> CheckpointError:
    return CheckpointError(f"{source}: the splats' {what}", hint="use another checkpoint, or build the memory again")


def check_states(states: Tensor, tokens: Tensor) -> None:
    """states (n, d) with tokens (n,), n >= 1."""
    if states.dim() != 2 or tokens.shape != states.shape[:1] or not len(states):
        raise ArgumentError(
            f"states {tuple(states.shape)} and tokens {tuple(tokens.shape)} do not belong together",
            hint="pass one token per state, and at least one",
        )
