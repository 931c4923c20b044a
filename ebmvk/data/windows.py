"""A split as one stream of tokens, and the windows that training and evaluation read from it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch

from ebmvk.data.datasets import Corpus
from ebmvk.data.tokenizer import Ids, Tokenizer
from ebmvk.errors import ArgumentError, DataError

ENCODED_AT_ONCE = 1 << 21  # characters


@dataclass(frozen=True)
class TokenStream:
    """Documents one after another, each led by the end-of-text token.

    The likelihood of a stream is that of every token but the first given those before it: end-of-text tokens are
    predicted, so their cost is in the nats, but they are neither words nor bytes.

    Attributes:
        name: `corpus/split`, for messages.
        tokens: (n,) int32.
        starts: (documents,) int64, where each document's end-of-text token stands.
        word_level: of the corpus, which says what a word is; the tokenizer may come from another kind of text.
        apart: no window holds tokens of two documents, but for the end-of-text token that ends one and leads the next.
        text: the documents' texts, used to count words and bytes; none if only tokens are known.
        cut: the tokens end within the last document.
    """

    name: str
    tokens: Ids
    starts: npt.NDArray[np.int64]
    word_level: bool = False
    apart: bool = False
    text: Sequence[str] = field(default=(), repr=False)
    cut: bool = False

    @classmethod
    def of_text(cls, tokens: Ids, *, word_level: bool = False) -> TokenStream:
        """One document, led by its end-of-text token."""
        return cls("text", tokens, np.zeros(1, dtype=np.int64), word_level)

    def __len__(self) -> int:
        return len(self.tokens)

    def take(self, limit: int) -> TokenStream:
        """The first `limit` tokens."""
        if limit >= len(self):
            return self
        starts = self.starts[self.starts < limit]
        cut = limit not in self.starts
        return replace(self, tokens=self.tokens[:limit], starts=starts, text=self.text[: len(starts)], cut=cut)

    def documents(self) -> Iterator[tuple[str, Ids, bool]]:
        """(text, tokens without end-of-text, True if these are all its tokens) for each document."""
        ends = [*self.starts[1:].tolist(), len(self)]
        for text, start, end in zip(self.text, self.starts.tolist(), ends, strict=True):
            yield text, self.tokens[start + 1 : end], not self.cut or end < len(self)

    def parts(self) -> list[tuple[int, int]]:
        """(first, last) of every run of tokens that windows keep to: a target is any token in it but the first."""
        if not self.apart:
            return [(0, len(self) - 1)]
        ends = [*self.starts[1:].tolist(), len(self) - 1]
        return [(first, last) for first, last in zip(self.starts.tolist(), ends, strict=True) if last > first]


def encode_split(corpus: Corpus, split: str, tokenizer: Tokenizer, *, apart: bool = False) -> TokenStream:
    """Encode the documents of a split; `apart`: to be read document by document. Raises DataError if there is no such
    split."""
    text = corpus.documents(split)
    # The tokenizer's results take about a hundred bytes per token, so encode a few documents at a time.
    encoded = [ids for some in _grouped(text) for ids in tokenizer.encode_many(some)]
    eos = np.array([tokenizer.eos_id], dtype=np.int32)
    tokens = np.concatenate([part for document in encoded for part in (eos, document)])
    lengths = np.array([len(document) + 1 for document in encoded], dtype=np.int64)
    starts = np.cumsum(lengths) - lengths
    return TokenStream(f"{corpus.name}/{split}", tokens, starts, corpus.word_level, apart, text)


def _grouped(documents: list[str]) -> Iterator[list[str]]:
    """The documents in groups of at least `ENCODED_AT_ONCE` characters each (the last may be smaller)."""
    group, size = list[str](), 0
    for document in documents:
        group.append(document)
        size += len(document)
        if size >= ENCODED_AT_ONCE:
            yield group
            group, size = [], 0
    if group:
        yield group


class Batches:
    """Training batches as a pure function of (seed, step): resuming needs no state but the step.

    Each epoch turns the stream, as a ring, by an offset of its own, cuts it into windows and visits each once, in an
    order of its own; a batch may end one epoch and begin the next. Of documents that are read apart each is cut on its
    own: at its beginning, then every `stride` tokens from an offset of the epoch's, and at its end.
    """

    def __init__(
        self, stream: TokenStream, batch_size: int, seq_length: int, seed: int, stride: int | None = None
    ) -> None:
        """
        Args:
            stream: n tokens, n ≥ seq_length + 1.
            batch_size: windows in a batch, B.
            seq_length: tokens predicted in a window, T.
            seed: non-negative.
            stride: tokens between windows of a document, where documents are read apart; by default T. Where it is
                less, windows overlap and an epoch is as much longer.

        Raises:
            DataError: the stream is shorter than one window.
        """
        for flag, value in (("--batch-size", batch_size), ("--seq-length", seq_length)):
            if value < 1:
                raise ArgumentError(f"{flag} {value} is not positive", hint="give at least 1")
        if len(stream) < (2 if stream.apart else seq_length + 1):
            raise DataError(
                f"{stream.name} has {len(stream)} tokens, fewer than one window of {seq_length + 1}",
                hint=f"give --seq-length {max(1, len(stream) - 1)} or less, or a longer text",
            )
        self._tokens, self._apart = stream.tokens, stream.apart
        self._batch_size, self._seq_length, self._seed = batch_size, seq_length, seed
        self._stride = stride or seq_length
        if stream.apart:
            self._first, self._last = np.array(stream.parts(), dtype=np.int64).T
            over = np.maximum(0, self._last - self._first - seq_length)  # targets beyond a document's first window
            self._cuts = np.where(over > 0, 2 + -(-over // self._stride), 1)
        self.windows = int(self._cuts.sum()) if stream.apart else len(stream) // seq_length  # in an epoch
        self._windows = lru_cache(maxsize=2)(self._epoch)

    @property
    def steps_per_epoch(self) -> int:
        """Steps after which every window has been visited at least once."""
        return -(-self.windows // self._batch_size)

    def batch(self, step: int) -> torch.Tensor:
        """(B, T+1) int64: inputs are [:, :-1], targets [:, 1:]. -1 where a window ends before the others."""
        positions = self.positions(step)
        return torch.from_numpy(np.where(positions < 0, -1, self._tokens[positions]).astype(np.int64))

    def positions(self, step: int) -> npt.NDArray[np.int64]:
        """(B, T+1): where in the stream each token of a batch stands; -1 beyond the end of a window's document."""
        index = np.arange(step * self._batch_size, (step + 1) * self._batch_size)
        epochs, places = np.divmod(index, self.windows)
        windows = np.array([self._windows(int(epoch))[place] for epoch, place in zip(epochs, places, strict=True)])
        found = windows[:, :1] + np.arange(self._seq_length + 1)
        return np.where(found > windows[:, 1:], -1, found) if self._apart else found % len(self._tokens)

    def _epoch(self, epoch: int) -> npt.NDArray[np.int64]:
        """(windows, 2): where each begins, and the last position it may reach."""
        random = np.random.default_rng([self._seed, epoch])
        if not self._apart:
            offset = random.integers(len(self._tokens))
            starts = offset + self._seq_length * random.permutation(self.windows)
            return np.stack((starts, np.full_like(starts, np.iinfo(np.int64).max)), axis=1)
        document = np.repeat(np.arange(len(self._cuts)), self._cuts)
        number = np.arange(self.windows) - np.repeat(np.cumsum(self._cuts) - self._cuts, self._cuts)
        first, last = self._first[document], self._last[document]
        # The first window of a document begins with it, the last ends with it; the offset moves those between.
        shifted = first + np.maximum(0, number * self._stride - random.integers(self._stride, size=1))
        starts = np.where(number == 0, first, np.minimum(shifted, np.maximum(first, last - self._seq_length)))
        return np.stack((starts, last), axis=1)[random.permutation(self.windows)]


class Ahead:
    """Batches that threads make before they are asked for: the same ones with any number of threads, as a batch is a
    function of its number. workers: threads, each one batch ahead; with 0 a batch is made when it is asked for."""

    def __init__(self, batches: Batches, workers: int) -> None:
        self._batches, self._workers = batches, workers
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="batches") if workers else None
        self._made: dict[int, Future[torch.Tensor]] = {}

    def batch(self, step: int) -> torch.Tensor:
        """As of `Batches`."""
        if self._threads is None:
            return self._batches.batch(step)
        wanted = range(step, step + 1 + self._workers)
        self._made = {n: self._made.get(n) or self._threads.submit(self._batches.batch, n) for n in wanted}
        return self._made.pop(step).result()


def evaluation_windows(stream: TokenStream, context: int, stride: int) -> Iterator[tuple[torch.Tensor, int]]:
    """Windows that score each token but the first exactly once; of documents that are read apart, each in its own.

    Args:
        stream: at least two tokens.
        context: the most tokens a window gives as input.
        stride: tokens scored in each window after the first, 1 ≤ stride ≤ context.

    Yields:
        tokens: (m+1,) int64, m ≤ context: inputs tokens[:-1], targets tokens[1:].
        first: index of the first target to score; each scored target has at least context − stride + 1 tokens before it
            in the window, or all there are.

    Raises:
        ArgumentError: stride out of range. DataError: nothing to score.
    """
    if not 1 <= stride <= context:
        raise ArgumentError(
            f"--stride {stride} is not within 1 … {context} (the context)", hint=f"give --stride {context}"
        )
    if len(stream) < 2:
        raise DataError(f"{stream.name} has {len(stream)} tokens: none to predict", hint="give a longer text")
    tokens = torch.from_numpy(stream.tokens.astype(np.int64))
    for first, last in stream.parts():
        done = first  # targets up to this one are scored
        while done < last:
            end = min(first + context if done == first else done + stride, last)
            begin = max(first, end - context)
            yield tokens[begin : end + 1], done - begin
            done = end
