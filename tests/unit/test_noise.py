"""Noise levels, the two forms of the denoising loss, and the figures about them (model section
9)."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ebmvk.config.checks import check
from ebmvk.config.schema import Config, TrainingConfig, replace
from ebmvk.config.toml import from_toml, read_toml, write_toml
from ebmvk.engine.reference import Reference
from ebmvk.errors import ConfigError
from ebmvk.evaluation.score_matching import levels
from ebmvk.objective import losses, noise
from ebmvk.objective.batch import noised_at
from ebmvk.sphere.vmf import sample_vmf

SKETCH = (0.01, 0.05, 0.1, 0.2, 0.5)
"""sigma of the original system, which section 9 gives as kappa and as degrees at d = 640."""
KAPPAS, DEGREES = (10315, 645, 272, 129, 51), (14, 52, 68, 79, 85.5)


def _levels(unit: str, *values: float) -> TrainingConfig:
    return replace(Config(), {"noise_levels": values, "noise_unit": unit}).training


def test_sigma_converts_to_kappa_by_the_formula() -> None:
    found = noise.given(_levels("sigma", *SKETCH), 640)
    assert [round(kappa) for kappa in found] == list(KAPPAS)
    for kappa, sigma, degrees in zip(found, SKETCH, DEGREES, strict=True):
        level = noise.Noise.of(kappa, 640)
        assert level.sigma == pytest.approx(sigma, rel=1e-9)
        assert level.angle == pytest.approx(degrees, abs=0.51 if degrees != 85.5 else 0.06)


@pytest.mark.parametrize("d", [2, 7, 256, 640])
@pytest.mark.parametrize("unit", ["kappa", "angle", "sigma"])
def test_all_units_of_noise_convert_into_each_other(unit: str, d: int) -> None:
    for kappa in (0.5, 20.0, 900.0):
        level = noise.Noise.of(kappa, d)
        assert noise.given(_levels(unit, getattr(level, unit)), d)[0] == pytest.approx(kappa, rel=1e-6)


def test_the_mean_angle_is_that_of_the_mean_cosine_of_samples() -> None:
    d, kappa = 640, noise.given(_levels("angle", 52.0), 640)[0]
    mu = torch.eye(d, dtype=torch.float64)[:1].expand(4000, d)
    t = sample_vmf(mu, kappa, seed=1)[:, 0]
    error = float(t.std()) / math.sqrt(len(t))
    assert abs(float(t.mean()) - math.cos(math.radians(52))) < 4.4 * error


@pytest.mark.parametrize(
    ("unit", "value", "words"),
    [("angle", 90.0, "90 degrees"), ("angle", 0.01, "give more noise"), ("sigma", 1e-5, "kappa"), ("kappa", 2e5, "2e")],
)
def test_levels_out_of_range_are_refused(unit: str, value: float, words: str) -> None:
    with pytest.raises(ConfigError, match=rf"--noise-levels(.|\n)*{words}"):
        noise.given(_levels(unit, 20.0, value), 640)
    with pytest.raises(ConfigError, match="--noise-levels -1"):
        check(replace(Config(), {"noise_levels": (0.1, -1.0)}))


def test_notes_name_arcs_angles_and_kappa() -> None:
    said = list(noise.notes(_levels("sigma", *SKETCH), 640, 50257))
    for line, words in zip(said, ("0.25 rad", "1.26 rad", "2.53 rad", "5.06 rad", "12.64 rad"), strict=True):
        assert words in line
    assert "kappa 1.032e+04" in said[0]
    assert "mean angle 85.5 degrees" in said[4]
    assert list(noise.notes(TrainingConfig(), 640, 50257)) == []


def test_levels_are_drawn_evenly_from_the_generator() -> None:
    config, mu = _levels("kappa", 3.0, 50.0, 7.0), torch.randn(40, 16)
    kappa = noise.draw(config, mu, 3000, torch.Generator().manual_seed(0))
    counts = torch.tensor([int((kappa == level).sum()) for level in (3.0, 50.0, 7.0)])
    assert int(counts.sum()) == 3000
    assert bool((counts - 1000).abs().max() < 4.4 * math.sqrt(3000 * 2 / 9))
    assert torch.equal(kappa, noise.draw(config, mu, 3000, torch.Generator().manual_seed(0)))
    low, high = noise.kappa_range(16, 40)
    free = noise.draw(TrainingConfig(), mu, 3000, torch.Generator().manual_seed(0)).log()
    assert float(free.min()) >= math.log(low)
    assert float(free.max()) <= math.log(high)
    assert float(free.mean()) == pytest.approx(math.log(low * high) / 2, abs=0.1)


def test_noise_levels_are_an_array_in_toml(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    config = replace(Config(), {"noise_levels": SKETCH, "noise_unit": "sigma"})
    path.write_text(write_toml(config), encoding="utf-8")
    assert "noise_levels = [0.01, 0.05, 0.1, 0.2, 0.5]" in path.read_text(encoding="utf-8")
    assert from_toml(path) == config
    path.write_text("[training]\nnoise_levels = [1, 2.5]\n", encoding="utf-8")
    assert read_toml(path) == {"noise_levels": (1.0, 2.5)}
    for wrong in ("3.0", '["a"]', "[true]"):
        path.write_text(f"[training]\nnoise_levels = {wrong}\n", encoding="utf-8")
        with pytest.raises(ConfigError, match="an array of numbers"):
            read_toml(path)


# ---- the score form ------------------------------------------------------------------------------

VOCABULARY, D, ROWS = 12, 6, 5


def _problem(kappa: float) -> tuple[list[Tensor], dict[str, Any]]:
    """Parameters (query, raw points, bias) and the noise, float64; raw points are normalised in
    `_loss`."""
    g = torch.Generator().manual_seed(3)
    shapes = (ROWS, D), (VOCABULARY, D), (VOCABULARY,)
    parameters = [torch.randn(shape, generator=g, dtype=torch.float64) for shape in shapes]
    targets = torch.randint(VOCABULARY, (ROWS,), generator=g)
    level = torch.full((ROWS,), kappa, dtype=torch.float64)
    clean = F.normalize(parameters[1], dim=-1)[targets]
    noised = noised_at(torch.arange(ROWS), targets, level, D, torch.Generator().manual_seed(0))
    data = {"noised": noised, "clean": clean, "x": sample_vmf(clean, level, generator=g)}
    return parameters, data


def _loss(parameters: list[Tensor], data: dict[str, Any], k: int) -> Tensor:
    backend = Reference(dtype=torch.float64)
    query, raw, bias = parameters
    mu = F.normalize(raw, dim=-1)
    points = backend.points(mu.detach())
    ids = torch.stack([torch.arange(int(t), int(t) + k) % VOCABULARY for t in data["noised"].targets])
    return losses.denoising_at(backend, query, mu, bias, ids=ids, points=points, form="score", **data).mean()


@pytest.mark.parametrize("kappa", [0.3, 4.0, 30.0])
@pytest.mark.parametrize("k", [4, VOCABULARY])
def test_gradients_of_the_score_form_equal_finite_differences(kappa: float, k: int) -> None:
    parameters, data = _problem(kappa)
    leaves = [p.clone().requires_grad_() for p in parameters]
    found = torch.autograd.grad(_loss(leaves, data, k), leaves)
    for which, gradient in enumerate(found):
        assert float(gradient.abs().max()) > 0
        for at in range(0, gradient.numel(), 5):
            sides = []
            for step in (1e-5, -1e-5):
                moved = [p.clone() for p in parameters]
                moved[which].view(-1)[at] += step
                sides.append(float(_loss(moved, data, k)))
            difference = (sides[0] - sides[1]) / 2e-5
            # Central differences: an error of h^2 times third derivatives, of order kappa^3 at
            # most, and rounding / h.
            assert float(gradient.view(-1)[at]) == pytest.approx(difference, rel=1e-5, abs=1e-8 * (1 + kappa))


@pytest.mark.parametrize("d", [3, 64, 640])
@pytest.mark.parametrize("of", [0.1, 0.5, 1.0, 2.5])
def test_a_zero_score_has_loss_one(d: int, of: float) -> None:
    """4000 states, 4.4 standard errors, kappa from a tenth of kappa_c of 50,257 tokens."""
    kappa = of * noise.critical(d, 50257)
    mu = F.normalize(torch.randn(4000, d, dtype=torch.float64, generator=torch.Generator().manual_seed(0)), dim=-1)
    x = sample_vmf(mu, kappa, seed=2)
    loss = losses.score_loss(torch.zeros_like(x), x, mu, torch.full((4000,), kappa, dtype=torch.float64))
    assert abs(float(loss.mean()) - 1) < 4.4 * float(loss.std()) / math.sqrt(4000)


def test_the_score_form_is_least_for_the_posterior() -> None:
    """The score of the distribution that the tokens come from has a lower mean loss than any
    other."""
    backend, n = Reference(dtype=torch.float64), 20_000
    g = torch.Generator().manual_seed(4)
    mu = F.normalize(torch.randn(VOCABULARY, D, generator=g, dtype=torch.float64), dim=-1)
    p = torch.softmax(torch.randn(VOCABULARY, generator=g, dtype=torch.float64), 0)
    targets = torch.multinomial(p, n, replacement=True, generator=g)
    means = []
    for law in (p, torch.full_like(p, 1 / VOCABULARY), p.flip(0)):
        kappa, rng = torch.full((n,), 3.0, dtype=torch.float64), torch.Generator().manual_seed(1)
        noised = noised_at(torch.arange(n), targets, kappa, D, rng)
        query = torch.zeros(n, D, dtype=torch.float64)
        means.append(float(losses.denoising(backend, query, mu, law.log(), noised, k=VOCABULARY, form="score")))
    assert means[0] < min(means[1:])
    assert means[0] < 1


def test_figures_use_the_given_levels_and_mark_kappa_c() -> None:
    found = levels(640, 50257)
    kappas = [level.noise.kappa for level in found]
    assert kappas == sorted(kappas)
    named = {level.name: level.noise.kappa for level in found if level.name}
    assert named["kappa_c"] == pytest.approx(math.sqrt(2 * 640 * math.log(50257))) == pytest.approx(117.7, abs=0.1)
    assert named["1/2 kappa_c"] == pytest.approx(named["kappa_c"] / 2)
    assert len(found) == 7
    given = levels(640, 50257, extra=(5.0, 400.0))
    assert [level.noise.kappa for level in given if not level.name] == pytest.approx([5.0, 400.0])
