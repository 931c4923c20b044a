"""Lines that a run prints about its evaluations and its consolidations."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ebmvk.evaluation.likelihood import Likelihood
from ebmvk.report import tables


def consolidated(found: Mapping[str, Any]) -> str:
    """The line that describes one consolidation. found: the result of `TrainingSoc.after`."""
    events = [f"{found[name]} {name}" for name in ("created", "split", "merged", "pruned") if found[name]]
    if growth := found["growth"]:
        change = growth["after"] - growth["before"]
        how = f"{tables.number(abs(change))} nats per token {'worse' if change > 0 else 'better'} on validation with it"
        events.insert(0, f"growth to phase {growth['phase']} {'accepted' if growth['accepted'] else 'refused'}: {how}")
    return (
        f"{found['splats']:,} of {found['capacity']:,} splats, phi {tables.number(found['phi'], '.3f')} "
        f"against {tables.number(found['threshold'], '.3f')}; {', '.join(events) or 'no event'}"
    )


def evaluated(found: Likelihood, *, best: bool) -> str:
    """The figures of an evaluation that people watch."""
    nats, token = tables.number(found.nats_per_token, ".3f"), tables.number(found.ppl_token, ",.2f")
    bits = tables.number(found.bits_per_byte, ".3f")
    return f"validation loss {nats}, perplexity {token}, {bits} bits per byte{' (best)' if best else ''}"


def figures(found: Likelihood) -> str:
    """All figures of an evaluation, and how the text was read."""
    record = found.record()
    token, per_word = tables.number(found.ppl_token, ",.2f"), tables.per_word(record)
    word = "" if per_word is None else f"{tables.number(per_word, ',.2f')} per word, "
    return (
        f"perplexity {token} per token, {word}{tables.number(found.bits_per_byte)} bits per byte "
        f"({found.tokens:,} tokens, context {found.context}, stride {found.stride})"
    )


def not_finite(bad: str) -> str:
    """The clause of an error message about numbers that aren't finite.

    bad: the name of a tensor, or the engine's message about a tensor that it refused.
    """
    return f"training diverged ({bad})" if " needed" in bad else f"{bad} is not finite"


def details(found: Likelihood, base: Likelihood, gain: Mapping[str, Any] | None) -> Iterator[str]:
    """Lines for --verbose: all of validation, the trigram, and the memory from training, if there
    is one.
    """
    yield f"validation, all of it: {figures(found)}"
    yield f"Kneser-Ney trigram, same tokens: {figures(base)}"
    if gain:
        yield (
            f"memory of {gain['splats']:,} splats from training, on a part of validation: "
            f"{tables.number(gain['with'])} nats per token, {tables.number(gain['without'])} without it, "
            f"{tables.number(gain['calibrated'])} without it but calibrated"
        )
