"""Chains of tokens on a Vulkan device: the laws of `candidate_law` and `decode`, and the bytes that
leave the device.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from vulkan_open import guarded, open_vulkan, unit

from ebmvk.config.schema import LangevinConfig
from ebmvk.engine import LangevinDiagnostics, philox
from ebmvk.engine.api import OpCount
from ebmvk.engine.reference import Reference
from ebmvk.engine.vulkan import Vulkan
from ebmvk.errors import ArgumentError, NonFinite
from ebmvk.sampling import annealed, streams
from ebmvk.sampling.interface import Options, TokenPoints
from ebmvk.sampling.latent import LatentLaw
from ebmvk.sampling.tokens import SamplingHealth, TokenSampler
from ebmvk.sphere.vmf import log_c_ratio

V, D, K = 700, 12, 9
VARIANTS: dict[str, dict[str, Any]] = {
    "usual": {},
    "portable": {"portable": True},
    "gpu": {"pretend": "gpu"},
    "smallest": {"pretend": "smallest"},
    "shards": {"shard_bytes": 16 * 36 * 8},
    "slices": {"slice_seconds": 1e-9},
}


@pytest.fixture(scope="module", params=VARIANTS)
def vulkan(request: pytest.FixtureRequest) -> Iterator[Vulkan]:
    yield from guarded(**VARIANTS[request.param])


def problem(rows: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """log_p (rows, V), some tokens impossible, and ids (rows, K): the best, or any in odd rows."""
    g = torch.Generator().manual_seed(seed)
    logits = 4 * torch.randn(rows, V, generator=g)
    logits[:, ::7] = -math.inf
    ids = torch.stack([torch.randperm(V, generator=g)[:K] for _ in range(rows)])
    ids[::2] = logits[::2].topk(K, dim=1).indices
    return logits.log_softmax(1), ids


@pytest.mark.parametrize("rows", [1, 5])
@pytest.mark.parametrize("keep", [False, True], ids=["host", "device"])
def test_the_law_of_candidates_is_that_of_the_host(vulkan: Vulkan, rows: int, keep: bool) -> None:
    log_p, ids = problem(rows)
    want = LatentLaw.with_candidates(vulkan, vulkan.points(unit(V, D, 1)), ids, log_p)
    given = (vulkan.tensor(log_p), vulkan.tensor(ids)) if keep else (log_p, ids)
    got = vulkan.candidate_law(*given)
    logp, rest = (part.torch() if keep else part for part in (got.logp, got.log_rest))  # type: ignore[union-attr]
    assert torch.equal(logp, want.logp)
    torch.testing.assert_close(rest, want.log_rest, rtol=0, atol=2e-6)
    torch.testing.assert_close(got.entropy.double(), want.entropy, rtol=1e-5, atol=1e-5)


def test_a_small_rest_is_not_lost_and_an_empty_one_is_minus_infinity() -> None:
    backend = open_vulkan()
    log_p = torch.full((3, V), -math.inf)
    ids = torch.arange(K).expand(3, K).contiguous()
    log_p[:, :K] = -math.log(K)
    log_p[1, 600] = -40.0
    log_p[2] = -math.inf
    log_p[2, 5] = 0.0
    law = backend.candidate_law(log_p, ids)
    assert law.log_rest.tolist() == [-math.inf, pytest.approx(-40.0, rel=1e-6), -math.inf]  # type: ignore[union-attr]
    assert law.entropy.tolist() == pytest.approx([math.log(K), math.log(K), 0.0], abs=1e-6)


def decoded(backend: Vulkan, log_p: Tensor, ids: Tensor, x: Tensor, kappa: Tensor, keep: bool) -> tuple[Tensor, Tensor]:
    """The tokens that `decode` draws, and those that the host draws by the same random numbers."""
    points = backend.points(unit(V, D, 1))
    host = LatentLaw.with_candidates(backend, points, ids, log_p)
    want = host.decode(x, kappa, log_p, seed=3, first_chain=11)
    give: Any = backend.tensor if keep else lambda value: value
    kept, chosen = give(log_p), give(ids)
    law = backend.candidate_law(kept, chosen)
    got = backend.decode(
        give(x),
        points,
        chosen,
        law.logp,
        law.log_rest,
        kappa,
        log_c_ratio(kappa, D),
        kept,
        seed=3,
        first_chain=11,
        choice_stream=streams.CHOICE,
        rest_stream=streams.REST,
    )
    return got, want


@pytest.mark.parametrize("keep", [False, True], ids=["host", "device"])
def test_tokens_are_those_of_the_hosts_decoder(vulkan: Vulkan, keep: bool) -> None:
    """Both invert the same uniforms; float32 sums may choose a neighbour in one case of 10^5."""
    rows = 150
    log_p, ids = problem(rows, 2)
    kappa = torch.linspace(0.5, 60.0, rows)
    got, want = decoded(vulkan, log_p, ids, unit(rows, D, 4), kappa, keep)
    assert int((got != want).sum()) <= 1
    inside = (got[:, None] == ids).any(1)
    assert 9 < int(inside.sum()) < rows - 9  # both kinds of tokens occur
    assert bool((log_p.gather(1, got[:, None]) > -math.inf).all())


def test_a_token_without_weight_is_never_drawn() -> None:
    """Only the last token of the rest has weight, or only the last candidate."""
    backend = open_vulkan()
    log_p = torch.full((64, V), -math.inf)
    log_p[:32, V - 1] = 0.0
    log_p[32:, K - 1] = 0.0
    ids = torch.arange(K).expand(64, K).contiguous()
    got, _ = decoded(backend, log_p, ids, unit(64, D, 4), torch.full((64,), 5.0), keep=False)
    assert got.tolist() == [V - 1] * 32 + [K - 1] * 32


def test_decoded_tokens_have_the_models_law() -> None:
    """Draws x from the exact law at a low concentration, then tokens. A chi-square compares their
    counts with p(v), for tokens of which at least five are expected; its bound is the mean plus 4.5
    standard deviations."""
    backend, rows = open_vulkan(), 20_000
    log_p, ids = problem(1, 5)
    log_p, ids = log_p.expand(rows, V).contiguous(), log_p.topk(K, dim=1).indices.expand(rows, K).contiguous()
    mu = unit(V, D, 1)
    law = LatentLaw.with_candidates(backend, backend.points(mu), ids, log_p)
    kappa = torch.full((rows,), 4.0)
    x = law.sample_exact(kappa, mu, seed=1)
    got, _ = decoded(backend, log_p, ids, x, kappa, keep=True)
    expected = rows * log_p[0].double().exp()
    counts = torch.bincount(got, minlength=V).double()
    used = expected >= 5
    chi = float(((counts - expected)[used] ** 2 / expected[used]).sum())
    degrees = int(used.sum())
    assert chi < degrees + 4.5 * math.sqrt(2 * degrees)


def test_states_that_are_not_finite_are_an_error() -> None:
    backend = open_vulkan()
    log_p, ids = problem(2)
    nothing = torch.full((2, K), -math.inf)
    law = (backend.tensor(nothing), backend.tensor(nothing[:, 0].contiguous()))
    ones = torch.ones(2)
    arguments = (unit(2, D, 1), backend.points(unit(V, D, 1)), ids, *law, ones, ones, log_p)
    with pytest.raises(NonFinite, match="2 of 2 states"):
        backend.decode(*arguments, seed=1, first_chain=0, choice_stream=4, rest_stream=5)


@pytest.mark.parametrize("d", [2, 3, 37, 640])
def test_chains_start_where_they_do_on_the_host(vulkan: Vulkan, d: int) -> None:
    """The same normals; norms and dot products of d numbers differ by rounding."""
    rows, seed, temperature = 7, 2**63 + 5, 0.7
    none = torch.zeros(rows, 1)
    host = Reference()
    law = LatentLaw(host, host.points(unit(3, d, 1)), none.long(), none, none[:, 0])
    streams_of = {"x_stream": streams.START, "v_stream": philox.STREAM_VELOCITY}

    def start(first: int, count: int) -> list[Tensor]:
        found = vulkan.chain_start(count, d, seed=seed, first_chain=9 + first, **streams_of, temperature=temperature)
        return [found.x.torch(), found.v.torch()]

    x, v = start(0, rows)
    for got, want in zip((x, v), law.start(seed=seed, temperature=temperature, first_chain=9), strict=True):
        torch.testing.assert_close(got, want, rtol=2e-6, atol=2e-6)
    assert float((x * v).sum(1).abs().max()) < 1e-5
    for first, count in ((0, 1), (1, 6)):
        for part, whole in zip(start(first, count), (x, v), strict=True):
            assert torch.equal(part, whole[first : first + count])


def test_zero_chains_have_empty_states() -> None:
    backend = open_vulkan()
    given = {"seed": 1, "first_chain": 0, "x_stream": 4, "v_stream": 1}
    start = backend.chain_start(0, 5, **given, temperature=1.0)
    assert start.x.torch().shape == start.v.torch().shape == (0, 5)
    with pytest.raises(ArgumentError, match="temperature"):
        backend.chain_start(1, 5, **given, temperature=-1.0)


def test_arguments_that_do_not_fit_are_refused_by_name() -> None:
    backend = open_vulkan()
    log_p, ids = problem(2)
    with pytest.raises(ArgumentError, match="ids"):
        backend.candidate_law(log_p, ids + V)
    with pytest.raises(ArgumentError, match="log_p"):
        backend.candidate_law(log_p.double(), ids)
    found, ones = backend.candidate_law(log_p, ids), torch.ones(2)
    law, streams_of = (found.logp, found.log_rest), {"seed": 1, "first_chain": 0, "choice_stream": 4, "rest_stream": 5}
    points = backend.points(unit(V, D, 1))
    with pytest.raises(ArgumentError, match="kappa"):
        backend.decode(unit(2, D, 1), points, ids, *law, -ones, ones, log_p, **streams_of)
    few = backend.points(unit(V - 1, D, 1))
    with pytest.raises(ArgumentError, match="log_p has shape"):
        backend.decode(unit(2, D, 1), few, ids, *law, ones, ones, log_p, **streams_of)


def since(before: dict[str, OpCount], backend: Vulkan) -> dict[str, tuple[int, int]]:
    """Bytes up and down of each operation since `before`."""
    now = backend.counts()
    moved = {}
    for name, count in now.items():
        old = before.get(name, OpCount(0, 0, 0.0))
        if count.calls > old.calls:
            moved[name] = (count.bytes_up - old.bytes_up, count.bytes_down - old.bytes_down)
    return moved


def test_chained_sampling_moves_only_tokens_and_entropies_out() -> None:
    """For each chain 4 bytes of entropy, from which the host makes the schedule, and 4 of its
    token. Through the host it would be more than 8 (d + K) bytes. Diagnostics are read on request
    only.
    """
    backend, rows = open_vulkan(), 16
    mu = unit(V, D, 1)
    space = TokenPoints(backend, mu, backend.points(mu), None, None)
    log_p = problem(rows)[0]
    options = Options(LangevinConfig(knn_k=K, langevin_steps=20, langevin_levels=4), seed=3)
    query = unit(rows, D, 6)
    before = dict(backend.counts())
    drawn = annealed.tokens(space, query, log_p, options)
    chained = since(before, backend)
    assert {name: down for name, (_, down) in chained.items() if down} == {
        "candidate_law": 4 * rows,
        "decode": 4 * rows,
    }
    assert chained["chain_start"] == (0, 0)
    starts, schedule_of = 2 * 4 * rows * D, 4 * 8 * rows * options.settings.langevin_levels
    assert chained["langevin"][0] < starts + schedule_of
    assert drawn.tokens.shape == (rows,)

    before = dict(backend.counts())
    through_host = annealed._by_decoding(space, query, log_p, options)
    down = sum(count for _, count in since(before, backend).values())
    assert down > rows * 8 * (D + K)

    health = SamplingHealth()
    before = dict(backend.counts())
    for diagnostics in drawn.diagnostics:
        health.add(diagnostics)
    assert since(before, backend) == {}
    record = health.record()
    assert since(before, backend) == {"download": (0, 5 * 4 * rows)}
    other = SamplingHealth()
    other.add(through_host.diagnostics[0])
    # Both schedules come from the same entropies; tangency, about 2e-7, is rounding only.
    assert record == pytest.approx(other.record(), rel=0.02, abs=1e-6)


def test_a_samplers_call_is_six_submissions() -> None:
    """Log probabilities up; candidates; their law; where chains start; chains; tokens."""
    backend, rows = open_vulkan(slice_seconds=5.0), 16
    mu = unit(V, D, 1)
    space = TokenPoints(backend, mu, backend.points(mu), torch.zeros(V), torch.ones(V))
    options = Options(LangevinConfig(knn_k=K, langevin_steps=20, langevin_levels=4), seed=3)
    log_p, query = problem(rows)[0], unit(rows, D, 6)
    for _ in range(3):  # the first ones also upload weights and learn the speed of the kernels
        annealed.tokens(space, query, log_p, options)
    before = backend._extension.calls_of("vkQueueSubmit")
    annealed.tokens(space, query, log_p, options)
    assert backend._extension.calls_of("vkQueueSubmit") - before == 6


def test_diagnostics_of_many_runs_are_read_together() -> None:
    backend = open_vulkan()
    health, ones = SamplingHealth(), torch.ones(3)
    before = backend.counts().get("download", OpCount(0, 0, 0.0)).calls
    for _ in range(70):
        health.add(LangevinDiagnostics(*[backend.tensor(ones) for _ in range(5)]))  # type: ignore[arg-type]
    assert health.record()["chains"] == 210
    assert health.record()["energy"] == 1.0
    assert backend.counts()["download"].calls - before == 3


def test_the_sampler_draws_as_through_the_host() -> None:
    """Same seed, same law: only rounding of the entropy and of the inversion differs."""
    backend, rows = open_vulkan(), 64
    mu = unit(V, D, 1)
    space = TokenPoints(backend, mu, backend.points(mu), None, None)
    log_p, query = problem(rows, 9)[0], unit(rows, D, 6)
    settings = LangevinConfig(knn_k=K, langevin_steps=16, langevin_levels=4)
    sampler = TokenSampler("langevin", space, settings, SamplingHealth())
    got = sampler.tokens(query, log_p, seed=5, first_chain=2)
    want = annealed._by_decoding(space, query, log_p, Options(settings, 5, 2)).tokens
    assert int((got != want).sum()) <= 3
    assert sampler.health.record()["chains"] == rows
