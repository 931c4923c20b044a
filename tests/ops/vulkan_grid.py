"""Every operation on pretended devices, against the oracle and under the validation layers; and
sorts, against NumPy, if no profile is given.

python tests/ops/vulkan_grid.py [long PROFILE]

Prints one JSON object. LP_NATIVE_VECTOR_WIDTH (128, 256 or 512) sets the width of llvmpipe's
vectors, and so the size of its subgroups (4, 8 or 16).
"""

from __future__ import annotations

import json
import sys

from op_table import OPERATIONS, Shape, assert_close
from test_vulkan_sort import unsorted
from vulkan_open import ORACLE, open_vulkan

from ebmvk.engine import vulkan_devices
from ebmvk.engine.vulkan import Vulkan
from ebmvk.errors import DeviceError

LONG = "long"
ALREADY_TESTED = {"gpu", "smallest"}  # by tests that run over more variants

SHAPE = Shape(5, 33, 9, 40)
# More queries than a tile has; more quads than a subgroup has; the model's dimension and number of
# candidates.
LONG_SHAPES = [SHAPE, Shape(1, 2, 1, 1), Shape(13, 31, 8, 17), Shape(70, 65, 17, 129), Shape(2, 640, 64, 70)]
WAIT = 900.0
"""Seconds for an answer. llvmpipe compiles kernels at their first run, which takes long on a busy
machine."""
SHARDS = 16 * 40 * 4  # bytes of 16 rows of 40 floats


def names() -> list[str]:
    """All profiles; none if the extension isn't built."""
    try:
        return vulkan_devices.extension().profiles()  # type: ignore[no-any-return]
    except DeviceError:
        return []


PROFILES = [name for name in names() if name not in ALREADY_TESTED]


def check(profile: str, *, long: bool = False) -> list[str]:
    """Failures: a line for each operation, shape and variant that fails."""
    wrong: list[str] = []
    variants: list[dict[str, bool | int]] = [{}]
    if long:
        variants += [{"portable": True}, {"shard_bytes": SHARDS}]
    for options in variants:
        backend = open_vulkan(validate=True, guard=True, pretend=profile, timeout_seconds=WAIT, **options)
        for shape in LONG_SHAPES if long else [SHAPE]:
            if "shard_bytes" not in options or shape.d <= 40:
                wrong += [f"{profile} {options} {shape}: {line}" for line in wrong_operations(backend, shape)]
    return wrong


def wrong_operations(backend: Vulkan, shape: Shape) -> list[str]:
    wrong = []
    for name, op in OPERATIONS.items():
        arguments = op.arguments(shape)
        try:
            assert_close(op, op.run(backend, arguments), op.run(ORACLE, arguments))
        except AssertionError as error:
            wrong.append(f"{name} differs from the oracle: {error}")
        wrong += [f"{name}: {message}" for message in backend._engine.take_messages()]
    damaged = backend._engine.damaged_guards()
    return [*wrong, damaged] if damaged else wrong


def main(argv: list[str]) -> int:
    long = bool(argv) and argv[0] == LONG
    profiles = argv[1:] if long else ["gpu"]
    capabilities = open_vulkan().capabilities
    record = {
        "device": capabilities.name,
        "subgroup": capabilities.subgroup_reported,
        "wrong": [line for profile in profiles for line in check(profile, long=long)],
    }
    if not long:
        record["unsorted"] = unsorted()
    print(json.dumps(record))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
