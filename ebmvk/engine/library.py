"""Operations that torch can trace as one node: namespace `ebmvk` of torch.ops.

Each has a reference in plain torch, which runs on any device; a fake, which tells shapes; perhaps
faster implementations, for all devices or for the CPU; and perhaps a gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

Function = Callable[..., Any]
REFERENCES: dict[str, Function] = {}
"""{name: plain torch} of all operations, for tests and for backends that lack one."""
APART: dict[Function, Function] = {}
"""{operation: what a compiler of steps puts in its place, in operations of torch}. All operations
are here from their definition on, so nobody has to register them with a compiler."""
_LIBRARY = torch.library.Library("ebmvk", "FRAGMENT")  # type: ignore[no-untyped-call]


def operation(
    schema: str,
    *,
    reference: Function,
    fake: Function,
    fast: Function | None = None,
    cpu: Function | None = None,
    backward: Function | None = None,
    keep: Function | None = None,
    apart: Function | None = None,
) -> Function:
    """Register torch.ops.ebmvk.NAME and return it.

    schema: "NAME(Tensor x, ...) -> Tensor", in torch's notation. fast: runs in place of `reference`
    on all devices, and cpu on the CPU. keep, backward: `setup_context`
    and `backward` of `torch.library.register_autograd`. apart: the operation as a compiled step
    computes it, by default `reference`: plain torch with shapes that don't depend on values.
    """
    name = schema.partition("(")[0]
    _LIBRARY.define(schema)  # type: ignore[no-untyped-call]
    _LIBRARY.impl(name, fast or reference, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]
    if cpu is not None:
        _LIBRARY.impl(name, cpu, "CPU")  # type: ignore[no-untyped-call]
    torch.library.register_fake(f"ebmvk::{name}", fake, lib=_LIBRARY)
    if backward is not None:
        torch.library.register_autograd(f"ebmvk::{name}", backward, setup_context=keep, lib=_LIBRARY)
    REFERENCES[name] = reference
    found: Function = getattr(torch.ops.ebmvk, name).default
    APART[found] = apart or reference
    return found
