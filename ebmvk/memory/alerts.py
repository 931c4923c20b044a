"""Alerts about a memory: gates, concentrations, and texts that its splats hold."""

from __future__ import annotations

from collections.abc import Sequence

from ebmvk.runs.metrics import Alert


def gate_of_memory(
    tier: str, mean: float, share: float, *, static: bool, more: int | None, fewer: int | None
) -> Alert | None:
    """Of a tier of memory whose mean weight in the token law is `mean`, once its gate is fitted.

    share: of its splats in the pool with the model's law, which makes up the rest; static: whether there is a static
    tier; more, fewer: other numbers of splats that it could be built with.
    """
    # Little may be worth much: a gate opens where memory knows. All may be fair: a pool has the model's law, too.
    if mean >= STUCK / 10 and mean * share <= 1 - STUCK:
        return None
    if tier != "static":
        advice = "read with --memory static" if static else "remove --memory"
    elif mean < 0.5:
        advice = f"take --splats {more}, as they say nothing that the model does not" if more else "leave them out"
    else:
        advice = f"take --splats {fewer}, or " if fewer else "take "
        advice += "another text to fit on: the model itself is not heard"
    return Alert(f"gate of {tier} memory stuck at {round(mean)}", f"its weight is {mean:.2g} on average", advice)


COVERED = 0.01  # share of the contexts: static splats that explain less than this do nothing


SAID = 0.01  # nats from the uniform law: a tier's token law that is nearer says nothing


WORTH = 1e-3  # nats per token that a memory must gain over a calibration, on the text that both were fitted on


def _without(tier: str, *, static: bool) -> str:
    """Advice to turn off a tier of memory."""
    if tier == "static":
        return "read with --memory episodic"
    return "read with --memory static" if static else "remove --memory"


def kappa_at_bound(tier: str, kappa: float, tried: Sequence[float], *, static: bool, more: int | None) -> Alert | None:
    """Warns if the best concentration of a tier is the first or last one tried: a better one may lie beyond. tried: in
    rising order; static, more: see `gate_of_memory`."""
    sign = f"kappa of {tier} memory at its bound"
    if len(tried) > 1 and kappa == tried[0]:
        reason = f"{kappa:g} fits best, the smallest that was tried: such wide splats say much the same everywhere"
        return Alert(sign, reason, _without(tier, static=static))
    if len(tried) > 1 and kappa == tried[-1]:
        reason = f"{kappa:g} fits best, the largest that was tried: only the nearest splat counts"
        return Alert(
            sign, reason, f"take --splats {more}" if more and tier == "static" else _without(tier, static=static)
        )
    return None


def switched_off(tier: str, covered: float | None, said: float, *, static: bool, more: int | None) -> Alert | None:
    """Warns if a tier's law is practically uniform: then its gain comes from calibrating the model, not from memory.

    covered: the mean share of contexts that its splats explain, if known; said: mean nats between its token law and the
    uniform law; static, more: see `gate_of_memory`.
    """
    if covered is not None and covered < COVERED:
        reason = f"its splats explain {covered:.2%} of the contexts, and the background the rest"
    elif said < SAID:
        reason = f"its law of tokens is {said:.2g} nats from the uniform one"
    else:
        return None
    sign, more_of = f"{tier} memory is switched off", f"take --splats {more}, or "
    advice = (more_of if more and tier == "static" else "") + _without(tier, static=static)
    return Alert(sign, f"{reason}: its gain comes from calibrating the model's own law", advice)


def no_gain(tier: str, gain: float, *, static: bool) -> Alert | None:
    """Warns if a tier is worth no more than a calibration of the model without memory. gain: nats per token that it
    saves over the calibration, on the text that both were fitted on; static: see `gate_of_memory`."""
    if gain >= WORTH:
        return None
    reason = f"it gains {gain:+.4f} nats per token over the model's calibrated law, even on the text it was fitted on"
    return Alert(f"{tier} memory is worth no more than a calibration", reason, _without(tier, static=static))


OWN = 0.15  # share of contexts with rare tokens that have a new one: texts that were held had .1 at most


UNSEEN = 0.25  # new texts had .37 and more


CHANCE = 1e-6  # of so few among so many, were they UNSEEN of them: what is called a leak must not be luck


def leak(unseen: int, rare: int) -> Alert | None:
    """Whether static splats hold the very text that a memory is fitted on.

    unseen, rare: contexts of the text whose next token the splats near them have never met, or about once. By Good and
    Turing a token of a new text is one met r times with probability (r + 1) N_{r+1} / n, where N_r tokens were met r
    times; as N_1 = 3 N_2 by Zipf's law, three in five are unseen. A text that is held has met each of its own tokens
    at least once: unseen ones are gone, and turn up among those met once.
    """
    from scipy.stats import binom  # slow to import, and seldom needed

    n = unseen + rare
    if not n or unseen >= OWN * n or binom.cdf(unseen, n, UNSEEN) >= CHANCE:
        return None
    return Alert(
        "memory holds its own text",
        f"of {n:,} contexts with rare tokens {unseen / n:.0%} have a new one, where texts that splats do not hold have "
        "37 % and more: its likelihood will be too high",
        "train on a text that has nothing twice: `ebmvk prepare-corpus` takes copies out",
    )


STUCK = 0.01  # mean of a gate this near to 0 or 1: what it weighs takes no part, or all of it; of experts, their share
