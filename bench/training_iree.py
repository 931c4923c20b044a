"""A pure step of torch through IREE: make_fx, iree-turbine's export, IREE's compiler and runtime.

The target is the compiler's generic one for Vulkan; with a target whose subgroups differ from the
device's, results are wrong without a message.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from iree import compiler, runtime
from iree.turbine import aot
from iree.turbine.aot.decompositions import current_aot_decompositions
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree as pytree

FLAGS = ["--iree-input-demote-i64-to-i32"]
"""The generic target has no int64."""


def product_with_one_hot(gradient: torch.Tensor, ids: torch.Tensor, words: int, *_: object) -> torch.Tensor:
    """The gradient of an embedding's table, (words, d), without padding and scales."""
    rows = (ids.reshape(-1, 1) == torch.arange(words)).to(gradient.dtype)
    return rows.t() @ gradient.reshape(-1, gradient.shape[-1])


class Program:
    """The step on IREE's first Vulkan device; parameters and state stay there.

    Args:
        one_hot: the gradient of an embedding is a product with one-hot rows, which compiles, in
            place of a sum by index, which doesn't.

    Raises:
        iree.compiler.tools.binaries.CompilerToolError: an operation that doesn't compile.
    """

    def __init__(self, step: Callable[..., Any], arguments: Sequence[Any], *, one_hot: bool = False) -> None:
        leaves, spec = pytree.tree_flatten(tuple(arguments))
        kept = len(pytree.tree_leaves(tuple(arguments[:2])))

        def flat(*values: torch.Tensor) -> list[torch.Tensor]:
            return list(pytree.tree_leaves(step(*pytree.tree_unflatten(list(values), spec))))

        rules = dict(current_aot_decompositions())
        if one_hot:
            rules[torch.ops.aten.embedding_dense_backward.default] = product_with_one_hot
        graph = make_fx(flat, decomposition_table=rules)(*leaves)
        exported = aot.export(graph, args=tuple(leaves))
        code = compiler.compile_str(
            str(exported.mlir_module), input_type="torch", target_backends=["vulkan-spirv"], extra_args=FLAGS
        )
        self.config = runtime.Config("vulkan")
        context = runtime.SystemContext(config=self.config)
        context.add_vm_module(runtime.VmModule.copy_buffer(context.instance, code))
        self.main = context.modules.module["main"]
        self.kept = [self._there(leaf) for leaf in leaves[:kept]]
        self.code_bytes = len(code)

    def step(self, batch: Any, scalars: Any) -> float:
        given = [self._there(leaf) for leaf in pytree.tree_leaves((batch, scalars))]
        *self.kept, loss = self.main(*self.kept, *given)
        return float(loss.to_host())

    def facts(self) -> dict[str, Any]:
        return {"code_bytes": self.code_bytes}

    def _there(self, leaf: torch.Tensor) -> Any:
        return runtime.asdevicearray(self.config.device, leaf.detach().contiguous().numpy())
