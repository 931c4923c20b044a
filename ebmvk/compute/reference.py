"""Runs programs in numpy, by the oracle, with the methods that programs on a device have."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ebmvk.compute import oracle
from ebmvk.compute.ir import Program
from ebmvk.errors import ArgumentError

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Result:
    """A run: the results that it brought to the host, by position."""

    outputs: dict[int, Array]


@dataclass
class Reference:
    """A program in numpy.

    names: names of the leaves. fed: positions of the leaves that each run gets; the others stay in
    `state`, by name. fetched: positions of the results that a run returns. floats: np.float32 or
    np.float64.
    """

    program: Program
    names: Sequence[str]
    fed: Collection[int]
    fetched: Collection[int]
    floats: type[np.floating[Any]] = np.float32
    state: dict[str, Array] = field(default_factory=dict)

    def write(self, arrays: Mapping[str, Array]) -> int:
        """Sets kept arguments; returns their bytes."""
        self.state.update({name: np.array(array) for name, array in arrays.items()})
        return sum(array.nbytes for array in arrays.values())

    def read(self, names: Sequence[str] | None = None) -> dict[str, Array]:
        """Copies of kept arguments."""
        return {name: np.array(self.state[name]) for name in (self.state if names is None else names)}

    def run(self, fed: Mapping[int, Array]) -> Result:
        """Runs the program; kept arguments get their new values.

        Raises ArgumentError if a whole number doesn't fit the device's 32 bits.
        """
        leaves = []
        for position, name in enumerate(self.names):
            array = fed[position] if position in self.fed else self.state[name]
            if array.dtype == np.int64 and array.size and not -(2**31) <= array.min() <= array.max() < 2**31:
                raise ArgumentError(f"{name} holds integers beyond 32 bits", hint="Use integers below 2**31.")
            leaves.append(array)
        outputs = oracle.run(self.program, leaves, self.floats)
        for position, leaf in self.program.donated.items():
            if leaf not in self.fed:
                self.state[self.names[leaf]] = outputs[position]
        return Result({position: outputs[position] for position in self.fetched})
