"""Convolutions and pools as products and sums of shifted views."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

aten = torch.ops.aten


def _columns(
    x: torch.Tensor,
    kernel: Sequence[int],
    outputs: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> torch.Tensor:
    """The inputs that meet each place of the kernel, at each output: (batch, channels, places of
    the kernel, outputs)."""
    widths = [width for size in reversed(padding) for width in (size, size)]
    padded = torch.nn.functional.pad(x, widths) if any(widths) else x
    seen = [_seen(padded, place, outputs, stride, dilation) for place in _places(kernel)]
    return torch.stack(seen, 2).reshape(x.shape[0], x.shape[1], len(seen), math.prod(outputs))


def _seen(
    padded: torch.Tensor, place: Sequence[int], outputs: Sequence[int], stride: Sequence[int], dilation: Sequence[int]
) -> torch.Tensor:
    """The inputs that meet one place of the kernel, at each output along the last axes."""
    first = padded.dim() - len(place)
    for axis, (at, step, gap, count) in enumerate(zip(place, stride, dilation, outputs, strict=True), first):
        begin = at * gap
        padded = padded[(slice(None),) * axis + (slice(begin, begin + step * (count - 1) + 1, step),)]
    return padded


def _places(kernel: Sequence[int]) -> list[tuple[int, ...]]:
    places: list[tuple[int, ...]] = [()]
    for size in kernel:
        places = [(*place, at) for place in places for at in range(size)]
    return places


def convolution(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
) -> torch.Tensor:
    """A convolution as one product of the input's columns and the weights, group by group. A
    transposed convolution is computed as the gradient of a convolution for its input."""
    stride, padding, dilation, output_padding = _spread_to(x.dim() - 2, stride, padding, dilation, output_padding)
    if transposed:
        result = _to_input(x, weight, _transposed_shape(x, weight, stride, padding, dilation, output_padding, groups),
                           stride, padding, dilation, groups)  # fmt: skip
    else:
        outputs = [
            (size + 2 * pad - gap * (k - 1) - 1) // step + 1
            for size, k, step, pad, gap in zip(x.shape[2:], weight.shape[2:], stride, padding, dilation, strict=True)
        ]
        columns = _columns(x, weight.shape[2:], outputs, stride, padding, dilation)
        rows = columns.reshape(x.shape[0], groups, -1, columns.shape[-1])
        weights = weight.reshape(1, groups, weight.shape[0] // groups, -1)
        result = torch.matmul(weights, rows).reshape(x.shape[0], weight.shape[0], *outputs)
    return result if bias is None else result + bias.reshape(1, -1, *(1 for _ in x.shape[2:]))


def _spread_to(rank: int, *values: Sequence[int]) -> list[list[int]]:
    """Values with one number for each axis. A single number holds for all axes."""
    return [list(part) * rank if len(part) == 1 else list(part) for part in values]


def _transposed_shape(
    x: torch.Tensor,
    weight: torch.Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    output_padding: Sequence[int],
    groups: int,
) -> list[int]:
    """The shape of a transposed convolution's result."""
    sizes = zip(x.shape[2:], weight.shape[2:], stride, padding, dilation, output_padding, strict=True)
    outputs = [(size - 1) * step - 2 * pad + gap * (k - 1) + more + 1 for size, k, step, pad, gap, more in sizes]
    return [x.shape[0], weight.shape[1] * groups, *outputs]


def _to_input(
    gradient: torch.Tensor,
    weight: torch.Tensor,
    shape: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> torch.Tensor:
    """The gradient of a convolution for its input. shape: the input's."""
    kernel = weight.shape[2:]
    flat = gradient.reshape(shape[0], groups, weight.shape[0] // groups, -1)
    weights = weight.reshape(1, groups, weight.shape[0] // groups, -1)
    columns = torch.matmul(weights.transpose(-1, -2), flat)
    columns = columns.reshape(shape[0], shape[1], len(_places(kernel)), *gradient.shape[2:])
    return _from_columns(columns, shape, kernel, stride, padding, dilation)


def _to_weight(
    gradient: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> torch.Tensor:
    """The gradient of a convolution for its weight. x: the convolution's input."""
    seen = _columns(x, weight.shape[2:], gradient.shape[2:], stride, padding, dilation)
    rows = seen.reshape(x.shape[0], groups, -1, seen.shape[-1])
    flat = gradient.reshape(x.shape[0], groups, weight.shape[0] // groups, -1)
    return torch.matmul(flat, rows.transpose(-1, -2)).sum(0).reshape(weight.shape)


def convolution_backward(
    gradient: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    bias_sizes: Sequence[int] | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
    output_mask: Sequence[bool],
) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
    """Gradients of `convolution` for x, weight and bias."""
    del bias_sizes
    stride, padding, dilation, output_padding = _spread_to(x.dim() - 2, stride, padding, dilation, output_padding)
    of_x: torch.Tensor | None = None
    of_weight: torch.Tensor | None = None
    of_bias: torch.Tensor | None = None
    rest = (stride, padding, dilation)
    if output_mask[0] and transposed:
        of_x = convolution(gradient, weight, None, *rest, False, output_padding, groups)
        of_x = of_x[(slice(None), slice(None), *(slice(0, size) for size in x.shape[2:]))]
    elif output_mask[0]:
        of_x = _to_input(gradient, weight, x.shape, *rest, groups)
    if output_mask[1]:  # in a transposed convolution, input and result change roles
        of_weight = _to_weight(*((x, gradient) if transposed else (gradient, x)), weight, *rest, groups)
    if output_mask[2]:
        of_bias = gradient.sum([0, *range(2, gradient.dim())])
    return of_x, of_weight, of_bias


def _from_columns(
    columns: torch.Tensor,
    shape: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> torch.Tensor:
    """The sum, at each element of the input, of the columns at the places that read the element."""
    total = None
    for number, place in enumerate(_places(kernel)):
        part = columns[:, :, number]
        for axis, (at, step, gap, pad) in enumerate(zip(place, stride, dilation, padding, strict=True)):
            part = _spread(part, axis + 2, shape[axis + 2], at * gap - pad, step)
        total = part if total is None else total + part
    assert total is not None
    return total


def _spread(part: torch.Tensor, axis: int, size: int, start: int, step: int) -> torch.Tensor:
    """Zeros of `size` along an axis, with element i of `part` at position start + i * step."""
    if step > 1:
        pieces = [part.unsqueeze(axis + 1)]
        pieces += [torch.zeros_like(pieces[0])] * (step - 1)
        part = torch.cat(pieces, axis + 1).flatten(axis, axis + 1)
    before, after = start, size - start - part.shape[axis]
    if before < 0:
        part, before = part.narrow(axis, -before, part.shape[axis] + before), 0
    if after < 0:
        part, after = part.narrow(axis, 0, part.shape[axis] + after), 0
    widths = [0] * (2 * part.dim())
    widths[2 * (part.dim() - 1 - axis)] = before
    widths[2 * (part.dim() - 1 - axis) + 1] = after
    return torch.nn.functional.pad(part, widths)


# ------------------------------------------------------------------------------------------- pools


def _windows(
    size: Sequence[int], kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], ceil: bool
) -> tuple[list[int], list[int]]:
    """The number of windows along each axis, and the padding that they need at its end."""
    counts, after = [], []
    for n, k, step, pad in zip(size, kernel, stride, padding, strict=True):
        reach = n + 2 * pad - k
        count = (-(-reach // step) if ceil else reach // step) + 1
        if ceil and (count - 1) * step >= n + pad:  # a window may not begin in the padding
            count -= 1
        counts.append(count)
        after.append(max(0, (count - 1) * step + k - n - pad))
    return counts, after


def _each(rank: int, *values: Sequence[int]) -> list[list[int]]:
    """Values with one number for each axis. A single number holds for all axes. A stride that isn't
    given is the window's size."""
    kernel, *rest = _spread_to(rank, *values)
    return [kernel, *(part or kernel for part in rest)]


def _shares(
    size: Sequence[int], kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], counts: Sequence[int],
    inside: bool, divisor: int | None,
) -> torch.Tensor:  # fmt: skip
    """The number by which the sum over each window is divided."""
    whole = torch.ones(())
    for axis, (n, k, step, pad, count) in enumerate(zip(size, kernel, stride, padding, counts, strict=True)):
        begin = torch.arange(count) * step - pad
        end = torch.clamp(begin + k, max=n if inside else n + pad)
        begin = torch.clamp(begin, min=0) if inside else begin
        whole = whole * (end - begin).reshape(-1, *(1 for _ in size[axis + 1 :]))
    return whole if divisor is None else torch.full_like(whole, divisor)


def avg_pool(
    rank: int,
    x: torch.Tensor,
    kernel: Sequence[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0,),
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> torch.Tensor:
    """The mean of each window over the last `rank` axes."""
    kernel, stride, padding = _each(rank, kernel, stride, padding)
    size = x.shape[-rank:]
    counts, after = _windows(size, kernel, stride, padding, ceil_mode)
    widths = [width for before, end in zip(reversed(padding), reversed(after), strict=True) for width in (before, end)]
    padded = torch.nn.functional.pad(x, widths)
    total = torch.zeros(())
    for place in _places(kernel):
        total = total + _seen(padded, place, counts, stride, [1] * rank)
    return total / _shares(size, kernel, stride, padding, counts, not count_include_pad, divisor_override)


def avg_pool_backward(
    rank: int,
    gradient: torch.Tensor,
    x: torch.Tensor,
    kernel: Sequence[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0,),
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> torch.Tensor:
    """Each element's share of the gradients of the windows that it is in."""
    kernel, stride, padding = _each(rank, kernel, stride, padding)
    size = list(x.shape[-rank:])
    counts, _ = _windows(size, kernel, stride, padding, ceil_mode)
    part = gradient / _shares(size, kernel, stride, padding, counts, not count_include_pad, divisor_override)
    flat = part.reshape(1, -1, 1, *counts).expand(1, -1, len(_places(kernel)), *counts)
    spread = _from_columns(flat, [1, flat.shape[1], *size], kernel, stride, padding, [1] * rank)
    return spread.reshape(x.shape)


def _share_of(size: int, count: int) -> torch.Tensor:
    """The weight of each of `size` elements in the mean of each of `count` windows."""
    number, place = torch.arange(count)[:, None], torch.arange(size)[None, :]
    begin = torch.div(number * size, count, rounding_mode="floor")
    end = torch.div((number + 1) * size + count - 1, count, rounding_mode="floor")
    return torch.logical_and(place >= begin, place < end) / (end - begin)


def adaptive_pool(x: torch.Tensor, sizes: Sequence[int]) -> torch.Tensor:
    """The means over windows that split the last axes into `sizes` parts."""
    for axis, count in enumerate(sizes, x.dim() - len(sizes)):
        x = torch.matmul(x.movedim(axis, -1), _share_of(x.shape[axis], count).T).movedim(-1, axis)
    return x


def adaptive_pool_backward(rank: int, gradient: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """The gradient of `adaptive_pool` over the last `rank` axes."""
    for axis in range(x.dim() - rank, x.dim()):
        share = _share_of(x.shape[axis], gradient.shape[axis])
        gradient = torch.matmul(gradient.movedim(axis, -1), share).movedim(-1, axis)
    return gradient


def max_pool(
    rank: int,
    x: torch.Tensor,
    kernel: Sequence[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0,),
    dilation: Sequence[int] = (1,),
    ceil_mode: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The largest element of each window over the last `rank` axes, and its position among them."""
    kernel, stride, padding, dilation = _each(rank, kernel, stride, padding, dilation)
    size = x.shape[-rank:]
    spans = [gap * (k - 1) + 1 for k, gap in zip(kernel, dilation, strict=True)]
    _, after = _windows(size, spans, stride, padding, ceil_mode)
    widths = [width for before, end in zip(reversed(padding), reversed(after), strict=True) for width in (before, end)]
    seen = torch.nn.functional.pad(x, widths, value=-math.inf)
    for axis, (span, step, gap) in enumerate(zip(spans, stride, dilation, strict=True), x.dim() - rank):
        seen = seen.unfold(axis, span, step)[..., ::gap]
    largest, place = seen.flatten(-rank).max(-1)
    position = torch.zeros((), dtype=torch.int64)
    for axis, (n, step, pad, gap) in enumerate(zip(size, stride, padding, dilation, strict=True)):
        at = torch.div(place, math.prod(kernel[axis + 1 :]), rounding_mode="floor") % kernel[axis]
        begin = (torch.arange(largest.shape[axis - rank]) * step - pad).reshape(-1, *(1 for _ in size[axis + 1 :]))
        # The largest element is in the padding only if all elements of the window are -inf.
        position = position * n + torch.clamp(begin + at * gap, 0, n - 1)
    return largest, position


def max_pool_backward(
    rank: int,
    gradient: torch.Tensor,
    x: torch.Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    ceil_mode: bool,
    position: torch.Tensor,
) -> torch.Tensor:
    """The gradient of each window goes to its largest element."""
    del kernel, stride, padding, dilation, ceil_mode
    flat = torch.zeros_like(x).flatten(-rank)
    return flat.scatter_add(-1, position.flatten(-rank), gradient.flatten(-rank)).reshape(x.shape)


CONVOLUTIONS: dict[Any, Callable[..., Any]] = {
    aten.convolution.default: convolution,
    aten.convolution_backward.default: convolution_backward,
    aten._adaptive_avg_pool2d.default: adaptive_pool,
    aten._adaptive_avg_pool3d.default: adaptive_pool,
    aten._adaptive_avg_pool2d_backward.default: partial(adaptive_pool_backward, 2),
    aten._adaptive_avg_pool3d_backward.default: partial(adaptive_pool_backward, 3),
    aten.avg_pool2d.default: partial(avg_pool, 2),
    aten.avg_pool3d.default: partial(avg_pool, 3),
    aten.avg_pool2d_backward.default: partial(avg_pool_backward, 2),
    aten.avg_pool3d_backward.default: partial(avg_pool_backward, 3),
    aten.max_pool2d_with_indices.default: partial(max_pool, 2),
    aten.max_pool3d_with_indices.default: partial(max_pool, 3),
    aten.max_pool2d_with_indices_backward.default: partial(max_pool_backward, 2),
    aten.max_pool3d_with_indices_backward.default: partial(max_pool_backward, 3),
}
