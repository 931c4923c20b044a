"""What training, evaluation, memory and generation need of a language model, whichever it is.

Every model ends in one inner product: log p(v|c) = query(c).row_v + b_v - log Z over the vocabulary, row_v times a
concentration kappa_v where rows have one length. What else a model has follows from `on_sphere`: only where the rows
are unit vectors are they points that chains move among, so that denoising, spread, score matching and Langevin sampling
exist.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ebmvk.config.schema import ModelConfig
from ebmvk.model.cache import Cache
from ebmvk.model.roles import HIDDEN, ROUTER, SCALAR, Role

EXTENDED = 256  # tokens read into a cache at once: attention holds that many rows of scores
LOGITS_AT_ONCE = 1 << 22  # logits that `TokenLaw` holds: 16 MiB of float32, twice


class OwnLoss(Protocol):
    """A model's own losses, besides that of its tokens. They are nonlinear functions of sums over all positions of a
    step, so a step that is computed in parts adds up the sums first."""

    @property
    def size(self) -> int:
        """S, the number of sums."""
        ...

    def sums(self, there: Tensor | None) -> Tensor:
        """(S,) float64 over the positions that aren't padding. there: (N,) bool, by default all."""
        ...

    def losses(self, sums: Tensor, n: int) -> dict[str, Tensor]:
        """The losses by name, from the sums over n positions."""
        ...


@dataclass(frozen=True)
class Context:
    """A model's output for every prefix; tensors are (B, T, d).

    query: gives the logits with the tokens' rows. h: unit rows, the state that memory keeps. aux: the model's own
    losses, in training; losses with the same name are averaged.
    """

    query: Tensor
    h: Tensor
    aux: Sequence[OwnLoss]

    def sums(self, there: Tensor | None = None) -> Tensor:
        """(S,) float64, the sums of all `aux`, one after another. there: (B T,) bool, by default all positions."""
        return torch.cat([own.sums(there) for own in self.aux] or [self.query.new_zeros(0, dtype=torch.float64)])

    def losses(self, sums: Tensor, n: int) -> dict[str, Tensor]:
        """The losses by name, from the result of `sums` over n positions."""
        each = torch.split(sums, [own.size for own in self.aux])
        parts = [own.losses(part, n) for own, part in zip(self.aux, each, strict=True)]
        names = dict.fromkeys(name for part in parts for name in part)
        return {name: torch.stack([part[name] for part in parts if name in part]).mean() for name in names}


class LanguageModel(nn.Module, ABC):
    """p(v|c) = softmax(kappa_v query(c).row_v + b_v), with the same rows for the tokens that are read.

    A new model needs the abstract methods, the class variables without a value, and an entry in
    `ebmvk.config.models`.
    """

    on_sphere: ClassVar[bool] = False  # True if the tokens' rows are points on the unit sphere
    default_sampler: ClassVar[Literal["exact", "langevin"]] = "exact"  # how tokens are drawn if nobody says how
    rows_name: ClassVar[str]  # the parameter that holds the tokens' rows
    rows_role: ClassVar[Role]  # how the optimiser moves it
    inherited: ClassVar[tuple[str, ...]]  # names, or beginnings of names, of what `--init RUN` copies
    own_losses: bool = False  # True if the model has losses of its own in training
    reach: int | None = None  # most tokens of one sequence; None: any number, a window moves along with them

    def __init__(self, config: ModelConfig, vocab_size: int) -> None:
        super().__init__()
        self.config, self.vocab_size = config, vocab_size
        self.bias = nn.Parameter(torch.zeros(vocab_size))

    @abstractmethod
    def embeddings(self) -> Tensor:
        """The tokens' rows, (V, d); unit rows where the model is on the sphere."""

    @abstractmethod
    def forward(self, tokens: Tensor, embeddings: Tensor | None = None, cache: Cache | None = None) -> Context:
        """tokens: (B, T) int64. `embeddings`: what `embeddings()` returned, where the caller needs it too. `cache`: of
        the tokens before these, to which these are added; `extend` is the way to it."""

    def role(self, name: str, parameter: nn.Parameter) -> Role:
        """How the optimiser moves a parameter. Override it for parameters of another kind."""
        if name == self.rows_name:
            return self.rows_role
        if name.endswith("router.weight"):
            return ROUTER
        return HIDDEN if parameter.ndim == 2 else SCALAR

    def concentrations(self) -> Tensor | None:
        """kappa_v: (V,) > 0; None where it is 1, because a row has a length of its own."""
        return None

    def outputs(self, embeddings: Tensor | None = None) -> Tensor:
        """What a query is compared with: (V, d), kappa_v row_v. `embeddings`: what `embeddings()` returned."""
        rows, kappa = self.embeddings() if embeddings is None else embeddings, self.concentrations()
        return rows if kappa is None else rows * kappa[:, None]

    @abstractmethod
    def start_from_directions(self, known: Tensor, directions: Tensor) -> None:
        """Sets the rows that known (V,) bool marks to those of directions (V, d), unit rows, at the length rows start
        with."""

    def fault_in(self, weights: Mapping[str, Tensor]) -> str | None:  # noqa: ARG002
        """What makes weights of this model's names, shapes and dtypes, all finite, no model, naming the tensor; None
        where nothing does. Says the same of a model on the meta device."""
        return None

    @torch.no_grad()
    def extend(self, tokens: Tensor, cache: Cache, embeddings: Tensor | None = None) -> Context:
        """`forward` of the tokens (B, T) that follow those in the cache, which then has them too; without `aux`."""
        found = []
        for part in torch.split(tokens, EXTENDED, dim=1):
            found.append(self(part, embeddings, cache))
            cache.length += part.shape[1]
        return Context(torch.cat([c.query for c in found], dim=1), torch.cat([c.h for c in found], dim=1), ())

    @torch.no_grad()
    def start_from_counts(self, counts: Tensor) -> None:
        """Sets the bias to log unigram frequencies, smoothed by one. counts: (V,) tokens of the training split."""
        frequency = counts.to(torch.float64) + 1
        self.bias.copy_((frequency / frequency.mean()).log())

    def logits(self, context: Context, embeddings: Tensor | None = None) -> Tensor:
        """-E(v|c): (B, T, V)."""
        return F.linear(context.query, self.outputs(embeddings), self.bias)

    def log_p_lex(self, context: Context, embeddings: Tensor | None = None) -> Tensor:
        """Exact log p(v|c): (B, T, V), normalised over the whole vocabulary."""
        return torch.log_softmax(self.logits(context, embeddings), dim=-1)


class TokenLaw:
    """log p(v|c) of any number of contexts under one model, a few rows at a time.

    All logits and log-probabilities are written into the same two arrays, so a text of any length takes the memory of
    one piece. The weights are read once: make a new one after a training step. No gradients.
    """

    @torch.no_grad()
    def __init__(self, model: LanguageModel, embeddings: Tensor | None = None) -> None:
        self._outputs, self._bias = model.outputs(embeddings), model.bias
        rows = max(1, LOGITS_AT_ONCE // model.vocab_size)
        self._logits, self._log_p = (self._outputs.new_empty(rows, model.vocab_size) for _ in range(2))

    @torch.no_grad()
    def pieces(self, query: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """(rows, log p (m, V)) for queries (N, d), piece by piece. The next piece overwrites log p."""
        for first in range(0, len(query), len(self._logits)):
            part = query[first : first + len(self._logits)].to(self._outputs.device)
            logits, log_p = self._logits[: len(part)], self._log_p[: len(part)]
            torch.addmm(self._bias, part, self._outputs.t(), out=logits)
            torch.log_softmax(logits, -1, out=log_p)
            yield slice(first, first + len(part)), log_p

    def of(self, query: Tensor, tokens: Tensor) -> Tensor:
        """log p (N,) of the tokens (N,) that followed the queries (N, d)."""
        found = query.new_empty(len(query))
        for rows, log_p in self.pieces(query):
            found[rows] = log_p.gather(1, tokens[rows, None])[:, 0]
        return found
