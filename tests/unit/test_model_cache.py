"""A model with a cache gives the same output as without, for any pieces and any padding."""

from __future__ import annotations

import pytest
import torch
from model_support import VARIANTS, build, tokens, variant

from ebmvk.model import language
from ebmvk.model.cache import Cache, Growing

EXACT = 1e-5  # of logits of about 1 in float32, what the cache promises


def _cache(pads: list[int]) -> Cache:
    return Cache(torch.tensor(pads))


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("pieces", [[1] * 97, [97], [40, 1, 1, 55], [96, 1]], ids=["ones", "all", "mixed", "last"])
def test_a_cached_model_equals_an_uncached_one(name: str, pieces: list[int]) -> None:
    """97 tokens: beyond every window, within a block and over its edge."""
    model, ids = build(variant(name)), tokens(97)
    cache = _cache([0, 0])
    with torch.no_grad():
        whole = model(ids)
        parts = [model.extend(part, cache) for part in torch.split(ids, pieces, dim=1)]
    assert cache.length == 97
    for field in ("query", "h"):
        found = torch.cat([getattr(part, field) for part in parts], dim=1)
        torch.testing.assert_close(found, getattr(whole, field), rtol=0, atol=EXACT)
    with torch.no_grad():
        logits = torch.cat([model.logits(part) for part in parts], dim=1)
        torch.testing.assert_close(logits, model.logits(whole), rtol=0, atol=EXACT)


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("first", [1, 5, 30], ids=str)
def test_padding_has_no_effect(name: str, first: int) -> None:
    """Rows of unequal length, padded on the left with any token, give what each gives alone."""
    model, ids = build(variant(name)), tokens(60, batch=3)
    pads = [0, 4, 29]
    with torch.no_grad():
        alone = [model(ids[i : i + 1, pad:]).query[0] for i, pad in enumerate(pads)]
        for seed in (1, 2):
            noise = tokens(60, batch=3, seed=seed)
            padded = ids.where(torch.arange(60) >= torch.tensor(pads)[:, None], noise)
            cache = _cache(pads)
            parts = [model.extend(part, cache).query for part in torch.split(padded, [first, 60 - first], dim=1)]
            found = torch.cat(parts, dim=1)
            for i, pad in enumerate(pads):
                torch.testing.assert_close(found[i, pad:], alone[i], rtol=0, atol=EXACT)


def test_keeping_some_rows_of_a_cache() -> None:
    model, ids = build(), tokens(33, batch=4)
    cache, rows = _cache([0, 3, 1, 0]), torch.tensor([3, 1])
    with torch.no_grad():
        whole = model.extend(ids, _cache([0, 3, 1, 0])).query[rows, -3:]
        model.extend(ids[:, :30], cache)
        cache.keep(rows)
        found = model.extend(ids[rows, 30:], cache).query
    torch.testing.assert_close(found, whole, rtol=0, atol=EXACT)


@pytest.mark.parametrize("name", VARIANTS)
def test_replacing_rows_of_a_cache(name: str) -> None:
    """Two of three rows are read again from a later place on; then each row gives what it gives
    alone."""
    model, ids = build(variant(name)), tokens(60, batch=3)
    cache, rows = _cache([0, 3, 5]), torch.tensor([2, 0])
    with torch.no_grad():
        model.extend(ids[:, :40], cache)
        again = Cache(torch.tensor([22, 24]), length=22)
        model.extend(ids[rows, 22:40], again)
        cache.replace(rows, again)
        assert cache.lengths() == [16, 37, 18]
        found = torch.cat([model.extend(part, cache).query for part in torch.split(ids[:, 40:], [1, 1, 18], dim=1)], 1)
        for i, first in enumerate([24, 3, 22]):
            alone = model(ids[i : i + 1, first:]).query[0, 40 - first :]
            torch.testing.assert_close(found[i], alone, rtol=0, atol=EXACT)


def test_a_text_continues_outside_inference_mode() -> None:
    """The reader of a stream may be in another mode at each token."""
    model, ids, rows = build(), tokens(40), torch.tensor([1])
    cache = _cache([0, 0])
    with torch.no_grad():
        whole = model(ids).query
    with torch.inference_mode():
        model.extend(ids[:, :30], cache)
    found = model.extend(ids[:, 30:35], cache).query
    torch.testing.assert_close(found, whole[:, 30:35], rtol=0, atol=EXACT)
    with torch.inference_mode():
        cache.keep(rows)
    found = model.extend(ids[rows, 35:], cache).query
    torch.testing.assert_close(found, whole[rows, 35:], rtol=0, atol=EXACT)


def test_long_texts_are_read_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    model, ids = build(), tokens(50)
    with torch.no_grad():
        whole = model(ids).query
        monkeypatch.setattr(language, "EXTENDED", 7)
        found = model.extend(ids, _cache([0, 0])).query
    torch.testing.assert_close(found, whole, rtol=0, atol=EXACT)


def test_a_cache_holds_only_a_window() -> None:
    """The size of a cache doesn't grow with the text."""
    model, sizes = build(), []
    cache = _cache([0, 0])
    for _ in range(12):
        model.extend(tokens(64), cache)
        sizes.append(sum(value.numel() for part in cache.parts.values() for value in part))
    assert len(set(sizes[6:])) == 1


@pytest.mark.parametrize("most", [0, 1, 5, 1000])
def test_a_growing_tensor_is_what_was_appended(most: int) -> None:
    """For pieces of any length and dropped rows: the last `most` of the past, and the new."""
    random = torch.Generator().manual_seed(most)
    growing, whole = Growing(), torch.empty(4, 2, 0, 3)
    for n in (1, 3, 200, 1, 1, 90, 0, 2):
        new = torch.randn(len(whole), 2, n, 3, generator=random)
        seen = growing.append(new, most)
        assert torch.equal(seen, torch.cat([whole[:, :, max(0, whole.shape[2] - most) :], new], dim=2))
        whole = torch.cat([whole, new], dim=2)
        if n == 200:
            growing, whole = growing[torch.tensor([2, 0])], whole[[2, 0]]
