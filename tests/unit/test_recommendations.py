"""What a diagnosis recommends: nothing when all is well, a flag and a value for each thing that is not."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ebmvk.config import Config
from ebmvk.diagnosis.recommendations import recommendations
from ebmvk.report.metrics import History

STORE = {"name": "s", "splats": 100, "dead": 5, "active": 95, "twins": 2, "asked": 100, "coverage": 0.8}
TEXT = {"repetition_rate": 0.1}
GAIN = {"nats_per_token": -0.2, "low": -0.3, "high": -0.1}


def _found(**changes: Any) -> dict[str, Any]:
    well: dict[str, Any] = {
        "likelihood": {"validation": {"ppl_token": 30.0, "nats_per_token": 3.4}},
        "convergence": {"verdict": "converged", "training": {"word": "converged"}},
        "energy": {"spikes": 0, "steps": 1000},
        "denoising": {"levels": [{"name": "kappa_c", "ratio": 0.6}]},
        "langevin": {"samplers": [{"sampler": "langevin", "ok": True, "kinetic_temperature": 1.001}]},
        "splats": {"stores": [STORE]},
        "memory": {"gains": {"both": GAIN}},
        "experts": {"layers": [{"layer": "moe", "effective": 3.9}]},
        "samples": {"model": TEXT, "human": TEXT},
    }
    return well | changes


def _subject() -> Any:
    checkpoint = SimpleNamespace(path=Path("runs/a b/checkpoints/step-700"), step=700)
    run = SimpleNamespace(config=Config(), folder=Path("runs/a b"), checkpoint=checkpoint)
    return SimpleNamespace(run=run, history=History())


def _worse(gain: str) -> dict[str, Any]:
    return {"gain": GAIN | {"low": 0.1}} if gain == "external" else {"gains": {"both": GAIN | {"low": 0.1}}}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, None),
        ({"convergence": {"verdict": "converging"}}, "`ebmvk train --resume --run-dir 'runs/a b' --steps 2000`"),
        ({"convergence": {"verdict": "undecided"}}, "--steps 2000"),
        ({"convergence": {"verdict": "stalled"}}, "--lr 0.006"),
        ({"convergence": {"verdict": "diverging", "training": {"word": "diverging"}}}, "--lr 0.001"),
        ({"convergence": {"verdict": "diverging", "training": {"word": "converging"}}}, "--patience 3"),
        ({"energy": {"spikes": 11, "steps": 1000}}, "--grad-clip 0.5"),
        ({"denoising": {"levels": [{"name": "kappa_c", "ratio": 1.1}]}}, "--lambda-denoise 0.2"),
        ({"denoising": {"levels": [{"name": "", "ratio": 1.1}, {"name": "kappa_c", "ratio": None}]}}, None),
        ({"langevin": {"samplers": [{"sampler": "langevin", "ok": False}]}}, "--langevin-steps 400"),
        ({"langevin": {"samplers": [{"sampler": "gibbs", "ok": False}]}}, None),
        (
            {"langevin": {"samplers": [{"sampler": "langevin", "ok": None, "kinetic_temperature": 1.2}]}},
            "ebmvk certify",
        ),
        ({"splats": {"stores": [STORE | {"dead": 40, "active": 60}]}}, "--curriculum-target-splats 60"),
        ({"splats": {"stores": [STORE | {"twins": 20}]}}, "--curriculum-target-splats 80"),
        ({"splats": {"stores": [STORE | {"twins": 20, "dead": None}]}}, "--splats 80"),
        ({"splats": {"stores": [STORE | {"coverage": 0.1}]}}, "--curriculum-target-splats"),
        ({"memory": {"of": "splats of training", "without": 3.5, "with": 3.4}}, "`ebmvk memory --checkpoint"),
        ({"memory": {"of": "splats of training", "without": 3.5, "with": 3.499}}, None),
        ({"memory": _worse("memory")}, "--fit-on training"),
        ({"external": _worse("external")}, "--no-use-memory"),
        (
            {"experts": {"layers": [{"layer": "a", "effective": 3.9}, {"layer": "b", "effective": 1.2}]}},
            "--moe-balance 0.1",
        ),
        ({"samples": {"model": {"repetition_rate": 0.4}, "human": TEXT}}, "--repetition-penalty 1.2"),
    ],
)
def test_recommendations(changes: dict[str, Any], said: str | None) -> None:
    found = recommendations(_subject(), _found(**changes))
    assert len(found) == (said is not None)
    assert said is None or said in found[0]


def test_sections_that_are_absent_recommend_nothing() -> None:
    found = {name: section for name, section in _found().items() if name in ("likelihood", "samples")}
    assert recommendations(_subject(), found) == []
