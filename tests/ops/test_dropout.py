"""`ebmvk::dropout`: the compiled kernel equals plain torch bit for bit, and masks are functions of
(seed, step, place, element)."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch

from ebmvk.engine import dropout as engine
from ebmvk.engine.dropout import dropout, random_bytes, reference, words_of
from ebmvk.engine.philox import STREAM_DROPOUT, words

_cpu = pytest.importorskip("ebmvk._cpu")


@pytest.fixture(params=_cpu.targets())
def target(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each instruction set of this processor, with two threads."""
    before, threads = _cpu.target(), _cpu.threads()
    _cpu.use_target(request.param)
    _cpu.set_threads(2)
    yield request.param
    _cpu.use_target(before)
    _cpu.set_threads(threads)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.float16])
@pytest.mark.parametrize("shape", [(1,), (3, 5), (7, 1, 9), (2, 300, 17), (3, 29, 1024), (0, 4), (3, 0)])
def test_the_kernel_equals_plain_torch(target: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Bit for bit, for odd sizes, large counters and any first row. Larger tensors are computed by
    several threads."""
    torch.manual_seed(len(shape))
    x = torch.randn(shape).to(dtype)
    for seed, step, place, row, threshold in (
        *((0, 0, 0, 0, 1), (2**63 + 12345, 2**32 - 1, 77, 3, 26), (-5, 9, 2**32 - 1, 1001, 128), (1, 2, 3, 4, 243)),
    ):
        own = words_of(seed, step, row)
        assert torch.equal(dropout(x, own, place, threshold), reference(x, own, place, threshold)), target


def test_bytes_are_those_of_philox() -> None:
    """Counter (step, place, element // 16, stream), each word from its lowest byte on."""
    seed, step, place = 2**40 + 17, 5, 3
    found = random_bytes(torch.Size((2, 24)), words_of(seed, step, 0), place).flatten()
    drawn = words(seed, torch.tensor(step), torch.tensor(place), 3, STREAM_DROPOUT)
    wanted = [(int(word) >> shift) & 0xFF for word in drawn.flatten() for shift in (0, 8, 16, 24)]
    assert found.tolist() == wanted


@pytest.mark.parametrize("width", [1, 6, 16, 37])
def test_masks_do_not_depend_on_how_rows_are_divided(width: int) -> None:
    x = torch.ones(12, width)
    whole = dropout(x, words_of(1, 2, 0), 3, 128)
    for size in (1, 2, 3, 4):
        parts = [dropout(part, words_of(1, 2, i * size), 3, 128) for i, part in enumerate(x.split(size))]
        assert torch.equal(torch.cat(parts), whole)


def test_each_word_of_the_key_changes_the_mask() -> None:
    x = torch.ones(4, 1000)
    masks = [
        dropout(x, words_of(seed, step, row), place, 128) > 0
        for seed, step, row, place in (
            *((0, 0, 0, 0), (1, 0, 0, 0), (1 << 32, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1)),
        )
    ]
    for i, one in enumerate(masks):
        for other in masks[:i]:
            same = float((one == other).float().mean())
            assert abs(same - 0.5) < 5 * 0.5 / math.sqrt(x.numel())  # five standard deviations of a fair coin


@pytest.mark.parametrize("threshold", [26, 128, 230])
def test_dropout_keeps_the_mean_and_drops_its_share(threshold: int) -> None:
    n = 400_003
    y = dropout(torch.ones(n), words_of(7, 0, 0), 0, threshold)
    share = threshold / 256
    # Five standard deviations of a binomial share, and of the mean that follows from it.
    slack = 5 * math.sqrt(share * (1 - share) / n)
    assert abs(float((y == 0).float().mean()) - share) < slack
    assert abs(float(y.double().mean()) - 1) < slack / (1 - share)
    for apart in (1, 4, 16):  # the next byte, the next word, the next counter
        both = (y[:-apart] == 0).double() * (y[apart:] == 0).double()
        assert abs(float(both.mean()) - share**2) < 5 * share / math.sqrt(n)


def test_gradients_have_the_same_mask() -> None:
    x = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    own = words_of(3, 4, 5)
    torch.autograd.gradcheck(lambda x: dropout(x, own, 1, 100), (x,))
    torch.autograd.gradgradcheck(lambda x: dropout(x, own, 1, 100), (x,))
    y = torch.randn(4, 7, requires_grad=True)
    (grad,) = torch.autograd.grad(dropout(y, own, 1, 100).sum(), y)
    assert torch.equal(grad, dropout(torch.ones(4, 7), own, 1, 100))


def test_numbers_that_are_not_finite_stay_visible() -> None:
    """A dropped NaN is NaN, so that training notices it."""
    found = dropout(torch.full((64,), math.nan), words_of(0, 0, 0), 0, 128)
    assert bool(found.isnan().all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_torch_can_trace_dropout(dtype: torch.dtype) -> None:
    x = torch.randn(4, 6, 8).to(dtype)
    for own in (x.requires_grad_(), x.detach().transpose(0, 1)):
        torch.library.opcheck(torch.ops.ebmvk.dropout.default, (own, words_of(3, 1, 2), 5, 99))


def test_dropout_works_without_the_extension(monkeypatch: pytest.MonkeyPatch) -> None:
    x, own = torch.randn(9, 11), words_of(3, 4, 5)
    wanted = dropout(x, own, 1, 100)
    monkeypatch.setattr(engine, "_extension", lambda: None)
    assert torch.equal(dropout(x, own, 1, 100), wanted)
