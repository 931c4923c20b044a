"""Checks the arguments of all operations, for every backend.

Each failed check raises ArgumentError with the argument, its value and one thing to try. Good
arguments cost one reduction per tensor; only after a failure is the bad row searched for.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor

from ebmvk.engine.api import Schedule, Storage
from ebmvk.engine.integrators import INTEGRATORS
from ebmvk.errors import ArgumentError

UNIT_TOLERANCE = 1e-3
"""How far from 1 the norm of a unit row may be. Float32 rounding (1e-7) passes, bfloat16 rounding
(4e-3) doesn't.
"""

MOST_LEAPFROGS = 1024
"""A longer trajectory is a mistake, and would exceed the time that a dispatch may take."""


LARGEST = 1e15
"""Larger values are mistakes. Their products or sums of squares would overflow float32, and the
infinities and NaN that follow can't be ordered as scores. (projx scales its rows first and takes
any finite value.)"""


@dataclass(frozen=True)
class Rules:
    """What a backend takes. native: only contiguous float32 on the CPU; otherwise any floating
    dtype on any device.
    """

    native: bool

    def tensor(self, name: str, value: Tensor, shape: tuple[int | None, ...], words: str) -> None:
        """Check type, shape (None means any size), dtype and layout. words: the shape for messages,
        such as "(B, d)".
        """
        if not isinstance(value, Tensor):
            raise ArgumentError(
                f"{name} is a {type(value).__name__}, not a torch.Tensor", hint=f"pass {name} through torch.as_tensor"
            )
        self._shape(name, value, shape, words)
        if not value.is_floating_point():
            raise ArgumentError(f"{name} has dtype {value.dtype}; expected {self._floats}", hint=f"pass {name}.float()")
        self._stored(name, value)
        if self.native:
            self._native(name, value, torch.float32)

    @property
    def _floats(self) -> str:
        return "torch.float32" if self.native else "a floating type"

    def ids(self, value: Tensor, rows: int, n: int, name: str = "ids") -> None:
        """Check ids (B, K) int64, K >= 1, each in [0, n)."""
        self.indices(name, value, (rows, None), "(B, K)", n)
        if value.shape[1] == 0:
            raise ArgumentError(f"{name} has no candidates (K = 0)", hint="pass at least one candidate per row")

    def indices(self, name: str, value: Tensor, shape: tuple[int | None, ...], words: str, n: int) -> None:
        """Check for int64 values in [0, n)."""
        if not isinstance(value, Tensor) or value.dtype != torch.int64:
            kind = value.dtype if isinstance(value, Tensor) else type(value).__name__
            raise ArgumentError(f"{name} has type {kind}; expected torch.int64", hint=f"pass {name}.long()")
        self._shape(name, value, shape, words)
        self._stored(name, value)
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
                f"{name} has shape {tuple(value.shape)}; expected {words} = ({wanted})",
                hint=f"reshape {name}, or check the tensors that determine these sizes",
            )

    def _stored(self, name: str, value: Tensor) -> None:
        if value.layout != torch.strided:
            raise ArgumentError(
                f"{name} has layout {value.layout}; expected a dense tensor", hint=f"pass {name}.to_dense()"
            )
        if value.device.type == "meta":
            raise ArgumentError(
                f"{name} is on the meta device, which holds no values", hint=f"make {name} on a real device"
            )

    def _native(self, name: str, value: Tensor, dtype: torch.dtype) -> None:
        if value.dtype != dtype:
            raise ArgumentError(f"{name} has dtype {value.dtype}; expected {dtype}", hint=f"pass {name}.float()")
        if value.device.type != "cpu":
            raise ArgumentError(f"{name} is on {value.device}; expected the CPU", hint=f"pass {name}.cpu()")
        if not value.is_contiguous():
            raise ArgumentError(
                f"{name} is not contiguous (strides {value.stride()})", hint=f"pass {name}.contiguous()"
            )


NATIVE = Rules(native=True)
ANY = Rules(native=False)


def finite(name: str, value: Tensor) -> None:
    """Check for values without NaN, infinities or sizes above LARGEST."""
    # The sum of squares bounds every value, so one cheap reduction is nearly always enough.
    flat = value.detach().reshape(-1)
    if not value.numel() or float(torch.dot(flat, flat)) <= LARGEST**2:
        return
    low, high = _extremes(value)
    if not -LARGEST <= low <= high <= LARGEST:
        bad = ~(value.detach().abs() <= LARGEST)
        _raise_at(name, value, bad, f"finite values of at most {LARGEST:g}")


def log_weights(name: str, value: Tensor) -> None:
    """Check log-weights: -inf (weight 0) is allowed; NaN, +inf and values above LARGEST aren't."""
    if value.numel() and not _extremes(value)[1] <= LARGEST:
        bad = ~(value.detach() <= LARGEST)
        _raise_at(name, value, bad, f"-inf or values of at most {LARGEST:g}")


def at_least(name: str, value: Tensor, low: float) -> None:
    """Check for finite values >= low."""
    finite(name, value)
    if value.numel() and not _extremes(value)[0] >= low:
        _raise_at(name, value, value.detach() < low, f"values of at least {low:g}")


def _extremes(value: Tensor) -> tuple[float, float]:
    """Smallest and largest value; both are NaN if any value is."""
    low, high = torch.aminmax(value.detach())
    return float(low), float(high)


def integer(name: str, value: object, low: int, high: int, hint: str) -> None:
    """Check for an int in [low, high)."""
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value < high:
        raise ArgumentError(f"{name} is {value!r}, outside [{low}, {high})", hint=hint)


def unit_rows(name: str, value: Tensor) -> None:
    """Check that rows have norm 1 within UNIT_TOLERANCE, which excludes NaN and infinity."""
    if not value.numel():
        return
    norms = torch.linalg.vector_norm(value.detach(), dim=-1)
    good = (norms - 1).abs() <= UNIT_TOLERANCE
    if not bool(good.all()):
        row = int((~good).nonzero()[0])
        raise ArgumentError(
            f"{name} row {row} has norm {float(norms[row]):.6g}; expected 1 within {UNIT_TOLERANCE:g}",
            hint=f"normalise {name} first (projx)",
        )


def _raise_at(name: str, value: Tensor, bad: Tensor, need: str) -> None:
    index = tuple(int(i) for i in bad.nonzero()[0])
    raise ArgumentError(
        f"{name}{list(index)} is {float(value[index]):g}; expected {need}",
        hint=f"find the operation before this call that computed {name}",
    )


def storage(value: str) -> None:
    """Check for float32 or float16."""
    if value not in get_args(Storage):
        raise ArgumentError(
            f"storage is {value!r}; expected {' or '.join(get_args(Storage))}",
            hint='pass "float32", or "float16" for half the memory',
        )


def stored(points: Tensor, storage: Storage) -> Tensor:
    """The rows that a backend keeps of `points`, rounded but in their own dtype. Unit rows can't
    overflow float16.
    """
    return points.half().to(points.dtype) if storage == "float16" else points


def points(rules: Rules, value: Tensor, like: tuple[int, int] | None = None) -> None:
    """Check points (N, d): N >= 1, d >= 2, unit rows.

    like: the shape that they must have, in an update.
    """
    rules.tensor("points", value, like or (None, None), "(N, d)")
    if value.shape[0] < 1 or value.shape[1] < 2:
        raise ArgumentError(
            f"points has shape {tuple(value.shape)}", hint="pass at least one point of at least two dimensions"
        )
    unit_rows("points", value)


def matrix(rules: Rules, name: str, value: Tensor) -> None:
    """Check for (B, d), d >= 1."""
    rules.tensor(name, value, (None, None), "(B, d)")
    if value.shape[1] < 1:
        raise ArgumentError(f"{name} has shape {tuple(value.shape)}", hint="pass at least one dimension")


def unit_pair(rules: Rules, other_name: str, x: Tensor, other: Tensor, *, unit_other: bool) -> None:
    """Check the arguments of sphere operations: x (B, d) unit, and another tensor of its shape,
    unit or just finite.
    """
    matrix(rules, "x", x)
    unit_rows("x", x)
    rules.tensor(other_name, other, tuple(x.shape), "(B, d)")
    if unit_other:
        unit_rows(other_name, other)
    else:
        finite(other_name, other)


def projx(rules: Rules, x: Tensor) -> None:
    """Check x (B, d): finite, without a zero row."""
    matrix(rules, "x", x)
    if x.numel():
        if not all(map(math.isfinite, _extremes(x))):
            _raise_at("x", x, ~torch.isfinite(x.detach()), "finite values")
        smallest = x.detach().abs().amax(dim=-1)
        if not bool((smallest > 0).all()):
            row = int((smallest == 0).nonzero()[0])
            raise ArgumentError(f"x row {row} is zero, so it has no direction", hint="drop or replace zero rows")


def topk(rules: Rules, queries: Tensor, n: int, d: int, k: int, scale: Tensor | None, bias: Tensor | None) -> None:
    """Check queries (B, d) finite; 1 <= k <= N; scale (N,) finite; bias (N,) finite or -inf."""
    rules.tensor("queries", queries, (None, d), "(B, d)")
    finite("queries", queries)
    integer("k", k, 1, n + 1, "ask for at most as many neighbours as there are points")
    if scale is not None:
        rules.tensor("scale", scale, (n,), "(N,)")
        finite("scale", scale)
    if bias is not None:
        rules.tensor("bias", bias, (n,), "(N,)")
        log_weights("bias", bias)


def candidates(
    rules: Rules, x: Tensor, n: int, d: int, ids: Tensor, logw: Tensor, kappa: Tensor, log_background: Tensor
) -> None:
    """Check x (B, d) unit; ids (B, K); logw, kappa (B, K); log_background (B,).

    Every row must have some weight.
    """
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
    if not bool((heaviest >= -LARGEST).all()):
        row = int((~(heaviest >= -LARGEST)).nonzero()[0])
        raise ArgumentError(
            f"logw row {row} and log_background[{row}] are all -inf or below {-LARGEST:g}",
            why="a row without any weight has no distribution",
            hint="give every row a candidate or a background with positive weight",
        )


def schedule(rules: Rules, value: Schedule, rows: int) -> None:
    """Check a schedule: tensors (L,) or (B, L); L step counts >= 0, below 2^31 in total."""
    if not isinstance(value, Schedule):
        raise ArgumentError(f"schedule is a {type(value).__name__}", hint="pass an ebmvk.engine.Schedule")
    levels = len(value.steps)
    if levels == 0:
        raise ArgumentError("schedule.steps is empty", hint="pass at least one level")
    for level, count in enumerate(value.steps):
        integer(f"schedule.steps[{level}]", count, 0, 2**31, "pass whole numbers of steps >= 0")
    integer("sum of schedule.steps", sum(value.steps), 0, 2**31, "run the steps in several calls")
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


def counter(name: str, first: int, extent: int) -> None:
    """Check that first to first + extent - 1 fit into a word of a Philox counter."""
    integer(name, first, 0, 2**32 - extent + 1, "use another seed instead of a larger number")


def seed_word(seed: int) -> None:
    """Check for a seed of 64 bits."""
    integer("seed", seed, 0, 2**64, "use the seed modulo 2**64")


def real(name: str, value: float, low: float) -> None:
    """Check for a finite number >= low."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= LARGEST:
        raise ArgumentError(f"{name} is {value!r}", hint=f"pass a number in [{low:g}, {LARGEST:g}]")


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
    """Check all arguments of `Backend.langevin`."""
    candidates(rules, x, n, d, ids, logw, kappa, log_background)
    rules.tensor("v", v, tuple(x.shape), "(B, d)")
    finite("v", v)
    schedule(rules, levels, x.shape[0])
    seed_word(seed)
    counter("first_step", first_step, sum(levels.steps))
    counter("first_chain", first_chain, x.shape[0])
    real("temperature", temperature, 0.0)
    if not isinstance(scheme, str) or scheme not in INTEGRATORS:
        raise ArgumentError(f"scheme is {scheme!r}", hint=f"use one of {', '.join(INTEGRATORS)}")
    integer("leapfrogs", leapfrogs, 1, MOST_LEAPFROGS + 1, "4 is a good start")


def cotangents(rules: Rules, x: Tensor, grad_energy: Tensor, grad_score: Tensor) -> None:
    """Check grad_energy (B,) and grad_score (B, d): finite. x has been checked before."""
    rules.tensor("grad_energy", grad_energy, (x.shape[0],), "(B,)")
    finite("grad_energy", grad_energy)
    rules.tensor("grad_score", grad_score, tuple(x.shape), "(B, d)")
    finite("grad_score", grad_score)


def vmf(rules: Rules, mu: Tensor, kappa: Tensor, seed: int, first_row: int) -> None:
    """Check mu (B, d) unit, d >= 2; kappa (B,) finite, >= 0."""
    rules.tensor("mu", mu, (None, None), "(B, d)")
    if mu.shape[1] < 2:
        raise ArgumentError(f"mu has shape {tuple(mu.shape)}", hint="pass at least two dimensions")
    unit_rows("mu", mu)
    rules.tensor("kappa", kappa, (mu.shape[0],), "(B,)")
    at_least("kappa", kappa, 0.0)
    seed_word(seed)
    counter("first_row", first_row, mu.shape[0])


def accumulate(rules: Rules, x: Tensor, ids: Tensor, responsibilities: Tensor, tokens: Tensor, n: int) -> None:
    """Check x (B, d) unit; ids (B, K) in [0, n), 1 <= n < 2^31; responsibilities (B, K) >= 0;
    tokens (B,) in [0, 2^31).
    """
    integer("n", n, 1, 2**31, "pass the number of splats")
    matrix(rules, "x", x)
    unit_rows("x", x)
    rules.ids(ids, x.shape[0], n)
    rules.tensor("responsibilities", responsibilities, tuple(ids.shape), "(B, K)")
    at_least("responsibilities", responsibilities, 0.0)
    rules.indices("tokens", tokens, (x.shape[0],), "(B,)", 2**31)
