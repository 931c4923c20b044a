"""The interface that training, evaluation, memory and generation expect of every language model.

Every model ends in one inner product: log p(v|c) = query(c).row_v + b_v - log Z over the
vocabulary. If the rows are unit vectors, row_v is multiplied by a concentration kappa_v. Such a
model is `on_sphere`: its rows are points that chains move among, so only it has denoising, the
spread loss, score matching and Langevin sampling.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ebmvk.config.schema import ModelConfig
from ebmvk.model.cache import Cache, Past
from ebmvk.model.dropout import NONE, Masks
from ebmvk.model.roles import HIDDEN, ROUTER, SCALAR, Role

EXTENDED = 256  # tokens read into a cache at once: attention holds a row of scores for each
LOGITS_AT_ONCE = 1 << 22  # logits that `TokenLaw` holds: twice 16 MiB of float32


@dataclass(frozen=True)
class Counted:
    """Which of N positions count.

    rows: (M,) int64, the positions to select; None: all N. there: (M,), their weights, 0 or 1;
    None: all are 1.
    """

    rows: Tensor | None = None
    there: Tensor | None = None

    def of(self, x: Tensor, dim: int = 0) -> Tensor:
        """Select the positions from dimension `dim` (N) of x; positions of weight 0 become 0."""
        x = x if self.rows is None else x.index_select(dim, self.rows)
        return x if self.there is None else x * self.there.to(x.dtype).view(-1, *[1] * (x.ndim - 1 - dim))


class OwnLoss(Protocol):
    """Losses of a model besides the cross-entropy of tokens.

    They are nonlinear functions of sums over all positions of a step. If a step is computed in
    parts, the sums are added up first. The weight of a loss is the setting with its name, with or
    without `lambda_` before it.
    """

    @property
    def size(self) -> int:
        """The number S of sums."""
        ...

    def sums(self, there: Counted | None) -> Tensor:
        """(S,) float64, sums over positions. there: those that aren't padding; None means all."""
        ...

    def losses(self, sums: Tensor, n: Tensor | int) -> dict[str, Tensor]:
        """The losses by name, from the sums over n positions."""
        ...


@dataclass(frozen=True)
class Context:
    """A model's output for every prefix; tensors are (B, T, d).

    query: its inner products with the tokens' rows are the logits. h: unit rows, the state that a
    memory keeps. aux: the model's own losses, in training; losses of the same name are averaged.
    """

    query: Tensor
    h: Tensor
    aux: Sequence[OwnLoss]

    def sums(self, there: Counted | None = None) -> Tensor:
        """(S,) float64, the sums of all `aux`, concatenated.

        there: which of the B T positions; None means all.
        """
        return torch.cat([own.sums(there) for own in self.aux] or [self.query.new_zeros(0, dtype=torch.float64)])

    def losses(self, sums: Tensor, n: Tensor | int) -> dict[str, Tensor]:
        """The losses by name, from the result of `sums` over n positions."""
        each = torch.split(sums, [own.size for own in self.aux])
        parts = [own.losses(part, n) for own, part in zip(self.aux, each, strict=True)]
        names = dict.fromkeys(name for part in parts for name in part)
        return {name: torch.stack([part[name] for part in parts if name in part]).mean() for name in names}


class LanguageModel(nn.Module, ABC):
    """A language model: p(v|c) = softmax(kappa_v query(c).row_v + b_v).

    The same rows are the vectors of the input tokens.

    A new model needs the abstract methods, the class variables without a value, and an entry in
    `ebmvk.config.models`.
    """

    on_sphere: ClassVar[bool] = False  # True if the tokens' rows are points on the unit sphere
    default_sampler: ClassVar[str] = "exact"  # a name in `ebmvk.sampling.registry`
    rows_name: ClassVar[str]  # the parameter that holds the tokens' rows
    rows_role: ClassVar[Role]  # how the optimiser moves it
    inherited: ClassVar[tuple[str, ...]]  # beginnings of names that `--init RUN` copies
    own_losses: bool = False  # True if the model has losses besides the cross-entropy, in training
    reach: int | None = None  # the longest sequence, in tokens; None if a window moves along

    def __init__(self, config: ModelConfig, vocab_size: int) -> None:
        super().__init__()
        self.config, self.vocab_size = config, vocab_size
        self.bias = nn.Parameter(torch.zeros(vocab_size))

    @abstractmethod
    def embeddings(self) -> Tensor:
        """The tokens' rows, (V, d). They are unit rows if the model is on the sphere."""

    @abstractmethod
    def forward(
        self, tokens: Tensor, embeddings: Tensor | None = None, cache: Past | None = None, masks: Masks = NONE
    ) -> Context:
        """The output for every prefix of the tokens.

        tokens: (B, T) int64. embeddings: the result of `embeddings()`, if the caller has it
        already.
        cache: holds the tokens before these; `extend` fills it.
        masks: what dropout draws from in training; by default nothing is dropped.
        """

    def role(self, name: str, parameter: nn.Parameter) -> Role:
        """How the optimiser updates a parameter. Override this for parameters of another kind."""
        if name == self.rows_name:
            return self.rows_role
        if name.endswith("router.weight"):
            return ROUTER
        return HIDDEN if parameter.ndim == 2 else SCALAR

    def concentrations(self) -> Tensor | None:
        """kappa_v: (V,) > 0; None if rows may have any length; then kappa_v isn't needed."""
        return None

    def outputs(self, embeddings: Tensor | None = None) -> Tensor:
        """kappa_v row_v, (V, d): a query is compared with these.

        embeddings: the result of `embeddings()`.
        """
        rows, kappa = self.embeddings() if embeddings is None else embeddings, self.concentrations()
        return rows if kappa is None else rows * kappa[:, None]

    @abstractmethod
    def start_from_directions(self, known: Tensor, directions: Tensor) -> None:
        """Set some rows to the given directions, with the length that rows start with.

        directions: (V, d) unit rows. known: (V,) bool, marks the rows to set."""

    def fault_in(self, weights: Mapping[str, Tensor]) -> str | None:  # noqa: ARG002
        """Describe what is wrong with weights whose names, shapes and dtypes are right and whose
        numbers are finite.

        The answer names the tensor; it is None if nothing is wrong. Also works for a model on the
        meta device.
        """
        return None

    @torch.no_grad()
    def extend(self, tokens: Tensor, cache: Cache, embeddings: Tensor | None = None) -> Context:
        """Like `forward`, for tokens (B, T) that follow those in the cache. Adds these tokens to
        the cache.

        The result has no `aux`.
        """
        found = []
        for part in torch.split(tokens, EXTENDED, dim=1):
            found.append(self(part, embeddings, cache))
            cache.length += part.shape[1]
        return Context(torch.cat([c.query for c in found], dim=1), torch.cat([c.h for c in found], dim=1), ())

    @torch.no_grad()
    def start_from_counts(self, counts: Tensor) -> None:
        """Set the bias to log unigram frequencies, smoothed by one.

        counts: (V,), in the training text.
        """
        frequency = counts.to(torch.float64) + 1
        self.bias.copy_((frequency / frequency.mean()).log())

    def logits(self, context: Context, embeddings: Tensor | None = None) -> Tensor:
        """-E(v|c): (B, T, V)."""
        return F.linear(context.query, self.outputs(embeddings), self.bias)

    def log_p_lex(self, context: Context, embeddings: Tensor | None = None) -> Tensor:
        """Exact log p(v|c): (B, T, V), normalised over the whole vocabulary."""
        return torch.log_softmax(self.logits(context, embeddings), dim=-1)


class TokenLaw:
    """log p(v|c) of one model for any number of contexts, a few rows at a time, without gradients.

    All pieces are written into the same two arrays, so a text of any length takes the memory of one
    piece. The weights are read once: make a new object after a training step.
    """

    @torch.no_grad()
    def __init__(self, model: LanguageModel, embeddings: Tensor | None = None) -> None:
        self._outputs, self._bias = model.outputs(embeddings), model.bias
        rows = max(1, LOGITS_AT_ONCE // model.vocab_size)
        self._logits, self._log_p = (self._outputs.new_empty(rows, model.vocab_size) for _ in range(2))

    @torch.no_grad()
    def pieces(self, query: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Yield (rows, log p (m, V)) for queries (N, d). The next piece overwrites log p."""
        for first in range(0, len(query), len(self._logits)):
            part = query[first : first + len(self._logits)].to(self._outputs.device)
            logits, log_p = self._logits[: len(part)], self._log_p[: len(part)]
            torch.addmm(self._bias, part, self._outputs.t(), out=logits)
            torch.log_softmax(logits, -1, out=log_p)
            yield slice(first, first + len(part)), log_p

    def of(self, query: Tensor, tokens: Tensor) -> Tensor:
        """log p (N,) of tokens (N,) that followed the queries (N, d)."""
        found = query.new_empty(len(query))
        for rows, log_p in self.pieces(query):
            found[rows] = log_p.gather(1, tokens[rows, None])[:, 0]
        return found
