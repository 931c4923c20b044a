"""A split as one stream of tokens, and the windows that training and evaluation read from it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch

from ebmvk.data.datasets import Corpus
from ebmvk.data.tokenizer import Ids, Tokenizer
from ebmvk.errors import ArgumentError, DataError


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
    """

    name: str
    tokens: Ids
    starts: npt.NDArray[np.int64]
    word_level: bool = False

    def __len__(self) -> int:
        return len(self.tokens)

    def take(self, limit: int) -> TokenStream:
        """The first `limit` tokens."""
        return replace(self, tokens=self.tokens[:limit], starts=self.starts[self.starts < limit])


def encode_split(corpus: Corpus, split: str, tokenizer: Tokenizer) -> TokenStream:
    """Encode the documents of a split. Raises DataError if there is no such split."""
    encoded = tokenizer.encode_many(corpus.documents(split))
    eos = np.array([tokenizer.eos_id], dtype=np.int32)
    tokens = np.concatenate([part for document in encoded for part in (eos, document)])
    lengths = np.array([len(document) + 1 for document in encoded], dtype=np.int64)
    return TokenStream(f"{corpus.name}/{split}", tokens, np.cumsum(lengths) - lengths, corpus.word_level)


class Batches:
    """Training batches as a pure function of (seed, step): resuming needs no state but the step.

    Each epoch turns the stream, as a ring, by an offset of its own, cuts it into windows and visits each once, in an
    order of its own; a batch may end one epoch and begin the next.
    """

    def __init__(self, stream: TokenStream, batch_size: int, seq_length: int, seed: int) -> None:
        """
        Args:
            stream: n tokens, n ≥ seq_length + 1.
            batch_size: windows in a batch, B.
            seq_length: tokens predicted in a window, T.
            seed: non-negative.

        Raises:
            DataError: the stream is shorter than one window.
        """
        for flag, value in (("--batch-size", batch_size), ("--seq-length", seq_length)):
            if value < 1:
                raise ArgumentError(f"{flag} {value} is not positive", hint="give at least 1")
        if len(stream) < seq_length + 1:
            raise DataError(
                f"{stream.name} has {len(stream)} tokens, fewer than one window of {seq_length + 1}",
                hint=f"give --seq-length {max(1, len(stream) - 1)} or less, or a longer text",
            )
        self._tokens = stream.tokens
        self._batch_size, self._seq_length, self._seed = batch_size, seq_length, seed
        self.windows = len(stream) // seq_length  # in an epoch
        self._starts = lru_cache(maxsize=2)(self._epoch_starts)

    @property
    def steps_per_epoch(self) -> int:
        """Steps after which every window has been visited at least once."""
        return -(-self.windows // self._batch_size)

    def batch(self, step: int) -> torch.Tensor:
        """(B, T+1) int64: inputs are [:, :-1], targets [:, 1:]."""
        return torch.from_numpy(self._tokens[self.positions(step)].astype(np.int64))

    def positions(self, step: int) -> npt.NDArray[np.int64]:
        """(B, T+1): where in the stream each token of a batch stands."""
        index = np.arange(step * self._batch_size, (step + 1) * self._batch_size)
        epochs, places = np.divmod(index, self.windows)
        starts = np.array([self._starts(int(epoch))[place] for epoch, place in zip(epochs, places, strict=True)])
        return np.asarray((starts[:, None] + np.arange(self._seq_length + 1)) % len(self._tokens))

    def _epoch_starts(self, epoch: int) -> npt.NDArray[np.int64]:
        random = np.random.default_rng([self._seed, epoch])
        offset = random.integers(len(self._tokens))
        return offset + self._seq_length * random.permutation(self.windows)


def evaluation_windows(stream: TokenStream, context: int, stride: int) -> Iterator[tuple[torch.Tensor, int]]:
    """Windows that score each token but the first exactly once.

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
    last = len(tokens) - 1
    done = 0  # targets 1 … done are scored
    while done < last:
        end = min(context if done == 0 else done + stride, last)
        begin = max(0, end - context)
        yield tokens[begin : end + 1], done - begin
        done = end
