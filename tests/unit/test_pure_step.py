"""A step is a pure function: it can be traced without numbers, and its graph is the step for other
batches and other weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from model_support import VOCABULARY, build, variant
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree as pytree

from ebmvk.config.schema import Config, DataConfig, TrainingConfig
from ebmvk.engine.device import Device
from ebmvk.engine.reference import Reference
from ebmvk.engine.traceable import Traceable
from ebmvk.memory.while_training import observed, sampled
from ebmvk.objective import cross_entropy
from ebmvk.objective.batch import Batch, prepare
from ebmvk.ranks import WHOLE, Share
from ebmvk.training import optim, update
from ebmvk.training.passes import Passes
from ebmvk.training.step import Step

LENGTH, WINDOWS = 12, 8
TARGETS = (12, 1, 1, 7, 2, 12, 1, 3)  # of each window, if windows end early
MODELS: dict[str, dict[str, Any]] = {
    "plain": {"model": "plain"},
    "tinygpt": {"model": "tinygpt"},
    "minillm": {"model": "minillm", "gradient_checkpointing": True},
    "experts": {"model": "tinygpt", "use_moe": True},
    "ebm": {"n_layers": 1},
    "ebm score": {"decoder": "transformer", "n_layers": 1, "gradient_checkpointing": True},
    "infinito": {"model": "infinito", "memory_slots": 7},
    "one expert": {"model": "minillm", "use_moe": True, "moe_active": 1, "gradient_checkpointing": True},
}
BRIEF = (("minillm", 1), ("experts", 2), ("ebm score", 1), ("ebm", 2), ("infinito", 2))
"""(model, passes) that the default run trains."""
NOISE = 1e-6
"""Smaller gradients, relative to the rest of their tensor, are rounding errors of float32; AdamW
makes whole steps of them."""
MANY = 1 << 18  # logits up to which cross-entropy is torch's own
ONCE = [("tinygpt", 2, 0), ("one expert", 1, MANY), ("ebm", 1, MANY), ("infinito", 1, MANY)]
"""(model, passes, most logits) of the default run."""
REST = [(name, batches, few) for name in MODELS for batches, few in ((1, MANY), (2, 0))]
TRACED = [*ONCE, *(pytest.param(*case, marks=pytest.mark.slow) for case in REST if case not in ONCE)]
TRAINED = [
    pytest.param(name, *how, marks=() if (name, how[0]) in BRIEF else pytest.mark.slow)
    for name in MODELS
    for how in ((1, "adamw"), (2, "muon"))
]


def config_of(net: Any, batches: int = 1, **more: Any) -> Config:
    form = "score" if net.config.decoder == "transformer" else "cross-entropy"
    apart = DataConfig(windows="document")
    training = TrainingConfig(
        batch_size=WINDOWS // batches, accumulation_steps=batches, precision="float32", lambda_denoise=0.5,
        lambda_spread=0.3, moe_balance=0.5, denoise_form=form, steps=20, warmup_steps=2, **more,
    )  # fmt: skip
    return Config(model=net.config, training=training, data=apart)


def net_of(name: str, seed: int = 0, **changes: Any) -> Any:
    return build(
        dataclasses.replace(variant("ebm"), **{"dropout": 0.2, "n_layers": 2, **MODELS[name], **changes}), seed
    ).train()


def rows(seed: int, targets: tuple[int, ...] = TARGETS) -> torch.Tensor:
    found = torch.randint(VOCABULARY, (WINDOWS, LENGTH + 1), generator=torch.Generator().manual_seed(seed))
    for row, there in enumerate(targets):
        found[row, there + 1 :] = -1
    return found


def inputs(net: Any, config: Config, seed: int, *, fixed: bool = True) -> tuple[Any, ...]:
    """(parameters, state, batches, scalars) of some step."""
    torch.manual_seed(seed)
    parameters = {name: p.detach() + 0.1 * torch.randn_like(p) for name, p in net.named_parameters()}
    rules = update.rules_of(net, config.training)
    state = {name: 0.01 * torch.rand_like(value) for name, value in update.empty_state(parameters, rules).items()}
    parts = config.training.accumulation_steps
    targets = TARGETS[seed % 4 :] + TARGETS[: seed % 4]
    batches = [
        prepare(
            net, rows(seed, targets), config, seed=seed, step=seed, share=Share(batch=i, batches=parts), fixed=fixed
        )
        for i in range(parts)
    ]
    return parameters, state, batches, {"lr": torch.tensor(1e-3 * (1 + seed)), "count": torch.tensor(3.0 + seed)}


def flat(step: Step, example: Any) -> Callable[..., list[torch.Tensor]]:
    """The step as a function from tensors to tensors."""
    spec = pytree.tree_flatten(example)[1]
    return lambda *leaves: pytree.tree_leaves(step(*pytree.tree_unflatten(list(leaves), spec)))


@pytest.mark.parametrize(("name", "batches", "few"), TRACED)
def test_a_traced_step_is_the_step_for_other_batches_and_weights(
    name: str, few: int, batches: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Traced with tensors that hold no numbers, so a look at one would be refused. The graph holds
    no tensor of its own and uses all of its arguments."""
    monkeypatch.setattr(cross_entropy, "FEW_LOGITS", few)
    net = net_of(name)
    config = config_of(net, batches)
    step, example = Step(net, config, Traceable()), inputs(net, config, 0)
    leaves = pytree.tree_leaves(example)
    graph = make_fx(flat(step, example), tracing_mode="fake")(*leaves)
    assert not [node for node in graph.graph.nodes if node.op == "get_attr"]
    unused = [node.name for node in graph.graph.nodes if node.op == "placeholder" and not node.users]
    assert not unused
    for seed in (1, 2):
        other = inputs(net, config, seed)
        for found, wanted in zip(graph(*pytree.tree_leaves(other)), pytree.tree_leaves(step(*other)), strict=True):
            torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize(("name", "batches", "optimizer"), TRAINED)
def test_pure_steps_train_as_the_trainer_does(name: str, batches: int, optimizer: str) -> None:
    """Three steps of both, from the same weights, with the same masks; gradients are clipped in
    some."""
    net = net_of(name)
    config = config_of(net, batches, optimizer=optimizer, grad_clip=1.0)
    step, own = Step(net, config, Traceable()), optim.build(net, config.training)
    parameters = {key: p.detach().clone() for key, p in net.named_parameters()}
    state = update.empty_state(parameters, step.rules)
    certain = {key: torch.ones_like(p, dtype=torch.bool) for key, p in parameters.items()}
    for number in range(3):
        tokens = rows(number)
        lr = optim.lr_at(number, config.training)
        shares = [Share(batch=i, batches=batches) for i in range(batches)]
        given = [prepare(net, tokens, config, seed=config.run.seed, step=number, share=s, fixed=True) for s in shares]
        scalars = {"lr": torch.tensor(lr), "count": torch.tensor(number + 1.0)}
        parameters, state, record = step(parameters, state, given, scalars)
        own.zero_grad()
        losses = Passes(net, Device(Reference(), torch.device("cpu"), ""), config, tokens, number, batches).run()
        norm = own.gradient_norm()
        own.step(lr, norm)
        for key, p in net.named_parameters():
            if p.grad is not None:
                certain[key] &= p.grad.abs() > NOISE * p.grad.square().mean().sqrt()
        # Sums in another order: some hundred terms of float32 in each of a dozen layers.
        torch.testing.assert_close(record["total"], losses.total, rtol=2e-5, atol=0)
        torch.testing.assert_close(record["norm"], norm, rtol=2e-4, atol=0)
        assert bool(record["finite"])
    # Muon and AdamW turn small differences of small gradients into differences of whole steps.
    for key, value in net.named_parameters():
        error = (parameters[key] - value.detach()).abs()
        assert float(error.max()) <= 4e-5, key
        assert not bool((error[certain[key]] > 2e-5).any()), key


def test_nothing_changes_if_a_gradient_is_not_finite() -> None:
    net = net_of("tinygpt")
    config = config_of(net)
    step, (parameters, state, batches, scalars) = Step(net, config, Traceable()), inputs(net, config, 0)
    parameters["bias"][3] = torch.nan
    new, kept, record = step(parameters, state, batches, scalars)
    assert not bool(record["finite"])
    for before, after in ((parameters, new), (state, kept)):
        for name, value in before.items():
            torch.testing.assert_close(after[name], value, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_an_update_from_equal_gradients_is_that_of_the_optimiser(optimizer: str) -> None:
    """In float32, to 2e-6 of each parameter's largest entry; the first steps are the hardest to
    match."""
    net = net_of("tinygpt")
    training = TrainingConfig(optimizer=optimizer, weight_decay=0.1, precision="float32")  # type: ignore[arg-type]
    own, rules = optim.build(net, training), update.rules_of(net, training)
    parameters = {name: p.detach().clone() for name, p in net.named_parameters()}
    state = update.empty_state(parameters, rules)
    for count in range(1, 6):
        torch.manual_seed(count)
        gradients = {name: torch.randn_like(p) * 10.0 ** (count - 4) for name, p in net.named_parameters()}
        for name, p in net.named_parameters():
            p.grad = gradients[name].clone()
        norm = own.gradient_norm()
        own.step(1e-2, norm)
        torch.testing.assert_close(update.norm_of(gradients), norm, rtol=1e-6, atol=0)
        clipped = update.clipped(gradients, norm, training.grad_clip)
        parameters, state = update.updated(
            parameters,
            clipped,
            state,
            rules,
            lr=torch.tensor(1e-2),
            count=torch.tensor(float(count)),
            dtype=torch.float32,
        )
        for name, p in net.named_parameters():
            torch.testing.assert_close(
                parameters[name], p.detach(), rtol=0, atol=2e-6 * float(p.detach().abs().max()), msg=name
            )
    saved = own.state_dict()
    assert {name for name in saved if not name.endswith("/step")} == set(state)
    for name, value in state.items():
        torch.testing.assert_close(value, saved[name], rtol=2e-6, atol=1e-7)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("batches", [1, 2])
def test_weights_of_0_equal_leaving_out_padding(name: str, batches: int) -> None:
    """Losses and gradients of inputs with fixed shapes and of those that keep only what counts."""
    net = net_of(name)
    config = config_of(net, batches)
    step, found = Step(net, config, Traceable()), []
    for fixed in (True, False):
        parameters, _, given, _ = inputs(net, config, 1, fixed=fixed)
        found.append(step.gradients(parameters, given))
    for one, other in zip(found[0][0], found[1][0], strict=True):
        torch.testing.assert_close(one.parts, other.parts, rtol=1e-5, atol=1e-7)
    for key, value in found[1][1].items():
        torch.testing.assert_close(found[0][1][key], value, rtol=2e-4, atol=2e-6 * float(value.abs().max()), msg=key)


@pytest.mark.parametrize("fixed", [True, False])
def test_a_step_returns_what_consolidation_sees(fixed: bool) -> None:
    """The sample that the trainer takes of the same step."""
    net = net_of("ebm")
    config = config_of(net, 2)
    parameters = {key: p.detach().clone() for key, p in net.named_parameters()}
    tokens, shares, number = rows(1), [Share(batch=i, batches=2) for i in range(2)], 5
    device = Device(Reference(), torch.device("cpu"), "")
    wanted = observed(config, Passes(net, device, config, tokens, number, 2).run(), tokens, WHOLE, number + 1)
    given = [prepare(net, tokens, config, seed=config.run.seed, step=number, share=s, fixed=fixed) for s in shares]
    there = (tokens[:, 1:] >= 0).flatten()
    places = sampled(config, int(there.sum()), number + 1)
    places = there.nonzero()[:, 0][places] if fixed else places
    step, scalars = Step(net, config, Traceable()), {"lr": torch.tensor(0.1), "count": torch.tensor(1.0)}
    state = update.empty_state(parameters, step.rules)
    found = step(parameters, state, given, scalars, places)[2]["sample"]
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)  # float32 sums in another order


def test_fixed_shapes_depend_on_the_shape_of_the_tokens_alone() -> None:
    for name in MODELS:
        net = net_of(name)
        config = config_of(net)
        shapes = set()
        for targets in (TARGETS, (1,) * WINDOWS, (LENGTH,) * WINDOWS):
            batch: Batch = prepare(net, rows(0, targets), config, seed=1, step=2, fixed=True)
            leaves, spec = pytree.tree_flatten(batch)
            shapes.add((tuple((leaf.shape, leaf.dtype) for leaf in leaves), str(spec)))
        assert len(shapes) == 1
