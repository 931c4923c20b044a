"""Products of matrices: calls of the kernel `matmul`."""

from __future__ import annotations

from ebmvk.compute import views
from ebmvk.compute.ir import View
from ebmvk.compute.lower import Lowering, Number
from ebmvk.compute.primitives import FLOAT, primitive


def _product(low: Lowering, a: View, b: View, add: View | None = None, beta: Number = 1, alpha: Number = 1) -> View:
    shape = (*a.shape[:-1], b.shape[-1])
    if low.dtype != "float32":
        raise low.unsupported("a product of integers", "Convert them with .float() first.")
    inputs = [a, b]
    constants: list[tuple[str, float]] = []
    if alpha != 1:
        constants.append(("alpha", float(alpha)))
    if add is not None and beta != 0:
        inputs.append(views.broadcast(add, shape))
        if beta != 1:
            constants.append(("beta", float(beta)))
    return low.call("matmul", inputs, [(shape, "float32")], constants)[0]


@primitive("mm.default", "bmm.default", dtypes=FLOAT)
def mm(low: Lowering, a: View, b: View) -> View:
    return _product(low, a, b)


@primitive("addmm.default", "baddbmm.default", dtypes=FLOAT)
def addmm(low: Lowering, add: View, a: View, b: View, *, beta: Number = 1, alpha: Number = 1) -> View:
    return _product(low, a, b, add, beta, alpha)


@primitive("mv.default", dtypes=FLOAT)
def mv(low: Lowering, a: View, x: View) -> View:
    column = View(x.tensor, (*x.shape, 1), (*x.strides, 0), x.offset)
    return low.reshaped(_product(low, a, column), low.shape)


@primitive("dot.default", dtypes=FLOAT)
def dot(low: Lowering, x: View, y: View) -> View:
    row = View(x.tensor, (1, *x.shape), (0, *x.strides), x.offset)
    column = View(y.tensor, (*y.shape, 1), (*y.strides, 0), y.offset)
    return low.reshaped(_product(low, row, column), ())
