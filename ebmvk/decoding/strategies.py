"""Decoding strategies: how the probabilities of the next token are changed before a token is drawn.

`Strategy` is the one table of settings: its fields are the flags of `generate` and
`compare-decoding`, with their ranges and help. To add a setting, add a field here and its function
to `filters.STEPS`. `NAMED` is the one table of strategies that `--strategy` names. torch is loaded
when a strategy is first applied, so that `--help` answers at once.
"""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from ebmvk.config.schema import nearest
from ebmvk.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

_POSITIVE, _LARGEST = math.ulp(0.0), sys.float_info.max


def _setting(
    default: Any, low: float, high: float = _LARGEST, *, hint: str, whole: bool = False, keeps_best: bool = False
) -> Any:
    """A field with its inclusive range, and what to try instead of a value outside the range.

    whole: the value must be a whole number. keeps_best: the setting never changes which token is
    the most probable.
    """
    metadata = {"low": low, "high": high, "hint": hint, "whole": whole, "keeps_best": keeps_best}
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Strategy:
    """Changes to the probabilities of the next token.

    With all defaults nothing changes: tokens then have the law p(v|c) whose perplexity is reported.
    The last two settings ignore the end token, because it starts every text, and because ending a
    text isn't a repetition.

    Sources: top_p, Holtzman et al. 2020; min_p, Nguyen et al. 2024; typical_p, Meister et al. 2023;
    repetition_penalty, after Keskar et al. 2019.

    Raises:
        ConfigError: a value is out of range; the message names its flag.
    """

    # Below 1: safer text; above: bolder. Probabilities are raised to the power 1/T.
    temperature: float = _setting(
        1.0, _POSITIVE, keeps_best=True, hint="use 1, or 0.7 for safer text; --greedy is the limit 0"
    )
    # Allow only the k most probable tokens; 0 allows all.
    top_k: int = _setting(0, 0, whole=True, keeps_best=True, hint="use 50, or 0 for all tokens")
    # Allow only the most probable tokens that together have this probability.
    top_p: float = _setting(1.0, _POSITIVE, 1, keeps_best=True, hint="use 0.95, or 1 for all tokens")
    # Allow only tokens with at least this share of the best token's probability.
    min_p: float = _setting(0.0, 0, 1, keeps_best=True, hint="use 0.05, or 0 for all tokens")
    # Allow only tokens about as surprising as the average token, up to this probability in total.
    typical_p: float = _setting(1.0, _POSITIVE, 1, keeps_best=True, hint="use 0.95, or 1 for all tokens")
    # Above 1: tokens already in the text become rarer. Their log p is multiplied by this number.
    repetition_penalty: float = _setting(1.0, _POSITIVE, hint="use 1.2, or 1 for none")
    # Never repeat a sequence of this many tokens; 0 allows repeats.
    no_repeat_ngram: int = _setting(0, 0, whole=True, hint="use 4, or 0 to allow any")

    def __post_init__(self) -> None:
        for entry in dataclasses.fields(self):
            object.__setattr__(self, entry.name, _checked(entry, getattr(self, entry.name)))

    def law(self, log_p: Tensor, seen: Sequence[Sequence[int]], end: int | None = None) -> Tensor:
        """log of the changed probabilities: (B, V), normalised, -inf for tokens that are ruled out.

        At least one token is always left. log_p: (B, V), normalised; seen: the tokens of each row's
        text so far; end: the token that ends a text.
        """
        from ebmvk.decoding.filters import STEPS, Context

        found, context, own = log_p.double(), Context(seen, end), changed(self)
        for name, step in STEPS.items():
            if name in own:
                found = step(found, own[name], context)
        return found.to(log_p.dtype)


def _checked(entry: dataclasses.Field[Any], value: Any) -> float:
    """The value of a setting as a plain number. Raises ConfigError."""
    flag, own = f"--{entry.name.replace('_', '-')}", entry.metadata
    if not isinstance(value, Integral if own["whole"] else Real) or isinstance(value, bool):  # numpy's numbers count
        kind = "a whole number" if own["whole"] else "a number"
        raise ConfigError(f"{flag} {value!r} is not {kind}", hint=own["hint"])
    if not own["low"] <= value <= own["high"]:  # False for NaN
        least = "a positive number" if own["low"] == _POSITIVE else "0 or more"
        most = "" if own["high"] == _LARGEST else f" and at most {own['high']}"
        raise ConfigError(f"{flag} {value} is not {least}{most}", hint=own["hint"])
    found: float = int(value) if own["whole"] else float(value)  # type: ignore[call-overload]
    return found  # torch takes no other kinds of integers


UNCHANGED, GREEDY = Strategy(), Strategy(top_k=1)
KEEPS_BEST = tuple(entry.name for entry in dataclasses.fields(Strategy) if entry.metadata["keeps_best"])
"""Settings that never change which token is the most probable: with --greedy they do nothing."""
DEFAULTS: dict[str, Any] = {entry.name: entry.default for entry in dataclasses.fields(Strategy)}
NAMED: Mapping[str, Strategy] = MappingProxyType(
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
        "sampling": UNCHANGED,
    }
)
"""The strategies that `--strategy` names. `infinito` is the generation preset of INFINITO V5.2,
which allows a temperature from .7 to 1. At temperature 1, with no sequence of eight tokens allowed
twice, texts made of subwords repeat themselves about as much as people's texts."""


def named(name: str) -> Strategy:
    """The strategy with this name, or the only one with this first word: `nucleus`, `nucleus 0.9`.

    Raises:
        ConfigError: no strategy has that name, or several begin with it.
    """
    if name in NAMED:
        return NAMED[name]
    begun = [known for known in NAMED if name and known.partition(" ")[0] == name.replace("_", "-")]
    if len(begun) == 1:
        return NAMED[begun[0]]
    close = nearest(name, NAMED)
    hint = f"use {' or '.join(begun)}" if begun else f"did you mean {close}?" if close else ""
    raise ConfigError(
        f"--strategy {name!r}: {'several strategies begin with it' if begun else 'no such strategy'}",
        hint=hint or f"use one of {', '.join(NAMED)}",
    )


def of(strategy: Strategy | str, settings: Mapping[str, float]) -> Strategy:
    """A strategy, or the strategy with that name, with some of its settings changed.

    Raises:
        ConfigError: the strategy or a setting doesn't exist, or a value is out of range.
    """
    base = named(strategy) if isinstance(strategy, str) else strategy
    if not isinstance(base, Strategy):
        raise ConfigError(f"{base!r} isn't a decoding strategy", hint='give a Strategy, or a name such as "nucleus"')
    if unknown := next((name for name in settings if name not in DEFAULTS), None):
        close = nearest(unknown, DEFAULTS)
        hint = f"did you mean {close}?" if close else f"use {', '.join(DEFAULTS)}"
        raise ConfigError(f"strategies have no setting {unknown!r}", hint=hint)
    return dataclasses.replace(base, **settings)  # type: ignore[arg-type]


def changed(strategy: Strategy) -> dict[str, float]:
    """{setting: value} of the settings that are not at their default."""
    own = {name: getattr(strategy, name) for name in DEFAULTS}
    return {name: value for name, value in own.items() if value != DEFAULTS[name]}
