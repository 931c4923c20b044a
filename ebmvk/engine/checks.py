"""Checks the arguments of all operations, for every backend.

Each failed check raises ArgumentError with the argument, its value and one thing to try. Good
arguments cost one reduction per tensor; the bad row is looked for only after a failure.

Of a `DeviceTensor`, the shape, the dtype, the device and the range of ids are checked. Its floats
aren't checked, because that would mean waiting for the device and reading them back. They come from
operations that checked their own arguments, or from `Vulkan.tensor`, which refuses NaN.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast, get_args

import torch
from torch import Tensor

from ebmvk.engine.api import Schedule, Storage
from ebmvk.engine.device_tensor import DeviceTensor, on_device
from ebmvk.engine.integrators import INTEGRATORS
from ebmvk.engine.operations import OPERATIONS, TABLES, Argument, Operation
from ebmvk.errors import ArgumentError

UNIT_TOLERANCE = 1e-3
"""How far from 1 the norm of a unit row may be. Float32 rounding (1e-7) passes, bfloat16 rounding
(4e-3) doesn't."""

LARGEST = 1e15
"""Larger values are mistakes. Their products or sums of squares would overflow float32, and the
infinities and NaN that follow can't be ordered as scores. (projx scales its rows first and takes
any finite value.)"""


@dataclass(frozen=True)
class Rules:
    """What a backend takes. native: True for contiguous float32 on the CPU only, False for any
    floating dtype on any device. home: the engine whose `DeviceTensor`s are taken, too, if any."""

    native: bool
    home: object | None = None

    def tensor(self, name: str, value: Tensor, shape: tuple[int | None, ...], words: str) -> None:
        """Check type, shape (None means any size), dtype and layout. words: the shape for messages,
        such as "(B, d)"."""
        if isinstance(value, DeviceTensor):
            self._kept(name, value, shape, words, torch.float32)
            return
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

    def indices(self, name: str, value: Tensor, shape: tuple[int | None, ...], words: str, n: int) -> None:
        """Check for int64 values in [0, n)."""
        if isinstance(value, DeviceTensor):
            self._kept(name, value, shape, words, torch.int64)
            if value.numel() and value.below > n:
                raise ArgumentError(
                    f"{name} may hold {value.below - 1}, outside [0, {n})", hint=f"keep {name} within this range"
                )
            return
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

    def _kept(
        self, name: str, value: DeviceTensor, shape: tuple[int | None, ...], words: str, dtype: torch.dtype
    ) -> None:
        if self.home is None or value.home is not self.home:
            where = "which isn't taken here" if self.home is None else "which was opened by another backend"
            raise ArgumentError(
                f"{name} is a DeviceTensor on {value.device}, {where}",
                hint=f"pass {name}.torch(), which copies it to the host",
            )
        self._shape(name, value, shape, words)
        if value.dtype != dtype:
            raise ArgumentError(f"{name} has dtype {value.dtype}; expected {dtype}", hint=f"make {name} of that dtype")

    def _shape(self, name: str, value: Tensor | DeviceTensor, shape: tuple[int | None, ...], words: str) -> None:
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
    """Check that no value is NaN, infinite or larger than LARGEST in size."""
    if on_device(value):
        return
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
    if on_device(value):
        return
    if value.numel() and not _extremes(value)[1] <= LARGEST:
        bad = ~(value.detach() <= LARGEST)
        _raise_at(name, value, bad, f"-inf or values of at most {LARGEST:g}")


def at_least(name: str, value: Tensor, low: float) -> None:
    """Check for finite values >= low."""
    if on_device(value):
        return
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
    if on_device(value) or not value.numel():
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


def values(value: Tensor) -> None:
    """Check for what `Vulkan.tensor` takes: (B,) or (B, n), float32 without NaN, or int64 in
    [0, 2^32)."""
    shape = (None,) if value.dim() == 1 else (None, None)
    if value.dtype == torch.int64:
        NATIVE.indices("values", value, shape, "(B,) or (B, n)", 2**32)
    else:
        NATIVE.tensor("values", value, shape, "(B,) or (B, n)")
        log_weights("values", value)
    if value.dim() == 2 and value.shape[1] < 1:
        raise ArgumentError(f"values has shape {tuple(value.shape)}", hint="pass at least one column")


def storage(value: str) -> None:
    """Check for float32 or float16."""
    if value not in get_args(Storage):
        raise ArgumentError(
            f"storage is {value!r}; expected {' or '.join(get_args(Storage))}",
            hint='pass "float32", or "float16" for half the memory',
        )


def stored(points: Tensor, storage: Storage) -> Tensor:
    """The points as a backend stores them: rounded to `storage`, but in the dtype that they have.

    Unit rows can't overflow float16.
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


def some_points(rules: Rules, value: Tensor, n: int, d: int, first: int | None, ids: Tensor | None) -> None:
    """Check rows (M, d) that replace some of N points: those from `first` on, or those named by ids
    (M,), which are all different."""
    rules.tensor("points", value, (None, d), "(M, d)")
    unit_rows("points", value)
    rows = value.shape[0]
    if (first is None) == (ids is None):
        raise ArgumentError("first and ids are both given", hint="pass one of the two")
    if first is not None:
        integer("first", first, 0, n - rows + 1, f"pass at most {n} - first rows")
    if ids is not None:
        rules.indices("ids", ids, (rows,), "(M,)", n)
        if len(torch.unique(ids)) != rows:
            raise ArgumentError("ids names a point twice", hint="pass each id once")


def operation(name: str, rules: Rules, given: Mapping[str, Any]) -> dict[str, int]:
    """Check the arguments of an operation by its table in operations.toml.

    Args:
        given: the arguments by name, and possibly others; `points` are this backend's.

    Returns:
        The sizes that the arguments have: {"B": rows, ...}.

    Raises:
        ArgumentError: an argument isn't what the table says.
    """
    plan = _PLANS[name]
    sizes = {"N": given["points"].n, "d": given["points"].d} if plan.points else {}
    for argument in plan.numbers:
        _number(argument, given[argument.name], sizes)
    for tensor in plan.tensors:
        value = given[tensor.name]
        if value is not None or not tensor.optional:
            tensor.check(rules, value, sizes)
    for argument in plan.levels:
        schedule(rules, given[argument.name], sizes["B"])
        sizes["S"] = sum(given[argument.name].steps)
    for argument in plan.counters:
        counter(argument.name, given[argument.name], sizes[argument.extent])
    if plan.together:
        plan.together(given)
    return sizes


class _Tensor:
    """The checks of one tensor, prepared once. known: the sizes that earlier arguments set."""

    def __init__(self, argument: Argument, known: set[str]) -> None:
        self.name, self.of, self.words = argument.name, argument.of, argument.shape
        self.optional = argument.default is not None
        self.below = argument.below if argument.kind == "index" else None
        self.values = _VALUES[argument.values] if argument.kind == "tensor" else None
        self.dimensions = argument.dimensions
        self.new = [(axis, size) for axis, size in enumerate(argument.of) if size not in known]

    def check(self, rules: Rules, value: Tensor, sizes: dict[str, int]) -> None:
        """Check shape and values, and note the sizes that the tensor determines."""
        shape = tuple(map(sizes.get, self.of))
        if self.below is not None:
            below = sizes[self.below] if isinstance(self.below, str) else self.below
            rules.indices(self.name, value, shape, self.words, below)
        else:
            rules.tensor(self.name, value, shape, self.words)
        for axis, size in self.new:
            sizes[size] = value.shape[axis]
            self._enough(value, size, sizes[size])
        if self.values is not None:
            self.values(self.name, value)

    def _enough(self, value: Tensor, size: str, count: int) -> None:
        if size == "K" and count < 1:
            raise ArgumentError(f"{self.name} has no candidates (K = 0)", hint="pass at least one candidate per row")
        if size == "d" and count < self.dimensions:
            least = "one dimension" if self.dimensions == 1 else f"{self.dimensions} dimensions"
            raise ArgumentError(f"{self.name} has shape {tuple(value.shape)}", hint=f"pass at least {least}")


@dataclass(frozen=True)
class _Plan:
    """The arguments of an operation in the order in which they are checked."""

    points: bool
    numbers: list[Argument]
    tensors: list[_Tensor]
    levels: list[Argument]
    counters: list[Argument]
    together: Callable[[Mapping[str, Any]], None] | None


def _plan(called: Operation) -> _Plan:
    def of_kind(*kinds: str) -> list[Argument]:
        return [argument for argument in called.arguments if argument.kind in kinds]

    known = {"N", "d"} if of_kind("points") else set[str]()
    tensors = []
    for argument in of_kind("tensor", "index"):
        tensors.append(_Tensor(argument, known))
        known |= set(argument.of)
    together = _TOGETHER[called.together] if called.together else None
    numbers = of_kind("int", "seed", "real", "scheme")
    return _Plan(bool(of_kind("points")), numbers, tensors, of_kind("levels"), of_kind("counter"), together)


def rows(name: str, rules: Rules, arguments: Sequence[Tensor]) -> dict[str, Tensor]:
    """Check the arguments of an operation that works row by row. Returns them by name."""
    named = {argument.name: value for argument, value in zip(OPERATIONS[name].arguments, arguments, strict=True)}
    operation(name, rules, named)
    return named


def _number(argument: Argument, value: object, sizes: dict[str, int]) -> None:
    """Check an argument that isn't a tensor. An int is noted in sizes, because it may be one."""
    name = argument.name
    if argument.kind == "int":
        high = sizes[argument.high] if isinstance(argument.high, str) else argument.high
        integer(name, value, int(argument.low), high + 1, argument.hint)
        sizes[name] = cast("int", value)
    elif argument.kind == "seed":
        seed(value)
    elif argument.kind == "real":
        _real(name, value, argument.low)
    elif argument.kind == "scheme" and (not isinstance(value, str) or value not in INTEGRATORS):
        raise ArgumentError(f"{name} is {value!r}", hint=f"use one of {', '.join(INTEGRATORS)}")


def _at_least_0(name: str, value: Tensor) -> None:
    at_least(name, value, 0.0)


def _direction(name: str, value: Tensor) -> None:
    """Check for finite values, without a zero row."""
    if value.numel() and not on_device(value):
        if not all(map(math.isfinite, _extremes(value))):
            _raise_at(name, value, ~torch.isfinite(value.detach()), "finite values")
        smallest = value.detach().abs().amax(dim=-1)
        if not bool((smallest > 0).all()):
            row = int((smallest == 0).nonzero()[0])
            raise ArgumentError(f"{name} row {row} is zero, so it has no direction", hint="drop or replace zero rows")


def _some_weight(given: Mapping[str, Any]) -> None:
    """Check that every row has some weight."""
    if on_device(given["logw"], given["log_background"]):
        return
    logw, log_background = given["logw"].detach(), given["log_background"].detach()
    heaviest = torch.maximum(logw.amax(dim=1), log_background) if len(logw) else log_background
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
        raise ArgumentError("schedule.steps is empty", hint="pass the number of steps of at least one level")
    for level, count in enumerate(value.steps):
        integer(f"schedule.steps[{level}]", count, 0, 2**31, "pass whole numbers of steps >= 0")
    integer("sum of schedule.steps", sum(value.steps), 0, 2**31, "run the steps in several calls")
    rules = replace(rules, home=None)
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


def seed(value: object) -> None:
    """Check for a seed of 64 bits."""
    integer("seed", value, 0, 2**64, "use the seed modulo 2**64")


def counter(name: str, first: int, extent: int) -> None:
    """Check that first to first + extent - 1 fit into a word of a Philox counter."""
    integer(name, first, 0, 2**32 - extent + 1, "use another seed instead of a larger number")


def _real(name: str, value: object, low: float) -> None:
    """Check for a finite number >= low."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= LARGEST:
        raise ArgumentError(f"{name} is {value!r}", hint=f"pass a number in [{low:g}, {LARGEST:g}]")


_VALUES: dict[str, Callable[[str, Tensor], None]] = {
    "unit": unit_rows,
    "finite": finite,
    "log weight": log_weights,
    "at least 0": _at_least_0,
    "direction": _direction,
}
_TOGETHER = {"some_weight": _some_weight}
_PLANS = {name: _plan(called) for name, called in TABLES.items()}
