"""Turns nested state, such as an optimiser's, into tensors and a tree of JSON values, and back.

A safetensors file holds the tensors by key; state.json holds the tree, with the key in place of
each tensor.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

_TENSOR = "$tensor"
_ITEMS = "$items"


def pack(tree: Any, tensors: dict[str, Tensor], path: str = "o") -> Any:
    """Move each tensor of the tree into `tensors`, and return the tree with keys in their places.

    tree: nested dicts, lists and tuples of tensors and JSON values.
    """
    if isinstance(tree, Tensor):
        tensors[path] = tree.detach().cpu().contiguous().clone()
        return {_TENSOR: path}
    if isinstance(tree, Mapping):
        # Pairs, because JSON allows only text as a key, and optimisers number their states.
        return {_ITEMS: [[key, pack(value, tensors, f"{path}.{key}")] for key, value in tree.items()]}
    if isinstance(tree, list | tuple):
        return [pack(value, tensors, f"{path}.{i}") for i, value in enumerate(tree)]
    return tree


def unpack(tree: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The inverse of `pack`; tuples come back as lists. Raises KeyError if a tensor is missing."""
    if isinstance(tree, list):
        return [unpack(value, tensors) for value in tree]
    if not isinstance(tree, dict):
        return tree
    if _TENSOR in tree:
        return tensors[tree[_TENSOR]]
    return {key: unpack(value, tensors) for key, value in tree[_ITEMS]}
