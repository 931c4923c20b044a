"""Compares decoding strategies with each other and with what people wrote.

Every strategy continues the same prompts, which are beginnings of held-out text. The same figures
are computed for the real continuations in that text. Perplexities are exact, over all texts
together. The model itself, without a strategy, gives one per token. Another model, the judge, gives
one per token if it has the same tokens, otherwise one per byte.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from statistics import mean
from typing import Any

import numpy as np
import torch

from ebmvk.data.ngram import bits_per_byte, perplexity
from ebmvk.data.tokenizer import Tokenizer
from ebmvk.data.windows import TokenStream
from ebmvk.decoding.generate import Decoding, Generator
from ebmvk.decoding.metrics import distinct, repetition_rate
from ebmvk.decoding.strategies import Strategy, changed
from ebmvk.errors import DataError
from ebmvk.evaluation.likelihood import token_nats
from ebmvk.model.language import LanguageModel
from ebmvk.model.reading import Layers
from ebmvk.sampling.registry import SamplerName

HUMAN = "human"


@dataclass(frozen=True)
class Passages:
    """Prompts and their real continuations.

    prompts: the texts of the prompts. begun: the tokens of each prompt, after an end-of-text token.
    real: the tokens that follow each prompt.
    """

    prompts: list[str]
    begun: list[list[int]]
    real: list[list[int]]

    @classmethod
    def of(cls, stream: TokenStream, tokenizer: Tokenizer, count: int, prompt: int, length: int) -> Passages:
        """Evenly spaced passages of a text, each within one document.

        A passage is used only if its prompt, decoded and encoded again, gives the same tokens.

        Args:
            count: number of passages. prompt, length: number of tokens of each prompt, and of what
                follows it.

        Raises:
            DataError: the text has fewer than `count` passages.
        """
        ends = [*stream.starts[1:].tolist(), len(stream)]
        need = prompt + length
        places = [
            place
            for start, end in zip(stream.starts.tolist(), ends, strict=True)
            for place in range(start + 1, end - need + 1, need)
        ]
        found = []
        for place in places:
            ids = stream.tokens[place : place + need].tolist()
            text = tokenizer.decode(ids[:prompt])
            begun = [int(token) for token in tokenizer.encode_prompt(text)]
            # The cut may split a word whose parts have other tokens, and tokens for unknown
            # characters lose text.
            if begun[1:] == ids[:prompt] and not tokenizer.has_unknown(stream.tokens[place : place + need]):
                found.append((text, begun, ids[prompt:]))
        if len(found) < count:
            raise DataError(
                f"{stream.name} has {len(found)} passages of {need} tokens, fewer than {count}",
                hint=f"use --prompts {max(1, len(found))}, or fewer --max-tokens",
            )
        chosen = [found[i] for i in np.linspace(0, len(found) - 1, count).round().astype(int)]
        return cls(*(list(part) for part in zip(*chosen, strict=True)))


@dataclass(frozen=True)
class Judge:
    """A model that scores continuations, in nats.

    It can score given tokens, or encode a text with its own tokenizer and score that. The second
    way compares models with different tokenizers by their nats for the same bytes.

    layers: what runs the model's layers; by default torch, on the device of its weights.
    """

    model: LanguageModel
    tokenizer: Tokenizer
    context: int
    layers: Layers | None = None

    def nats(self, begun: list[int], tokens: list[int]) -> float:
        """Nats of the tokens that follow the prompt's tokens."""
        return float(self._after(begun, [*begun, *tokens]).sum())

    def nats_of_text(self, prompt: str, text: str) -> float:
        """Nats of a text after a prompt. The prompt and the text are encoded together. The first n
        tokens are skipped, where n is the number of tokens of the prompt alone.
        """
        whole, begun = (self.tokenizer.encode_prompt(part).tolist() for part in (prompt + text, prompt))
        return float(self._after(begun, whole).sum())

    def _after(self, begun: list[int], whole: list[int]) -> torch.Tensor:
        """Nats of the tokens of `whole` after the first len(begun)."""
        stream = TokenStream("text", np.array(whole, dtype=np.int32), np.zeros(1, dtype=np.int64))
        device = next(self.model.parameters()).device
        stride = max(1, self.context // 2)
        found = token_nats(self.model, stream, context=self.context, stride=stride, device=device, layers=self.layers)
        return found["none"][len(begun) - 1 :]


def compare(
    generator: Generator,
    own: Judge,
    other: Judge | None,
    passages: Passages,
    strategies: Mapping[str, Strategy],
    *,
    sampler: SamplerName,
    length: int,
    seed: int,
    say: Callable[[str], None],
) -> Iterator[dict[str, Any]]:
    """A row of figures for the human text, then one for each strategy.

    own: the model as a judge of itself, without a strategy. other: the judge, if there is one. say:
    called with a line after each strategy.
    """
    real = [own.tokenizer.decode(tokens) for tokens in passages.real]
    yield {"strategy": HUMAN, "settings": {}} | _figures(own, other, passages, passages.real, real, None)
    if generator.layers is not None:  # the first prompts compile the layers, outside of the time of a strategy
        generator.generate(passages.prompts, Decoding(1, sampler=sampler, seed=seed))
    for name, strategy in strategies.items():
        began = time.perf_counter()
        found = generator.generate(passages.prompts, Decoding(length, strategy, sampler, seed))
        spent = time.perf_counter() - began
        tokens = [text.tokens for text in found]
        row = {"strategy": name, "settings": changed(strategy)}
        yield row | _figures(own, other, passages, tokens, [text.text for text in found], spent)
        say(f"{name}: {sum(map(len, tokens)):,} tokens in {spent:.1f} s")


@torch.no_grad()
def _figures(
    own: Judge,
    other: Judge | None,
    passages: Passages,
    tokens: list[list[int]],
    texts: list[str],
    seconds: float | None,
) -> dict[str, Any]:
    written = [(begun, ids) for begun, ids in zip(passages.begun, tokens, strict=True) if ids]
    total = sum(len(ids) for _, ids in written)
    nats = sum(own.nats(begun, ids) for begun, ids in written) / total if total else None
    return {
        "tokens": total,
        "repetition_rate": mean(repetition_rate(begun, ids) for begun, ids in written) if written else 0.0,
        **{f"distinct_{n}": distinct(tokens, n) for n in (1, 2, 3)},
        "nats_per_token": nats,
        "perplexity": None if nats is None else perplexity(nats),
        **_judged(own, other, passages.prompts, written, texts),
        "tokens_per_second": None if seconds is None else total / seconds,
    }


def _judged(
    own: Judge, other: Judge | None, prompts: list[str], written: list[tuple[list[int], list[int]]], texts: list[str]
) -> dict[str, Any]:
    """Figures under the judge. judge_unit: "token", or "byte" if the judge has other tokens;
    judge_nats: nats per such unit.
    """
    size = sum(len(text.encode()) for text in texts)
    if other is None or not size:
        return dict.fromkeys(("judge_unit", "judge_nats", "judge_perplexity", "judge_bits_per_byte"))
    same = other.tokenizer.digest() == own.tokenizer.digest()
    if same:
        nats, units = sum(other.nats(begun, ids) for begun, ids in written), sum(len(ids) for _, ids in written)
    else:
        pairs = zip(prompts, texts, strict=True)
        nats, units = sum(other.nats_of_text(prompt, text) for prompt, text in pairs if text), size
    return {
        "judge_unit": "token" if same else "byte",
        "judge_nats": nats / units,
        "judge_perplexity": perplexity(nats / units),
        "judge_bits_per_byte": bits_per_byte(nats, size),
    }
