"""Every operation in every variant under the validation layers; any message fails the test."""

from __future__ import annotations

import pytest
from op_table import OPERATIONS, Shape, assert_close, same_bits
from vulkan_open import ORACLE, open_vulkan

from ebmvk.engine.vulkan import Vulkan

VARIANTS = {
    "usual": {},
    "portable": {"portable": True},
    "gpu": {"pretend": "gpu"},  # chooses kernels and workgroups as for a GPU
    "smallest": {"pretend": "smallest"},  # as for a GPU with the least that Vulkan allows
    "shards": {"shard_bytes": 16 * 40 * 4},  # 16 rows of 40 floats
    "slices": {"slice_seconds": 1e-9},  # one entry, chain or step per submission
}

SHAPE = Shape(5, 33, 9, 40)


def check(backend: Vulkan, name: str) -> None:
    op = OPERATIONS[name]
    arguments = op.arguments(SHAPE)
    assert_close(op, op.run(backend, arguments), op.run(ORACLE, arguments))
    if "points" in arguments:
        backend.points(arguments["points"]).update(arguments["points"])
    assert backend._engine.take_messages() == []


@pytest.fixture(scope="module", params=VARIANTS)
def vulkan(request: pytest.FixtureRequest) -> Vulkan:
    """Core and synchronisation validation, guard bands, poisoned buffers."""
    return open_vulkan(validate=True, guard=True, **VARIANTS[request.param])


@pytest.mark.parametrize("name", OPERATIONS)
def test_the_validation_layers_stay_silent(vulkan: Vulkan, name: str) -> None:
    check(vulkan, name)
    assert vulkan._engine.damaged_guards() == ""
    assert vulkan._engine.take_messages() == []


@pytest.mark.parametrize("name", [name for name, op in OPERATIONS.items() if "points" in op.arguments()])
def test_the_layers_stay_silent_with_any_number_of_shards(name: str) -> None:
    """The last shard has one row, 15 or 16 rows; or there is one shard."""
    op = OPERATIONS[name]
    for n in (33, 47, 48):
        arguments = op.arguments(Shape(5, 33, 9, n), seed=n)
        one, some = open_vulkan(), open_vulkan(shard_bytes=16 * 36 * 4)
        assert (one.points(arguments["points"]).native.shards, some.points(arguments["points"]).native.shards) == (1, 3)
        assert same_bits(op.run(one, arguments), op.run(some, arguments))


def test_messages_of_the_layers_are_noticed() -> None:
    """Submits commands whose recording never ended: the layers' message must reach us, or their
    silence above means nothing.
    """
    backend = open_vulkan(validate=True)
    backend._extension.inject_fault("vkEndCommandBuffer", 1, 0)
    OPERATIONS["projx"].run(backend)
    assert any("vkQueueSubmit" in message for message in backend._engine.take_messages())


@pytest.mark.slow
@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("options", VARIANTS)
def test_gpu_assisted_validation_stays_silent(options: str, name: str) -> None:
    """The layer rewrites every shader to check each access; the other validations run as well."""
    check(open_vulkan(validate=True, instrument=True, **VARIANTS[options]), name)
