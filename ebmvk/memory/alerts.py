"""Warnings about a fitted memory.

A tier may be useless, a search may have ended at its bound, or splats may contain the text.

Each function takes figures and returns an alert that says what is wrong and what to do, or None. A
tier is a part of the memory, static or episodic; its gate is the weight of its law in the mixture
with the model's own.
"""

from __future__ import annotations

from collections.abc import Sequence

from ebmvk.runs.metrics import Alert

# A mean weight this close to 0 or 1 means that a part of a law has no say, or the only say. The
# monitor uses it for gates and for the shares of experts.
STUCK = 0.01
COVERED = 0.01  # static splats that explain a smaller share of the contexts do nothing
SAID = 0.01  # nats from the uniform law; a tier's token law that is closer says nothing
# Nats per token that a memory must gain over a calibration, on the text that both were fitted on
WORTH = 1e-3
# For `leak`: of the contexts with rare tokens, the share whose token is new. It was at most .1 in
# texts that the splats contained, and at least .37 in new ones.
OWN, UNSEEN = 0.15, 0.25
# The largest accepted chance that a new text looks like one that the splats contain
CHANCE = 1e-6


def gate_of_memory(
    tier: str, mean: float, share: float, *, static: bool, more: int | None, fewer: int | None
) -> Alert | None:
    """Warn if a tier's weight in the token law is about 0, or about 1.

    mean: the tier's mean weight once its gate is fitted. share: the weight of its splats in the
    pool; the rest is the model's law. static: True if the memory has a static tier. more,
    fewer: larger and smaller numbers of splats to suggest.
    """
    # A small weight can still be worth much, because a gate opens where memory knows more. A weight
    # near 1 can be fair, because the pool contains the model's law, too.
    if mean >= STUCK / 10 and mean * share <= 1 - STUCK:
        return None
    if tier != "static":
        advice = "read with --memory static" if static else "remove --memory"
    elif mean < 0.5:
        advice = f"use --splats {more}: these add nothing to what the model knows" if more else "do without them"
    else:
        advice = f"use --splats {fewer}, or " if fewer else "use "
        advice += "another text to fit on: now the model itself has no influence"
    return Alert(f"gate of {tier} memory stuck at {round(mean)}", f"its weight is {mean:.2g} on average", advice)


def kappa_at_bound(tier: str, kappa: float, tried: Sequence[float], *, static: bool, more: int | None) -> Alert | None:
    """Warn if a tier's best concentration is the first or last one tried, because a better one may
    lie beyond.

    tried: in rising order. static, more: see `gate_of_memory`.
    """
    sign = f"kappa of {tier} memory at its bound"
    if len(tried) > 1 and kappa == tried[0]:
        reason = f"{kappa:g}, the smallest value tried, fits best: splats this wide say much the same everywhere"
        return Alert(sign, reason, _without(tier, static=static))
    if len(tried) > 1 and kappa == tried[-1]:
        reason = f"{kappa:g}, the largest value tried, fits best: only the nearest splat counts"
        return Alert(
            sign, reason, f"use --splats {more}" if more and tier == "static" else _without(tier, static=static)
        )
    return None


def switched_off(tier: str, covered: float | None, said: float, *, static: bool, more: int | None) -> Alert | None:
    """Warn if a tier's law is practically uniform, so its gain is just a calibration.

    covered: the mean share of contexts that its splats explain, if known. said: the mean distance
    of its token law from the uniform law, in nats. static, more: see `gate_of_memory`.
    """
    if covered is not None and covered < COVERED:
        reason = f"its splats explain {covered:.2%} of the contexts, and the background the rest"
    elif said < SAID:
        reason = f"its token law is {said:.2g} nats from the uniform law"
    else:
        return None
    sign, more_of = f"{tier} memory is switched off", f"use --splats {more}, or "
    advice = (more_of if more and tier == "static" else "") + _without(tier, static=static)
    return Alert(sign, f"{reason}: its gain comes from calibrating the model's own law", advice)


def no_gain(tier: str, gain: float, *, static: bool) -> Alert | None:
    """Warn if a tier is worth no more than a calibration of the model without memory.

    gain: nats per token that it saves over the calibration, on the text that both were fitted on.
    static: see `gate_of_memory`.
    """
    if gain >= WORTH:
        return None
    reason = f"it gains {gain:+.4f} nats per token over the model's calibrated law, even on the text it was fitted on"
    return Alert(f"{tier} memory is worth no more than a calibration", reason, _without(tier, static=static))


def leak(unseen: int, rare: int) -> Alert | None:
    """Warn if static splats contain the very text that a memory is fitted on.

    unseen: the number of contexts whose next token the nearby splats have never met. rare: the
    number of contexts whose next token they have met about once. By Good and Turing, a token of a
    new text was met r times with probability (r + 1) N_{r+1} / n, where N_r is the number of tokens
    that were met r times. N_1 = 3 N_2 by Zipf's law, so three in five of both kinds of contexts are
    unseen. If the splats contain the text, they have met each of its tokens at least once. A token
    that would be unseen then counts as rare.
    """
    from scipy.stats import binom  # slow to import, and seldom needed

    n = unseen + rare
    if not n or unseen >= OWN * n or binom.cdf(unseen, n, UNSEEN) >= CHANCE:
        return None
    return Alert(
        "memory holds its own text",
        f"in {n:,} contexts with rare tokens, {unseen / n:.0%} of the tokens are new; in texts that the splats do not "
        "contain it is 37 % or more. The text's likelihood will be too high",
        "train on a text without repetitions: `ebmvk prepare-corpus` removes copies",
    )


def _without(tier: str, *, static: bool) -> str:
    """Advice to read without a tier of memory."""
    if tier == "static":
        return "read with --memory episodic"
    return "read with --memory static" if static else "remove --memory"
