"""Figures of generated text: how much it repeats itself, and how diverse it is."""

from __future__ import annotations

from collections.abc import Sequence

GRAM = 4
WINDOW = 128


def repetition_rate(prompt: Sequence[int], tokens: Sequence[int], n: int = GRAM, window: int = WINDOW) -> float:
    """Share of tokens inside an n-gram that also began at most `window` tokens before.

    The n-gram may reach into the prompt, and its earlier occurrence may lie there. 0 without
    tokens.
    """
    text, start = [*prompt, *tokens], len(prompt)
    latest: dict[tuple[int, ...], int] = {}
    repeated = [False] * len(text)
    for i in range(len(text) - n + 1):
        gram = tuple(text[i : i + n])
        if i - latest.get(gram, -window - 1) <= window and gram in latest:
            repeated[i : i + n] = [True] * n
        latest[gram] = i
    return sum(repeated[start:]) / len(tokens) if tokens else 0.0


def distinct(texts: Sequence[Sequence[int]], n: int) -> float:
    """Number of different n-grams of all texts over the number of all (Li et al.

    2016); 0 without any.
    """
    grams = [tuple(text[i : i + n]) for text in texts for i in range(len(text) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 0.0
