"""Decoding strategies, against the processors of transformers and against definitions."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from ebmvk.decoding.strategies import NAMED, Strategy, changed
from ebmvk.errors import ConfigError

VOCABULARY = 53
SEEN = [[3, 5, 3, 5, 3], [1], [], [7, 7, 7, 7, 9, 7, 7]]


def laws(seed: int = 0, sharp: float = 2.0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.log_softmax(sharp * torch.randn(len(SEEN), VOCABULARY, generator=g, dtype=torch.float64), -1)


PEERS: list[tuple[str, str, dict[str, Any], dict[str, Any]]] = [
    *(("temperature", "TemperatureLogitsWarper", {"temperature": t}, {"temperature": t}) for t in (0.3, 1.7)),
    *(("top_k", "TopKLogitsWarper", {"top_k": k}, {"top_k": k}) for k in (1, 5, 52, 53, 500)),
    *(("top_p", "TopPLogitsWarper", {"top_p": p}, {"top_p": p}) for p in (0.05, 0.5, 0.9, 0.999)),
    *(("min_p", "MinPLogitsWarper", {"min_p": p}, {"min_p": p}) for p in (0.01, 0.3, 1.0)),
    *(("typical_p", "TypicalLogitsWarper", {"typical_p": p}, {"mass": p}) for p in (0.05, 0.4, 0.95)),
    *(
        ("repetition_penalty", "RepetitionPenaltyLogitsProcessor", {"repetition_penalty": r}, {"penalty": r})
        for r in (1.2, 0.5)
    ),
    *(
        ("no_repeat_ngram", "NoRepeatNGramLogitsProcessor", {"no_repeat_ngram": n}, {"ngram_size": n})
        for n in (1, 2, 3, 4)
    ),
]


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(("name", "peer", "ours", "peer_settings"), PEERS, ids=str)
def test_settings_match_transformers(
    name: str, peer: str, ours: dict[str, Any], peer_settings: dict[str, Any], seed: int
) -> None:
    """Row by row, because transformers needs texts of equal length."""
    transformers = pytest.importorskip("transformers", reason="transformers, the oracle, is not installed")
    processor = getattr(transformers, peer)(**peer_settings)
    log_p = laws(seed)
    found = Strategy(**ours).law(log_p, SEEN)
    for i, seen in enumerate(SEEN):
        if not seen and name in ("repetition_penalty", "no_repeat_ngram"):
            continue  # nothing seen: transformers has no such texts
        ids = torch.tensor([seen], dtype=torch.int64)
        wanted = torch.log_softmax(processor(ids, log_p[i : i + 1].clone()), -1)[0]
        torch.testing.assert_close(found[i], wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("penalty", [1.0, 1.5])
def test_the_end_token_is_neither_banned_nor_made_rarer(n: int, penalty: float) -> None:
    """It starts every text, so it counts as seen. Other tokens match transformers."""
    transformers = pytest.importorskip("transformers", reason="transformers, the oracle, is not installed")
    end, seen = 0, [[0, 3, 5, 3, 5, 3, 0], [0], [0, 0, 0]]
    log_p = laws()[: len(seen)]
    found = Strategy(repetition_penalty=penalty, no_repeat_ngram=n).law(log_p, seen, end)
    for i, tokens in enumerate(seen):
        ids, wanted = torch.tensor([tokens]), log_p[i : i + 1].clone()
        wanted = torch.log_softmax(transformers.RepetitionPenaltyLogitsProcessor(penalty)(ids, wanted), -1)
        wanted = transformers.NoRepeatNGramLogitsProcessor(n)(ids, wanted)
        rest = torch.arange(VOCABULARY) != end
        torch.testing.assert_close(
            torch.log_softmax(found[i, rest], -1), torch.log_softmax(wanted[0, rest], -1), rtol=0, atol=1e-12
        )
        assert found[i, end] > log_p[i, end] - 1e-12  # it can only gain by what the others lose
    without = Strategy(repetition_penalty=penalty, no_repeat_ngram=n).law(log_p, [tokens[1:-1] for tokens in seen], end)
    assert without[0, end] > -math.inf


@pytest.mark.parametrize("seed", range(3))
def test_any_combination_of_settings_is_normalised(seed: int) -> None:
    """Probabilities sum to 1, and at least one token is allowed."""
    values: dict[str, tuple[Any, ...]] = {
        "temperature": (0.1, 1.0, 2.0), "top_k": (0, 3), "top_p": (1.0, 0.6), "min_p": (0.0, 0.2),
        "typical_p": (1.0, 0.5), "repetition_penalty": (1.0, 1.3), "no_repeat_ngram": (0, 2),
    }  # fmt: skip
    log_p = laws(seed)
    for choice in itertools.product(*values.values()):
        found = Strategy(**dict(zip(values, choice, strict=True))).law(log_p, SEEN)
        torch.testing.assert_close(found.exp().sum(-1), torch.ones(len(SEEN), dtype=torch.float64))
        assert not found.isnan().any()


def test_the_default_strategy_changes_nothing() -> None:
    log_p = laws()
    assert torch.equal(Strategy().law(log_p, SEEN), log_p)
    assert changed(Strategy()) == {}
    assert changed(NAMED["nucleus 0.9"]) == {"top_p": 0.9}


@pytest.mark.parametrize("temperature", [1e-320, 1e-6, 1e6])
def test_extreme_temperatures(temperature: float) -> None:
    """The smallest leaves the most probable token, the largest a uniform law."""
    found = Strategy(temperature=temperature).law(laws(), SEEN).exp()
    if temperature < 1:
        assert torch.equal(found.argmax(-1), laws().argmax(-1))
        assert (found.amax(-1) == 1).all()
    else:
        torch.testing.assert_close(found, torch.full_like(found, 1 / VOCABULARY), rtol=1e-4, atol=0)


def test_a_law_whose_every_token_would_repeat_stays_as_it_is() -> None:
    """Its only possible token completes a repeated n-gram, but the text must go on."""
    log_p = torch.full((1, 4), -math.inf, dtype=torch.float64)
    log_p[0, 2] = 0.0
    assert torch.equal(Strategy(no_repeat_ngram=1).law(log_p, [[2, 2]]), log_p)


@pytest.mark.parametrize(
    ("field", "value"),
    [("temperature", 0.0), ("temperature", math.nan), ("temperature", math.inf),
     ("top_k", -1), ("top_p", 0.0), ("top_p", 1.1), ("min_p", -0.1),
     ("typical_p", 2.0), ("repetition_penalty", 0.0), ("no_repeat_ngram", -1)],
)  # fmt: skip
def test_values_out_of_range_name_their_flag(field: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"--{field.replace('_', '-')} {value}"):
        Strategy(**{field: value})
