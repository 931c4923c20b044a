"""Building, fitting and keeping the memory of a checkpoint (model sections 5 and 8).

Static splats come from the training text only. What is tuned, concentrations, background and gates, is fitted on the
validation text, whose contexts are members of no static splat, or on a fold of the training text, whose contexts are
left out of the splats meanwhile: a query never meets its own entry. Leaving out only the one context that asks is not
enough: the rest of its document stays, and says far more of it than of any other text.
"""

from __future__ import annotations

import hashlib
import math
import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as dump_tensors
from torch import Tensor
from torch.nn.functional import normalize

from ebmvk.data.windows import TokenStream
from ebmvk.errors import CheckpointError
from ebmvk.model.language import Context, LanguageModel
from ebmvk.splats.build import cluster
from ebmvk.splats.coverage import fit_background, posterior
from ebmvk.splats.gate import fit_gate
from ebmvk.splats.health import novelty
from ebmvk.splats.memory import TIERS, Memory, Mode, Reader, Terms, Tier, laws_at_once, log_probs, part_of
from ebmvk.splats.recall import Splats
from ebmvk.splats.soc import store_of
from ebmvk.splats.store import BETA, SplatStore
from ebmvk.training.alerts import Alert, gate_of_memory, leak
from ebmvk.training.checkpoint import MODEL, SOC, Checkpoint, write_atomic
from ebmvk.training.evaluation import contexts
from ebmvk.training.fitted_on import FittedOn
from ebmvk.training.workspace import Device

MEMORY_FILE = "memory.safetensors"
KAPPAS = (5.0, 7.0, 10.0, 14.0, 20.0, 28.0, 40.0, 56.0, 80.0, 112.0, 160.0, 224.0)
SHARES = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.85, 1.0)
GRIDS = {"kappa": (KAPPAS, Memory.with_kappa), "share": (SHARES, Memory.with_share)}
"""What is tuned of a tier: values in rising order, and how it gets one."""
START = 20.0  # the kappa where the search begins
TUNED_TOKENS = 30_000  # of the text, on which kappas and shares are compared
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
    n, done = len(stream) - 1, 0
    h = torch.empty(n, model.config.latent_dim, dtype=torch.float16)  # errors of 2^-11 of a coordinate, half the memory
    for seen, following in contexts(model, stream, device=device.torch, **vars(reading)):
        h[done : done + len(following)] = seen.h[0].cpu()
        done += len(following)
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
        self.model, self.device, self.backend = model, device.torch, device.backend
        # The query, not the law: V numbers a context are computed again where they are asked for.
        read = [
            (seen.query[0].float().cpu(), seen.h[0].float().cpu(), tokens.cpu())
            for seen, tokens in contexts(model, stream, device=device.torch, **vars(reading))
        ]
        self.query, self.h, self.tokens = (torch.cat(part) for part in zip(*read, strict=True))

    def fit(self, memory: Memory, say: Say) -> Memory:
        """The memory with concentrations, background and gates of largest likelihood."""
        memory = self._placed(memory, say)
        whole: Mode = "episodic" if memory.static is None else "both"
        memory = self._tuned(memory, "episodic", "kappa", START, say)
        memory = self._tuned(memory, "episodic", "share", memory.episodic.share, say)
        memory, nats = self._gated(memory, whole, len(self.tokens))
        for mode, value in nats.items():
            say(f"{mode:<12}{value:.4f} nats per token, on the {len(self.tokens):,} the gates were fitted on")
        return memory

    def alerts(self, memory: Memory, *, consolidated: bool) -> Iterator[Alert]:
        """What is wrong with a memory that was fitted on this text: its splats hold it, or a tier's gate is stuck.

        consolidated: its splats are those of training, whose counts have faded and whose number is not chosen here.
        """
        mode: Mode = "episodic" if memory.static is None else "both"
        if memory.static is not None and not consolidated:
            splats = Splats.open(memory.static, self.backend, NEAREST)
            held = leak(*novelty(splats, self.h[:LOOKED_AT], self.tokens[:LOOKED_AT]))
            yield from [held] if held else []
        n = 0 if memory.static is None or consolidated else memory.static.n
        more, fewer = min(2 * n, MAX_SPLATS), n // 2
        weights = memory.gates[mode].log_weights(self.terms(memory, mode, LOOKED_AT).features).exp().mean(0)
        more_or_fewer = {"more": more if more > n else None, "fewer": fewer or None}
        for tier, weight in zip(TIERS[mode], weights[1:].tolist(), strict=True):
            share, static = memory.share_of(tier), memory.static is not None
            stuck = gate_of_memory(tier, weight, share, static=static, **more_or_fewer)
            yield from [stuck] if stuck else []

    def fit_static(self, memory: Memory, say: Say) -> Memory:
        """Only the static tier."""
        return self.gated(self._placed(memory, say), "static")

    def _placed(self, memory: Memory, say: Say) -> Memory:
        """The memory with its static splats' concentration and background of largest likelihood."""
        if memory.static is None:
            return memory
        memory = self._tuned(memory, "static", "kappa", START, say)
        assert memory.static is not None
        memory = replace(memory, static=self._covering(memory.static, memory.k, say))
        return self._tuned(memory, "static", "share", memory.share, say)

    def _covering(self, static: SplatStore, k: int, say: Say) -> SplatStore:
        """The splats with a background fitted by EM on one half of a fold; says how much of the other they cover."""
        fold = self.h[:TUNED_TOKENS]
        first, other = fold[: len(fold) // 2], fold[len(fold) // 2 :]
        static, _ = fit_background(static, first, self.backend, k)
        share = float(posterior(static, other, self.backend, k)[1].sum(1).mean())
        say(f"static      covers {share:.2%} of {len(other):,} contexts, at kappa {static.kappa_max:g}")
        return static

    def _tuned(self, memory: Memory, tier: Tier, name: str, start: float, say: Say) -> Memory:
        """The memory with that number of a tier at the value of GRIDS of largest likelihood, uphill from `start`; the
        likelihood has one summit."""
        values, at = GRIDS[name]
        nats = {-1: math.inf, len(values): math.inf}

        def cost(i: int) -> float:
            if i not in nats:
                nats[i] = self._gated(at(memory, tier, values[i]), tier, TUNED_TOKENS)[1][tier]
                say(f"{tier:<12}{name} {values[i]:g}: {nats[i]:.4f} nats per token")
            return nats[i]

        best = values.index(start)
        for step in (1, -1):
            while cost(best + step) < cost(best):
                best += step
        return at(memory, tier, values[best])

    def nats(self, memory: Memory, mode: Mode) -> dict[Mode, float]:
        """Nats per token of the text, of a fitted memory, for `mode` and those of fewer tiers."""
        terms = self.terms(memory, mode, len(self.tokens))
        return {other: -float(log_p.mean()) for other, log_p in log_probs(terms, memory.gates, mode).items()}

    def gated(self, memory: Memory, mode: Mode) -> Memory:
        """The memory with gates fitted for `mode`, and nothing else."""
        return self._gated(memory, mode, len(self.tokens))[0]

    def _gated(self, memory: Memory, mode: Mode, limit: int) -> tuple[Memory, dict[Mode, float]]:
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

    @torch.no_grad()
    def terms(self, memory: Memory, mode: Mode, limit: int | None = None) -> Terms:
        """Of the text's first tokens under the lexical law and the tiers of `mode`."""
        reader, embeddings = Reader(memory, mode, self.backend), self.model.embeddings()
        part = (x[:limit] for x in (self.query, self.h, self.tokens))
        rows, found = laws_at_once(self.model.vocab_size), []
        for query, h, tokens in zip(*(torch.split(x, rows) for x in part), strict=True):
            seen = Context(query.to(self.device)[None], h[None], ())
            found.append(reader.read(h, self.model.log_p_lex(seen, embeddings)[0], tokens))
        return Terms.join(found)


# ---- files ---------------------------------------------------------------------------------------------------------


def save(folder: Path, memory: Memory, fitted_on: FittedOn) -> Path:
    """Write the memory into the checkpoint folder it was built for. Raises StorageError; an older one is intact."""
    state = memory.state() | {"model": _weights(folder)}
    write_atomic(folder / MEMORY_FILE, dump_tensors(state, metadata=fitted_on.metadata()))
    return folder / MEMORY_FILE


def load(folder: Path, model: LanguageModel, mode: Mode) -> Memory:
    """The memory in a checkpoint folder, with the tiers that `mode` needs.

    Raises:
        CheckpointError: there is none, it is damaged, or it belongs to another model.
    """
    file, again = folder / MEMORY_FILE, f"build it with `ebmvk memory --checkpoint {shlex.quote(str(folder))}`"
    try:
        state = load_tensors(file.read_bytes())
    except FileNotFoundError:
        raise CheckpointError(f"{folder} has no memory", hint=again) from None
    except (OSError, SafetensorError, ValueError, KeyError, RuntimeError) as error:
        raise CheckpointError(f"{file}: cannot be read ({error})", hint=again) from None
    digest = state.pop("model", None)
    if digest is None or not torch.equal(digest, _weights(folder)):
        raise CheckpointError(
            f"{file}: it was built for other weights than this checkpoint's",
            why="its splats are states of the model it was built with",
            hint=again,
        )
    memory = Memory.from_state(state, str(file))
    if (memory.d, memory.vocab_size) != (model.config.latent_dim, model.vocab_size):
        raise CheckpointError(
            f"{file}: its splats have d {memory.d} and {memory.vocab_size} tokens, the model "
            f"{model.config.latent_dim} and {model.vocab_size}",
            hint=again,
        )
    if "static" in TIERS[mode] and memory.static is None:
        raise CheckpointError(f"{file}: it has no static splats", hint=again)
    return memory


def _weights(folder: Path) -> Tensor:
    """SHA-256 of a checkpoint's weights: (32,) uint8."""
    return torch.tensor(list(hashlib.sha256((folder / MODEL).read_bytes()).digest()), dtype=torch.uint8)
