"""What evaluation harnesses ask of a model: log p(continuation | context), log p(text), and text up to a stop string.

Exact, as every likelihood here: the sum of log p of a continuation's tokens, under the model alone or with its memory,
which reads a context before it scores what follows.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ebmvk.data.tokenizer import Ids, Tokenizer
from ebmvk.data.windows import TokenStream, evaluation_windows
from ebmvk.decoding.generate import Decoding, Generator
from ebmvk.decoding.strategies import GREEDY, Strategy, named
from ebmvk.engine.device import Device, open_device
from ebmvk.errors import ConfigError
from ebmvk.evaluation.likelihood import diverged, token_nats, window
from ebmvk.memory.files import load
from ebmvk.memory.law import TIERS, Mode, Reader
from ebmvk.model.language import Context, TokenLaw
from ebmvk.runs.folder import OpenRun, open_run
from ebmvk.sampling.registry import SamplerName

MAX_TOKENS = 256  # of a text, where a task does not say
_LIMITS = ("max_gen_toks", "max_new_tokens", "max_tokens")  # names for that, in the order they are looked for
_NAMES = {"no_repeat_ngram_size": "no_repeat_ngram"}  # of transformers, where ours is another
Done = Callable[[int], object]
T = TypeVar("T")


def _nobody(_: int) -> None:
    """Where nobody counts what is done."""


class Scorer:
    """A checkpoint that answers requests, many at once. context, stride: of windows, as `ebmvk evaluate` reads."""

    def __init__(
        self, run: OpenRun, device: Device, reader: Reader | None, *, context: int, stride: int, batch_size: int = 16
    ) -> None:
        self.model, self.tokenizer = run.model.to(device.torch), run.tokenizer
        self.device, self.reader, self.batch_size = device.torch, reader, batch_size
        self.context, self.stride = context, stride
        self.generator = Generator(self.model, run.tokenizer, device.backend, run.config.langevin, reader)

    @classmethod
    def open(
        cls,
        checkpoint: str | Path,
        *,
        memory: Mode = "none",
        device: str = "auto",
        context: int | None = None,
        stride: int | None = None,
        batch_size: int = 16,
    ) -> Scorer:
        """A run folder, one checkpoint folder, or an exported folder; memory: its tiers that take part.

        Raises:
            ConfigError: a value out of range. CheckpointError, DeviceError: as `ebmvk evaluate`.
        """
        if memory not in TIERS:
            raise ConfigError(f"memory {memory!r} is not known", hint=f"take one of {', '.join(TIERS)}")
        if batch_size < 1:
            raise ConfigError(f"--batch-size {batch_size} is below 1", hint="give a number from 1 on")
        run = open_run(Path(checkpoint), "--checkpoint", lambda _: None)
        context, stride = window(context, stride, run.config)
        on = open_device(device)
        reader = None if memory == "none" else Reader(load(run.checkpoint.path, run.model, memory), memory, on.backend)
        return cls(run, on, reader, context=context, stride=stride, batch_size=batch_size)

    def log_likelihoods(self, pairs: Sequence[tuple[str, str]], done: Done = _nobody) -> list[tuple[float, bool]]:
        """log p(continuation | context) of each (context, continuation), and whether every token of the continuation is
        one of the most probable. A context starts a document. done: told how many more are.

        Raises:
            NonFinite: the model gives a token no finite log-probability.
        """
        texts = [pair(self.tokenizer, *both) for both in pairs]
        order = sorted(range(len(texts)), key=lambda i: -len(texts[i][0]))  # the longest first: it shows what fits
        found: dict[int, tuple[float, bool]] = {}
        with torch.no_grad():
            rows = self.model.embeddings()
            law = TokenLaw(self.model, rows)
            for batch in _batched(order, self.batch_size):
                states = self._states([texts[i][0] for i in batch], rows)
                found |= {i: self._scored(*texts[i], seen, law) for i, seen in zip(batch, states, strict=True)}
                done(len(batch))
        return [found[i] for i in range(len(texts))]

    def _states(self, texts: Sequence[Ids], rows: Tensor) -> list[Context]:
        """What the model makes of each text (n,): contexts (1, n - 1, d). Windows of all texts are read together, the
        short ones padded behind, where no earlier position looks."""
        windows = [
            (i, *found)
            for i, ids in enumerate(texts)
            if len(ids) > 1
            for found in evaluation_windows(TokenStream.of_text(ids), self.context, self.stride)
        ]
        # Written into arrays made beforehand: separate parts would keep the freed memory around them in use.
        whole = [[rows.new_empty(max(0, len(ids) - 1), rows.shape[1]) for ids in texts] for _ in range(2)]
        done = [0] * len(texts)
        for group in _batched(windows, self.batch_size):
            tokens = pad_sequence([tokens[:-1] for _, tokens, _ in group], batch_first=True)
            seen = self.model(tokens.to(self.device), rows)
            for row, (i, tokens, first) in enumerate(group):
                at = slice(done[i], done[i] + len(tokens) - 1 - first)
                for into, values in zip(whole, (seen.query, seen.h), strict=True):
                    into[i][at] = values[row, first : len(tokens) - 1]
                done[i] = at.stop
        return [Context(query[None], h[None], ()) for query, h in zip(*whole, strict=True)]

    def _scored(self, ids: Ids, first: int, seen: Context, law: TokenLaw) -> tuple[float, bool]:
        """As `log_likelihoods`, of the tokens from `first` on."""
        h, tokens = seen.h[0, first - 1 :], torch.from_numpy(ids.astype(np.int64))
        text = self.reader.again() if self.reader and first < len(ids) else None
        if text:
            text.remember(seen.h[0, : first - 1], tokens[1:first])
        own, most = h.new_empty(len(h)), h.new_empty(len(h))
        for rows, log_p in law.pieces(seen.query[0, first - 1 :]):
            following = tokens[first:][rows]
            log_p = text.log_prob(h[rows], log_p, following) if text else log_p  # noqa: PLW2901
            own[rows] = log_p.gather(1, following[:, None].to(log_p.device))[:, 0]
            most[rows] = log_p.amax(1)
        if not bool(torch.isfinite(own).all()):
            raise diverged("a continuation")
        return float(own.double().sum()), bool((own >= most).all())

    def rolling(self, texts: Sequence[str], done: Done = _nobody) -> list[float]:
        """log p of each text as a document of its own: what `ebmvk evaluate` calls nats, with the other sign.

        Raises:
            NonFinite: the model gives a token no finite log-probability.
        """
        found = []
        for text in texts:
            stream = TokenStream.of_text(self.tokenizer.encode_prompt(text))
            found.append(-self._nats(stream) if len(stream) > 1 else 0.0)
            done(1)
        return found

    def _nats(self, stream: TokenStream) -> float:
        reader = self.reader.again() if self.reader else None
        how = (self.model, stream)
        nats = token_nats(*how, context=self.context, stride=self.stride, device=self.device, reader=reader)
        return float(nats[reader.mode if reader else "none"].sum())

    def texts(
        self,
        requests: Sequence[tuple[str, Mapping[str, Any]]],
        *,
        sampler: SamplerName = "exact",
        seed: int = 42,
        done: Done = _nobody,
    ) -> list[str]:
        """What the model writes after each prompt, with the generation arguments of `decoding`.

        Raises:
            ConfigError: an argument that is not known, or out of range.
        """
        how = [decoding(given, sampler, seed) for _, given in requests]
        found: dict[int, str] = {}
        for one in dict.fromkeys(how):
            own = [i for i, other in enumerate(how) if other == one]
            written = self.generator.generate([requests[i][0] for i in own], one, self.batch_size)
            found |= {i: text.text for i, text in zip(own, written, strict=True)}
            done(len(own))
        return [found[i] for i in range(len(requests))]


def pair(tokenizer: Tokenizer, context: str, continuation: str) -> tuple[Ids, int]:
    """(n,) the tokens of a context, as the start of a document, and its continuation; and where the latter begins.

    Blanks at the end of the context belong to the continuation, whose first token has them. Otherwise no token lies
    across the border: where a merge would, both sides are encoded apart.
    """
    kept = context.rstrip()
    before, whole = tokenizer.encode_prompt(kept), tokenizer.encode_prompt(context + continuation)
    if not np.array_equal(whole[: len(before)], before):
        whole = np.concatenate([before, tokenizer.encode(context[len(kept) :] + continuation)])
    return whole, len(before)


def decoding(given: Mapping[str, Any], sampler: SamplerName, seed: int) -> Decoding:
    """What a task's generation arguments say, by the names that harnesses and transformers have for them: the fields of
    `Strategy`, `strategy` (one by its name, which those change), `until`, `max_gen_toks` and `do_sample`. Greedy unless
    a temperature or `do_sample` asks for more.

    Raises:
        ConfigError: an argument that is not known, or out of range.
    """
    rest = {name: value for name, value in given.items() if value is not None}
    until = rest.pop("until", [])
    stop = tuple(text for text in ([until] if isinstance(until, str) else until) if text)
    most = [int(rest.pop(name)) for name in _LIMITS if name in rest]
    base = named(rest.pop("strategy")) if "strategy" in rest else None
    sample = rest.pop("do_sample", base is not None or float(rest.get("temperature", 0)) > 0)
    if not sample or rest.get("temperature") == 0:
        rest |= {"temperature": GREEDY.temperature, "top_k": GREEDY.top_k}
    own = {_NAMES.get(name, name): value for name, value in rest.items()}
    for name in own.keys() - {entry.name for entry in dataclasses.fields(Strategy)}:
        raise ConfigError(
            f"generation argument {name} = {own[name]!r} is not known",
            why="left out of account, it would give other text than the task wants",
            hint="overwrite it with --gen_kwargs, or take another task",
        )
    strategy = dataclasses.replace(base or Strategy(), **own)
    return Decoding(most[0] if most else MAX_TOKENS, strategy, sampler, seed, stop)


def _batched(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    return (items[first : first + size] for first in range(0, len(items), size))
