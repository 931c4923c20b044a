"""Alerts appear on series that are made to provoke them, and not on healthy series or recorded
runs."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from model_support import build, tokens, variant

from ebmvk.cli import evaluate, train
from ebmvk.cli import memory as memory_command
from ebmvk.config.schema import Config, replace
from ebmvk.engine import select
from ebmvk.errors import NonFinite
from ebmvk.memory.alerts import gate_of_memory, kappa_at_bound, leak, no_gain, switched_off
from ebmvk.memory.fit import NEAREST
from ebmvk.model.infinito import Infinito
from ebmvk.model.inspection import gates
from ebmvk.monitoring.alerts import BLOCK, Alerts, non_finite
from ebmvk.runs.metrics import Alert
from ebmvk.splats.health import novelty
from ebmvk.splats.recall import Splats
from ebmvk.splats.store import SplatStore

CONFIG = replace(Config(), {"steps": 400, "warmup_steps": 10, "latent_dim": 65})
HEALTHY = json.loads((Path(__file__).parent / "healthy_runs.json").read_text(encoding="utf-8"))
Row = dict[str, Any]


def said(rows: Iterable[Row], config: Config = CONFIG) -> list[str]:
    """The signs of all alerts, in order."""
    alerts = Alerts(config)
    found = [alert for row in rows for alert in alerts.see(row)]
    for alert in found:
        _is_sound(alert)
    return [alert.sign for alert in found]


def _is_sound(alert: Alert) -> None:
    """The reason has a figure; the advice names existing flags and a value."""
    assert re.search(r"\d", alert.reason)
    flags = re.findall(r"--[a-z-]+", alert.advice)
    assert flags
    assert set(flags) <= {*train.FLAGS, *memory_command.FLAGS, *evaluate.FLAGS}


def energies(values: Iterable[float], start: float = 5.0, first: int = 1) -> Iterator[Row]:
    yield {"event": "start", "step": first - 1, "unigram_nats": start}
    for step, value in enumerate(values, start=first):
        yield {"event": "step", "step": step, "parts": {"ce": value}}


def falling(steps: int, noise: float = 0.1, seed: int = 0) -> list[float]:
    rng = random.Random(seed)
    return [2.5 + 2.5 * 0.98**step + rng.gauss(0, noise) for step in range(steps)]


@pytest.mark.parametrize("noise", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_falling_energy_gives_no_alert_and_a_rising_one_gives_one(noise: float, seed: int) -> None:
    well = falling(400, noise, seed)
    assert said(energies(well)) == []
    ill = [*well[:200], *(value + 0.01 * step for step, value in enumerate(well[200:]))]
    assert said(energies(ill)) == ["energy rising"]


def test_a_model_worse_than_a_blind_guess_gives_an_early_alert_that_names_the_learning_rate() -> None:
    """The alert comes within five steps. A spike gives no alert, nor does a run whose vocabulary
    isn't known."""
    start = {"event": "start", "step": 0, "unigram_nats": 5.0, "vocabulary": 300}
    driven = [start, *list(energies([4.9, *[900.0] * 8]))[1:]]
    config = replace(CONFIG, {"learning_rate": 1e3})
    (alert,) = [alert for alerts in [Alerts(config)] for row in driven for alert in alerts.see(row)]
    assert alert.sign == "training diverges"
    assert "900.00 nats per token or more, and a blind guess has 5.70; --lr 1000 is 2.5e+05 times" in alert.reason
    assert alert.advice == "start a new run with --lr 0.004"
    assert said([start, *list(energies([4.9, 9.0, 9.0, 9.0, 9.0, 4.0, 9.0]))[1:]]) == []
    assert said(energies([900.0] * 8)) == []


def test_a_single_spike_gives_no_alert() -> None:
    well = falling(400)
    assert said(energies([*well[:210], 6.0, *well[211:]])) == []


@pytest.mark.parametrize(("level", "advice"), [(4.99, "--lr 0.008"), (7.0, "--lr 0.0005")])
def test_a_run_that_knows_only_frequencies_converges_poorly(level: float, advice: str) -> None:
    alerts = Alerts(CONFIG)
    found = [alert for row in energies([level] * 200) for alert in alerts.see(row)]
    assert [alert.sign for alert in found] == ["poor convergence"]
    assert advice in found[0].advice


def test_a_run_resumed_at_its_plateau_gives_no_alert() -> None:
    assert said(energies([3.0] * 300, first=1000)) == []


def evaluations(values: Iterable[float], size: int = 500) -> Iterator[Row]:
    for number, nats in enumerate(values, start=1):
        yield {"event": "eval", "step": 50 * number, "validation": {"nats_per_token": nats, "tokens": size}}


@pytest.mark.parametrize(
    ("nats", "expected"),
    [
        ([5.0, 4.0, 3.5, 3.51, 3.5, 3.515], []),
        ([5.0, 4.0, 4.3, 3.9, 3.8], []),
        ([5.0, 4.0, 4.1, 4.2, 4.3], ["perplexity worsening"]),
    ],
)
def test_a_validation_loss_that_stays_higher_gives_an_alert(nats: list[float], expected: list[str]) -> None:
    assert said(evaluations(nats)) == expected


def test_losses_on_different_tokens_are_not_compared() -> None:
    assert said([*evaluations([3.0]), *evaluations([3.5, 3.4, 3.3], size=90)]) == []


@pytest.mark.parametrize(("trained", "advice"), [(2.0, "--dropout 0.2"), (3.9, "--lr 0.001")])
def test_advice_depends_on_whether_the_text_is_learned_by_heart(trained: float, advice: str) -> None:
    alerts = Alerts(CONFIG)
    rows = [*energies([trained] * 60), *evaluations([4.0, 4.1, 4.2])]
    found = [alert for row in rows for alert in alerts.see(row)]
    assert [advice in alert.advice for alert in found] == [True]


WELL = {
    "event": "soc", "splats": 200, "merged": 10, "pruned": 0, "dead": 40, "nearest_angle": 0.6,
    "kappa_quantiles": [60.0, 100.0, 200.0, 300.0, 500.0],
}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, []),
        ({"merged": 15, "pruned": 5}, []),  # the most that creation and splitting replace at capacity
        ({"merged": 60}, ["consolidation too fast"]),
        ({"pruned": 60}, ["consolidation too fast"]),
        ({"dead": 120}, ["dead splats"]),
        ({"nearest_angle": 0.02}, ["splats collapsed"]),
        ({"splats": 9, "merged": 2, "dead": 9, "nearest_angle": 0.0}, []),  # too few to tell
        ({"splats": 0, "merged": 0}, []),
    ],
)
def test_sick_splats_give_an_alert(changes: Row, expected: list[str]) -> None:
    rows = [WELL | {"step": 20 * check} | changes for check in range(1, 9)]
    assert said(rows) == expected


@pytest.mark.parametrize(
    ("name", "means", "expected"),
    [
        ("memory", [0.5], []),
        ("memory", [0.02], []),
        ("memory", [1e-4], ["gate of memory stuck at 0"]),
        ("memory", [0.9999], ["gate of memory stuck at 1"]),
        ("decoder.experts", [0.1, 0.2, 0.3, 0.4], []),
        ("decoder.experts", [0.5, 0.5, 0.0, 0.0], ["gate of decoder.experts stuck at 0"]),
        ("decoder.experts", [0.999, 0.001], ["gate of decoder.experts stuck at 1"]),
    ],
)
def test_stuck_gates_give_an_alert(name: str, means: list[float], expected: list[str]) -> None:
    rows = [row | {"gates": {name: means}} for row in evaluations([3.0] * 5)]
    assert said(rows[:3]) == []  # before the run has settled, and once is not stuck
    assert said(rows) == expected


def test_the_models_report_their_gates() -> None:
    model: Infinito = build(variant("infinito"))
    (name,) = gates(model, tokens(12))
    assert name == "memory"
    with torch.no_grad():
        model.memory.threshold.fill_(50.0)  # type: ignore[union-attr]
    assert gates(model, tokens(12))[name][0] < 1e-6
    found = gates(build(variant("gpt of experts")), tokens(12))
    assert len(found) == 3
    assert all(sum(load) == pytest.approx(1, abs=1e-5) for load in found.values())
    assert gates(build(variant("plain")), tokens(12)) == {}


def test_each_stuck_gate_gives_its_own_alert() -> None:
    rows = [row | {"gates": {"a": [1.0, 0.0], "b": [0.5, 0.5]}} for row in evaluations([3.0] * 5)]
    rows += [row | {"gates": {"a": [1.0, 0.0], "b": [0.0, 1.0]}} for row in evaluations([3.0] * 5)]
    assert sorted(said(rows)) == ["gate of a stuck at 1", "gate of b stuck at 0"]


@pytest.mark.parametrize("tier", ["static", "episodic"])
@pytest.mark.parametrize("static", [True, False])
@pytest.mark.parametrize("more", [600, None])
def test_a_memory_that_says_nothing(tier: str, static: bool, more: int | None) -> None:
    """Its concentration is the first or the last that was tried, its law is uniform, or a
    calibration is as good."""
    how: dict[str, Any] = {"static": static, "more": more}
    found = [kappa_at_bound(tier, kappa, (5.0, 7.0, 10.0), **how) for kappa in (5.0, 7.0, 10.0)]
    assert found[1] is None
    assert kappa_at_bound(tier, 5.0, (5.0,), **how) is None
    found += [switched_off(tier, 1e-4, 2.0, **how), switched_off(tier, None, 1e-3, **how)]
    found += [no_gain(tier, 0.0, static=static), no_gain(tier, -0.1, static=static)]
    told = [alert for alert in found if alert]
    assert len(told) == 6
    for alert in told:
        _is_sound(alert)
    for healthy in ((None, 0.5), (0.9, 0.5)):
        assert switched_off(tier, *healthy, **how) is None
    assert no_gain(tier, 0.01, static=static) is None


@pytest.mark.parametrize("tier", ["static", "episodic"])
@pytest.mark.parametrize("others", [{"more": 600, "fewer": 150}, {"more": None, "fewer": None}], ids=str)
def test_gates_of_a_memory(tier: str, others: dict[str, Any]) -> None:
    for mean, share in ((0.05, 1.0), (0.999, 0.5)):
        assert gate_of_memory(tier, mean, share, static=True, **others) is None
    for mean in (1e-5, 0.999):
        found = gate_of_memory(tier, mean, 1.0, static=True, **others)
        assert found
        assert found.sign == f"gate of {tier} memory stuck at {round(mean)}"
        assert ("--splats" in found.advice) == (tier == "static" and others["more"] is not None)
        if "--" in found.advice:
            _is_sound(found)


LARGE = (40_000, 700, 2048, NEAREST)


@pytest.mark.parametrize(
    ("n", "splats", "words", "k", "seed"),
    [
        *((3000, splats, 800, 16, seed) for splats in (60, 700) for seed in (1, 2, 3)),
        *((*LARGE, seed) for seed in (1, 2, 3)),
    ],
)
def test_a_memory_that_holds_the_text_it_is_asked_about(n: int, splats: int, words: int, k: int, seed: int) -> None:
    """States around centres, each with a law of its own over tokens as frequent as words are."""
    random = torch.Generator().manual_seed(seed)
    centres = torch.nn.functional.normalize(torch.randn(40, 16, generator=random), dim=1)
    zipf = 1 / torch.arange(1, words + 1, dtype=torch.float64)
    own = torch.stack([zipf[torch.randperm(words, generator=random)] for _ in range(40)])

    def text(n: int) -> tuple[torch.Tensor, torch.Tensor]:
        which = torch.randint(40, (n,), generator=random)
        states = torch.nn.functional.normalize(centres[which] + 0.1 * torch.randn(n, 16, generator=random), dim=1)
        following = torch.empty(n, dtype=torch.long)
        for centre, law in enumerate(own):  # the laws of all states at once would take 655 MB
            here = which == centre
            following[here] = torch.multinomial(law, int(here.sum()), replacement=True, generator=random)
        return states, following

    states, following = text(n)
    points = states[torch.randperm(n, generator=random)[:splats]]
    owner = (states @ points.T).argmax(1)
    store = SplatStore.gather(states, following, owner, vocab_size=words, beta=0.1, kappa=(80.0, 80.0))
    looked = Splats.open(store, select("reference"), k)
    assert leak(*novelty(looked, *text(2000))) is None
    found = leak(*novelty(looked, states[:2000], following[:2000]))
    assert found
    assert found.sign == "memory holds its own text"
    assert "prepare-corpus" in found.advice


def test_a_few_contexts_are_too_few_to_report_a_leak() -> None:
    assert leak(0, 0) is None
    assert leak(0, 40) is None
    assert leak(0, 60)
    assert leak(40, 160) is None


def test_a_number_that_is_not_finite_becomes_an_alert() -> None:
    found = non_finite(NonFinite("step 3: the gradient of 'points' is not finite", hint="continue with --lr 0.001"))
    assert found.sign == "non-finite values"
    assert "'points'" in found.reason
    _is_sound(found)


def recorded(run: Row) -> Iterator[Row]:
    """The rows of a recorded run, in order."""
    rows = list(energies(run["ce"], run["unigram_nats"]))
    for step, nats, means in run["evals"]:
        validation = {"nats_per_token": nats, "tokens": 20_000}
        rows.append({"event": "eval", "step": step, "validation": validation, "gates": means})
    rows += [{"event": "soc"} | row for row in run["soc"]]
    return iter(sorted(rows, key=lambda row: (row["step"], row["event"] != "step")))


@pytest.mark.parametrize("seed", [42, 43, 44])
def test_healthy_runs_give_no_alert(seed: int) -> None:
    """Runs of `ebmvk train --size nano --eval-every 50 --seed SEED`, recorded. If their end is
    spoilt, they give one."""
    run = next(run for run in HEALTHY if run["seed"] == seed)
    config = replace(Config(), {"steps": 300, "warmup_steps": 20, "latent_dim": 64})
    assert len(run["ce"]) == 300
    assert said(recorded(run), config) == []
    spoilt = [*run["ce"][: -2 * BLOCK], *(value + 1 for value in run["ce"][-2 * BLOCK :])]
    assert said(recorded(run | {"ce": spoilt}), config) == ["energy rising"]
