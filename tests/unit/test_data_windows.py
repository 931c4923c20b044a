"""Training visits each window once per epoch; evaluation scores each token exactly once."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ebmvk.data.corpus import Corpus
from ebmvk.data.tokenizer_kinds import train_tokenizer
from ebmvk.data.windows import Ahead, Batches, TokenStream, encode_split, evaluation_windows
from ebmvk.errors import ArgumentError, DataError
from ebmvk.evaluation.likelihood import text_size


def stream_of(n: int) -> TokenStream:
    return TokenStream("test/train", np.arange(n, dtype=np.int32), np.array([0]))


def test_each_document_starts_with_end_of_text() -> None:
    corpus = Corpus("c", "test", {"train": ["one two", "three", "four five six"]})
    tokenizer = train_tokenizer(corpus, 258)
    stream = encode_split(corpus, "train", tokenizer)
    assert stream.tokens.dtype == np.int32
    assert np.flatnonzero(stream.tokens == tokenizer.eos_id).tolist() == stream.starts.tolist() == [0, 8, 14]
    assert tokenizer.decode(stream.tokens) == "one twothreefour five six"
    assert text_size(stream, tokenizer).bytes == corpus.bytes("train")
    assert stream.take(14).starts.tolist() == [0, 8]
    assert len(stream.take(14)) == 14


@given(st.integers(2, 400), st.integers(1, 9), st.integers(1, 40), st.integers(0, 2**63))
def test_each_epoch_visits_each_window_once(n: int, batch_size: int, length: int, seed: int) -> None:
    if n < length + 1:
        with pytest.raises(DataError, match=f"{n} tokens, fewer than one window of {length + 1}"):
            Batches(stream_of(n), batch_size, length, seed)
        return
    batches = Batches(stream_of(n), batch_size, length, seed)
    windows = n // length
    assert batches.steps_per_epoch == -(-windows // batch_size)
    epochs = 3
    rows = torch.cat([batches.batch(step) for step in range(-(-epochs * windows // batch_size))])
    assert rows.dtype == torch.int64
    assert rows.shape[1] == length + 1
    # Neighbours in a window are neighbours on the ring of tokens.
    assert torch.equal(rows[:, 1:], (rows[:, :-1] + 1) % n)
    for epoch in range(epochs):
        targets = rows[epoch * windows : (epoch + 1) * windows, 1:].flatten()
        assert len(targets.unique()) == len(targets) == windows * length


LENGTHS = st.lists(st.integers(1, 60), min_size=2, max_size=8)


def documents_of(lengths: list[int]) -> TokenStream:
    """Tokens that equal their position, in documents of these lengths."""
    starts = np.cumsum([0, *lengths[:-1]])
    return TokenStream("test/train", np.arange(sum(lengths), dtype=np.int32), starts, apart=True)


@given(LENGTHS, st.integers(1, 9), st.integers(1, 20), st.data())
def test_windows_do_not_cross_documents(lengths: list[int], batch_size: int, length: int, data: st.DataObject) -> None:
    """Each epoch visits every token as a target, and a short document gives a short window."""
    stream, stride = documents_of(lengths), data.draw(st.integers(1, length))
    batches = Batches(stream, batch_size, length, data.draw(st.integers(0, 2**32)), stride)
    borders = np.array([*stream.starts[1:], len(stream) - 1])
    steps = range(2 * -(-batches.windows // batch_size))
    rows = torch.cat([batches.batch(step) for step in steps])[: 2 * batches.windows]
    assert rows.shape[1] == length + 1
    for epoch in (rows[: batches.windows], rows[batches.windows :]):
        targets = set()
        for row in epoch.tolist():
            seen = [token for token in row if token >= 0]
            assert row == seen + [-1] * (length + 1 - len(seen))
            assert seen == list(range(seen[0], seen[0] + len(seen)))
            assert len(seen) > 1
            # The next document's end-of-text token is the last target of this one.
            assert np.searchsorted(borders, seen[0], side="right") == np.searchsorted(borders, seen[-1], side="left")
            targets.update(seen[1:])
        assert targets == set(range(1, len(stream)))


@given(LENGTHS, st.integers(1, 30), st.data())
def test_documents_are_scored_separately(lengths: list[int], context: int, data: st.DataObject) -> None:
    """The same tokens are scored as in one stream, but no window holds another document."""
    stream, stride = documents_of(lengths), data.draw(st.integers(1, context))
    scored = []
    for tokens, first in evaluation_windows(stream, context, stride):
        assert len(tokens) <= context + 1
        scored += tokens[1 + first :].tolist()
        inside = np.searchsorted(stream.starts, tokens[:-1].numpy(), side="right")
        assert len(set(inside.tolist())) == 1
    assert scored == list(range(1, len(stream)))


def test_batches_depend_only_on_seed_and_step() -> None:
    forward = Batches(stream_of(1000), 4, 16, seed=3)
    steps = list(range(60))
    backward = Batches(stream_of(1000), 4, 16, seed=3)
    expected = {step: backward.batch(step) for step in reversed(steps)}
    assert all(torch.equal(forward.batch(step), expected[step]) for step in steps)
    assert not torch.equal(forward.batch(0), Batches(stream_of(1000), 4, 16, seed=4).batch(0))
    # The offset differs per epoch; otherwise the same borders would always cut the same contexts.
    first, second = (sorted(forward.batch(s)[:, 0].tolist()) for s in (0, forward.steps_per_epoch))
    assert {x % 16 for x in first} != {x % 16 for x in second}


@given(st.integers(2, 300), st.integers(1, 50), st.data())
def test_each_token_but_the_first_is_scored_once_with_context(n: int, context: int, data: st.DataObject) -> None:
    stride = data.draw(st.integers(1, context))
    scored = []
    for tokens, first in evaluation_windows(stream_of(n), context, stride):
        assert 2 <= len(tokens) <= context + 1
        targets = tokens[1:]
        for index in range(first, len(targets)):
            target = int(targets[index])
            scored.append(target)
            assert index + 1 >= min(target, context - stride + 1)
        assert torch.equal(tokens[1:], tokens[:-1] + 1)
    assert scored == list(range(1, n))


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_batches_made_ahead_are_the_same(workers: int) -> None:
    batches = Batches(stream_of(97), 4, 7, seed=5)
    ahead = Ahead(batches, workers)
    for step in (0, 1, 2, 9, 10, 3, 4):  # a resumed run skips steps
        assert torch.equal(ahead.batch(step), batches.batch(step))


def test_bad_strides_batches_and_short_texts_are_refused() -> None:
    with pytest.raises(ArgumentError, match="--stride 9"):
        next(evaluation_windows(stream_of(20), 8, 9))
    with pytest.raises(ArgumentError, match="--stride 0"):
        next(evaluation_windows(stream_of(20), 8, 0))
    with pytest.raises(DataError, match="too few to predict"):
        next(evaluation_windows(stream_of(1), 8, 8))
    with pytest.raises(ArgumentError, match="--batch-size 0"):
        Batches(stream_of(20), 0, 4, 0)


def test_the_size_of_groups_does_not_change_the_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    documents = [f"{'a few words ' * (i % 5)}of document {i}" for i in range(23)]
    corpus = Corpus("made up", "test", {"train": documents})
    tokenizer = train_tokenizer(corpus, 300)
    found = []
    for characters in (1, 100, 1 << 21):
        monkeypatch.setattr("ebmvk.data.windows.ENCODED_AT_ONCE", characters)
        found.append(encode_split(corpus, "train", tokenizer))
    one_by_one = np.concatenate([[tokenizer.eos_id, *tokenizer.encode(document)] for document in documents])
    for stream in found:
        np.testing.assert_array_equal(stream.tokens, one_by_one)
        np.testing.assert_array_equal(stream.starts, found[0].starts)
