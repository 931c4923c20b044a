"""Tensors that follow from settings and shapes alone: computed once and kept."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, wraps
from typing import ParamSpec, TypeVar

import torch
from torch.utils._python_dispatch import _get_current_dispatch_mode

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def constant(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Keep the results of a function whose arguments are hashable.

    Nothing is kept while a step is traced. Otherwise the trace would depend on what the process
    computed earlier, and the process would keep tensors of the trace, which hold no numbers.
    """
    kept = lru_cache(maxsize=32)(function)

    @wraps(function)
    def found(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        if _get_current_dispatch_mode() is not None:
            return function(*args, **kwargs)
        with torch.inference_mode(False):  # a later caller may need a gradient
            return kept(*args, **kwargs)  # type: ignore[arg-type]

    return found
