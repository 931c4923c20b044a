"""Objective and optimiser equal their plain forms, also through the engine and across a restart."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ebmvk.config.schema import Config, ModelConfig, TrainingConfig
from ebmvk.engine.normals import normals
from ebmvk.engine.reference import Reference
from ebmvk.evaluation.score_matching import score_matching
from ebmvk.memory.while_training import observed
from ebmvk.model.build import build_model
from ebmvk.model.language import LanguageModel
from ebmvk.model.layers import Attention
from ebmvk.objective import cross_entropy, losses
from ebmvk.objective.batch import Pairs, noised_at
from ebmvk.objective.cross_entropy import linear_cross_entropy
from ebmvk.ranks import WHOLE, Share
from ebmvk.sphere.vmf import placed
from ebmvk.training import optim

MODEL = ModelConfig(
    latent_dim=16, n_layers=3, n_heads=2, ffn_dim=24, context_local=3, context_medium=5, context_global=9,
    hidden_dim=12, dropout=0.0,
)  # fmt: skip
CONFIG = Config(model=MODEL, training=TrainingConfig(steps=60, learning_rate=1e-2, warmup_steps=5))
VOCABULARY = 40


def model(**changes: Any) -> Any:
    torch.manual_seed(0)
    return build_model(dataclasses.replace(MODEL, **changes), VOCABULARY)


def batch(seed: int = 0) -> torch.Tensor:
    return torch.randint(VOCABULARY, (4, 13), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("few", [0, 1 << 18])
@pytest.mark.parametrize("rows", [1, 7, 64])
def test_linear_cross_entropy_equals_cross_entropy(rows: int, few: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways: torch's passes if there are few logits, ours if there are many."""
    monkeypatch.setattr(cross_entropy, "FEW_LOGITS", few)
    monkeypatch.setattr(cross_entropy, "CHUNK_ELEMENTS", 5 * 23)  # chunks of 5 rows, the last one incomplete
    torch.manual_seed(rows)
    shapes = (rows, 6), (23, 6), (23,)
    query, points, bias = (torch.randn(s, dtype=torch.float64, requires_grad=True) for s in shapes)
    targets = torch.randint(23, (rows,))
    expected = F.cross_entropy(F.linear(query, points, bias), targets)
    found = linear_cross_entropy(query, points, bias, targets)
    torch.testing.assert_close(found, expected)
    wanted = torch.autograd.grad(3 * expected, (query, points, bias))
    for a, b in zip(torch.autograd.grad(3 * found, (query, points, bias)), wanted, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("few", [0, 1 << 18])
def test_rows_of_weight_0_take_no_part_in_cross_entropy(few: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cross_entropy, "FEW_LOGITS", few)
    monkeypatch.setattr(cross_entropy, "CHUNK_ELEMENTS", 5 * 23)
    torch.manual_seed(1)
    query, points, bias = (torch.randn(s, dtype=torch.float64, requires_grad=True) for s in ((17, 6), (23, 6), (23,)))
    targets, there = torch.randint(23, (17,)), torch.arange(17) % 3 != 0
    expected, each = cross_entropy.linear_cross_entropies(query[there], points, bias, targets[there])
    found, all_ = cross_entropy.linear_cross_entropies(query, points, bias, targets, weights=there.double())
    torch.testing.assert_close(found * 17, expected * int(there.sum()))
    torch.testing.assert_close(all_[there], each)
    wanted = torch.autograd.grad(expected * int(there.sum()), (query, points, bias))
    for a, b in zip(torch.autograd.grad(found * 17, (query, points, bias)), wanted, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("weighted", [False, True])
def test_the_operation_of_cross_entropy_equals_its_reference(weighted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cross_entropy, "CHUNK_ELEMENTS", 5 * 23)
    torch.manual_seed(1)
    inputs = torch.randn(17, 6), torch.randn(23, 6), torch.randn(23), torch.randint(23, (17,))
    weights = (torch.arange(17) % 3 != 0).float() if weighted else None
    arguments = (*inputs, weights, torch.float32)
    found = torch.ops.ebmvk.linear_cross_entropy(*arguments)
    for a, b in zip(found, cross_entropy.reference(*arguments), strict=True):
        torch.testing.assert_close(a, b)
    torch.library.opcheck(torch.ops.ebmvk.linear_cross_entropy.default, arguments)


def test_a_second_backward_pass_of_cross_entropy_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cross_entropy, "FEW_LOGITS", 0)
    """It would scale the gradients, which the first pass scaled in place, a second time."""
    query, points = torch.randn(3, 6, requires_grad=True), torch.randn(5, 6, requires_grad=True)
    loss = linear_cross_entropy(query, points, torch.zeros(5), torch.arange(3))
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="inplace"):
        loss.backward()


@pytest.mark.parametrize("most", [0.1, 1e3])
def test_gradients_are_clipped_to_a_norm(most: float) -> None:
    net = model()
    optimizer = optim.build(net, dataclasses.replace(CONFIG.training, grad_clip=most))
    for parameter in net.parameters():
        parameter.grad = torch.ones_like(parameter)
    norm = optimizer.gradient_norm()
    optimizer.step(0.0, norm)
    torch.testing.assert_close(optimizer.gradient_norm(), norm.clamp_max(most))


@pytest.mark.parametrize("few", [0, 1 << 18])
def test_bfloat16_cross_entropy_is_close_and_its_gradient_points_the_same_way(
    few: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cross_entropy, "FEW_LOGITS", few)
    torch.manual_seed(0)
    query, points = torch.randn(300, 32) * 2, F.normalize(torch.randn(500, 32), dim=-1)
    query.requires_grad_()
    targets, bias = torch.randint(500, (300,)), torch.zeros(500)
    exact = linear_cross_entropy(query, points, bias, targets)
    narrow = linear_cross_entropy(query, points, bias, targets, torch.bfloat16)
    assert abs(float((exact - narrow).detach())) < 5e-3  # 300 rows, each to 2^-8 relative in p
    a, b = (torch.autograd.grad(loss, query)[0].flatten() for loss in (exact, narrow))
    assert F.cosine_similarity(a, b, dim=0) > 0.999


def test_objective_is_the_weighted_sum_of_its_parts_and_a_function_of_seed_and_step() -> None:
    net, weights = model(), CONFIG.training
    first = losses.objective(net, batch(), Reference(), CONFIG, seed=3, step=5)
    parts = {name: float(value) for name, value in first.parts.items()}
    expected = (
        parts["ce"]
        + weights.lambda_denoise * parts["denoise"]
        + weights.lambda_spread * parts["spread"]
        + weights.moe_balance * parts["moe_balance"]
        + weights.moe_z * parts["moe_z"]
    )
    assert float(first.total.detach()) == pytest.approx(expected, rel=1e-6)
    again = losses.objective(net, batch(), Reference(), CONFIG, seed=3, step=5)
    assert torch.equal(first.total, again.total)
    for other in ({"seed": 4, "step": 5}, {"seed": 3, "step": 6}):
        assert losses.objective(net, batch(), Reference(), CONFIG, **other).parts["denoise"] != first.parts["denoise"]
    ce = F.cross_entropy(net.logits(net(batch()[:, :-1])).flatten(0, 1), batch()[:, 1:].flatten())
    assert parts["ce"] == pytest.approx(float(ce.detach()), rel=1e-5)


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("form", ["cross-entropy", "score"])
def test_shares_add_up_to_the_batch(form: str, size: int) -> None:
    """Losses, gradients and sampled states, for rows that end early: shares differ in their number
    of targets."""
    weights = dataclasses.replace(CONFIG.training, denoise_form=form, lambda_spread=0.3, batch_size=4)
    config, net = dataclasses.replace(CONFIG, training=weights), model(decoder="transformer")
    rows = batch()
    for row, there in enumerate((13, 4, 2, 3)):
        rows[row, there:] = -1

    def found(share: Share) -> tuple[list[torch.Tensor], torch.Tensor]:
        net.zero_grad()
        own = losses.objective(net, rows, Reference(), config, seed=3, step=5, share=share)
        own.total.backward()
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in net.parameters()]
        return [own.total.detach(), *own.parts.values(), *gradients], observed(config, own, rows, share, 6)

    values, states = found(WHOLE)
    shares = [found(Share(rank, size)) for rank in range(size)]
    for value, *parts in zip(values, *(own for own, _ in shares), strict=True):
        torch.testing.assert_close(torch.stack(parts).sum(0), value, rtol=1e-4, atol=1e-6)
    assert states.shape == (int((rows[:, 1:] >= 0).sum()), 17)
    torch.testing.assert_close(torch.stack([own for _, own in shares]).sum(0), states)


def test_switched_off_losses_are_not_computed() -> None:
    off = dataclasses.replace(CONFIG.training, lambda_denoise=0.0, lambda_spread=0.0)
    backend = Reference()
    found = losses.objective(model(), batch(), backend, dataclasses.replace(CONFIG, training=off), seed=0, step=0)
    assert set(found.parts) == {"ce", "moe_balance", "moe_z"}
    assert not backend.counts()


def _denoising(kappa: float, k: int, rows: int = 30) -> tuple[torch.Tensor, torch.Tensor]:
    """(found, exact -log p(v|x,c) over the whole vocabulary), both differentiable in the last
    tensor's graph."""
    generator = torch.Generator().manual_seed(1)
    torch.manual_seed(2)
    mu = F.normalize(torch.randn(VOCABULARY, 16, dtype=torch.float64), dim=-1).requires_grad_()
    query, bias = torch.randn(rows, 16, dtype=torch.float64) * 4, torch.randn(VOCABULARY, dtype=torch.float64)
    targets = torch.randint(VOCABULARY, (rows,))
    level = torch.full((rows,), kappa, dtype=torch.float64)
    noised = noised_at(torch.arange(rows), targets, level, 16, generator)
    x = placed(mu.detach()[targets], noised.deficit, normals(noised.words, noised.numbers, 16))
    found = losses.denoising(Reference(), query, mu, bias, noised, k=k)
    exact = F.cross_entropy(query @ mu.T + bias + kappa * x @ mu.T, targets)
    return torch.stack([found, exact]), mu


@pytest.mark.parametrize("kappa", [0.0, 5.0, 60.0])
def test_denoising_with_all_candidates_is_the_exact_posterior(kappa: float) -> None:
    values, mu = _denoising(kappa, VOCABULARY)
    # The background keeps epsilon = 2e-16 of float64, relative to the uniform density: at kappa 60
    # nothing to notice.
    torch.testing.assert_close(values[0], values[1], rtol=1e-9, atol=1e-9)
    found, exact = (torch.autograd.grad(value, mu, retain_graph=True)[0] for value in values)
    torch.testing.assert_close(found, exact, rtol=1e-7, atol=1e-9)


def test_denoising_at_kappa_zero_is_the_language_model_loss_for_any_k() -> None:
    values, _ = _denoising(0.0, 7)
    torch.testing.assert_close(values[0], values[1], rtol=1e-9, atol=1e-9)


ONE = np.zeros(1, dtype=np.int64)  # a single document


def test_score_matching_of_a_zero_score_is_one_and_knowledge_lowers_it() -> None:
    net = model().eval()
    unigram = torch.full((VOCABULARY,), 1 / VOCABULARY)
    found = score_matching(net, batch(), Reference(), unigram, starts=ONE, k=VOCABULARY, seed=0)
    assert [level.kappa for level in found] == sorted(level.kappa for level in found)
    # The uniform law over 40 tokens has a score of almost zero at low kappa, and knows its token at
    # high kappa.
    assert found[0].unigram_loss == pytest.approx(1.0, abs=0.1)
    assert found[-1].unigram_loss < 0.2
    with torch.no_grad():
        net.bias[batch()[0, 1]] += 50.0  # a law that knows the answer
    one = batch()[:1, :2]
    sure = score_matching(net, one, Reference(), unigram, starts=ONE, k=VOCABULARY, seed=0)
    assert max(level.loss for level in sure) < 1e-6


def test_score_matching_compares_with_the_exact_denoiser_of_frequencies_whatever_k_is() -> None:
    """The loss equals the dense sum over all tokens, one of which never occurs."""
    net, tokens = model().eval(), batch()
    unigram = torch.rand(VOCABULARY, generator=torch.Generator().manual_seed(5))
    unigram[3] = 0.0
    unigram /= unigram.sum()
    few, all_ = (score_matching(net, tokens, Reference(), unigram, starts=ONE, k=k, seed=0) for k in (2, VOCABULARY))
    assert [level.unigram_loss for level in few] == [level.unigram_loss for level in all_]
    assert [level.loss for level in few] != [level.loss for level in all_]
    # With the frequencies as the model's own law and all candidates, both are one law.
    with torch.no_grad():
        net.energy.log_scale.fill_(-40.0)
        for weight in (net.energy.lambda_geo, net.energy.lambda_comp):
            weight.zero_()
        net.bias.copy_(unigram.clamp_min(1e-30).log())
    for level in score_matching(net, tokens, Reference(), unigram, starts=ONE, k=VOCABULARY, seed=0):
        assert level.loss == pytest.approx(level.unigram_loss, rel=1e-4)  # float32 sums over 40 tokens


def test_spread_is_lower_for_points_apart() -> None:
    together = F.normalize(torch.ones(30, 8) + 0.01 * torch.randn(30, 8), dim=-1)
    apart = F.normalize(torch.randn(30, 8), dim=-1)
    pairs = Pairs(torch.tensor([[0, 3, 7], [1, 8, 20]]), None, torch.ones(()))
    values = [float(losses.spread(mu, pairs)) for mu in (apart, together)]
    assert values[0] < values[1]


def train(net: LanguageModel, optimizer: optim.Optimizer, first: int, last: int) -> list[float]:
    history = []
    for step in range(first, last):
        optimizer.zero_grad()
        found = losses.objective(net, batch(step % 2), Reference(), CONFIG, seed=1, step=step)
        found.total.backward()
        optimizer.step(optim.lr_at(step, CONFIG.training), optimizer.gradient_norm())
        history.append(float(found.parts["ce"]))
    return history


def test_training_learns() -> None:
    net = model()
    history = train(net, optim.build(net, CONFIG.training), 0, 60)
    assert history[-1] < history[0] / 4  # two batches to learn by heart


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"model": "plain"},
        {"model": "tinygpt", "use_moe": True},
        {"model": "infinito"},
        {"decoder": "transformer"},
        {"use_splat": False},
        {"use_geometric": False, "use_compositional": False},
        {"use_splat": False, "use_compositional": False},
    ],
    ids=str,
)
def test_a_restart_gives_the_same_bits(changes: dict[str, Any]) -> None:
    net = model(**changes)
    optimizer = optim.build(net, CONFIG.training)
    train(net, optimizer, 0, 4)
    weights = {name: value.clone() for name, value in net.state_dict().items()}
    state = {name: value.clone() for name, value in optimizer.state_dict().items()}
    history = train(net, optimizer, 4, 8)

    other = model(**changes)
    other.load_state_dict(weights)
    resumed = optim.build(other, CONFIG.training)
    resumed.load_state_dict(state)
    assert train(other, resumed, 4, 8) == history
    for name, value in net.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


@pytest.mark.parametrize(
    "changes",
    [{"model": "minillm"}, {"model": "tinygpt", "use_moe": True}, {"model": "infinito"}, {"model": "plain"}, {}],
    ids=str,
)
def test_gradient_checkpointing_changes_no_gradient(changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks are computed twice, with the same dropout."""
    gradients, passes, forward = [], [], Attention.forward
    monkeypatch.setattr(Attention, "forward", lambda *args: (passes.append(args[0]), forward(*args))[1])
    for again in (False, True):
        net = model(**changes, dropout=0.3, gradient_checkpointing=again)
        batch = torch.randint(VOCABULARY, (3, 12), generator=torch.Generator().manual_seed(0))
        losses.objective(net, batch, Reference(), CONFIG, seed=0, step=0).total.backward()
        gradients.append({name: p.grad for name, p in net.named_parameters()})
        # The first run once through each layer, the second twice.
        assert len(passes) == (3 if again else 1) * sum(isinstance(module, Attention) for module in net.modules())
    for name, one in gradients[0].items():
        assert one is not None
        assert torch.equal(one, gradients[1][name]), name
