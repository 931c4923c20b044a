"""Building, fitting and keeping the memory of a checkpoint (model sections 5 and 8).

Static splats come from the training text only. What is tuned, concentrations, background and gates, is fitted on the
validation text, whose contexts are members of no static splat, or on a fold of the training text, whose contexts are
left out of the splats meanwhile: a query never meets its own entry. Leaving out only the one context that asks is not
enough: the rest of its document stays, and says far more of it than of any other text.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ebmvk.data.windows import TokenStream
from ebmvk.engine.device import Device
from ebmvk.errors import CheckpointError
from ebmvk.memory.alerts import gate_of_memory, kappa_at_bound, leak, no_gain, switched_off
from ebmvk.memory.calibration import FEATURES as POWER_FEATURES
from ebmvk.memory.calibration import POWERS, Calibration, power_terms
from ebmvk.memory.gate import fit_gate, mix
from ebmvk.memory.law import TIERS, Control, Law, Memory, Mode, Reader, Terms, Tier, laws_at_once, log_probs, part_of
from ebmvk.model.language import LanguageModel, TokenLaw
from ebmvk.model.reading import states
from ebmvk.runs.checkpoint import Checkpoint
from ebmvk.runs.manifest import SOC
from ebmvk.runs.metrics import Alert
from ebmvk.splats.build import cluster
from ebmvk.splats.coverage import fit_background, posterior
from ebmvk.splats.health import novelty
from ebmvk.splats.recall import Splats, entropy, log_of
from ebmvk.splats.soc import store_of
from ebmvk.splats.store import BETA, SplatStore

KAPPAS = (5.0, 7.0, 10.0, 14.0, 20.0, 28.0, 40.0, 56.0, 80.0, 112.0, 160.0, 224.0, 320.0, 448.0, 640.0)
SHARES = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.85, 1.0)
SCANNED_SHARES = (0.3, 0.5, 0.7, 1.0)  # the shares to try with every kappa
START = 20.0  # kappa before fitting
SCANNED_TOKENS = 6_000  # tokens of the text on which every kappa is tried
TUNED_TOKENS = 30_000  # tokens of the text on which the best ones are compared
FINALISTS = 3
TRIED = 25  # rounds of fitting a gate for a comparison; more change the nats by 1e-4
TOKEN_WEIGHT = 0.4  # of the token that followed, beside the state's 1, when contexts are clustered
MAX_SPLATS = 150_000  # static ones
LOOKED_AT = 10_000  # tokens of the text, by which a fitted memory is judged
NEAREST = 64  # splats whose tokens say whether a text is held: among more, what is its own is no longer rare
FIT_TOKENS = 100_000  # of the text that some 30 numbers are fitted on, at most
Say = Callable[[str], None]


@dataclass(frozen=True)
class Reading:
    """How a model reads a text: context and stride of its windows; bfloat16: in autocast, as in training."""

    context: int
    stride: int
    bfloat16: bool

    @classmethod
    def training(cls, context: int, *, bfloat16: bool) -> Reading:
        """Each context with a quarter of a window before it at least; autocast where training is faster with it."""
        return cls(context, context - context // 4, bfloat16)

    @classmethod
    def evaluation(cls, context: int) -> Reading:
        """As `ebmvk evaluate` reads."""
        return cls(context, max(1, context // 2), False)


@dataclass(frozen=True)
class Static:
    """Splats of a training text: of all of it, and without its first documents, to fit on those."""

    store: SplatStore
    without: SplatStore

    def fitted(self, without: SplatStore) -> SplatStore:
        """All of the splats, with the concentration and alpha_inf that were fitted to those without the fold."""
        store = self.store.at(without.kappa_max)
        share = without.background / float(without.mass.sum())
        return replace(store, background=share * float(store.mass.sum()))


def build_static(
    model: LanguageModel, train: TokenStream, splats: int, *, reading: Reading, device: Device, seed: int
) -> Static:
    """At most `splats` splats of the contexts h of a training text.

    Raises:
        DataError: fewer contexts than splats.
    """
    h, tokens = read_states(model, train, reading=reading, device=device)
    owner, fold = cluster(h, tokens, splats, device.backend, seed, token_marks(model)), first_documents(train)
    store = gather(h, tokens, owner, model.vocab_size)
    return Static(store, gather(h[fold:], tokens[fold:], owner[fold:], model.vocab_size))


def token_marks(model: LanguageModel) -> Tensor:
    """(V, d): what marks a context with the token that followed it, for `cluster`."""
    return TOKEN_WEIGHT * normalize(model.embeddings().detach().float().cpu(), dim=1)


def first_documents(train: TokenStream) -> int:
    """How many contexts are fitted on where that is the training text: whole documents, a tenth of it at most."""
    most = min(FIT_TOKENS, (len(train) - 1) // 10)
    starts = train.starts[(train.starts > 0) & (train.starts <= most)]
    return int(starts[-1]) if len(starts) else most


def read_states(
    model: LanguageModel, stream: TokenStream, *, reading: Reading, device: Device
) -> tuple[Tensor, Tensor]:
    """Contexts h (n, d) of a text, in half precision, and the tokens (n,) that followed them."""
    # Half precision: half the memory, with errors of 2^-11 of a coordinate.
    (h,) = states(model, stream, ("h",), device=device.torch, dtype=torch.float16, **vars(reading))
    return h, torch.from_numpy(stream.tokens[1:].astype("int64"))


def gather(h: Tensor, tokens: Tensor, owner: Tensor, vocab_size: int) -> SplatStore:
    """Splats of contexts h (n, d) by owner (n,), before anything of them is fitted."""
    return SplatStore.gather(h, tokens, owner, vocab_size=vocab_size, beta=BETA, kappa=(START, START))


def of_training(found: Checkpoint) -> SplatStore:
    """The splats that training consolidated. Raises CheckpointError where the checkpoint has none."""
    store = store_of(found.soc, str(found.path / SOC))
    if store is None:
        raise CheckpointError(
            f"{found.path} has no splats from training",
            why="it was trained with --no-enable-soc, or saved before the first consolidation",
            hint="build them from the training text: leave --from-training away",
        )
    return store


class Fit:
    """A text as a model reads it, to fit memories on. None of its contexts may be in their static splats."""

    def __init__(self, model: LanguageModel, stream: TokenStream, *, reading: Reading, device: Device) -> None:
        self.model, self.backend = model, device.backend
        # The query, not the law: V numbers a context are computed again where they are asked for.
        self.query, self.h = states(model, stream, ("query", "h"), device=device.torch, **vars(reading))
        self.tokens = torch.from_numpy(stream.tokens[1:].astype("int64"))

    def fit(self, memory: Memory, say: Say) -> tuple[Memory, dict[Law, float]]:
        """The memory with concentrations, background, shares and gates of largest likelihood, a calibration without any
        memory and a scrambled control, all fitted on the same text; and the nats per token of the text under each law.
        """
        whole: Mode = "episodic" if memory.static is None else "both"
        for tier in TIERS[whole]:
            memory = self._tuned(memory, tier, say)
        # The calibration comes last: a memory that has one computes its law in every trial.
        memory, nats = self._gated(self._calibrated(memory, say), whole, len(self.tokens))
        for law, value in nats.items():
            say(f"{law:<12}{value:.4f} nats per token on the {len(self.tokens):,} that the gates were fitted on")
        return self.controlled(memory, whole, say), nats

    def alerts(self, memory: Memory, *, consolidated: bool) -> Iterator[Alert]:
        """Warnings about a memory that was fitted on this text: its splats contain the text, a tier says nothing or no
        more than a calibration, its concentration is the last one tried, or its gate is stuck.

        consolidated: its splats come from training, so their counts have faded and their number isn't chosen here.
        """
        if memory.static is not None and not consolidated:
            splats = Splats.open(memory.static, self.backend, NEAREST)
            held = leak(*novelty(splats, self.h[:LOOKED_AT], self.tokens[:LOOKED_AT]))
            yield from [held] if held else []
        yield from self.signs(memory, consolidated=consolidated)

    def signs(self, memory: Memory, *, consolidated: bool = False) -> Iterator[Alert]:
        """Warnings about the tiers of a fitted memory, on a text that its splats do not contain. consolidated: see
        `alerts`."""
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
        """The distance of each tier's p_mem from the uniform law in nats, log V minus the entropy, averaged over the
        text's first contexts. If it is 0, the tier's law is a power of the model's own."""
        reader, sums = Reader(memory, mode, self.backend), [0.0 for _ in TIERS[mode]]
        rows = laws_at_once(memory.vocab_size)
        for h, tokens in zip(*(torch.split(x[:limit], rows) for x in (self.h, self.tokens)), strict=True):
            for place, recall in enumerate(reader.recalls(h, tokens)):
                sums[place] += float((math.log(memory.vocab_size) - entropy(recall.law, log_of(recall.law))).sum())
        return [own / self._some(limit) for own in sums]

    def fit_static(self, memory: Memory, say: Say) -> Memory:
        """Only the static tier, and the calibration."""
        return self.gated(self._calibrated(self._tuned(memory, "static", say), say), "static")

    def _calibrated(self, memory: Memory, say: Say) -> Memory:
        found = self.calibration
        say(f"calibrated  power {found.power:g} of the model's own law")
        return replace(memory, calibration=found)

    @cached_property
    def calibration(self) -> Calibration:
        """The calibration with the power and the gate of largest likelihood on the text."""
        return self.calibrated(len(self.tokens))

    def calibrated(self, limit: int) -> Calibration:
        """`calibration` on the text's first tokens."""
        terms = self._power_terms(POWERS, min(limit, TUNED_TOKENS))
        power = POWERS[_least([_tried(own) for own in terms])]
        (whole,) = self._power_terms([power], limit)
        return Calibration(power, fit_gate(whole.features, whole.log_p))

    @torch.no_grad()
    def log_p_calibrated(self, calibration: Calibration) -> Tensor:
        """log p_cal (n,) of the text's tokens."""
        found = torch.empty(len(self.tokens))
        for rows, log_p in self._rows(None):
            found[rows] = calibration.of_tokens(log_p.float().cpu(), self.tokens[rows])
        return found

    @torch.no_grad()
    def _power_terms(self, powers: Sequence[float], limit: int) -> list[Terms]:
        n = self._some(limit)
        found = [Terms(torch.empty(n, 2), torch.empty(n, POWER_FEATURES)) for _ in powers]
        for rows, log_p in self._rows(limit):
            lexical = log_p.float().cpu()
            for terms, power in zip(found, powers, strict=True):
                terms.put(rows, Terms(*power_terms(lexical, self.tokens[rows], power)))
        return found

    def _tuned(self, memory: Memory, tier: Tier, say: Say) -> Memory:
        """The memory with a tier's concentration, share and (for static splats) background of largest likelihood.

        Every concentration is tried on the text's beginning, because the likelihood can have several maxima. The best
        ones and the neighbours of the very best are tried again on more of the text and with every share."""
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
        """A tier at one concentration, with the likeliest background there and the best of some shares."""
        memory = memory.with_kappa(tier, kappa)
        if tier == "static" and memory.static is not None:
            background = fit_background(memory.static, self._halves(limit)[0], self.backend, memory.k)[0]
            memory = replace(memory, static=background)
        trial = self._shared(memory, tier, shares, limit)
        share = trial.memory.share_of(tier)
        say(f"{tier:<12}kappa {kappa:g}, share {share:g}: {trial.nats:.4f} nats per token ({self._some(limit):,})")
        return trial

    def _shared(self, memory: Memory, tier: Tier, shares: Sequence[float], limit: int) -> Trial:
        """A tier with the share of largest likelihood among some."""
        terms = self._terms_at(memory, tier, [[share] for share in shares], limit)
        nats = [_tried(own) for own in terms]
        best = _least(nats)
        return Trial(nats[best], memory.with_share(tier, shares[best]))

    def controlled(self, memory: Memory, mode: Mode, say: Say) -> Memory:
        """The memory with a control: shares and gates that are fitted to the scrambled one. With the gate that trusts
        the true memory a scrambled one loses much more than a memory that says nothing has to."""
        scrambled = replace(memory, control=None, calibration=None).scrambled()
        for tier in TIERS[mode]:
            scrambled = self._shared(scrambled, tier, SHARES, TUNED_TOKENS).memory
        scrambled, nats = self._gated(scrambled, mode, len(self.tokens))
        for law in scrambled.gates:
            say(f"{law:<12}{nats[law]:.4f} nats per token with scrambled tokens, share and gate fitted to them")
        return replace(memory, control=Control(scrambled.share, scrambled.episodic.share, scrambled.gates))

    def coverage(self, memory: Memory) -> float:
        """The mean share of contexts that the static splats explain, over contexts not used to fit the background."""
        assert memory.static is not None
        return float(posterior(memory.static, self._halves(TUNED_TOKENS)[1], self.backend, memory.k)[1].sum(1).mean())

    def _some(self, limit: int | None) -> int:
        return len(self.tokens[:limit])

    def _halves(self, limit: int) -> tuple[Tensor, Tensor]:
        """Splits the text's first contexts: those to fit a background on, and those to judge it by."""
        half = max(1, self._some(limit) // 2)
        return self.h[:half], self.h[min(half, len(self.h) - 1) : limit]

    def nats(self, memory: Memory, mode: Mode) -> dict[Law, float]:
        """Nats per token of the text under a fitted memory: for `mode`, modes with fewer tiers and the calibration."""
        terms = self.terms(memory, mode)
        return {other: -float(log_p.mean()) for other, log_p in log_probs(terms, memory.gates, mode).items()}

    def gated(self, memory: Memory, mode: Mode) -> Memory:
        """The memory with gates fitted for `mode`, and nothing else."""
        return self._gated(memory, mode, len(self.tokens))[0]

    def _gated(self, memory: Memory, mode: Mode, limit: int) -> tuple[Memory, dict[Law, float]]:
        """The memory with gates fitted for `mode` and those of fewer tiers, and the nats per token of each."""
        terms = self.terms(memory, mode, limit)
        gates = {
            other: fit_gate(part.features, part.log_p)
            for other, tiers in TIERS.items()
            if tiers and set(tiers) <= set(TIERS[mode])
            for part in [part_of(terms, TIERS[mode], tiers)]
        }
        nats = {other: -float(log_p.mean()) for other, log_p in log_probs(terms, gates, mode).items()}
        return replace(memory, gates=gates), nats

    def terms(self, memory: Memory, mode: Mode, limit: int | None = None) -> Terms:
        """Of the text's first tokens under the lexical law and the tiers of `mode`."""
        return self._terms_at(memory, mode, None, limit)[0]

    @torch.no_grad()
    def _terms_at(
        self, memory: Memory, mode: Mode, shares: Sequence[Sequence[float]] | None, limit: int | None
    ) -> list[Terms]:
        """`terms` with each of some shares of the tiers; None: with the memory's own."""
        reader = Reader(memory, mode, self.backend)
        wanted = [reader.shares] if shares is None else shares
        found = [reader.empty_terms(self._some(limit), share) for share in wanted]
        for rows, log_p in self._rows(limit):
            for terms, part in zip(found, reader.read_at(self.h[rows], log_p, self.tokens[rows], wanted), strict=True):
                terms.put(rows, part)
        return found

    def _rows(self, limit: int | None) -> Iterator[tuple[slice, Tensor]]:
        """Pieces of the text's first tokens: their positions, and log p_lex (n, V), which the next piece overwrites."""
        return TokenLaw(self.model).pieces(self.query[:limit])


@dataclass(frozen=True)
class Trial:
    """A memory, and the nats per token of a text with one of its tiers, the gate fitted on the same tokens."""

    nats: float
    memory: Memory


def _tried(terms: Terms) -> float:
    """Nats per token with a gate fitted well enough for a comparison."""
    gate = fit_gate(terms.features, terms.log_p, rounds=TRIED)
    return -float(mix(gate.log_weights(terms.features), terms.log_p).double().mean())


def _least(values: Sequence[float]) -> int:
    """The index of the smallest value."""
    return min(range(len(values)), key=values.__getitem__)


def _beside(kappa: float) -> set[float]:
    """The neighbours of a concentration."""
    place = KAPPAS.index(kappa)
    return set(KAPPAS[max(0, place - 1) : place + 2])


# ---- files ---------------------------------------------------------------------------------------------------------
