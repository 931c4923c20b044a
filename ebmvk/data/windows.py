"""Turns a split into one stream of tokens, and the stream into windows for training and evaluation.

A training batch is a pure function of seed and step, so a resumed run reads the same batches as a
run that was never interrupted.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch

from ebmvk.data.corpus import Corpus
from ebmvk.data.tokenizer import Ids, Tokenizer
from ebmvk.errors import ArgumentError, DataError

ENCODED_AT_ONCE = 1 << 21  # characters


@dataclass(frozen=True)
class TokenStream:
    """Documents one after another, each with the end-of-text token before it.

    The likelihood of a stream covers every token except the first, each given the tokens before it.
    So end-of-text tokens are predicted and cost nats, but they count as neither words nor bytes.

    Attributes:
        name: `corpus/split`, for messages.
        tokens: (n,) int32.
        starts: (documents,) int64, the position of each document's end-of-text token.
        word_level: `word_level` of the corpus, which defines what a word is. The tokenizer may come
            from another kind of text.
        apart: no window holds tokens of two documents, except the end-of-text token between them.
        text: the documents' texts, to count words and bytes; empty if only tokens are known.
        cut: True if the tokens end before the end of the last document.
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
        """A stream of one document. tokens: end-of-text, then the tokens of the document."""
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
        """Yields each document: (text, tokens without end-of-text, True if they are complete)."""
        ends = [*self.starts[1:].tolist(), len(self)]
        for text, start, end in zip(self.text, self.starts.tolist(), ends, strict=True):
            yield text, self.tokens[start + 1 : end], not self.cut or end < len(self)

    def parts(self) -> list[tuple[int, int]]:
        """(first, last) position of each stretch of tokens that windows stay inside.

        Every token of a stretch except its first is a target.
        """
        if not self.apart:
            return [(0, len(self) - 1)]
        ends = [*self.starts[1:].tolist(), len(self) - 1]
        return [(first, last) for first, last in zip(self.starts.tolist(), ends, strict=True) if last > first]


def encode_split(corpus: Corpus, split: str, tokenizer: Tokenizer, *, apart: bool = False) -> TokenStream:
    """Encode the documents of a split. apart: windows will not cross documents.

    Raises:
        DataError: the corpus has no such split.
    """
    text = corpus.documents(split)
    # The tokenizer's own results take about 100 bytes per token, so encode a few documents at a
    # time.
    encoded = [ids for some in _grouped(text) for ids in tokenizer.encode_many(some)]
    eos = np.array([tokenizer.eos_id], dtype=np.int32)
    tokens = np.concatenate([part for document in encoded for part in (eos, document)])
    lengths = np.array([len(document) + 1 for document in encoded], dtype=np.int64)
    starts = np.cumsum(lengths) - lengths
    return TokenStream(f"{corpus.name}/{split}", tokens, starts, corpus.word_level, apart, text)


def _grouped(documents: list[str]) -> Iterator[list[str]]:
    """Yields groups of at least `ENCODED_AT_ONCE` characters; the last may be smaller."""
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
    """Training batches as a pure function of (seed, step), so that resuming needs only the step.

    Each epoch treats the stream as a ring, shifts it by a random offset, cuts it into windows and
    visits every window once, in random order. A batch may end one epoch and begin the next.
    Documents that are read separately are cut one by one: a window at the beginning, one at the
    end, and between them one every `stride` tokens, shifted at random in each epoch.
    """

    def __init__(
        self, stream: TokenStream, batch_size: int, seq_length: int, seed: int, stride: int | None = None
    ) -> None:
        """
        Args:
            stream: n tokens, n ≥ seq_length + 1.
            batch_size: number of windows in a batch, B.
            seq_length: number of tokens predicted in a window, T.
            seed: non-negative.
            stride: if documents are read separately, the number of tokens from one window of a
                document to the next (None: T). With a smaller stride windows overlap, and an epoch
                becomes longer.

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
            # Targets after a document's first window
            over = np.maximum(0, self._last - self._first - seq_length)
            self._cuts = np.where(over > 0, 2 + -(-over // self._stride), 1)
        # Windows per epoch
        self.windows = int(self._cuts.sum()) if stream.apart else len(stream) // seq_length
        self._windows = lru_cache(maxsize=2)(self._epoch)

    @property
    def steps_per_epoch(self) -> int:
        """The number of steps that visit every window at least once."""
        return -(-self.windows // self._batch_size)

    def batch(self, step: int) -> torch.Tensor:
        """(B, T+1) int64: inputs [:, :-1], targets [:, 1:]; -1 after the end of a short window."""
        positions = self.positions(step)
        return torch.from_numpy(np.where(positions < 0, -1, self._tokens[positions]).astype(np.int64))

    def positions(self, step: int) -> npt.NDArray[np.int64]:
        """(B, T+1): each token's position in the stream; -1 after the end of its document."""
        index = np.arange(step * self._batch_size, (step + 1) * self._batch_size)
        epochs, places = np.divmod(index, self.windows)
        windows = np.array([self._windows(int(epoch))[place] for epoch, place in zip(epochs, places, strict=True)])
        found = windows[:, :1] + np.arange(self._seq_length + 1)
        return np.where(found > windows[:, 1:], -1, found) if self._apart else found % len(self._tokens)

    def _epoch(self, epoch: int) -> npt.NDArray[np.int64]:
        """(windows, 2): each window's first position, and the last position that it may reach."""
        random = np.random.default_rng([self._seed, epoch])
        if not self._apart:
            offset = random.integers(len(self._tokens))
            starts = offset + self._seq_length * random.permutation(self.windows)
            return np.stack((starts, np.full_like(starts, np.iinfo(np.int64).max)), axis=1)
        document = np.repeat(np.arange(len(self._cuts)), self._cuts)
        number = np.arange(self.windows) - np.repeat(np.cumsum(self._cuts) - self._cuts, self._cuts)
        first, last = self._first[document], self._last[document]
        # The first window starts where its document starts, and the last window ends where the
        # document ends. The offset shifts only the windows between them.
        shifted = first + np.maximum(0, number * self._stride - random.integers(self._stride, size=1))
        starts = np.where(number == 0, first, np.minimum(shifted, np.maximum(first, last - self._seq_length)))
        return np.stack((starts, last), axis=1)[random.permutation(self.windows)]


class Ahead:
    """Makes batches in threads before they are needed. The number of threads changes no batch.

    workers: number of threads, each of which works one batch ahead; with 0, a batch is made when it
        is asked for.
    """

    def __init__(self, batches: Batches, workers: int) -> None:
        self._batches, self._workers = batches, workers
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="batches") if workers else None
        self._made: dict[int, Future[torch.Tensor]] = {}

    def batch(self, step: int) -> torch.Tensor:
        """The batch of a step, as `Batches.batch` gives it."""
        if self._threads is None:
            return self._batches.batch(step)
        wanted = range(step, step + 1 + self._workers)
        self._made = {n: self._made.get(n) or self._threads.submit(self._batches.batch, n) for n in wanted}
        return self._made.pop(step).result()


def evaluation_windows(stream: TokenStream, context: int, stride: int) -> Iterator[tuple[torch.Tensor, int]]:
    """Windows that together score every token except the first exactly once.

    If documents are read separately, no window crosses from one document to the next.

    Args:
        stream: at least two tokens.
        context: the most input tokens in a window.
        stride: tokens scored in each window after the first, 1 ≤ stride ≤ context.

    Yields:
        tokens: (m+1,) int64, m ≤ context: inputs are tokens[:-1], targets tokens[1:].
        first: index of the first target to score. Each scored target has at least context − stride
            + 1 tokens before it in the window, or all that exist.

    Raises:
        ArgumentError: stride is out of range.
        DataError: there is nothing to score.
    """
    if not 1 <= stride <= context:
        raise ArgumentError(
            f"--stride {stride} is not between 1 and {context}, the context", hint=f"give --stride {context}"
        )
    if len(stream) < 2:
        raise DataError(
            f"{stream.name} has {len(stream)} tokens, too few to predict one from another", hint="give a longer text"
        )
    tokens = torch.from_numpy(stream.tokens.astype(np.int64))
    for first, last in stream.parts():
        done = first  # targets up to this position are scored
        while done < last:
            end = min(first + context if done == first else done + stride, last)
            begin = max(first, end - context)
            yield tokens[begin : end + 1], done - begin
            done = end
