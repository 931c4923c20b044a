"""Lines that a run prints about its evaluations and consolidations."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ebmvk.evaluation.likelihood import Likelihood
from ebmvk.report import tables


def consolidated(found: Mapping[str, Any]) -> str:
    """One consolidation in a line. found: the result of `TrainingSoc.after`."""
    events = [f"{found[name]} {name}" for name in ("created", "split", "merged", "pruned") if found[name]]
    if growth := found["growth"]:
        change = growth["after"] - growth["before"]
        how = f"{tables.number(abs(change))} nats per token {'worse' if change > 0 else 'better'} on validation with it"
        events.insert(0, f"growth to phase {growth['phase']} {'accepted' if growth['accepted'] else 'refused'}: {how}")
    return (
        f"{found['splats']:,} of {found['capacity']:,} splats, phi {tables.number(found['phi'], '.3f')} "
        f"against {tables.number(found['threshold'], '.3f')}; {', '.join(events) or 'no event'}"
    )


def figures(found: Likelihood) -> str:
    record = found.record()
    token, per_word = tables.number(found.ppl_token, ",.2f"), tables.per_word(record)
    word = "" if per_word is None else f"{tables.number(per_word, ',.2f')} per word, "
    return (
        f"perplexity {token} per token, {word}{tables.number(found.bits_per_byte)} bits per byte "
        f"({found.tokens:,} tokens, context {found.context}, stride {found.stride})"
    )


def not_finite(bad: str) -> str:
    """bad: a tensor's name, or the engine's message about a tensor that it refused."""
    return f"training diverged ({bad})" if " needed" in bad else f"{bad} is not finite"


def of_the_end(
    found: Likelihood, base: Likelihood, advised: Sequence[str], gain: Mapping[str, Any] | None
) -> Iterator[str]:
    """Lines on all of validation, on the trigram, on what to change, and on the memory from training, if any."""
    yield f"validation, all of it: {figures(found)}"
    yield f"Kneser-Ney trigram, same tokens: {figures(base)}"
    yield f"compared    {tables.against_trigram(found.record(), base.record())}"
    for line in advised:
        yield f"advice      {line}"
    if gain:
        yield (
            f"memory of {gain['splats']:,} splats from training, part of validation: "
            f"{tables.number(gain['with'])} nats per token, {tables.number(gain['without'])} without, "
            f"{tables.number(gain['calibrated'])} without but calibrated"
        )
