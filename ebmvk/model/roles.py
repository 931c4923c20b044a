"""How the optimiser updates each kind of parameter.

Rates are tuned on WikiText-2's validation split.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Role:
    """rate: multiple of the learning rate under AdamW.

    hidden: the parameter is a matrix between hidden spaces, which Muon orthogonalises and weight
    decay shrinks. AdamW updates all others, without decay.
    """

    rate: float
    hidden: bool = False


HIDDEN = Role(1.0, hidden=True)  # its rate matters only with --optimizer adamw
ROUTER = Role(0.1)  # read row by row, like a table: not for Muon
SCALAR = Role(5.0)  # vectors and scalars: biases, temperatures, weights of terms
UNIT_ROWS = Role(2.0)  # the tokens' directions on the sphere
FREE_ROWS = Role(3.0)  # the tokens' rows of any length
