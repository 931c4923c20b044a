"""What each setting of a strategy does to the probabilities of the next token.

`STEPS` has one function for each field of `Strategy`, in the order of application. Each function
takes log p, (B, V) float64 and normalised, and returns it changed and normalised again. All
settings act on log p, so they mean the same for every model, with and without a memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Context:
    """The texts before their next tokens.

    seen: the tokens of each row's text so far. end: the token that ends a text, or None.
    """

    seen: Sequence[Sequence[int]]
    end: int | None = None


Step = Callable[[Tensor, float, Context], Tensor]
"""Takes log p (B, V), the setting's value, and what was written before; returns log p (B, V)."""


def _normalised(log_p: Tensor) -> Tensor:
    return torch.log_softmax(log_p, -1)


def _only(log_p: Tensor, allowed: Tensor) -> Tensor:
    return _normalised(log_p.where(allowed, -math.inf))


def _penalise(log_p: Tensor, penalty: float, context: Context) -> Tensor:
    return _normalised(penalised(log_p, context.seen, penalty, context.end))


def _ban_repeats(log_p: Tensor, n: float, context: Context) -> Tensor:
    return _normalised(without_repeats(log_p, context.seen, int(n), context.end))


def _heat(log_p: Tensor, temperature: float, _: Context) -> Tensor:
    # Subtract the largest log p first, because a tiny temperature would make every value overflow.
    return _normalised((log_p - log_p.amax(-1, keepdim=True)) / temperature)


def _top_k(log_p: Tensor, k: float, _: Context) -> Tensor:
    return log_p if k >= log_p.shape[-1] else _only(log_p, log_p >= log_p.topk(int(k)).values[:, -1:])


def _top_p(log_p: Tensor, mass: float, _: Context) -> Tensor:
    return _only(log_p, nucleus(log_p, mass))


def _min_p(log_p: Tensor, share: float, _: Context) -> Tensor:
    return _only(log_p, log_p >= log_p.amax(-1, keepdim=True) + math.log(share))


def _typical_p(log_p: Tensor, mass: float, _: Context) -> Tensor:
    return _only(log_p, typical(log_p, mass))


STEPS: dict[str, Step] = {
    "repetition_penalty": _penalise,
    "no_repeat_ngram": _ban_repeats,
    "temperature": _heat,
    "top_k": _top_k,
    "top_p": _top_p,
    "min_p": _min_p,
    "typical_p": _typical_p,
}


def penalised(log_p: Tensor, seen: Sequence[Sequence[int]], penalty: float, end: int | None = None) -> Tensor:
    """log p (B, V), unnormalised: multiplied by `penalty` for the tokens in the row's text, except
    `end`.
    """
    factor = torch.ones_like(log_p)
    for row, tokens in zip(factor, seen, strict=True):
        row[list(set(tokens) - {end})] = penalty
    return log_p * factor


def without_repeats(log_p: Tensor, seen: Sequence[Sequence[int]], n: int, end: int | None = None) -> Tensor:
    """Forbid tokens that would repeat an n-gram of the row's text. Returns log p (B, V), -inf for
    forbidden tokens.

    `end` is never forbidden. If all tokens of a row would be forbidden, the row isn't changed.
    """
    found = log_p.clone()
    for row, tokens in zip(found, seen, strict=True):
        last = tuple(tokens[len(tokens) - n + 1 :]) if n > 1 else ()
        banned = {tokens[i + n - 1] for i in range(len(tokens) - n + 1) if tuple(tokens[i : i + n - 1]) == last}
        banned = {token for token in banned if token != end and row[token] > -math.inf}
        if banned and len(banned) < int((row > -math.inf).sum()):
            row[list(banned)] = -math.inf
    return found


def nucleus(log_p: Tensor, mass: float) -> Tensor:
    """(B, V) bool: the fewest most probable tokens that together have at least probability `mass`.

    Holtzman et al. 2020, "The curious case of neural text degeneration".
    """
    values, order = log_p.sort(-1, descending=True)
    p = values.exp()
    return _unsorted(p.cumsum(-1) - p < mass, order)


def typical(log_p: Tensor, mass: float) -> Tensor:
    """(B, V) bool: the tokens with -log p nearest to the entropy: the fewest with total probability
    `mass`.

    Meister et al. 2023, "Locally typical sampling".
    """
    p = log_p.exp()
    information = -log_p.where(p > 0, 0)
    distance = (information - (p * information).sum(-1, keepdim=True)).abs().where(p > 0, math.inf)
    order = distance.argsort(dim=-1, stable=True)
    sorted_p = p.gather(-1, order)
    return _unsorted(sorted_p.cumsum(-1) - sorted_p < mass, order)


def _unsorted(mask: Tensor, order: Tensor) -> Tensor:
    return torch.zeros_like(mask).scatter(-1, order, mask)
