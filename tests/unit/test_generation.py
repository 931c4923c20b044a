"""A text is the same with and without a cache, alone and in a batch, whole and in pieces."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from model_support import SMALL, variant

from ebmvk.config.schema import LangevinConfig
from ebmvk.data.corpus import Corpus
from ebmvk.data.tokenizer import Tokenizer
from ebmvk.data.tokenizer_kinds import train_tokenizer
from ebmvk.decoding.generate import Decoding, Generator
from ebmvk.decoding.strategies import GREEDY, Strategy
from ebmvk.engine.reference import Reference
from ebmvk.model.build import build_model
from ebmvk.model.cache import Cache
from ebmvk.sampling.registry import SAMPLERS

TEXT = "The cat sees the dog. She likes fish — año, 猫! The dog sees the cat."
PROMPTS = ["The cat", "", "She likes the dog. The cat sees", "a"]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(Corpus("words", "test", {"train": [TEXT * 5], "validation": [TEXT]}, word_level=False), 300)


def generator(tokenizer: Tokenizer, name: str = "ebm", reach: int | None = None, sharp: float = 3.0) -> Generator:
    """A generator for a random model, sharp enough for texts to differ, that rarely ends a text."""
    torch.manual_seed(0)
    model: Any = build_model(dataclasses.replace(variant(name, SMALL), dropout=0.0), tokenizer.vocab_size)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
        model.bias[tokenizer.eos_id] -= 4
        model.bias.mul_(sharp)
    model.reach = reach
    return Generator(model, tokenizer, Reference(), LangevinConfig(knn_k=16, langevin_steps=20, langevin_levels=4))


def exact(n: int = 40, **how: Any) -> Decoding:
    return Decoding(n, sampler="exact", **how)


@pytest.mark.parametrize("name", ["ebm", "plain", "transformer decoder"])
def test_greedy_text_is_the_uncached_argmax(name: str, tokenizer: Tokenizer) -> None:
    own = generator(tokenizer, name)
    for prompt, found in zip(PROMPTS, own.generate(PROMPTS, exact(strategy=GREEDY)), strict=True):
        ids = [int(i) for i in tokenizer.encode_prompt(prompt)]
        with torch.no_grad():
            own.model.eval()
            for token in found.tokens:
                assert int(own.model.log_p_lex(own.model(torch.tensor([ids])))[0, -1].argmax()) == token
                ids.append(token)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_no_sampler_draws_a_token_that_is_ruled_out(sampler: Any, tokenizer: Tokenizer) -> None:
    """Greedy allows one token, which every sampler has to find."""
    own = generator(tokenizer)
    strategy = dataclasses.replace(GREEDY, repetition_penalty=1.5)
    found = [own.generate(PROMPTS[:2], Decoding(8, strategy, name)) for name in ("exact", sampler)]
    assert found[0] == found[1]


@pytest.mark.parametrize("sampler", ["exact", "langevin"])
def test_a_text_does_not_depend_on_its_neighbours(sampler: Any, tokenizer: Tokenizer) -> None:
    own = generator(tokenizer)
    how = Decoding(12, sampler=sampler, seed=5)
    together = own.generate(PROMPTS, how)
    assert own.generate(PROMPTS, how, batch_size=1) == together
    assert own.generate(PROMPTS, how, batch_size=3) == together
    assert own.generate(PROMPTS[:1], how) == together[:1]
    assert len({text.text for text in own.generate([""] * 4, how)}) == 4  # each draws for itself


@pytest.mark.parametrize("seeds", [(0, 1), pytest.param((2, 3), marks=pytest.mark.slow)], ids=str)
@pytest.mark.parametrize("strategy", [Strategy(), Strategy(temperature=0.7, repetition_penalty=1.3, no_repeat_ngram=2)])
def test_streamed_pieces_join_to_the_whole_text(
    strategy: Strategy, seeds: tuple[int, int], tokenizer: Tokenizer
) -> None:
    """No piece is taken back: pieces have no half characters and no start of a stop string."""
    own = generator(tokenizer, sharp=1.0)
    for seed in seeds:
        how = exact(60, strategy=strategy, seed=seed)
        whole = own.generate([PROMPTS[0]], how)[0]
        pieces = list(own.stream(PROMPTS[0], how))
        assert "".join(pieces) == whole.text
        assert len(pieces) > 10
        assert "" not in pieces
        middle = whole.text[len(whole.text) // 2 :][:3]
        stopped = dataclasses.replace(how, stop=(middle, "not there"))
        found = own.generate([PROMPTS[0]], stopped)[0]
        assert found.text == whole.text[: whole.text.index(middle)]
        assert found.reason == "stop"
        assert "".join(own.stream(PROMPTS[0], stopped)) == found.text


def test_no_ngram_is_repeated(tokenizer: Tokenizer) -> None:
    found = generator(tokenizer).generate([PROMPTS[2]], exact(120, strategy=Strategy(top_k=2, no_repeat_ngram=3)))[0]
    ids = [*found.prompt, *found.tokens]
    grams = [tuple(ids[i : i + 3]) for i in range(len(found.prompt) - 2, len(ids) - 2)]
    assert len(set(grams)) == len(grams)


def test_the_end_token_ends_a_text(tokenizer: Tokenizer) -> None:
    own = generator(tokenizer)
    with torch.no_grad():
        own.model.bias[tokenizer.eos_id] = 1e4
    found = own.generate(["a"], exact())[0]
    assert (found.tokens, found.text, found.reason) == ([], "", "end")
    assert list(own.stream("a", exact())) == []


def test_a_text_can_end_if_no_token_may_come_twice(tokenizer: Tokenizer) -> None:
    """The end token also starts each text; that must not count as its first use."""
    own = generator(tokenizer)
    with torch.no_grad():
        own.model.bias[tokenizer.eos_id] = 1e4
    how = exact(strategy=Strategy(no_repeat_ngram=1, repetition_penalty=3.0))
    assert [text.reason for text in own.generate(PROMPTS, how)] == ["end"] * len(PROMPTS)


@pytest.mark.parametrize("reach", [8, 13])
def test_no_sequence_exceeds_the_reach(reach: int, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts below, at and beyond the reach. Once full, a sequence keeps at least half of it."""
    own = generator(tokenizer, "plain", reach)
    lengths: list[int] = []
    extend = own.model.extend

    def spy(tokens: torch.Tensor, cache: Cache, embeddings: torch.Tensor | None = None) -> Any:
        found = extend(tokens, cache, embeddings)
        lengths.append(cache.length)
        return found

    monkeypatch.setattr(own.model, "extend", spy)
    for prompt in ("", "The cat", TEXT):
        lengths.clear()
        assert len(own.generate([prompt], exact(50))[0].tokens) == 50
        assert max(lengths) <= reach
        assert min(lengths[2 * reach :]) >= reach // 2


@pytest.mark.parametrize("reach", [2, 8, 13])
@pytest.mark.parametrize("name", ["plain", "tinygpt", "infinito"])
def test_only_full_texts_are_read_again(
    name: str, reach: int, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a batch, texts beyond the reach are the same as alone, and no token is read more often."""
    own = generator(tokenizer, name, reach)
    read: list[int] = []
    extend = own.model.extend

    def spy(tokens: torch.Tensor, cache: Cache, embeddings: torch.Tensor | None = None) -> Any:
        before = cache.lengths()
        found = extend(tokens, cache, embeddings)
        read.append(sum(cache.lengths()) - sum(before))
        assert max(cache.lengths()) <= reach
        return found

    monkeypatch.setattr(own.model, "extend", spy)
    alone, total = own.generate(PROMPTS, exact(30), batch_size=1), sum(read)
    read.clear()
    assert own.generate(PROMPTS, exact(30)) == alone
    assert sum(read) == total


def test_a_stream_keeps_the_modes_of_its_reader(tokenizer: Tokenizer) -> None:
    """While a stream is read gradients stay on; once it is closed the model is in its old mode."""
    own = generator(tokenizer)
    own.model.train()
    pieces = own.stream("The", exact())
    next(pieces)
    assert torch.is_grad_enabled()
    pieces.close()  # type: ignore[attr-defined]
    assert own.model.training
