"""What is done to the law of the next token before a token is drawn from it.

Applied in this order, each renormalising: repetition penalty, no repeated n-gram, temperature, top-k, top-p (nucleus),
min-p, typical. All act on log p, so that they mean the same for every model and with any memory.
"""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from ebmvk.config.schema import nearest
from ebmvk.errors import ConfigError

_POSITIVE, _LARGEST = math.ulp(0.0), sys.float_info.max
WHOLE = ("top_k", "no_repeat_ngram")  # settings that count something


def _is_number(value: object, *, whole: bool) -> bool:
    """True for numbers, numpy's too, but not for bools."""
    return isinstance(value, Integral if whole else Real) and not isinstance(value, bool)


@dataclass(frozen=True)
class Strategy:
    """Every field at its default leaves the law as it is: then tokens have the law whose perplexity is reported.

    temperature: p^(1/T). top_k: only the k most probable (0: all). top_p: only the fewest most probable tokens that
    hold this mass (Holtzman et al. 2020). min_p: only what has this share of the largest probability (Nguyen et al.
    2024). typical_p: only the tokens of this mass whose information is nearest to the entropy (Meister et al. 2023).
    repetition_penalty: log p times this for every token seen (Keskar et al. 2019). no_repeat_ngram: no n-gram twice
    (0: any). Neither of the last two touches the end token: it starts every text, and ending one repeats nothing.

    Raises:
        ConfigError: a value out of range, naming its flag.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    typical_p: float = 1.0
    repetition_penalty: float = 1.0
    no_repeat_ngram: int = 0

    def __post_init__(self) -> None:
        for name, low, high, hint in (
            ("temperature", _POSITIVE, _LARGEST, "take 1, or 0.7 for safer text; --greedy is the limit 0"),
            ("top_k", 0, _LARGEST, "take 50, or 0 for all tokens"),
            ("top_p", _POSITIVE, 1, "take 0.95, or 1 for all tokens"),
            ("min_p", 0, 1, "take 0.05, or 0 for all tokens"),
            ("typical_p", _POSITIVE, 1, "take 0.95, or 1 for all tokens"),
            ("repetition_penalty", _POSITIVE, _LARGEST, "take 1.2, or 1 for none"),
            ("no_repeat_ngram", 0, _LARGEST, "take 4, or 0 to allow any"),
        ):
            value: Any = getattr(self, name)
            whole = name in WHOLE
            if not _is_number(value, whole=whole):
                kind = "a whole number" if whole else "a number"
                raise ConfigError(f"--{name.replace('_', '-')} {value!r} is not {kind}", hint=hint)
            if not low <= value <= high:  # not a number is in no range
                least = "a positive number" if low == _POSITIVE else "0 or more"
                most = "" if high == _LARGEST else f" and {high} at most"
                raise ConfigError(f"--{name.replace('_', '-')} {value} is not {least}{most}", hint=hint)
            object.__setattr__(self, name, int(value) if whole else float(value))  # torch takes no larger integers

    def law(self, log_p: Tensor, seen: Sequence[Sequence[int]], end: int | None = None) -> Tensor:
        """log of the changed law: (B, V), normalised, -inf where a token is ruled out; at least one never is.

        log_p: (B, V) normalised; seen: the tokens of each row's text so far; end: the token that ends a text.
        """
        found = log_p.double()
        if self.repetition_penalty != 1:
            found = _normalised(penalised(found, seen, self.repetition_penalty, end))
        if self.no_repeat_ngram:
            found = _normalised(without_repeats(found, seen, self.no_repeat_ngram, end))
        if self.temperature != 1:
            # Less the largest: the smallest temperature must not overflow all of them.
            found = _normalised((found - found.amax(-1, keepdim=True)) / self.temperature)
        if 0 < self.top_k < found.shape[-1]:
            found = _only(found, found >= found.topk(self.top_k).values[:, -1:])
        if self.top_p < 1:
            found = _only(found, nucleus(found, self.top_p))
        if self.min_p > 0:
            found = _only(found, found >= found.amax(-1, keepdim=True) + math.log(self.min_p))
        if self.typical_p < 1:
            found = _only(found, typical(found, self.typical_p))
        return found.to(log_p.dtype)


GREEDY = Strategy(top_k=1)
NAMED = MappingProxyType(
    {
        "greedy": GREEDY,
        "temperature 0.5": Strategy(temperature=0.5),
        "temperature 1.5": Strategy(temperature=1.5),
        "top-k 5": Strategy(top_k=5),
        "nucleus 0.9": Strategy(top_p=0.9),
        "min-p 0.05": Strategy(min_p=0.05),
        "typical 0.95": Strategy(typical_p=0.95),
        "combined": Strategy(temperature=0.8, top_k=50, top_p=0.95, repetition_penalty=1.2),
        "infinito": Strategy(temperature=1.0, top_k=50, top_p=0.95, repetition_penalty=1.2, no_repeat_ngram=8),
        "sampling": Strategy(),
    }
)
"""What `--strategy` names. `infinito` is the generation preset of INFINITO V5.2, which leaves the temperature between
.7 and 1; at 1, and with no eight tokens twice, texts of subwords repeat themselves about as much as people do."""


def named(name: str) -> Strategy:
    """The strategy with this name, or the only one whose first word it is: `nucleus` is `nucleus 0.9`.

    Raises:
        ConfigError: no strategy has that name, or several begin with it.
    """
    if name in NAMED:
        return NAMED[name]
    begun = [known for known in NAMED if name and known.partition(" ")[0] == name.replace("_", "-")]
    if len(begun) == 1:
        return NAMED[begun[0]]
    close = nearest(name, NAMED)
    hint = f"take {' or '.join(begun)}" if begun else f"did you mean {close}?" if close else ""
    raise ConfigError(
        f"--strategy {name!r}: {'several strategies begin with it' if begun else 'no such strategy'}",
        hint=hint or f"take one of {', '.join(NAMED)}",
    )


def of(strategy: Strategy | str, settings: Mapping[str, float]) -> Strategy:
    """A strategy, or the strategy with that name, with some of its settings changed.

    Raises:
        ConfigError: the strategy or a setting doesn't exist, or a value is out of range.
    """
    base = named(strategy) if isinstance(strategy, str) else strategy
    if not isinstance(base, Strategy):
        raise ConfigError(f"strategy {base!r} isn't a strategy", hint='give a Strategy, or a name such as "nucleus"')
    names = [entry.name for entry in dataclasses.fields(Strategy)]
    if unknown := next((name for name in settings if name not in names), None):
        close = nearest(unknown, names)
        hint = f"did you mean {close}?" if close else f"take {', '.join(names)}"
        raise ConfigError(f"strategies have no setting {unknown!r}", hint=hint)
    return dataclasses.replace(base, **settings)  # type: ignore[arg-type]


def changed(strategy: Strategy) -> dict[str, float]:
    """{field: value} of what is not at its default."""
    return {
        entry.name: getattr(strategy, entry.name)
        for entry in dataclasses.fields(Strategy)
        if getattr(strategy, entry.name) != entry.default
    }


def _normalised(log_p: Tensor) -> Tensor:
    return torch.log_softmax(log_p, -1)


def _only(log_p: Tensor, allowed: Tensor) -> Tensor:
    return _normalised(log_p.where(allowed, -math.inf))


def penalised(log_p: Tensor, seen: Sequence[Sequence[int]], penalty: float, end: int | None = None) -> Tensor:
    """log p, times `penalty` for tokens other than `end` that the row has seen: p^penalty, not normalised. (B, V)."""
    factor = torch.ones_like(log_p)
    for row, tokens in zip(factor, seen, strict=True):
        row[list(set(tokens) - {end})] = penalty
    return log_p * factor


def without_repeats(log_p: Tensor, seen: Sequence[Sequence[int]], n: int, end: int | None = None) -> Tensor:
    """-inf for tokens other than `end` that would complete an n-gram the row already has; a row that would lose all its
    tokens stays as it is. (B, V)."""
    found = log_p.clone()
    for row, tokens in zip(found, seen, strict=True):
        last = tuple(tokens[len(tokens) - n + 1 :]) if n > 1 else ()
        banned = {tokens[i + n - 1] for i in range(len(tokens) - n + 1) if tuple(tokens[i : i + n - 1]) == last}
        banned = {token for token in banned if token != end and row[token] > -math.inf}
        if banned and len(banned) < int((row > -math.inf).sum()):
            row[list(banned)] = -math.inf
    return found


def nucleus(log_p: Tensor, mass: float) -> Tensor:
    """(B, V) bool: the fewest most probable tokens with this mass or more."""
    values, order = log_p.sort(-1, descending=True)
    p = values.exp()
    return _unsorted(p.cumsum(-1) - p < mass, order)


def typical(log_p: Tensor, mass: float) -> Tensor:
    """(B, V) bool: the fewest tokens of this mass or more whose -log p is nearest to the entropy."""
    p = log_p.exp()
    information = -log_p.where(p > 0, 0)
    distance = (information - (p * information).sum(-1, keepdim=True)).abs().where(p > 0, math.inf)
    order = distance.argsort(dim=-1, stable=True)
    sorted_p = p.gather(-1, order)
    return _unsorted(sorted_p.cumsum(-1) - sorted_p < mass, order)


def _unsorted(mask: Tensor, order: Tensor) -> Tensor:
    return torch.zeros_like(mask).scatter(-1, order, mask)
