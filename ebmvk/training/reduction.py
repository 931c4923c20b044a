"""Communication between the ranks of a run: their state at the beginning, and the sums of each
step.

Each rank has all weights and moments and takes an equal share of every batch. Losses, gradients and
the sample of states for consolidation are summed over the ranks, so that every rank makes the same
step, bit for bit.
"""

from __future__ import annotations

import dataclasses
import hashlib

import torch
from torch import Tensor

from ebmvk.config.schema import Config
from ebmvk.config.toml import to_tables
from ebmvk.data.windows import TokenStream
from ebmvk.errors import ConfigError, DeviceError
from ebmvk.model.language import LanguageModel
from ebmvk.objective.losses import Losses
from ebmvk.ranks import Ranks
from ebmvk.training.optim import Optimizer

MODEL, OPTIMIZER = "model.", "optimizer."


def check_shares(config: Config, ranks: Ranks) -> None:
    """Raises ConfigError if a batch can't be divided into equal shares."""
    batch, size = config.training.batch_size, ranks.size
    if batch % size:
        near = max(size, round(batch / size) * size)
        raise ConfigError(
            f"--batch-size {batch} is not a multiple of the {size} processes",
            why="each process takes an equal share of the windows of a batch",
            hint=f"use --batch-size {near}, or torchrun --nproc-per-node {_divisor(batch, size)}",
        )


def _divisor(batch: int, size: int) -> int:
    return next(fewer for fewer in range(size, 0, -1) if batch % fewer == 0)


def enlist(ranks: Ranks, config: Config, train: TokenStream, model: LanguageModel, optimizer: Optimizer) -> None:
    """Send the other ranks everything that a step depends on: settings, text, weights and
    moments."""
    stream = {"name": train.name, "word_level": train.word_level, "apart": train.apart}
    ranks.tell(
        "enlist", config=to_tables(config), tokens=model.vocab_size, stream=stream, threads=torch.get_num_threads()
    )
    ranks.send(
        {"tokens": torch.from_numpy(train.tokens), "starts": torch.from_numpy(train.starts)}
        | {MODEL + name: value for name, value in model.state_dict().items()}
        | {OPTIMIZER + name: value for name, value in optimizer.state_dict().items()}
    )
    ranks.use(next(model.parameters()).device)


def add_up(
    ranks: Ranks, model: LanguageModel, losses: Losses, sample: Tensor, *, interrupted: bool
) -> tuple[Losses, bool]:
    """Sum gradients and `sample` over the ranks in place. Returns the summed losses, and True if
    one of the ranks was interrupted.

    A parameter that has no gradient on any rank has none afterwards.
    """
    if ranks.size == 1:
        return losses, interrupted
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    values = [float(losses.total), *map(float, losses.parts.values()), float(interrupted)]
    known = torch.tensor([*values, *(parameter.grad is not None for parameter in trained)], dtype=torch.float64)
    # The small numbers go first, on the host, so that a lost rank is noticed before devices wait
    # for one another.
    ranks.add_up([known])
    total, *parts, interruptions = known[: len(values)].tolist()
    gradients = []
    for parameter, ranks_with in zip(trained, known[len(values) :].tolist(), strict=True):
        if ranks_with:
            parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            gradients.append(parameter.grad)
    ranks.add_up([*gradients, sample])
    summed = {name: torch.tensor(value, dtype=torch.float64) for name, value in zip(losses.parts, parts, strict=True)}
    losses = dataclasses.replace(losses, total=torch.tensor(total, dtype=torch.float64), parts=summed)
    return losses, interruptions > 0


def check_same_weights(ranks: Ranks, model: LanguageModel, step: int) -> None:
    """Raises DeviceError if the weights of the ranks differ. All ranks call it together."""
    if ranks.size > 1:  # digests take a while
        error = DeviceError(
            f"the weights of the ranks differ after step {step}; this step is not saved",
            why="different kinds of processors round differently, or memory is faulty",
            hint="continue with --resume on machines of the same kind",
        )
        ranks.check_agreed(fingerprint(model), error)


def fingerprint(model: LanguageModel) -> int:
    """The first 62 bits of a digest of the weights."""
    found = hashlib.blake2b(digest_size=8)
    for value in model.state_dict().values():
        found.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return int.from_bytes(found.digest(), "little") >> 2
