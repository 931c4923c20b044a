"""A step that is computed in parts, one after another or by several ranks, equals the step of one
batch of all its windows.

Windows have unequal numbers of targets. What is expected comes from a plain form of each loss, in
float64, over all targets at once.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from model_support import VOCABULARY, build, variant

from ebmvk.config.schema import Config, TrainingConfig
from ebmvk.engine.device import Device
from ebmvk.engine.reference import Reference
from ebmvk.memory.while_training import observed
from ebmvk.model.integration import phi
from ebmvk.objective import losses
from ebmvk.objective.losses import Losses
from ebmvk.ranks import WHOLE, Share
from ebmvk.training.passes import Passes, smaller_batches

WINDOWS, LENGTH = 8, 12
TARGETS = (12, 1, 1, 7, 2, 12, 1, 3)  # of each window
MODELS: dict[str, dict[str, Any]] = {
    "ebm with experts": {},
    "ebm without experts": {"decoder": "transformer"},
    "plain": {"model": "plain"},
    "tinygpt": {"model": "tinygpt"},
    "tinygpt with experts": {"model": "tinygpt", "use_moe": True},
    "minillm": {"model": "minillm"},
    "minillm with experts": {"model": "minillm", "use_moe": True, "moe_active": 1},
    "infinito": {"model": "infinito", "memory_slots": 7},
}
CONFIG = Config(training=TrainingConfig(batch_size=WINDOWS, lambda_denoise=0.5, lambda_spread=0.3, moe_balance=0.5))
# float32 sums of some hundred terms in another order; gradients pass a dozen layers, and PHI a
# determinant.
EQUAL: Any = {"rtol": 2e-4, "atol": 2e-6}


def rows(targets: tuple[int, ...] = TARGETS) -> torch.Tensor:
    found = torch.randint(VOCABULARY, (len(targets), LENGTH + 1), generator=torch.Generator().manual_seed(3))
    for row, there in enumerate(targets):
        found[row, there + 1 :] = -1
    return found


def passes(net: Any, tokens: torch.Tensor, batches: int, **more: Any) -> Passes:
    training = dataclasses.replace(
        CONFIG.training, batch_size=len(tokens) // batches, accumulation_steps=batches, precision="float32"
    )
    config = dataclasses.replace(CONFIG, model=net.config, training=training)
    device = Device(Reference(), torch.device("cpu"), "")
    return Passes(net, device, config, tokens, 5, batches, **more)


def done(own: Passes) -> tuple[Losses, dict[str, torch.Tensor]]:
    own.model.zero_grad()
    found = own.run()
    return found, {name: p.grad.clone() for name, p in own.model.named_parameters() if p.grad is not None}


def net_of(name: str, **changes: Any) -> Any:
    return build(dataclasses.replace(variant("ebm"), **{"dropout": 0.0, **MODELS[name], **changes})).train()


def equal(found: tuple[Losses, dict[str, torch.Tensor]], wanted: tuple[Losses, dict[str, torch.Tensor]]) -> None:
    assert found[0].parts.keys() == wanted[0].parts.keys()
    for name, value in wanted[0].parts.items():
        torch.testing.assert_close(found[0].parts[name], value, **EQUAL, msg=lambda text, name=name: f"{name}: {text}")
    torch.testing.assert_close(found[0].total, wanted[0].total, **EQUAL)
    torch.testing.assert_close(found[0].states, wanted[0].states, **EQUAL)
    assert found[1].keys() == wanted[1].keys()
    for name, value in wanted[1].items():
        scale = float(value.abs().max())
        torch.testing.assert_close(
            found[1][name], value, rtol=2e-4, atol=2e-5 * scale + 1e-7, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize("name", MODELS)
def test_accumulated_batches_equal_the_whole_batch(name: str) -> None:
    """Recorded losses and gradients, over two to eight batches, and with blocks that are computed
    twice."""
    net, tokens = net_of(name), rows()
    whole = done(passes(net, tokens, 1))
    for batches in (2, 4, 8):
        equal(done(passes(net, tokens, batches)), whole)
    again = net_of(name, gradient_checkpointing=True)
    equal(done(passes(again, tokens, 4)), whole)


@pytest.mark.parametrize("batches", [1, 3, 5, 6, 7])
def test_any_number_of_accumulated_batches_equals_the_whole_batch(batches: int) -> None:
    net, tokens = net_of("minillm with experts"), rows(TARGETS[:batches] * 2)
    equal(done(passes(net, tokens, batches)), done(passes(net, tokens, 1)))


@pytest.mark.parametrize("name", MODELS)
def test_losses_of_a_step_are_means_over_its_targets(name: str) -> None:
    """By plain forms in float64: padding takes no part in any of them."""
    net, tokens = net_of(name).double(), rows()
    there = tokens[:, 1:] >= 0
    found = passes(net, tokens, 4).run().parts
    logits, routed, units = [], [], []
    with torch.no_grad():
        for row, count in zip(tokens, TARGETS, strict=True):  # each window on its own, without its padding
            context = net(row[None, :count])
            logits.append(net.logits(context)[0])
            routed.append([own for own in context.aux if hasattr(own, "experts")])
            units += [own.units for own in context.aux if hasattr(own, "units")]
    ce = F.cross_entropy(torch.cat(logits), tokens[:, 1:][there])
    torch.testing.assert_close(found["ce"], ce, rtol=1e-6, atol=0)
    balances, squares = [], []
    for layer in zip(*routed, strict=True):
        p, log_z = torch.cat([own.probability for own in layer], 1), torch.cat([own.log_z for own in layer])
        chosen = F.one_hot(torch.cat([own.experts for own in layer]), len(p)).double().mean((0, 1))
        balances.append(len(p) * (chosen * p.mean(1)).sum())
        squares.append(log_z.square().mean())
    if balances:
        torch.testing.assert_close(found["moe_balance"].double(), torch.stack(balances).mean(), rtol=1e-6, atol=0)
        torch.testing.assert_close(found["moe_z"].double(), torch.stack(squares).mean(), rtol=1e-6, atol=0)
    if units:
        torch.testing.assert_close(found["phi"].double(), 1 - phi(torch.cat(units)), rtol=1e-5, atol=0)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("batches", [1, 4])
def test_ranks_together_equal_the_whole_batch(name: str, batches: int) -> None:
    """Two ranks with different numbers of targets, one after another; test_distributed has real
    processes."""
    net, tokens = net_of(name), rows()
    sums = passes(net, tokens, 8)._sums() if net.own_losses else torch.zeros(0)
    parts = [done(passes(net, tokens, batches, share=Share(rank, 2), total=lambda _: sums)) for rank in (0, 1)]
    gradients = {key: sum(part[key] for _, part in parts if key in part) for key in parts[0][1] | parts[1][1]}
    whole = done(passes(net, tokens, 1))
    added = Losses(
        sum(own.total for own, _ in parts),  # type: ignore[arg-type]
        {key: sum(own.parts[key] for own, _ in parts) for key in parts[0][0].parts},  # type: ignore[misc]
        whole[0].states,
        whole[0].energies,
    )
    equal((added, gradients), whole)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["ebm with experts", "minillm with experts", "infinito"])
def test_the_sums_collected_first_equal_those_that_are_differentiated(name: str) -> None:
    """With dropout too: both passes have the same masks, to the bit."""
    net = net_of(name, dropout=0.3)
    own, seen = passes(net, rows(), 4), []
    sums = own._sums()
    real = Passes._objective

    def spy(self: Passes, share: Share, over_step: Any) -> Losses:
        return losses.objective(
            *(self.model, self.tokens, self.device.backend, self.config),
            seed=self.config.run.seed, step=self.step, share=share, over_step=lambda part: (seen.append(part), sums)[1],
        )  # fmt: skip

    Passes._objective = spy  # type: ignore[method-assign]
    try:
        own.run()
    finally:
        Passes._objective = real  # type: ignore[method-assign]
    assert torch.equal(torch.stack(seen).sum(0), sums)


@pytest.mark.parametrize("name", ["plain", "minillm with experts", "ebm without experts"])
def test_dropout_draws_the_same_masks_however_a_step_is_divided(name: str) -> None:
    net, tokens = net_of(name, dropout=0.3), rows()
    whole = done(passes(net, tokens, 1))
    for batches in (2, 4, 8):
        equal(done(passes(net, tokens, batches)), whole)
    other = done(dataclasses.replace(passes(net, tokens, 1), step=6))
    assert not torch.equal(other[1]["bias"], whole[1]["bias"])


def test_padding_changes_nothing() -> None:
    """Longer windows whose additional places are empty."""
    net, tokens = net_of("ebm with experts"), rows()
    longer = F.pad(tokens, (0, 5), value=-1)
    found, wanted = done(passes(net, longer, 2)), done(passes(net, tokens, 1))
    equal((found[0], found[1]), wanted)


def test_observed_states_equal_those_of_the_whole_batch() -> None:
    """What consolidation sees of a step does not depend on how it was divided."""
    net, tokens = net_of("ebm with experts"), rows()
    found = []
    for batches in (1, 2, 8):
        own = passes(net, tokens, batches)
        found.append(observed(own.config, own.run(), tokens, WHOLE, 6))
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], **EQUAL)


@pytest.mark.parametrize(
    ("rows", "windows", "ranks", "wanted"),
    [(8, 8, 1, [4, 2, 1]), (6, 6, 1, [3, 1]), (7, 7, 1, [1]), (5, 10, 1, [2, 1]), (8, 8, 2, [4, 2]), (2, 2, 2, [])],
)
def test_smaller_batches_keep_the_number_of_windows_per_step(
    rows: int, windows: int, ranks: int, wanted: list[int]
) -> None:
    assert list(smaller_batches(rows, windows, ranks)) == wanted
