"""Figures of written text: how much it repeats itself, and how many different things it says."""

from __future__ import annotations

from collections.abc import Sequence

GRAM = 4
WINDOW = 128


def repetition_rate(prompt: Sequence[int], tokens: Sequence[int], n: int = GRAM, window: int = WINDOW) -> float:
    """Share of the tokens that stand in an n-gram which began before, at most `window` tokens back; 0 of no tokens.

    The n-gram may reach into the prompt, and what came before may lie there.
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
    """Different n-grams of all texts over their number (Li et al. 2016); 0 where there are none."""
    grams = [tuple(text[i : i + n]) for text in texts for i in range(len(text) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 0.0
