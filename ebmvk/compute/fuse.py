"""Makes a program small: fewer nodes, fewer bytes moved, the same results.

The passes, in order: drop dead and duplicate nodes; compute cheap and single-use results where they
are used; put tensors that the same formula updates into blocks; join loops over the same points;
drop copies of products.
"""

from __future__ import annotations

from ebmvk.compute.fuse_inline import inline
from ebmvk.compute.fuse_merge import merge
from ebmvk.compute.fuse_place import direct, pack
from ebmvk.compute.ir import Program
from ebmvk.compute.rewrite import Limits, without_copies_of_equals, without_dead


def fuse(program: Program, limits: Limits | None = None) -> Program:
    """The same program in fewer nodes. Sums may be taken in another order inside a node."""
    limits = limits or Limits()
    program = without_copies_of_equals(without_dead(program))
    program = inline(program, limits)
    program = direct(without_copies_of_equals(program), limits)
    program = pack(program, limits)
    program = merge(program, limits)
    return direct(program, limits)
