"""What ranks exchange: points that are spread over them, parts of a step, sums, messages, and
errors."""

from __future__ import annotations

import dataclasses
import math
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from ebmvk.cli import running
from ebmvk.config.schema import Config, ModelConfig
from ebmvk.engine import Backend, select
from ebmvk.engine.device import Device
from ebmvk.engine.sharded import Shards, sharded
from ebmvk.errors import DeviceError, EbmvkError
from ebmvk.model.build import build_model
from ebmvk.ranks import Ranks
from ebmvk.ranks.failures import Failures
from ebmvk.training.passes import Passes
from ebmvk.training.reduction import add_up, check_same_weights

from .conftest import launched


def on_ranks(body: Callable[[Ranks], None], number: int, tmp_path: Path) -> None:
    """Run `body` in each of several processes; it must not raise."""

    def work() -> int:
        ranks = Ranks.join()
        with ranks.together():
            body(ranks)
        return 0

    for said in launched(number, work, tmp_path):
        assert said.status == 0, said.err


def _dyadic(rows: int, d: int, seed: int) -> torch.Tensor:
    """Unit rows, many of them equal. Products with queries of small integers are exact."""
    random = torch.Generator().manual_seed(seed)
    signs = torch.randint(0, 2, (rows, d), generator=random).float() * 2 - 1
    return signs / d**0.5  # d is a power of 4


@pytest.mark.parametrize("device", ["cpu", "reference"])
def test_top_k_of_spread_points_matches_one_store(device: str, tmp_path: Path) -> None:
    """The cases: ties, more neighbours than a part has rows, parts without rows, weights of minus
    infinity, replaced rows.
    """

    def equal(backend: Backend, own: Backend, n: int, d: int, k: int, seed: int) -> None:
        random = torch.Generator().manual_seed(seed)
        queries = torch.randint(-3, 4, (7, d), generator=random).float()
        scale = torch.randint(1, 4, (n,), generator=random).float()
        bias = torch.randint(-2, 3, (n,), generator=random).float()
        bias[torch.rand(n, generator=random) < 0.3] = -math.inf
        spread, whole = backend.points(_dyadic(n, d, seed)), own.points(_dyadic(n, d, seed))
        for again in (1, 2):
            for given in ({}, {"scale": scale}, {"bias": bias}, {"scale": scale, "bias": bias}):
                found, true = backend.topk(queries, spread, k, **given), own.topk(queries, whole, k, **given)
                assert torch.equal(found.scores, true.scores)
                assert torch.equal(found.ids, true.ids)
            for points in (spread, whole):
                points.update(_dyadic(n, d, seed + again))

    def body(ranks: Ranks) -> None:
        if ranks.rank:
            ranks.follow(Shards(ranks).handlers())
            return
        own = select(device)
        backend = sharded(own, ranks, device)
        for seed, (n, d, k) in enumerate([(1, 4, 1), (2, 4, 2), (4, 16, 3), (10, 16, 9), (50, 64, 50), (333, 16, 20)]):
            equal(backend, own, n, d, k, seed)
        with pytest.raises(ValueError, match="k"):
            backend.topk(torch.ones(1, 4), backend.points(_dyadic(2, 4, 1)), 3)
        ranks.tell("end", status=0)

    on_ranks(body, 3, tmp_path)


@pytest.mark.parametrize("changes", [{"model": "infinito", "memory_slots": 4}, {"model": "minillm", "use_moe": True}])
def test_ranks_with_different_numbers_of_targets_match_one_process(changes: dict[str, Any], tmp_path: Path) -> None:
    """PHI and expert losses are computed over all targets of a step, across ranks and batches."""
    config = ModelConfig(latent_dim=16, n_layers=2, n_heads=2, ffn_dim=24, hidden_dim=12, dropout=0.0, **changes)
    torch.manual_seed(0)
    model = build_model(config, 40).train()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    tokens = torch.randint(40, (8, 10))
    for row, there in enumerate((10, 2, 2, 3, 9, 2, 10, 2)):
        tokens[row, there:] = -1
    settings = dataclasses.replace(Config(), model=config)

    def made(batches: int, ranks: Ranks) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        model.zero_grad()
        passes = Passes(model, Device(select("reference"), torch.device("cpu"), ""), settings, tokens, 3, batches)
        losses = dataclasses.replace(passes, share=ranks.share, total=ranks.total).run()
        losses, _ = add_up(ranks, model, losses, torch.zeros(0), interrupted=False)
        values = [losses.total.double(), *(part.double() for part in losses.parts.values())]
        return values, [p.grad for p in model.parameters() if p.grad is not None]

    wanted = made(1, Ranks())

    def body(ranks: Ranks) -> None:
        for batches in (1, 2, 4):
            for found, true in zip(made(batches, ranks), wanted, strict=True):
                torch.testing.assert_close(found, true, rtol=2e-4, atol=2e-6)

    on_ranks(body, 2, tmp_path)


def test_ranks_whose_weights_differ_are_refused(tmp_path: Path) -> None:
    def body(ranks: Ranks) -> None:
        model: Any = nn.Linear(3, 2)
        nn.init.ones_(model.weight)
        nn.init.zeros_(model.bias)
        check_same_weights(ranks, model, 1)
        with torch.no_grad():
            model.weight[1, 2] += 1e-7 * ranks.rank
        with pytest.raises(DeviceError, match="the weights of the ranks differ after step 2"):
            check_same_weights(ranks, model, 2)

    on_ranks(body, 2, tmp_path)


def test_ranks_on_different_kinds_of_devices_are_refused(tmp_path: Path) -> None:
    def body(ranks: Ranks) -> None:
        ranks.use(torch.device("cpu"))
        with pytest.raises(DeviceError, match=f"rank {ranks.rank} computes on"):
            ranks.use(torch.device("cuda" if ranks.rank else "cpu"))

    on_ranks(body, 2, tmp_path)


def test_the_error_names_a_first_rank_that_died_with_the_store(tmp_path: Path) -> None:
    def body() -> int:
        ranks = Ranks.join()
        (tmp_path / f"joined-{ranks.rank}").touch()
        with ranks.together():
            if ranks.rank == 0:
                while len(list(tmp_path.glob("joined-*"))) < 3:  # or the others would wait for the store
                    time.sleep(0.01)
                os.kill(os.getpid(), signal.SIGKILL)
            return ranks.follow({})

    _, one, two = launched(3, lambda: running.run(body), tmp_path)
    assert (one.status, two.status) == (2, 2)
    assert "error: rank 1: rank 0 of 3 stopped answering\n" in one.err
    assert "error:" not in two.err


def test_late_ranks_still_learn_the_first_ranks_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They do although the store ends with the first rank's process, and torch's compiler keeps the
    group of all ranks.
    """
    real = Failures.why_lost

    def late(*args: Any) -> EbmvkError:
        time.sleep(0.7)
        return real(*args)

    monkeypatch.setattr(Failures, "why_lost", late)

    def body() -> int:
        ranks = Ranks.join()
        torch.use_deterministic_algorithms(True)
        with ranks.together():
            if ranks.rank == 0:
                raise DeviceError("no device", hint="take another")
            return ranks.follow({})

    one, two = launched(2, lambda: running.run(body), tmp_path)
    assert (one.status, one.err) == (2, "error: no device\n  try: take another\n")
    assert (two.status, two.err) == (2, "")


def test_sums_are_sent_in_buckets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ebmvk.ranks.processes.BUCKET", 10)

    def body(ranks: Ranks) -> None:
        shapes = [(3,), (2, 4), (), (25,), (0,), (5, 2)]
        given = [torch.full(shape, float(ranks.rank + 1)) for shape in shapes]
        ranks.add_up(given)
        assert all(torch.equal(value, torch.full(shape, 3.0)) for value, shape in zip(given, shapes, strict=True))

    on_ranks(body, 2, tmp_path)


def test_long_messages_and_tensors_arrive(tmp_path: Path) -> None:
    heard: list[Any] = []

    def body(ranks: Ranks) -> None:
        said = {"text": "σ" * 2000, "short": [1, None, 2.5]}
        tensors = {"a": torch.arange(5), "b": torch.ones(2, 3, dtype=torch.bfloat16), "c": torch.zeros(0)}
        if ranks.rank:
            follow = {"say": lambda **more: heard.append((more, ranks.receive()))}
            assert ranks.follow(follow) == 7
            assert heard[0][0] == said
            assert all(torch.equal(heard[0][1][name], value) for name, value in tensors.items())
        else:
            ranks.tell("say", **said)
            ranks.send(tensors)
            ranks.tell("end", status=7)

    on_ranks(body, 2, tmp_path)
