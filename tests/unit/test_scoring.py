"""Answers to a harness are sums of the model's log-probabilities, whatever other requests are in
the batch.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from model_support import SMALL, variant

from ebmvk.config.schema import Config
from ebmvk.data.corpus import Corpus
from ebmvk.data.tokenizer import Tokenizer
from ebmvk.data.tokenizer_kinds import character_tokenizer, train_tokenizer
from ebmvk.decoding.strategies import GREEDY, NAMED, Strategy
from ebmvk.engine.device import Device
from ebmvk.engine.reference import Reference
from ebmvk.errors import ConfigError
from ebmvk.evaluation.requests import MAX_TOKENS, Scorer, decoding, pair
from ebmvk.memory.gate import LEXICAL, Gate
from ebmvk.memory.law import TIERS, Memory, Mode, Reader
from ebmvk.model.build import build_model
from ebmvk.splats.recall import FEATURES
from ebmvk.splats.store import SplatStore

TEXT = "The cat sees the dog. She likes fish, año, 猫! The dog sees the cat."
PAIRS = [
    ("The cat", " sees the dog."), ("", "She likes fish"), ("The dog sees ", "the cat. The cat sees"), ("The", ""),
    ("She", " "), ("The cat sees the dog. She likes fish.", " año"), ("\n", "The"),
]  # fmt: skip
REACH = 64  # more than any of these texts has tokens


def corpus(*, word_level: bool = False) -> Corpus:
    return Corpus("words", "test", {"train": [TEXT * 5], "validation": [TEXT]}, word_level=word_level)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(corpus(), 300)


def scorer(tokenizer: Tokenizer, name: str = "ebm", mode: Mode = "none", **how: Any) -> Scorer:
    """A scorer with a random model and a memory of random splats."""
    torch.manual_seed(3)
    model: Any = build_model(variant(name, SMALL), tokenizer.vocab_size)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    backend = Reference()
    reader = None if mode == "none" else Reader(memory(tokenizer.vocab_size), mode, backend)
    run: Any = type("Run", (), {"model": model.eval(), "tokenizer": tokenizer, "config": Config()})
    how = {"context": REACH, "stride": REACH} | how
    return Scorer(run, Device(backend, torch.device("cpu"), "test"), reader, **how)


def memory(vocab_size: int) -> Memory:
    """Random splats and gates; each tier has its own share."""
    d, n = SMALL.latent_dim, 40
    h = torch.nn.functional.normalize(torch.randn(n, d), dim=1)
    tokens = torch.randint(vocab_size, (n,))
    store = SplatStore.gather(h, tokens, torch.arange(n), vocab_size=vocab_size, beta=0.1, kappa=(20.0, 20.0))
    gates = {}
    for one, tiers in TIERS.items():
        if tiers:
            wide = LEXICAL + FEATURES * len(tiers)
            gates[one] = Gate(
                torch.randn(len(tiers), wide) / 9, torch.zeros(len(tiers)), torch.zeros(wide), torch.ones(wide)
            )
    unfitted = Memory.unfitted(store, d=d, vocab_size=vocab_size)
    return dataclasses.replace(unfitted, k=8, gates=gates)


def by_hand(own: Scorer, ids: list[int], first: int) -> tuple[float, bool]:
    """The law of the next token for one prefix after another, with a memory that reads one token at
    a time.
    """
    total, greedy = 0.0, True
    reader = own.reader.again() if own.reader else None
    with torch.no_grad():
        for n in range(1, len(ids)):
            seen = own.model(torch.tensor([ids[:n]]))
            law = own.model.log_p_lex(seen)[0, -1:]
            if reader:
                law = reader.log_prob(seen.h[0, -1:], law)
                reader.remember(seen.h[0, -1:], torch.tensor(ids[n : n + 1]))
            if n >= first:
                total += float(law[0, ids[n]])
                greedy &= int(law[0].argmax()) == ids[n]
    return total, greedy


@pytest.mark.parametrize("name", ["ebm", "plain", "tinygpt", "infinito", "gpt of experts"])
def test_a_continuation_costs_the_sum_of_its_tokens(name: str, tokenizer: Tokenizer) -> None:
    own = scorer(tokenizer, name, batch_size=3)
    for both, (log_p, greedy) in zip(PAIRS, own.log_likelihoods(PAIRS), strict=True):
        _check(own, both, log_p, greedy)


@pytest.mark.parametrize("mode", ["static", "episodic", "both"])
def test_the_sum_also_holds_with_a_memory(mode: Mode, tokenizer: Tokenizer) -> None:
    own = scorer(tokenizer, mode=mode, batch_size=2)
    for both, (log_p, greedy) in zip(PAIRS, own.log_likelihoods(PAIRS), strict=True):
        _check(own, both, log_p, greedy)


def _check(own: Scorer, both: tuple[str, str], log_p: float, greedy: bool) -> None:
    ids, first = pair(own.tokenizer, *both)
    expected = by_hand(own, ids.tolist(), first)
    assert log_p == pytest.approx(expected[0], abs=1e-4)
    assert greedy == expected[1]


def test_greedy_is_true_if_every_token_is_a_most_probable_one() -> None:
    letters = character_tokenizer(corpus())
    own = scorer(letters)
    with torch.no_grad():
        own.model.bias[int(letters.encode("e")[0])] += 100
    found = own.log_likelihoods([("The", text) for text in ("e", "eee", "eeo", "oee", "")])
    assert [greedy for _, greedy in found] == [True, True, False, False, True]
    assert own.texts([("The", {"max_gen_toks": 3})]) == ["eee"]


@pytest.mark.parametrize(("context", "stride"), [(5, 2), (7, 7), (4, 1)])
@pytest.mark.parametrize("mode", ["none", "both"])
def test_scores_dont_depend_on_batches_and_match_evaluate(
    context: int, stride: int, mode: Mode, tokenizer: Tokenizer
) -> None:
    """A text alone, among others, and as the continuation of an empty context has the likelihood
    that `evaluate` gives.
    """
    own = scorer(tokenizer, mode=mode, context=context, stride=stride, batch_size=2)
    texts = [TEXT, "She likes fish", "The"]
    whole = own.log_likelihoods([("", text) for text in texts])
    assert own.rolling(texts) == pytest.approx([log_p for log_p, _ in whole], abs=1e-4)
    alone = [own.log_likelihoods([("", text)])[0] for text in texts]
    for (a, greedy), (b, same) in zip(whole, alone, strict=True):
        assert a == pytest.approx(b, abs=1e-5)
        assert greedy == same


@pytest.mark.parametrize("kind", ["text", "words", "characters"])
def test_a_pair_keeps_its_text_and_no_token_spans_the_border(kind: str, tokenizer: Tokenizer) -> None:
    own = {
        "text": tokenizer,
        "words": train_tokenizer(corpus(word_level=True), 300),
        "characters": character_tokenizer(Corpus("all", "test", {"train": [TEXT + "\n"]}, word_level=False)),
    }[kind]
    for context, continuation in [*PAIRS, ("The c", "at sees"), ("The cat se", "es  \n"), ("  ", " the"), ("", "")]:
        ids, first = pair(own, context, continuation)
        assert ids[0] == own.eos_id
        blank = " " if own.word_level and not context.startswith(" ") and context + continuation else ""
        assert own.decode(ids) in (context + continuation, blank + context + continuation)
        assert own.decode(ids[:first]).strip() == context.strip()
        assert first == len(own.encode_prompt(context.rstrip()))


def test_scores_dont_depend_on_where_a_text_is_cut(tokenizer: Tokenizer) -> None:
    """log p(a b) = log p(a) + log p(b | a)."""
    for mode in ("none", "episodic", "both"):
        own = scorer(tokenizer, mode=mode)
        a, b = "The cat sees", " the dog. She likes fish."
        (whole, _), (first, _), (rest, _) = own.log_likelihoods([("", a + b), ("", a), (a, b)])
        assert whole == pytest.approx(first + rest, abs=1e-4)


def test_text_ends_before_a_stop_string_and_is_greedy_by_default(tokenizer: Tokenizer) -> None:
    own = scorer(tokenizer)
    free = own.texts([("The cat", {"max_gen_toks": 12})])[0]
    stop = free[len(free) // 2 :][:2]
    (cut, again) = own.texts([("The cat", {"max_gen_toks": 12, "until": [stop]}), ("The cat", {"max_gen_toks": 12})])
    assert cut == free[: free.index(stop)]
    assert again == free


@pytest.mark.parametrize(
    ("given", "strategy", "most", "stop"),
    [
        ({}, GREEDY, MAX_TOKENS, ()),
        ({"until": "\n", "max_new_tokens": 3}, GREEDY, 3, ("\n",)),
        ({"temperature": 0.7, "until": ["a", ""]}, Strategy(temperature=0.7), MAX_TOKENS, ("a",)),
        ({"do_sample": False, "temperature": 0.7}, GREEDY, MAX_TOKENS, ()),
        ({"do_sample": True, "temperature": 0}, GREEDY, MAX_TOKENS, ()),
        ({"do_sample": True, "top_p": 0.9, "top_k": None}, Strategy(top_p=0.9), MAX_TOKENS, ()),
        ({"strategy": "combined"}, NAMED["combined"], MAX_TOKENS, ()),
        ({"no_repeat_ngram_size": 3, "max_gen_toks": 2}, dataclasses.replace(GREEDY, no_repeat_ngram=3), 2, ()),
    ],
)  # fmt: skip
def test_generation_arguments_mean_the_same_as_in_transformers(
    given: dict[str, Any], strategy: Strategy, most: int, stop: tuple[str, ...]
) -> None:
    found = decoding(given, "exact", 7)
    assert (found.strategy, found.max_tokens, found.stop, found.seed) == (strategy, most, stop, 7)


@pytest.mark.parametrize("given", [{"num_beams": 4}, {"do_sample": True, "top_p": 2}, {"strategy": "best"}])
def test_unknown_generation_arguments_are_refused(given: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=str(next(reversed(given.values())))):
        decoding(given, "exact", 7)
