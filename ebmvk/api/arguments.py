"""Checks of what callers pass to `Model`.

Each raises ArgumentError with the argument and its value.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable

import torch
from torch import Tensor

from ebmvk.errors import ArgumentError


def text_of(value: object, name: str) -> str:
    """The value, if it is a text that UTF-8 can encode."""
    if not isinstance(value, str):
        hint = "decode it first: value.decode()" if isinstance(value, bytes) else "pass a str"
        raise ArgumentError(f"{name} {value!r} isn't a text; its type is {type(value).__name__}", hint=hint)
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ArgumentError(
            f"{name} {value!r} has half a surrogate pair, which isn't a character",
            hint='use text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")',
        ) from None
    return value


def texts_of(values: object, name: str) -> list[str]:
    """The values, if they are several texts. A single text isn't taken as a list of characters."""
    if isinstance(values, str):
        raise ArgumentError(f"{name} {values!r} isn't a list of texts", hint=f"pass a list, such as [{values!r}]")
    if isinstance(values, bytes) or not isinstance(values, Iterable):
        raise ArgumentError(f"{name} {values!r} is neither a text nor a list of texts", hint="pass texts, of type str")
    return [text_of(value, name) for value in values]


def whole(value: object, name: str) -> int:
    """The value, if it is a whole number."""
    try:
        if not isinstance(value, bool):
            return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        pass
    raise ArgumentError(f"{name} = {value!r} isn't a whole number", hint="pass an int")


def positive(value: object, name: str, what: str) -> int:
    """The value, if it is a whole number above 0. what: the thing counted, in the singular."""
    if (number := whole(value, name)) < 1:
        raise ArgumentError(f"{name} = {number} is below 1", hint=f"ask for one {what} or more")
    return number


def unit_vector(value: object, d: int) -> Tensor:
    """The value (d,) as float32, if it is a unit vector."""
    if not isinstance(value, Tensor) or not value.is_floating_point():
        raise ArgumentError(
            f"a point is {value!r}; expected a text or a unit vector", hint="pass a text, or what `embed` returned"
        )
    if value.shape != (d,) or not abs(float(torch.linalg.vector_norm(value.double())) - 1) < 1e-3:
        raise ArgumentError(
            f"a point has shape {tuple(value.shape)} and norm {float(value.double().norm()):.4g}; expected a unit "
            f"vector of shape ({d},)",
            hint="pass a text, or what `embed` returned",
        )
    return value.float()
