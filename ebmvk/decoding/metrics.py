"""Figures of generated text: how much it repeats itself, and how diverse it is."""

from __future__ import annotations

from collections.abc import Sequence

GRAM = 4
WINDOW = 128


def repetition_rate(prompt: Sequence[int], tokens: Sequence[int], n: int = GRAM, window: int = WINDOW) -> float:
    """The share of tokens in an n-gram that is repeated: the same n tokens also begin at most
    `window` tokens earlier.

    The n-gram may begin in the prompt, and its earlier occurrence may lie in the prompt. The result
    is 0 if there are no tokens.
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
    """The number of different n-grams in all texts, divided by the number of n-grams.

    Li et al. 2016. The result is 0 without n-grams.
    """
    grams = [tuple(text[i : i + n]) for text in texts for i in range(len(text) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 0.0
