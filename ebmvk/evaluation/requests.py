"""Answers evaluation harnesses: log p(continuation | context), log p(text), and generated text.

Log-probabilities are exact: the sum over the continuation's tokens, under the model alone or with
its memory. The memory reads the context before it scores what follows.
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
from ebmvk.decoding.layers import text_layers, token_layers
from ebmvk.decoding.strategies import GREEDY, Strategy, named
from ebmvk.engine.device import Device, open_device
from ebmvk.errors import ConfigError
from ebmvk.evaluation.likelihood import diverged, token_nats, window
from ebmvk.memory.files import load
from ebmvk.memory.law import TIERS, Mode, Reader
from ebmvk.model.language import Context, TokenLaw
from ebmvk.model.reading import Layers
from ebmvk.model.token_layers import TokenLayers
from ebmvk.runs.folder import OpenRun, open_run
from ebmvk.sampling.registry import SamplerName

MAX_TOKENS = 256  # most tokens of a text, if the task sets no limit
_LIMITS = ("max_gen_toks", "max_new_tokens", "max_tokens")  # names of that limit in a task; the first one given counts
_NAMES = {"no_repeat_ngram_size": "no_repeat_ngram"}  # {name in transformers: our name}
Done = Callable[[int], object]
T = TypeVar("T")


def _nobody(_: int) -> None:
    """A progress callback that does nothing."""


class Scorer:
    """A checkpoint that answers many requests at once. context, stride: those of the windows, as in
    `ebmvk evaluate`. layers, token_layers: what runs the model's layers to score whole texts and to
    write texts; by default torch. Continuations are always scored by torch.
    """

    def __init__(
        self,
        run: OpenRun,
        device: Device,
        reader: Reader | None,
        *,
        context: int,
        stride: int,
        batch_size: int = 16,
        layers: Layers | None = None,
        token_layers: TokenLayers | None = None,
    ) -> None:
        self.model, self.tokenizer = run.model.to(device.torch), run.tokenizer
        self.device, self.reader, self.batch_size = device.torch, reader, batch_size
        self.context, self.stride = context, stride
        self.layers = layers
        self.generator = Generator(self.model, run.tokenizer, device.backend, run.config.langevin, reader, token_layers)

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
        """Open a run folder, one checkpoint folder, or an exported model.

        memory: the tiers that take part.

        Raises:
            ConfigError: a value is out of range. CheckpointError, DeviceError: as `ebmvk evaluate`.
        """
        if memory not in TIERS:
            raise ConfigError(f"memory {memory!r} is not known", hint=f"use one of {', '.join(TIERS)}")
        if batch_size < 1:
            raise ConfigError(f"--batch-size {batch_size} is below 1", hint="give 1 or more")
        run = open_run(Path(checkpoint), "--checkpoint", lambda _: None)
        context, stride = window(context, stride, run.config)
        on = open_device(device)
        reader = None if memory == "none" else Reader(load(run.checkpoint.path, run.model, memory), memory, on.backend)
        layers, _ = text_layers(run.model, run.config, on, device)
        writing, _ = token_layers(run.model, run.config, on, device)
        return cls(
            run, on, reader, context=context, stride=stride, batch_size=batch_size, layers=layers, token_layers=writing
        )

    def log_likelihoods(self, pairs: Sequence[tuple[str, str]], done: Done = _nobody) -> list[tuple[float, bool]]:
        """log p(continuation | context) for each (context, continuation).

        A context starts a document. done: called with the number of requests that have just been
        answered.

        Returns:
            (log p, greedy) for each pair; greedy is True if every token of the continuation is a
                most probable one.

        Raises:
            NonFinite: a token has no finite log-probability.
        """
        texts = [pair(self.tokenizer, *both) for both in pairs]
        # The longest first, so that memory runs out early if at all.
        order = sorted(range(len(texts)), key=lambda i: -len(texts[i][0]))
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
        """The contexts (1, n - 1, d) of each text (n,).

        Windows of all texts are read together. Short ones are padded at the end, which no earlier
        position sees.
        """
        windows = [
            (i, *found)
            for i, ids in enumerate(texts)
            if len(ids) > 1
            for found in evaluation_windows(TokenStream.of_text(ids), self.context, self.stride)
        ]
        # One array for each text: the results of many parts would keep the freed memory around them
        # in use.
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
        """(log p, greedy) as in `log_likelihoods`, for the tokens from `first` on."""
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
        """log p of each text as a document of its own. `ebmvk evaluate` reports it as nats, with
        the opposite sign.

        Raises:
            NonFinite: a token has no finite log-probability.
        """
        found = []
        for text in texts:
            stream = TokenStream.of_text(self.tokenizer.encode_prompt(text))
            found.append(-self._nats(stream) if len(stream) > 1 else 0.0)
            done(1)
        return found

    def _nats(self, stream: TokenStream) -> float:
        reader = self.reader.again() if self.reader else None
        nats = token_nats(
            self.model, stream, context=self.context, stride=self.stride, device=self.device, reader=reader,
            layers=self.layers,
        )  # fmt: skip
        return float(nats[reader.mode if reader else "none"].sum())

    def texts(
        self,
        requests: Sequence[tuple[str, Mapping[str, Any]]],
        *,
        sampler: SamplerName = "exact",
        seed: int = 42,
        done: Done = _nobody,
    ) -> list[str]:
        """The text that the model writes after each prompt. requests: (prompt, arguments of
        `decoding`).

        Raises:
            ConfigError: an argument is unknown or out of range.
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
    """The tokens (n,) of a context and its continuation, and where the continuation begins.

    Blanks at the end of the context count as part of the continuation, because its first token
    contains them. No other token spans the border: if a merge would, both sides are encoded
    separately.
    """
    kept = context.rstrip()
    before, whole = tokenizer.encode_prompt(kept), tokenizer.encode_prompt(context + continuation)
    if not np.array_equal(whole[: len(before)], before):
        whole = np.concatenate([before, tokenizer.encode(context[len(kept) :] + continuation)])
    return whole, len(before)


def decoding(given: Mapping[str, Any], sampler: SamplerName, seed: int) -> Decoding:
    """The decoding that a task's generation arguments ask for.

    given: the arguments, under the names that harnesses and transformers use: fields of `Strategy`;
    `strategy`, a named strategy that those fields change; `until`, `max_gen_toks`, `do_sample`.
    Decoding is greedy unless a temperature, a strategy or `do_sample` says otherwise.

    Raises:
        ConfigError: an argument is unknown or out of range.
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
            why="without it, the text would not be what the task asks for",
            hint="override it with --gen_kwargs, or use another task",
        )
    strategy = dataclasses.replace(base or Strategy(), **own)
    return Decoding(most[0] if most else MAX_TOKENS, strategy, sampler, seed, stop)


def _batched(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    return (items[first : first + size] for first in range(0, len(items), size))
