"""Repetition and diversity of texts, counted by hand and by a slower definition."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ebmvk.decoding.metrics import distinct, repetition_rate


def slowly(prompt: list[int], tokens: list[int], n: int, window: int) -> float:
    text, inside = prompt + tokens, set()
    for i in range(len(text) - n + 1):
        if any(text[j : j + n] == text[i : i + n] for j in range(max(0, i - window), i)):
            inside.update(range(i, i + n))
    return sum(place >= len(prompt) for place in inside) / len(tokens)


@given(
    st.lists(st.integers(0, 2), max_size=12),
    st.lists(st.integers(0, 2), min_size=1, max_size=40),
    st.integers(1, 5),
    st.integers(1, 9),
)
def test_repetition_matches_the_slow_definition(prompt: list[int], tokens: list[int], n: int, window: int) -> None:
    assert repetition_rate(prompt, tokens, n, window) == pytest.approx(slowly(prompt, tokens, n, window))


def test_repetition_by_hand() -> None:
    assert repetition_rate([], [1, 2, 3, 4, 5, 6, 7, 8]) == 0
    assert repetition_rate([], [1, 2, 3, 4, 1, 2, 3, 4]) == 0.5
    assert repetition_rate([1, 2, 3, 4], [1, 2, 3, 4]) == 1
    assert repetition_rate([1, 2, 3, 4, *range(10, 138)], [1, 2, 3, 4]) == 0  # 132 tokens back
    assert repetition_rate([1, 2, 3, 4, *range(10, 134)], [1, 2, 3, 4]) == 1  # 128
    assert repetition_rate([5], []) == 0


def test_distinct() -> None:
    texts = [[1, 2, 1, 2], [1, 2, 3]]
    assert distinct(texts, 1) == 3 / 7
    assert distinct(texts, 2) == 3 / 5
    assert distinct(texts, 3) == 1
    assert distinct([[1], []], 2) == 0
