"""AdamW, Muon and the schedule of the rate, compared with torch's own."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from test_model_training import CONFIG, model, train

from ebmvk.config.schema import TrainingConfig
from ebmvk.errors import CheckpointError
from ebmvk.model import language, roles
from ebmvk.training import adamw, muon, optim


def test_optimiser_state_of_another_model_is_refused() -> None:
    net = model()
    optimizer = optim.build(net, CONFIG.training)
    train(net, optimizer, 0, 1)
    state = optimizer.state_dict()
    for wrong in ({"no.such/exp_avg": torch.zeros(1)}, {"points/exp_avg": torch.zeros(3, 3)}):
        with pytest.raises(CheckpointError):
            optim.build(model(), CONFIG.training).load_state_dict({**state, **wrong})
    for gone in state:  # momentum that starts from zero would be another run
        with pytest.raises(CheckpointError, match=f"'{gone}' is missing"):
            optim.build(model(), CONFIG.training).load_state_dict({k: v for k, v in state.items() if k != gone})


def test_every_parameter_has_one_optimiser_and_hidden_matrices_have_muon() -> None:
    net = model()
    optimizer = optim.build(net, CONFIG.training)
    hidden = {id(p) for group in optimizer.muon.param_groups for p in group["params"]}
    adam = {id(p) for group in optimizer.adam.param_groups for p in group["params"]}
    assert not hidden & adam
    assert hidden | adam == {id(p) for p in net.parameters()}
    assert id(net.points) in adam
    plain = model(model="plain")
    rates = {
        id(p): group["rate"] for group in optim.build(plain, CONFIG.training).adam.param_groups for p in group["params"]
    }
    assert rates == {id(plain.table): roles.FREE_ROWS.rate, id(plain.bias): roles.SCALAR.rate} | {
        id(block.attention.temperature): roles.SCALAR.rate for block in plain.blocks
    }
    assert id(net.decoder.moe.router.weight) in adam
    assert id(net.trunk.blocks[0].up.weight) in hidden


@pytest.mark.parametrize("rate", [roles.HIDDEN.rate, roles.SCALAR.rate], ids=str)
def test_adamw_alone_equals_torchs_with_our_rates_and_decays_only_hidden_matrices(
    rate: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two steps of both, parameter by parameter.

    rate: of hidden matrices; scalars may have the same one.
    """
    monkeypatch.setattr(language, "HIDDEN", roles.Role(rate, hidden=True))
    config = dataclasses.replace(CONFIG.training, optimizer="adamw", weight_decay=0.1, grad_clip=1e9)
    net = model()
    ours, peer = (
        optim.build(net, config),
        {n: torch.nn.Parameter(p.detach().clone()) for n, p in net.named_parameters()},
    )
    assert ours.muon is None
    rates = {"points": 2.0, "decoder.moe.router.weight": 0.1}
    peers = []
    for name, p in peer.items():
        hidden = p.ndim == 2 and name not in rates
        lr = 0.01 * (rate if hidden else rates.get(name, 5.0))
        peers.append(torch.optim.AdamW([p], lr=lr, betas=(0.9, 0.95), weight_decay=0.1 if hidden else 0.0))
    for _ in range(2):
        for name, p in net.named_parameters():
            p.grad = torch.randn_like(p)
            peer[name].grad = p.grad.clone()
        ours.step(0.01, ours.gradient_norm())
        for one in peers:
            one.step()
    for name, p in net.named_parameters():
        torch.testing.assert_close(p, peer[name], msg=name)
    again = optim.build(model(), config)
    again.load_state_dict(ours.state_dict())
    with pytest.raises(CheckpointError):
        optim.build(model(), CONFIG.training).load_state_dict(ours.state_dict())


@pytest.mark.parametrize("seed", range(3))
def test_adamw_is_torchs_bit_for_bit(seed: int) -> None:
    """Several groups, and a parameter that takes no part in a step."""
    torch.manual_seed(seed)
    shapes = [(), (1,), (7, 3), (2, 33, 5), (0, 4)]
    ours = [torch.nn.Parameter(torch.randn(shape)) for shape in shapes]
    peer = [torch.nn.Parameter(p.detach().clone()) for p in ours]
    how = {"lr": 3e-3, "betas": (0.9, 0.95), "eps": 1e-8}
    one, other = (
        kind([{"params": own[:2], "weight_decay": 0.0}, {"params": own[2:], "weight_decay": 0.1}], **how, **more)
        for kind, own, more in ((adamw.AdamW, ours, {}), (torch.optim.AdamW, peer, {"fused": True}))
    )
    for step in range(4):
        for i, (a, b) in enumerate(zip(ours, peer, strict=True)):
            a.grad = None if (step, i) in ((0, 2), (2, 0), (2, 1)) else torch.randn(a.shape)
            b.grad = None if a.grad is None else a.grad.clone()
        one.step()
        other.step()
    for a, b in zip(ours, peer, strict=True):
        assert torch.equal(a, b)
        assert one.state[a].keys() == other.state[b].keys()
        assert all(torch.equal(one.state[a][slot], other.state[b][slot]) for slot in other.state[b])
    one.zero_grad()
    assert [p.grad for p in ours] == [None] * len(ours)


def test_muon_of_many_matrices_equals_torchs_one_by_one() -> None:
    torch.manual_seed(0)
    shapes = [(8, 20), (8, 20), (20, 8), (5, 5), (8, 20)]
    ours = [torch.nn.Parameter(torch.randn(shape)) for shape in shapes]
    peer = [torch.nn.Parameter(p.detach().clone()) for p in ours]
    together = muon.Muon(ours, lr=0.02, weight_decay=0.1)
    one_by_one = torch.optim.Muon(peer, lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    for step in range(4):
        for i, (a, b) in enumerate(zip(ours, peer, strict=True)):
            a.grad = None if step == 2 and i == 1 else torch.randn(a.shape)  # one that took no part stays where it is
            b.grad = None if a.grad is None else a.grad.clone()
        together.step()
        one_by_one.step()
    for a, b in zip(ours, peer, strict=True):
        torch.testing.assert_close(a, b, atol=2e-3, rtol=0)  # the products round to bfloat16 in another order
        torch.testing.assert_close(together.state[a]["momentum_buffer"], one_by_one.state[b]["momentum_buffer"])


@pytest.mark.parametrize("shape", [(3, 7, 30), (2, 30, 7), (1, 16, 16)])
def test_orthogonalised_matrices_have_their_singular_vectors_and_values_near_one(shape: tuple[int, ...]) -> None:
    torch.manual_seed(1)
    matrices = torch.randn(shape)
    found = muon.orthogonalized(1e-3 * matrices, torch.float32)  # whatever their size
    torch.testing.assert_close(found, muon.orthogonalized(matrices, torch.float32))
    values = torch.linalg.svdvals(found)
    assert 0.6 < float(values.min()) <= float(values.max()) < 1.3
    u, _, vh = torch.linalg.svd(matrices, full_matrices=False)
    diagonal = u.mT @ found @ vh.mT
    torch.testing.assert_close(diagonal, torch.diag_embed(diagonal.diagonal(dim1=1, dim2=2)), atol=1e-4, rtol=0)


def test_schedule_warms_up_peaks_and_ends_at_zero() -> None:
    config = TrainingConfig(steps=100, warmup_steps=10, learning_rate=0.5)
    rates = [optim.lr_at(step, config) for step in range(101)]
    assert rates[0] == pytest.approx(0.05)
    assert max(rates) == pytest.approx(0.5)
    assert rates[:10] == sorted(rates[:10])
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[100] == pytest.approx(0.0, abs=1e-12)
    assert math.isfinite(optim.lr_at(10**9, config))
