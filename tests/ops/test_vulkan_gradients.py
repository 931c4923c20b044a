"""energy_score_backward and accumulate on Vulkan: the order of their sums, gradients that stay on
the device, and work that depends only on the points that occur.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from vulkan_open import ORACLE, guarded, mixture, nmse, open_vulkan, unit

from ebmvk.engine.device_tensor import SparseRows
from ebmvk.engine.vulkan import Vulkan
from ebmvk.errors import ArgumentError

VARIANTS: dict[str, dict[str, Any]] = {
    "usual": {},
    "portable": {"portable": True},
    "gpu": {"pretend": "gpu"},
    "smallest": {"pretend": "smallest"},
    "shards": {"shard_bytes": 4096},
    "slices": {"slice_seconds": 1e-9},  # a row, or the entries of a row, per submission
    "sliced shards": {"shard_bytes": 4096, "slice_seconds": 1e-9},
}


@pytest.fixture(scope="module", params=VARIANTS)
def vulkan(request: pytest.FixtureRequest) -> Iterator[Vulkan]:
    """With guard bands, poisoned buffers and the validation layers."""
    yield from guarded(**VARIANTS[request.param])


@pytest.fixture(scope="module")
def plain() -> Vulkan:
    return open_vulkan()


def problem(rows: int, k: int, d: int, n: int) -> list[Any]:
    g = torch.Generator().manual_seed(9)
    cotangents = torch.randn(rows, generator=g), torch.randn(rows, d, generator=g)
    return [unit(rows, d, 1), *mixture(rows, k, n, 3), *cotangents]


def gradients(backend: Any, mu: Tensor, arguments: list[Any], place: Callable[[Tensor], Any] = lambda t: t) -> Any:
    x, *rest = map(place, arguments)
    return backend.energy_score_backward(x, backend.points(mu), *rest)


# Around a quad; one point for all; more points than entries; more entries than points.
SHAPES = [(1, 1, 2, 1), (3, 7, 3, 1), (5, 15, 33, 50), (13, 9, 40, 977), (7, 65, 31, 16)]


@pytest.mark.parametrize(("rows", "k", "d", "n"), SHAPES)
def test_gradients_on_the_device_have_the_bits_of_those_on_the_host(
    vulkan: Vulkan, rows: int, k: int, d: int, n: int
) -> None:
    mu, arguments = unit(n, d, 4), problem(rows, k, d, n)
    host, kept = gradients(vulkan, mu, arguments), gradients(vulkan, mu, arguments, vulkan.tensor)
    for name in ("x", "logw", "kappa", "log_background"):
        assert torch.equal(getattr(kept, name).torch(), getattr(host, name)), name
    assert isinstance(kept.points, SparseRows)
    assert torch.equal(kept.points.ids.torch(), arguments[1].unique())
    assert torch.equal(kept.points.torch(), host.points)
    want = gradients(ORACLE, mu, arguments)
    assert nmse(kept.points.torch(), want.points) < 1e-9  # float32


def test_some_arguments_may_be_on_the_host(plain: Vulkan) -> None:
    mu, arguments = unit(20, 9, 4), problem(4, 6, 9, 20)
    all_kept = gradients(plain, mu, arguments, plain.tensor)
    turn = iter(range(len(arguments)))
    mixed = gradients(plain, mu, arguments, lambda t: plain.tensor(t) if next(turn) % 2 else t)
    assert torch.equal(mixed.points.torch(), all_kept.points.torch())
    assert torch.equal(mixed.x.torch(), all_kept.x.torch())


def test_zero_rows_touch_no_points(plain: Vulkan) -> None:
    out = gradients(plain, unit(6, 5, 4), problem(0, 3, 5, 6), plain.tensor)
    assert out.points.ids.shape == (0,)
    assert out.points.rows.shape == (0, 5)
    assert torch.equal(out.points.torch(), torch.zeros(6, 5))


def test_a_tensor_of_ids_that_may_be_outside_the_points_is_refused(plain: Vulkan) -> None:
    arguments = problem(3, 4, 5, 9)
    with pytest.raises(ArgumentError, match=r"^ids\b"):
        gradients(plain, unit(int(arguments[1].max()), 5, 4), arguments, plain.tensor)


def sequential(keys: Tensor, terms: Tensor, n: int) -> Tensor:
    """Sums of float32 terms by key, one after the other."""
    sums = np.zeros((n, *terms.shape[1:]), dtype=np.float32)
    np.add.at(sums, keys.numpy(), terms.numpy())
    return torch.from_numpy(sums)


def test_sums_are_made_one_entry_after_the_other(vulkan: Vulkan) -> None:
    """Any other order of float32 additions gives other bits for one of these sums."""
    rows, k, d, n = 12, 40, 37, 7
    ids, logw, *_ = mixture(rows, k, n, 3)
    x, shares, tokens = unit(rows, d, 1), logw.exp(), torch.arange(rows) % 3
    out = vulkan.accumulate(x, ids, shares, tokens, n)
    flat, every = shares.flatten(), ids.flatten()
    assert torch.equal(out.mass, sequential(every, flat, n))
    assert torch.equal(out.resultant, sequential(every, flat[:, None] * x.repeat_interleave(k, 0), n))
    pairs = every * 3 + tokens.repeat_interleave(k)
    counts = sequential(pairs, flat, 3 * n)
    given = (flat > 0).nonzero().flatten()
    assert torch.equal(out.splat_token[:, 0] * 3 + out.splat_token[:, 1], pairs[given].unique())
    assert torch.equal(out.counts, counts[pairs[given].unique()])
    assert not torch.equal(out.mass, sequential(every.flip(0), flat.flip(0), n))


def test_a_share_below_the_smallest_normal_number_counts(plain: Vulkan) -> None:
    out = plain.accumulate(unit(1, 4, 1), torch.tensor([[2, 1]]), torch.tensor([[1e-42, 0.0]]), torch.tensor([5]), 3)
    assert out.splat_token.tolist() == [[2, 5]]


def test_work_does_not_depend_on_the_number_of_points() -> None:
    """With the same entries the same bytes move, and the same memory is taken. Longer ids may need
    one more pass of the sort, which has three dispatches.
    """
    arguments = problem(8, 16, 24, 1000)
    moved, taken, dispatches = [], [], []
    for n in (1000, 50_000):
        backend = open_vulkan()
        points = backend.points(unit(n, 24, 4))
        x, *rest = map(backend.tensor, arguments)
        before = backend._engine.allocated
        out = backend.energy_score_backward(x, points, *rest)
        count = backend.counts()["energy_score_backward"]
        moved.append((count.bytes_up, count.bytes_down))
        taken.append((backend._engine.allocated - before, out.points.rows.nbytes))
        dispatches.append(count.dispatches)
    assert moved[0] == moved[1]
    assert taken[0] == taken[1]
    assert dispatches[1] - dispatches[0] in (0, 3)


@pytest.mark.parametrize("on_device", [False, True])
def test_a_sliced_call_waits_once(on_device: bool) -> None:
    """8 rows and 128 entries: 8 slices of gradients and 8 of sums, submitted before the wait."""
    backend = open_vulkan(slice_seconds=1e-9)
    arguments = problem(8, 16, 24, 100)
    points = backend.points(unit(100, 24, 4))
    x, *rest = map(backend.tensor, arguments) if on_device else arguments
    for _ in range(3):  # the first ones learn the speed of the kernels, each slice by itself
        backend.energy_score_backward(x, points, *rest)
    calls = [backend._extension.calls_of(name) for name in ("vkQueueSubmit", "vkWaitForFences")]
    backend.energy_score_backward(x, points, *rest)
    submitted, waited = (
        backend._extension.calls_of(name) - before
        for name, before in zip(("vkQueueSubmit", "vkWaitForFences"), calls, strict=True)
    )
    assert submitted >= 16
    assert waited == 1


@pytest.mark.parametrize("on_device", [False, True])
def test_a_call_takes_no_more_submissions_than_energy_score(on_device: bool) -> None:
    backend = open_vulkan()
    arguments = problem(8, 16, 24, 100)
    points = backend.points(unit(100, 24, 4))
    x, *rest = map(backend.tensor, arguments) if on_device else arguments

    def submissions(work: Callable[[], object]) -> int:
        work()
        before = backend._extension.calls_of("vkQueueSubmit")
        work()
        return int(backend._extension.calls_of("vkQueueSubmit") - before)

    forward = submissions(lambda: backend.energy_score(x, points, *rest[:4]))
    assert submissions(lambda: backend.energy_score_backward(x, points, *rest)) == forward
    tokens, shares = torch.arange(8), arguments[2].exp()
    given = [backend.tensor(shares), backend.tensor(tokens)] if on_device else [shares, tokens]
    assert submissions(lambda: backend.accumulate(x, rest[0], *given, 100)) == forward
