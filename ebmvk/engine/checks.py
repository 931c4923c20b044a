"""The one place where arguments of operations are checked.

Each check names the argument, the value it has and one thing to try. Passing arguments cost a reduction per tensor;
the search for the row at fault happens only after a failure.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor

from ebmvk.engine.api import Schedule, Scheme, Storage
from ebmvk.errors import ArgumentError

UNIT_TOLERANCE = 1e-3
"""How far from 1 the norm of a unit row may be: rounding passes (float32 1e-7, bfloat16 4e-3 does not)."""

MOST_LEAPFROGS = 1024
"""A trajectory longer than this is a mistake, and would overrun the time a dispatch may take."""


@dataclass(frozen=True)
class Rules:
    """What a backend takes. native: contiguous float32 on the CPU, else any floating dtype on any device."""

    native: bool

    def tensor(self, name: str, value: Tensor, shape: tuple[int | None, ...], words: str) -> None:
        """Check type, shape (None: any size), dtype and layout; `words` says the shape, as in "(B, d)"."""
        if not isinstance(value, Tensor):
            raise ArgumentError(
                f"{name} is a {type(value).__name__}, not a torch.Tensor", hint=f"pass {name} through torch.as_tensor"
            )
        self._shape(name, value, shape, words)
        if not value.is_floating_point():
            raise ArgumentError(f"{name} has dtype {value.dtype}", hint=f"pass {name}.float()")
        if self.native:
            self._native(name, value, torch.float32)

    def ids(self, value: Tensor, rows: int, n: int, name: str = "ids") -> None:
        """ids (B, K) int64, K >= 1, each in [0, n)."""
        self.indices(name, value, (rows, None), "(B, K)", n)
        if value.shape[1] == 0:
            raise ArgumentError(f"{name} has no candidates (K = 0)", hint="pass at least one candidate per row")

    def indices(self, name: str, value: Tensor, shape: tuple[int | None, ...], words: str, n: int) -> None:
        """int64, each in [0, n)."""
        if not isinstance(value, Tensor) or value.dtype != torch.int64:
            kind = value.dtype if isinstance(value, Tensor) else type(value).__name__
            raise ArgumentError(f"{name} has type {kind}, where int64 is needed", hint=f"pass {name}.long()")
        self._shape(name, value, shape, words)
        if self.native:
            self._native(name, value, torch.int64)
        if value.numel():
            low, high = (int(extreme) for extreme in torch.aminmax(value))
            if low < 0 or high >= n:
                bad = low if low < 0 else high
                raise ArgumentError(f"{name} holds {bad}, outside [0, {n})", hint=f"keep {name} within this range")

    def _shape(self, name: str, value: Tensor, shape: tuple[int | None, ...], words: str) -> None:
        sizes = zip(shape, value.shape, strict=False)
        fits = value.dim() == len(shape) and all(want in (None, have) for want, have in sizes)
        if not fits:
            wanted = ", ".join("any" if size is None else str(size) for size in shape)
            raise ArgumentError(
                f"{name} has shape {tuple(value.shape)}, where {words} = ({wanted}) is needed",
                hint=f"reshape {name}, or check the tensors that fix these sizes",
            )

    def _native(self, name: str, value: Tensor, dtype: torch.dtype) -> None:
        if value.dtype != dtype:
            raise ArgumentError(f"{name} has dtype {value.dtype}, where {dtype} is needed", hint=f"pass {name}.float()")
        if value.device.type != "cpu":
            raise ArgumentError(f"{name} is on {value.device}, where the CPU is needed", hint=f"pass {name}.cpu()")
        if not value.is_contiguous():
            raise ArgumentError(
                f"{name} is not contiguous (strides {value.stride()})", hint=f"pass {name}.contiguous()"
            )


NATIVE = Rules(native=True)
ANY = Rules(native=False)


def finite(name: str, value: Tensor) -> None:
    """No NaN, no infinity. One sum decides: it is finite only if every term is (or overflows, then look closer)."""
    if value.numel() and not bool(torch.isfinite(value.detach().sum())):
        bad = ~torch.isfinite(value)
        if bool(bad.any()):
            _raise_at(name, value, bad, "finite values are needed")


def log_weights(name: str, value: Tensor) -> None:
    """Logarithms of weights: -inf (weight 0) is allowed, NaN and +inf are not."""
    if value.numel() and not bool((value < torch.inf).all()):
        _raise_at(name, value, ~(value < torch.inf), "finite values or -inf are needed")


def at_least(name: str, value: Tensor, low: float) -> None:
    """Finite and >= low."""
    finite(name, value)
    if value.numel() and not bool((value >= low).all()):
        _raise_at(name, value, value < low, f"values >= {low:g} are needed")


def unit_rows(name: str, value: Tensor) -> None:
    """Rows of norm 1 within UNIT_TOLERANCE (which also excludes NaN and infinity)."""
    if not value.numel():
        return
    norms = torch.linalg.vector_norm(value.detach(), dim=-1)
    good = (norms - 1).abs() <= UNIT_TOLERANCE
    if not bool(good.all()):
        row = int((~good).nonzero()[0])
        raise ArgumentError(
            f"{name} row {row} has norm {float(norms[row]):.6g}, where 1 within {UNIT_TOLERANCE:g} is needed",
            hint=f"normalise {name} first (projx)",
        )


def _raise_at(name: str, value: Tensor, bad: Tensor, need: str) -> None:
    index = tuple(int(i) for i in bad.nonzero()[0])
    raise ArgumentError(
        f"{name}{list(index)} is {float(value[index]):g}, where {need}",
        hint=f"find what made {name} so before this call",
    )


def storage(value: str) -> None:
    """float32 or float16."""
    if value not in get_args(Storage):
        raise ArgumentError(
            f"storage is {value!r}, where {' or '.join(get_args(Storage))} is needed",
            hint='leave it out for "float32", or pass "float16" for half the memory',
        )


def stored(points: Tensor, storage: Storage) -> Tensor:
    """The rows that a backend keeps of `points`, in their own dtype. Unit rows cannot overflow."""
    return points.half().to(points.dtype) if storage == "float16" else points


def points(rules: Rules, value: Tensor, like: tuple[int, int] | None = None) -> None:
    """Points (N, d), N >= 1, d >= 2, unit rows; `like` demands the same shape (update)."""
    rules.tensor("points", value, like or (None, None), "(N, d)")
    if value.shape[0] < 1 or value.shape[1] < 2:
        raise ArgumentError(
            f"points has shape {tuple(value.shape)}", hint="pass at least one point of at least two dimensions"
        )
    unit_rows("points", value)


def unit_pair(rules: Rules, other_name: str, x: Tensor, other: Tensor, *, unit_other: bool) -> None:
    """x (B, d) unit and a second tensor of its shape, finite or unit, as the sphere operations take them."""
    rules.tensor("x", x, (None, None), "(B, d)")
    unit_rows("x", x)
    rules.tensor(other_name, other, tuple(x.shape), "(B, d)")
    if unit_other:
        unit_rows(other_name, other)
    else:
        finite(other_name, other)


def projx(rules: Rules, x: Tensor) -> None:
    """x (B, d), finite, no zero row."""
    rules.tensor("x", x, (None, None), "(B, d)")
    finite("x", x)
    if x.numel():
        smallest = x.detach().abs().amax(dim=-1)
        if not bool((smallest > 0).all()):
            row = int((smallest == 0).nonzero()[0])
            raise ArgumentError(f"x row {row} is zero, which has no direction", hint="drop or replace zero rows")


def topk(rules: Rules, queries: Tensor, n: int, d: int, k: int, scale: Tensor | None, bias: Tensor | None) -> None:
    """queries (B, d) finite; 1 <= k <= N; scale (N,) finite; bias (N,) finite or -inf."""
    rules.tensor("queries", queries, (None, d), "(B, d)")
    finite("queries", queries)
    if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= n:
        raise ArgumentError(
            f"k is {k!r}, outside [1, {n}]", hint="ask for at most as many neighbours as there are points"
        )
    if scale is not None:
        rules.tensor("scale", scale, (n,), "(N,)")
        finite("scale", scale)
    if bias is not None:
        rules.tensor("bias", bias, (n,), "(N,)")
        log_weights("bias", bias)


def candidates(
    rules: Rules, x: Tensor, n: int, d: int, ids: Tensor, logw: Tensor, kappa: Tensor, log_background: Tensor
) -> None:
    """x (B, d) unit; ids (B, K); logw, kappa (B, K); log_background (B,); every row with some weight."""
    rules.tensor("x", x, (None, d), "(B, d)")
    unit_rows("x", x)
    rows = x.shape[0]
    rules.ids(ids, rows, n)
    shape = (rows, ids.shape[1])
    rules.tensor("logw", logw, shape, "(B, K)")
    log_weights("logw", logw)
    rules.tensor("kappa", kappa, shape, "(B, K)")
    at_least("kappa", kappa, 0.0)
    rules.tensor("log_background", log_background, (rows,), "(B,)")
    log_weights("log_background", log_background)
    heaviest = torch.maximum(logw.detach().amax(dim=1), log_background.detach()) if rows else log_background
    if not bool((heaviest > -torch.inf).all()):
        row = int((heaviest == -torch.inf).nonzero()[0])
        raise ArgumentError(
            f"logw row {row} and log_background[{row}] are all -inf, which is no distribution",
            hint="give every row a candidate or a background of positive weight",
        )


def schedule(rules: Rules, value: Schedule, rows: int) -> None:
    """Tensors (L,) or (B, L) with one length; L step counts >= 0."""
    levels = len(value.steps)
    if levels == 0:
        raise ArgumentError("schedule.steps is empty", hint="pass at least one level")
    for count in value.steps:
        if isinstance(count, bool) or not isinstance(count, int) or count < 0:
            raise ArgumentError(f"schedule.steps holds {count!r}", hint="pass whole numbers of steps >= 0")
    for name in ("kappa_scale", "logw_shift", "step_size", "gamma"):
        tensor: Tensor = getattr(value, name)
        shared = isinstance(tensor, Tensor) and tensor.dim() == 1
        rules.tensor(
            f"schedule.{name}", tensor, (levels,) if shared else (rows, levels), "(L,)" if shared else "(B, L)"
        )
    finite("schedule.logw_shift", value.logw_shift)
    at_least("schedule.kappa_scale", value.kappa_scale, 0.0)
    at_least("schedule.step_size", value.step_size, 0.0)
    at_least("schedule.gamma", value.gamma, 0.0)


def randomness(seed: int, first_step: int, first_chain: int, steps: int, rows: int, temperature: float) -> None:
    """Ranges of the words of a Philox counter; temperature finite and >= 0."""
    if not 0 <= seed < 2**64:
        raise ArgumentError(f"seed is {seed}, outside [0, 2^64)", hint="take the seed modulo 2**64")
    for name, first, extent in (("first_step", first_step, steps), ("first_chain", first_chain, rows)):
        if first < 0 or first + extent > 2**32:
            raise ArgumentError(f"{name} is {first} (+ {extent}), outside [0, 2^32)", hint="use another seed instead")
    if not 0 <= temperature < float("inf"):
        raise ArgumentError(f"temperature is {temperature}", hint="pass a finite temperature >= 0")


def langevin(
    rules: Rules,
    x: Tensor,
    v: Tensor,
    n: int,
    d: int,
    ids: Tensor,
    logw: Tensor,
    kappa: Tensor,
    log_background: Tensor,
    levels: Schedule,
    seed: int,
    first_step: int,
    first_chain: int,
    temperature: float,
    scheme: str = "gbaoab",
    leapfrogs: int = 1,
) -> None:
    """Everything `Backend.langevin` takes."""
    candidates(rules, x, n, d, ids, logw, kappa, log_background)
    rules.tensor("v", v, tuple(x.shape), "(B, d)")
    finite("v", v)
    schedule(rules, levels, x.shape[0])
    randomness(seed, first_step, first_chain, sum(levels.steps), x.shape[0], temperature)
    if scheme not in get_args(Scheme):
        raise ArgumentError(f"scheme is {scheme!r}", hint=f"use one of {', '.join(get_args(Scheme))}")
    if isinstance(leapfrogs, bool) or not isinstance(leapfrogs, int) or not 1 <= leapfrogs <= MOST_LEAPFROGS:
        raise ArgumentError(f"leapfrogs is {leapfrogs!r}, outside [1, {MOST_LEAPFROGS}]", hint="4 is a good start")


def cotangents(rules: Rules, x: Tensor, grad_energy: Tensor, grad_score: Tensor) -> None:
    """grad_energy (B,), grad_score (B, d): finite; x was checked before."""
    rules.tensor("grad_energy", grad_energy, (x.shape[0],), "(B,)")
    finite("grad_energy", grad_energy)
    rules.tensor("grad_score", grad_score, tuple(x.shape), "(B, d)")
    finite("grad_score", grad_score)


def vmf(rules: Rules, mu: Tensor, kappa: Tensor, seed: int, first_row: int) -> None:
    """mu (B, d) unit, d >= 2; kappa (B,) finite, >= 0."""
    rules.tensor("mu", mu, (None, None), "(B, d)")
    if mu.shape[1] < 2:
        raise ArgumentError(f"mu has shape {tuple(mu.shape)}", hint="pass at least two dimensions")
    unit_rows("mu", mu)
    rules.tensor("kappa", kappa, (mu.shape[0],), "(B,)")
    at_least("kappa", kappa, 0.0)
    randomness(seed, 0, 0, 0, 0, 1.0)
    if first_row < 0 or first_row + mu.shape[0] > 2**32:
        raise ArgumentError(f"first_row is {first_row} (+ {mu.shape[0]}), outside [0, 2^32)", hint="use another seed")


def accumulate(rules: Rules, x: Tensor, ids: Tensor, responsibilities: Tensor, tokens: Tensor, n: int) -> None:
    """x (B, d) unit; ids (B, K) in [0, n), 1 <= n < 2^31; responsibilities (B, K) >= 0; tokens (B,) in [0, 2^31)."""
    if isinstance(n, bool) or not isinstance(n, int) or not 1 <= n < 2**31:
        raise ArgumentError(f"n is {n!r}, outside [1, 2^31)", hint="pass the number of splats")
    rules.tensor("x", x, (None, None), "(B, d)")
    unit_rows("x", x)
    rows = x.shape[0]
    rules.ids(ids, rows, n)
    rules.tensor("responsibilities", responsibilities, (rows, ids.shape[1]), "(B, K)")
    at_least("responsibilities", responsibilities, 0.0)
    rules.indices("tokens", tokens, (rows,), "(B,)", 2**31)
