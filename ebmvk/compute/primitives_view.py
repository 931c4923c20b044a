"""Operations that only view a tensor in another way. torch itself computes the strides, on tensors
without data that have the view's strides. If torch needs a copy, one is made here too."""

from __future__ import annotations

from typing import Any, cast

from torch import fx

from ebmvk.compute.ir import View
from ebmvk.compute.lower import Lowering
from ebmvk.compute.primitives import primitive


@primitive(
    "permute.default", "transpose.int", "t.default", "expand.default", "slice.Tensor", "select.int",
    "squeeze.default", "squeeze.dim", "squeeze.dims", "unsqueeze.default", "diagonal.default", "unfold.default",
)  # fmt: skip
def one_view(low: Lowering, x: View, *args: Any, **keywords: Any) -> View:
    keywords.pop("implicit", None)  # of expand
    return low.viewed(x, lambda meta: low.target(meta, *args, **keywords))[0]


@primitive("split.Tensor", "split_with_sizes.default", "unbind.int")
def many_views(low: Lowering, x: View, *args: Any, **keywords: Any) -> tuple[View, ...]:
    return tuple(low.viewed(x, lambda meta: low.target(meta, *args, **keywords)))


@primitive("view.default", "_unsafe_view.default", "reshape.default", "_reshape_alias.default")
def reshape(low: Lowering, x: View, *args: Any) -> View:
    del args
    return low.reshaped(x, low.shape)


@primitive("as_strided.default", limits="of a tensor whose strides here are torch's")
def as_strided(low: Lowering, x: View, size: Any, stride: Any, storage_offset: int | None = None) -> View:
    base = cast("fx.Node", low.node.args[0]).meta["val"]
    start = base.storage_offset() if storage_offset is None else storage_offset
    if base.storage_offset() or tuple(base.stride()) != x.strides:
        x = low.copied(x)
        if tuple(base.stride()) != x.strides:
            raise low.unsupported("as_strided of a tensor that isn't dense in row-major order")
    return View(x.tensor, tuple(size), tuple(stride), x.offset + start - base.storage_offset())


@primitive("flip.default")
def flip(low: Lowering, x: View, dims: Any) -> View:
    from ebmvk.compute import expr

    turned = {dim % len(x.shape) for dim in dims} if x.shape else set()
    index = [
        expr.op("sub", expr.const(size - 1, "int32"), expr.axis(a)) if a in turned else expr.axis(a)
        for a, size in enumerate(x.shape)
    ]
    return low.loop(x.shape, expr.load_at(x, index))
