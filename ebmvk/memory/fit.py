"""Fits a memory to a text and judges the result (model sections 5 and 8).

Concentrations, shares, background and gates are fitted by likelihood, either on the validation text
or on a fold of the training text; the splats used for that don't contain the fold. So no query
finds its own entry. Leaving out only the query's context would not be enough: the rest of its
document would stay, and that predicts it far better than any other text does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from ebmvk.data.windows import TokenStream
from ebmvk.engine.device import Device
from ebmvk.memory.alerts import gate_of_memory, kappa_at_bound, leak, no_gain, switched_off
from ebmvk.memory.calibration import FEATURES as POWER_FEATURES
from ebmvk.memory.calibration import POWERS, Calibration, power_terms
from ebmvk.memory.gate import fit_gate, mix
from ebmvk.memory.law import TIERS, Control, Law, Memory, Mode, Reader, Terms, Tier, laws_at_once, log_probs, part_of
from ebmvk.memory.static import MAX_SPLATS, Reading
from ebmvk.model.language import LanguageModel, TokenLaw
from ebmvk.model.reading import Layers, states
from ebmvk.runs.metrics import Alert
from ebmvk.splats.coverage import fit_background, posterior
from ebmvk.splats.health import novelty
from ebmvk.splats.recall import Splats, entropy, log_of

KAPPAS = (5.0, 7.0, 10.0, 14.0, 20.0, 28.0, 40.0, 56.0, 80.0, 112.0, 160.0, 224.0, 320.0, 448.0, 640.0)
SHARES = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.85, 1.0)
SCANNED_SHARES = (0.3, 0.5, 0.7, 1.0)  # the shares to try with every kappa
SCANNED_TOKENS = 6_000  # tokens of the text; every kappa is tried on them
TUNED_TOKENS = 30_000  # tokens of the text; the best kappas are compared on them
FINALISTS = 3  # values of kappa that go from the scan to the comparison
TRIED = 25  # L-BFGS rounds for a gate in a comparison; more rounds change the nats by 1e-4
LOOKED_AT = 10_000  # tokens of the text; the fitted memory is judged on them
# Nearest splats that are checked for containing the text. Among more splats, the text's own tokens
# wouldn't be rare.
NEAREST = 64
Say = Callable[[str], None]


@dataclass(frozen=True)
class Trial:
    """A memory, and its nats per token with one tier. The gate was fitted on the same tokens."""

    nats: float
    memory: Memory


class Fit:
    """A text as a model reads it, to fit memories on.

    The static splats of these memories must not contain the text's contexts.
    """

    def __init__(
        self, model: LanguageModel, stream: TokenStream, *, reading: Reading, device: Device,
        layers: Layers | None = None,
    ) -> None:  # fmt: skip
        """layers: what runs the model's layers; see `states`."""
        self.model, self.backend = model, device.backend
        # Keep the query, not the law, which has V numbers per context; it is computed again when
        # needed.
        self.query, self.h = states(model, stream, ("query", "h"), device=device.torch, layers=layers, **vars(reading))
        self.tokens = torch.from_numpy(stream.tokens[1:].astype("int64"))

    def fit(self, memory: Memory, say: Say) -> tuple[Memory, dict[Law, float]]:
        """The fitted memory, and the nats per token of the text under each law.

        Fits concentrations, background, shares and gates by likelihood; then, on the same text, a
        calibration without any memory and a scrambled control. say: receives lines of progress.
        """
        whole: Mode = "episodic" if memory.static is None else "both"
        for tier in TIERS[whole]:
            memory = self._tuned(memory, tier, say)
        # The calibration comes last, because every trial of a memory that has one computes its law.
        memory, nats = self._gated(self._calibrated(memory, say), whole, len(self.tokens))
        for law, value in nats.items():
            say(f"{law:<12}{value:.4f} nats per token on the {len(self.tokens):,} tokens used to fit the gates")
        return self.controlled(memory, whole, say), nats

    def fit_static(self, memory: Memory, say: Say) -> Memory:
        """The memory with just the static tier and the calibration fitted."""
        return self.gated(self._calibrated(self._tuned(memory, "static", say), say), "static")

    def controlled(self, memory: Memory, mode: Mode, say: Say) -> Memory:
        """The memory with a control: the scrambled memory's own shares and gates.

        The gates of the true memory trust it. With these gates, the scrambled memory would do much
        worse than a memory without information, and the comparison would be unfair.
        """
        scrambled = replace(memory, control=None, calibration=None).scrambled()
        for tier in TIERS[mode]:
            scrambled = self._shared(scrambled, tier, SHARES, TUNED_TOKENS).memory
        scrambled, nats = self._gated(scrambled, mode, len(self.tokens))
        for law in scrambled.gates:
            say(f"{law:<12}{nats[law]:.4f} nats per token with scrambled splats (with a share and gate fitted to them)")
        return replace(memory, control=Control(scrambled.share, scrambled.episodic.share, scrambled.gates))

    def gated(self, memory: Memory, mode: Mode) -> Memory:
        """The memory with only the gates for `mode` fitted."""
        return self._gated(memory, mode, len(self.tokens))[0]

    def nats(self, memory: Memory, mode: Mode) -> dict[Law, float]:
        """{law: nats per token} for `mode`, for modes with fewer tiers and for the calibration."""
        terms = self.terms(memory, mode)
        return {other: -float(log_p.mean()) for other, log_p in log_probs(terms, memory.gates, mode).items()}

    def terms(self, memory: Memory, mode: Mode, limit: int | None = None) -> Terms:
        """Log probabilities of the first tokens under the lexical law and each tier of `mode`, with
        the gate's features.
        """
        return self._terms_at(memory, mode, None, limit)[0]

    # ---- judging the result ----------------------------------------------------------------------

    def alerts(self, memory: Memory, *, consolidated: bool) -> Iterator[Alert]:
        """Yields warnings about a memory that was fitted on this text.

        Its splats may contain the text; a tier may say nothing, or no more than a calibration; its
        concentration may be the first or last one tried; its gate may be stuck.

        consolidated: True if its splats come from training. Then their counts have faded, and their
            number wasn't chosen here.
        """
        if memory.static is not None and not consolidated:
            splats = Splats.open(memory.static, self.backend, NEAREST)
            held = leak(*novelty(splats, self.h[:LOOKED_AT], self.tokens[:LOOKED_AT]))
            yield from [held] if held else []
        yield from self.signs(memory, consolidated=consolidated)

    def signs(self, memory: Memory, *, consolidated: bool = False) -> Iterator[Alert]:
        """Yields warnings about the tiers of a memory, on a text that its splats don't contain.

        consolidated: see `alerts`.
        """
        mode: Mode = "episodic" if memory.static is None else "both"
        n = 0 if memory.static is None or consolidated else memory.static.n
        more, fewer = min(2 * n, MAX_SPLATS), n // 2
        terms = self.terms(memory, mode, LOOKED_AT)
        weights = memory.gates[mode].log_weights(terms.features).exp().mean(0)
        nats = {law: -float(log_p.mean()) for law, log_p in log_probs(terms, memory.gates, mode).items()}
        more_or_fewer = {"more": more if more > n else None, "fewer": fewer or None}
        said = dict(zip(TIERS[mode], self.said(memory, mode, LOOKED_AT), strict=True))
        covered = {"static": self.coverage(memory)} if memory.static else {}
        for tier, weight in zip(TIERS[mode], weights[1:].tolist(), strict=True):
            share, static = memory.share_of(tier), memory.static is not None
            found = (
                gate_of_memory(tier, weight, share, static=static, **more_or_fewer),
                kappa_at_bound(tier, memory.kappa_of(tier), KAPPAS, static=static, more=more_or_fewer["more"]),
                switched_off(tier, covered.get(tier), said[tier], static=static, more=more_or_fewer["more"]),
                no_gain(tier, nats["calibrated"] - nats[tier], static=static) if "calibrated" in nats else None,
            )
            yield from (alert for alert in found if alert)

    @torch.no_grad()
    def said(self, memory: Memory, mode: Mode, limit: int) -> list[float]:
        """The mean distance of each tier's p_mem from the uniform law, in nats.

        The mean is over the text's first contexts.

        The distance is log V minus the entropy. If it is 0, the tier's law is just a power of the
        model's own.
        """
        reader, sums = Reader(memory, mode, self.backend), [0.0 for _ in TIERS[mode]]
        rows = laws_at_once(memory.vocab_size)
        for h, tokens in zip(*(torch.split(x[:limit], rows) for x in (self.h, self.tokens)), strict=True):
            for place, recall in enumerate(reader.recalls(h, tokens)):
                sums[place] += float((math.log(memory.vocab_size) - entropy(recall.law, log_of(recall.law))).sum())
        return [own / self._some(limit) for own in sums]

    def coverage(self, memory: Memory) -> float:
        """The mean share of contexts that static splats explain, on half of the first tokens."""
        assert memory.static is not None
        return float(posterior(memory.static, self._halves(TUNED_TOKENS)[1], self.backend, memory.k)[1].sum(1).mean())

    # ---- the calibration without memory ----------------------------------------------------------

    @cached_property
    def calibration(self) -> Calibration:
        """The calibration (power and gate) with the largest likelihood on the text."""
        return self.calibrated(len(self.tokens))

    def calibrated(self, limit: int) -> Calibration:
        """The calibration with the largest likelihood on the text's first `limit` tokens."""
        terms = self._power_terms(POWERS, min(limit, TUNED_TOKENS))
        power = POWERS[_least([_tried(own) for own in terms])]
        (whole,) = self._power_terms([power], limit)
        return Calibration(power, fit_gate(whole.features, whole.log_p))

    @torch.no_grad()
    def log_p_calibrated(self, calibration: Calibration) -> Tensor:
        """log p_cal of the text's tokens: (n,)."""
        found = torch.empty(len(self.tokens))
        for rows, log_p in self._rows(None):
            found[rows] = calibration.of_tokens(log_p.float().cpu(), self.tokens[rows])
        return found

    def _calibrated(self, memory: Memory, say: Say) -> Memory:
        found = self.calibration
        say(f"calibrated  the model's own law to the power {found.power:g}")
        return replace(memory, calibration=found)

    @torch.no_grad()
    def _power_terms(self, powers: Sequence[float], limit: int) -> list[Terms]:
        n = self._some(limit)
        found = [Terms(torch.empty(n, 2), torch.empty(n, POWER_FEATURES)) for _ in powers]
        for rows, log_p in self._rows(limit):
            lexical = log_p.float().cpu()
            for terms, power in zip(found, powers, strict=True):
                terms.put(rows, Terms(*power_terms(lexical, self.tokens[rows], power)))
        return found

    # ---- one tier after the other ----------------------------------------------------------------

    def _tuned(self, memory: Memory, tier: Tier, say: Say) -> Memory:
        """The memory with the concentration and share of one tier that have the largest likelihood.

        For static splats, the background is fitted, too.

        Every concentration is tried on the text's beginning, because the likelihood can have
        several maxima. The best ones, and the neighbours of the very best, are tried again on more
        of the text and with every share.
        """
        scanned = {kappa: self._at(memory, tier, kappa, SCANNED_SHARES, SCANNED_TOKENS, say).nats for kappa in KAPPAS}
        best = sorted(KAPPAS, key=scanned.__getitem__)[:FINALISTS]
        found = {kappa: self._at(memory, tier, kappa, SHARES, TUNED_TOKENS, say) for kappa in best}
        while near := _beside(min(found, key=lambda kappa: found[kappa].nats)) - found.keys():
            found |= {kappa: self._at(memory, tier, kappa, SHARES, TUNED_TOKENS, say) for kappa in sorted(near)}
        tuned = min(found.values(), key=lambda trial: trial.nats).memory
        if tier == "static":
            say(f"static      covers {self.coverage(tuned):.2%} of contexts, at kappa {tuned.kappa_of(tier):g}")
        return tuned

    def _at(self, memory: Memory, tier: Tier, kappa: float, shares: Sequence[float], limit: int, say: Say) -> Trial:
        """A tier with one concentration, its best background and the best of some shares."""
        memory = memory.with_kappa(tier, kappa)
        if tier == "static" and memory.static is not None:
            background = fit_background(memory.static, self._halves(limit)[0], self.backend, memory.k)[0]
            memory = replace(memory, static=background)
        trial = self._shared(memory, tier, shares, limit)
        share, nats = trial.memory.share_of(tier), f"{trial.nats:.4f} nats per token"
        say(f"{tier:<12}kappa {kappa:g}, share {share:g}: {nats} on {self._some(limit):,} tokens")
        return trial

    def _shared(self, memory: Memory, tier: Tier, shares: Sequence[float], limit: int) -> Trial:
        """A tier with the share, among `shares`, that has the largest likelihood."""
        terms = self._terms_at(memory, tier, [[share] for share in shares], limit)
        nats = [_tried(own) for own in terms]
        best = _least(nats)
        return Trial(nats[best], memory.with_share(tier, shares[best]))

    def _gated(self, memory: Memory, mode: Mode, limit: int) -> tuple[Memory, dict[Law, float]]:
        """The memory with gates for `mode` and its parts, and {law: nats per token}."""
        terms = self.terms(memory, mode, limit)
        gates = {
            other: fit_gate(part.features, part.log_p)
            for other, tiers in TIERS.items()
            if tiers and set(tiers) <= set(TIERS[mode])
            for part in [part_of(terms, TIERS[mode], tiers)]
        }
        nats = {other: -float(log_p.mean()) for other, log_p in log_probs(terms, gates, mode).items()}
        return replace(memory, gates=gates), nats

    # ---- the text --------------------------------------------------------------------------------

    @torch.no_grad()
    def _terms_at(
        self, memory: Memory, mode: Mode, shares: Sequence[Sequence[float]] | None, limit: int | None
    ) -> list[Terms]:
        """`terms` for each set of shares, one share per tier.

        None: only the memory's own shares.
        """
        reader = Reader(memory, mode, self.backend)
        wanted = [reader.shares] if shares is None else shares
        found = [reader.empty_terms(self._some(limit), share) for share in wanted]
        for rows, log_p in self._rows(limit):
            for terms, part in zip(found, reader.read_at(self.h[rows], log_p, self.tokens[rows], wanted), strict=True):
                terms.put(rows, part)
        return found

    def _rows(self, limit: int | None) -> Iterator[tuple[slice, Tensor]]:
        """Yields the first tokens in pieces: positions, and log p_lex (n, V).

        The next piece overwrites log p_lex.
        """
        return TokenLaw(self.model).pieces(self.query[:limit])

    def _some(self, limit: int | None) -> int:
        return len(self.tokens[:limit])

    def _halves(self, limit: int) -> tuple[Tensor, Tensor]:
        """The first contexts in two halves: to fit a background on, and to judge it by."""
        half = max(1, self._some(limit) // 2)
        return self.h[:half], self.h[min(half, len(self.h) - 1) : limit]


def _tried(terms: Terms) -> float:
    """Nats per token, with a gate that is fitted well enough to compare trials."""
    gate = fit_gate(terms.features, terms.log_p, rounds=TRIED)
    return -float(mix(gate.log_weights(terms.features), terms.log_p).double().mean())


def _least(values: Sequence[float]) -> int:
    """The index of the smallest value."""
    return min(range(len(values)), key=values.__getitem__)


def _beside(kappa: float) -> set[float]:
    """A concentration in KAPPAS and its neighbours there."""
    place = KAPPAS.index(kappa)
    return set(KAPPAS[max(0, place - 1) : place + 2])
