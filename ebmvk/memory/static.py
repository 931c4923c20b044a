"""Builds the static splats of a checkpoint: those of its training text (model section 8).

Reads the training text with the model and clusters its contexts, or takes the splats that training
consolidated. Also builds the same splats without the text's first documents, so that a memory can
be fitted on those.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ebmvk.data.windows import TokenStream
from ebmvk.engine.device import Device
from ebmvk.errors import CheckpointError
from ebmvk.model.language import LanguageModel
from ebmvk.model.reading import states
from ebmvk.runs.checkpoint import Checkpoint
from ebmvk.runs.manifest import SOC
from ebmvk.splats.build import cluster
from ebmvk.splats.soc import store_of
from ebmvk.splats.store import BETA, SplatStore

START = 20.0  # kappa before fitting
TOKEN_WEIGHT = 0.4  # weight of the token that followed, relative to the state, when contexts are clustered
MAX_SPLATS = 150_000  # most static splats
FIT_TOKENS = 100_000  # most tokens that the memory's numbers, about 30, are fitted on


@dataclass(frozen=True)
class Reading:
    """How a model reads a text. context, stride: those of its windows. bfloat16: read in bfloat16,
    as in training.
    """

    context: int
    stride: int
    bfloat16: bool

    @classmethod
    def training(cls, context: int, *, bfloat16: bool) -> Reading:
        """A reading in which each context sees at least a quarter of a window before it."""
        return cls(context, context - context // 4, bfloat16)

    @classmethod
    def evaluation(cls, context: int) -> Reading:
        """The reading that `ebmvk evaluate` uses."""
        return cls(context, max(1, context // 2), False)


@dataclass(frozen=True)
class Static:
    """Splats of a training text.

    store: splats of the whole text. without: splats of the text without its first documents, on
    which a memory can then be fitted.
    """

    store: SplatStore
    without: SplatStore

    def fitted(self, without: SplatStore) -> SplatStore:
        """The splats of the whole text, with the concentration and alpha_inf that were fitted with
        `without`.
        """
        store = self.store.at(without.kappa_max)
        share = without.background / float(without.mass.sum())
        return replace(store, background=share * float(store.mass.sum()))


def build_static(
    model: LanguageModel, train: TokenStream, splats: int, *, reading: Reading, device: Device, seed: int
) -> Static:
    """At most `splats` splats of the contexts of a training text.

    Raises:
        DataError: fewer contexts than splats.
    """
    h, tokens = read_states(model, train, reading=reading, device=device)
    owner, fold = cluster(h, tokens, splats, device.backend, seed, token_marks(model)), first_documents(train)
    store = gather(h, tokens, owner, model.vocab_size)
    return Static(store, gather(h[fold:], tokens[fold:], owner[fold:], model.vocab_size))


def token_marks(model: LanguageModel) -> Tensor:
    """One row per token, (V, d). With them `cluster` also compares the tokens that followed."""
    return TOKEN_WEIGHT * normalize(model.embeddings().detach().float().cpu(), dim=1)


def first_documents(train: TokenStream) -> int:
    """The number of contexts to fit on: whole documents, at most a tenth of the text."""
    most = min(FIT_TOKENS, (len(train) - 1) // 10)
    starts = train.starts[(train.starts > 0) & (train.starts <= most)]
    return int(starts[-1]) if len(starts) else most


def read_states(
    model: LanguageModel, stream: TokenStream, *, reading: Reading, device: Device
) -> tuple[Tensor, Tensor]:
    """The contexts h (n, d) of a text, in half precision, and the tokens (n,) that followed."""
    # Half precision halves the memory; the error of a coordinate is 2^-11 of it.
    (h,) = states(model, stream, ("h",), device=device.torch, dtype=torch.float16, **vars(reading))
    return h, torch.from_numpy(stream.tokens[1:].astype("int64"))


def gather(h: Tensor, tokens: Tensor, owner: Tensor, vocab_size: int) -> SplatStore:
    """Splats of contexts h (n, d), before anything is fitted. owner: (n,), each context's splat."""
    return SplatStore.gather(h, tokens, owner, vocab_size=vocab_size, beta=BETA, kappa=(START, START))


def of_training(found: Checkpoint) -> SplatStore:
    """The splats that training consolidated. Raises CheckpointError if the checkpoint has none."""
    store = store_of(found.soc, str(found.path / SOC))
    if store is None:
        raise CheckpointError(
            f"{found.path} has no splats from training",
            why="it was trained with --no-enable-soc, or saved before the first consolidation",
            hint="remove --from-training to build them from the training text",
        )
    return store
