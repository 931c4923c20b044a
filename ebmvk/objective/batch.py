"""What a pass over rows of a step reads besides the weights. It is prepared on the host, from the
tokens, the seed and the step, so that the pass itself never looks at a value on the host.

Random numbers are functions of (seed, step): they are drawn for the whole step, and each share of
it keeps what concerns its own rows.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from ebmvk.config.schema import Config
from ebmvk.engine.dropout import words_of
from ebmvk.model.dropout import Masks
from ebmvk.model.language import Counted, LanguageModel
from ebmvk.objective import noise
from ebmvk.ranks import WHOLE, Share
from ebmvk.sphere.vmf import log_c_ratio, mean_cosine, sample_deficit

DENOISE_POSITIONS = 64  # positions of a step to denoise; a fixed number, so that the cost doesn't grow with the batch
SPREAD_PAIRS = 1024  # pairs of tokens per step

Node = TypeVar("Node", bound=type[Any])


def _node(cls: Node) -> Node:
    """Let torch see the tensors in a dataclass, so that a step that takes one can be traced. Other
    fields are settings of the trace."""

    def flatten(value: Any) -> tuple[list[Any], Any]:
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        settings = tuple((name, own) for name, own in fields.items() if own is None or isinstance(own, int))
        names = tuple(name for name in fields if name not in dict(settings))
        return [fields[name] for name in names], (names, settings)

    def unflatten(children: Any, context: Any) -> Any:
        names, settings = context
        return cls(**dict(zip(names, children, strict=True)), **dict(settings))

    def with_names(value: Any) -> tuple[list[tuple[Any, Any]], Any]:
        children, context = flatten(value)
        return [(pytree.GetAttrKey(name), child) for name, child in zip(context[0], children, strict=True)], context

    pytree.register_pytree_node(cls, flatten, unflatten, flatten_with_keys_fn=with_names)
    return cls


@_node
@dataclass(frozen=True)
class Noised:
    """Positions of a step, whose tokens the denoising loss recognises from noise.

    at: (m,) int64, their places among the queries of the pass. targets: (m,) int64, their tokens.
    kappa: (m,), concentrations of the noise; log_c and cosine: (m,), `log_c_ratio` and
    `mean_cosine` of them, the latter only for the score form. deficit: (m,), how far the noise lies
    from its token; see `placed`. words, and numbers: (m,) int64, from which `engine.normals` draws
    the directions of the noise; numbers count the positions of the whole step. there: (m,), 1 for
    positions that count and 0 for others; None: all count. portion: m divided by the number of
    positions of the whole step.
    """

    at: Tensor
    targets: Tensor
    kappa: Tensor
    log_c: Tensor
    cosine: Tensor | None
    deficit: Tensor
    words: Tensor
    numbers: Tensor
    there: Tensor | None
    portion: Tensor


@_node
@dataclass(frozen=True)
class Pairs:
    """Pairs of tokens that are kept apart. ids: (2, m) int64. there, portion: as in `Noised`."""

    ids: Tensor
    there: Tensor | None
    portion: Tensor


@_node
@dataclass(frozen=True)
class Batch:
    """The inputs of a pass over b windows of T tokens, a share of a step's rows.

    tokens: (b, T) int64, with 0 for padding. targets: (M,) int64. rows: (M,) int64, the positions
    among the b T that have targets; None: each has one. there: (M,), 0 for targets that are padding
    and 1 for others; None: none is padding. portion: M divided by the number of targets of the
    whole step. n: that number (int64), if the model has losses of its own. words: what dropout
    draws from, None if nothing is dropped. parts: the number of shares of the step.
    """

    tokens: Tensor
    targets: Tensor
    rows: Tensor | None
    there: Tensor | None
    portion: Tensor
    n: Tensor | None
    words: Tensor | None
    noised: Noised | None
    pairs: Pairs | None
    parts: int

    @property
    def counted(self) -> Counted | None:
        """Which positions count; None: all."""
        return None if self.rows is None and self.there is None else Counted(self.rows, self.there)

    @property
    def masks(self) -> Masks:
        """What dropout draws from."""
        return Masks(self.words)

    def to(self, device: torch.device) -> Batch:
        """The same batch on a device."""
        return self if device.type == "cpu" else pytree.tree_map_only(Tensor, lambda own: own.to(device), self)


def prepare(
    model: LanguageModel, tokens: Tensor, config: Config, *, seed: int, step: int, share: Share = WHOLE,
    fixed: bool = False, draws: bool = True,
) -> Batch:  # fmt: skip
    """The inputs of a share of a step, on the host.

    tokens: (B, T+1) int64, all rows of the step; a row ends at its first -1. fixed: give all
    tensors shapes that depend on that of `tokens` alone, with weights of 0 at unused places;
    otherwise only what counts is kept, which is faster on a processor. draws: also prepare the
    losses that draw random numbers.
    """
    tokens = tokens.detach().cpu()
    own, dtype = share.rows(len(tokens)), model.bias.dtype
    mine, everyone = tokens[own], tokens[:, 1:].flatten()
    targets = mine[:, 1:].flatten()
    real, there = targets >= 0, everyone >= 0
    whole = bool(there.all())
    total = len(everyone) if whole else int(there.sum())
    rows, weight = None, None
    if (fixed and not whole) or (fixed and config.data.apart):
        targets, weight = targets.clamp_min(0), real.to(dtype)
    elif not bool(real.all()):
        rows = real.nonzero()[:, 0]
        targets = targets[rows]
    drops = round(256 * model.config.dropout) > 0
    words = Masks.of_step(seed, step, own.start).words if drops else None
    n = torch.tensor(total) if model.own_losses else None
    inputs = mine[:, :-1].clamp_min(0)
    batch = Batch(
        *(inputs, targets, rows, weight, torch.tensor(len(targets) / total, dtype=dtype), n, words),
        *(None, None, share.parts),
    )
    if not (draws and model.on_sphere):
        return batch
    rng = torch.Generator().manual_seed(mixed_seed(seed, step))
    noised = pairs = None
    if config.training.lambda_denoise > 0:
        real = everyone[there] if not whole else everyone
        noised = _noised(model, config, real, rng)
        before = tokens[: own.start, 1:]
        noised = _mine(noised, int((before >= 0).sum()), batch, fixed=fixed)
    if config.training.lambda_spread > 0:
        pairs = _pairs(model.vocab_size, rng, dtype, fixed=fixed)
    return replace(batch, noised=noised, pairs=pairs)


def _noised(model: LanguageModel, config: Config, everyone: Tensor, rng: torch.Generator) -> Noised:
    """The positions of the whole step. at: their places among all targets of the step,
    `everyone`."""
    points: Tensor = getattr(model, model.rows_name)
    at = torch.randint(len(everyone), (min(DENOISE_POSITIONS, len(everyone)),), generator=rng)
    kappa = noise.draw(config.training, points, len(at), rng)
    score = config.training.denoise_form == "score"
    return noised_at(at, everyone[at], kappa, points.shape[1], rng, score=score)


def noised_at(
    at: Tensor, targets: Tensor, kappa: Tensor, d: int, rng: torch.Generator, *, score: bool = True
) -> Noised:
    """Draw noise in d dimensions for m positions.

    at, targets: (m,) int64. kappa: (m,), >= 0. score: also prepare what the score form of the loss
    needs.
    """
    deficit = sample_deficit(kappa.double(), d, rng)
    words = words_of(int(torch.randint(2**62, (), generator=rng)), 0, 0)
    of_kappa = (kappa, log_c_ratio(kappa, d), mean_cosine(kappa, d) if score else None)
    portion = torch.ones((), dtype=kappa.dtype)
    return Noised(at, targets, *of_kappa, deficit, words, torch.arange(len(at)), None, portion)


def _mine(noised: Noised, before: int, batch: Batch, *, fixed: bool) -> Noised:
    """The part for a share's own targets. before: the number of targets before the share's
    first."""
    have = len(batch.targets) if batch.there is None else int(batch.there.sum())
    place, m = noised.at - before, len(noised.at)
    mine = (place >= 0) & (place < have)
    if fixed:
        # Placing noise in the dtype of the model costs a rounding or two of x.
        noised = replace(noised, deficit=noised.deficit.to(noised.kappa.dtype))
        if batch.there is not None:  # from places among the targets to places among all positions
            place = batch.there.nonzero()[:, 0][place.clamp(0, max(0, have - 1))] if have else torch.zeros_like(place)
        return _filled(replace(noised, at=place * mine, there=mine.to(noised.portion.dtype)))
    if not bool(mine.all()):
        kept = {name: own[mine] for name in _PER_POSITION if (own := getattr(noised, name)) is not None}
        noised = replace(noised, **kept)
        place = place[mine]
    return replace(noised, at=place, portion=noised.portion * (len(place) / m))


_PER_POSITION = ("targets", "kappa", "log_c", "cosine", "deficit", "numbers")


def _filled(noised: Noised) -> Noised:
    """Fill up to DENOISE_POSITIONS positions, because a step may have fewer targets. The additional
    positions don't count."""
    m = len(noised.at)
    if m == DENOISE_POSITIONS:
        return noised
    again = torch.arange(DENOISE_POSITIONS) % m
    kept = {name: own[again] for name in (*_PER_POSITION, "at") if (own := getattr(noised, name)) is not None}
    assert noised.there is not None
    there = noised.there[again] * (torch.arange(DENOISE_POSITIONS) < m)
    return replace(noised, **kept, there=there, portion=noised.portion * (DENOISE_POSITIONS / m))


def _pairs(vocabulary: int, rng: torch.Generator, dtype: torch.dtype, *, fixed: bool) -> Pairs:
    """Random pairs of different tokens."""
    ids = torch.randint(vocabulary, (2, SPREAD_PAIRS), generator=rng)
    unlike = ids[0] != ids[1]
    if not fixed:
        return Pairs(ids[:, unlike], None, torch.ones((), dtype=dtype))
    kept = int(unlike.sum())
    return Pairs(ids, unlike.to(dtype), torch.tensor(SPREAD_PAIRS / max(1, kept), dtype=dtype))


def mixed_seed(seed: int, step: int) -> int:
    """A 63-bit seed made from `seed` and `step`.

    The odd multipliers of splitmix64 make neighbouring steps differ.
    """
    return (seed * 0x9E3779B97F4A7C15 + (step + 1) * 0xBF58476D1CE4E5B9) % (1 << 63)
