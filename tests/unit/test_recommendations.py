"""What a diagnosis recommends: a flag and a value for each problem, nothing without any."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ebmvk.cli import certify, generate, memory, parsing, train
from ebmvk.config import flags, resolve
from ebmvk.config.checks import check, check_resume
from ebmvk.config.schema import Config, replace
from ebmvk.diagnosis.recommendations import recommendations
from ebmvk.memory.static import MAX_SPLATS
from ebmvk.monitoring.advice import advice
from ebmvk.runs.metrics import History

STORE = {"name": "s", "splats": 100, "dead": 5, "active": 95, "twins": 2, "asked": 100, "coverage": 0.8}
UNCOVERED = {"stores": [STORE | {"coverage": 0.1}]}
LEVEL = {"name": "kappa_c", "ratio": 0.6, "error": 0.04, "unigram_loss": 0.5}
TEXT = {"repetition_rate": 0.1}
OF_TRAINING = {"of": "splats of training", "tokens": 1280}
GAIN = {"nats_per_token": -0.2, "low": -0.3, "high": -0.1}
SIGN = {
    "sign": "static memory is switched off", "reason": "its splats explain 0.01 %", "advice": "use --splats 600"
}  # fmt: skip


def _found(**changes: Any) -> dict[str, Any]:
    well: dict[str, Any] = {
        "likelihood": {"validation": {"ppl_token": 30.0, "nats_per_token": 3.4}},
        "convergence": {"verdict": "converged", "training": {"word": "converged"}},
        "energy": {"spikes": 0, "steps": 1000},
        "denoising": {"levels": [LEVEL]},
        "langevin": {"samplers": [{"sampler": "langevin", "ok": True, "kinetic_temperature": 1.001}]},
        "splats": {"stores": [STORE]},
        "memory": {"gains": {"both": GAIN}},
        "experts": {"layers": [{"layer": "moe", "effective": 3.9}]},
        "samples": {"model": TEXT, "human": TEXT},
    }
    return well | changes


def _subject(**settings: Any) -> Any:
    config = replace(Config(), settings)
    checkpoint = SimpleNamespace(path=Path("runs/a b/checkpoints/step-700"), step=700)
    run = SimpleNamespace(config=config, folder=Path("runs/a b"), checkpoint=checkpoint)
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
        ({"denoising": {"levels": [LEVEL | {"ratio": 1.1}]}}, "--lambda-denoise 0.2"),
        ({"denoising": {"levels": [LEVEL | {"name": "", "ratio": 1.1}, LEVEL | {"ratio": None}]}}, None),
        ({"denoising": {"levels": [LEVEL | {"ratio": 1.07}]}}, None),
        ({"denoising": {"levels": [LEVEL | {"ratio": 1.5, "unigram_loss": 1e-9}]}}, None),
        ({"langevin": {"samplers": [{"sampler": "langevin", "ok": False}]}}, "--langevin-steps 400"),
        ({"langevin": {"samplers": [{"sampler": "gibbs", "ok": False}]}}, None),
        (
            {"langevin": {"samplers": [{"sampler": "langevin", "ok": None, "kinetic_temperature": 1.2}]}},
            "ebmvk certify",
        ),
        ({"splats": {"stores": [STORE | {"dead": 40, "active": 60}]}}, "--curriculum-target-splats 60"),
        ({"splats": {"stores": [STORE | {"twins": 20}]}}, "--curriculum-target-splats 80"),
        ({"splats": {"stores": [STORE | {"twins": 20, "dead": 40, "active": 60}]}}, "--curriculum-target-splats 60"),
        ({"splats": {"stores": [STORE | {"dead": 100, "active": 0}]}}, "--no-enable-soc"),
        ({"splats": {"stores": [STORE | {"twins": 20, "dead": None}]}}, "`ebmvk memory --checkpoint"),
        ({"splats": {"stores": [STORE | {"splats": 10**6, "twins": 20, "dead": None}]}}, "--splats 150000`"),
        ({"splats": {"stores": [STORE | {"coverage": 0.1}]}}, "--curriculum-target-splats"),
        ({"memory": OF_TRAINING | {"calibrated": 3.5, "with": 3.4}}, "`ebmvk memory --checkpoint"),
        ({"memory": OF_TRAINING | {"calibrated": 3.5, "with": 3.4, "tokens": 1279}}, None),
        ({"memory": OF_TRAINING | {"calibrated": 3.5, "with": 3.499}}, None),
        # These splats gain no more than a calibration of the model does.
        ({"memory": OF_TRAINING | {"without": 3.5, "calibrated": 3.4, "with": 3.395}}, None),
        ({"memory": {"gains": {"both": GAIN | {"low": None, "high": None, "method": "none"}}}}, None),
        ({"memory": {"gains": {"both": GAIN | {"low": 0.1, "method": "stretches"}}}}, None),
        ({"external": {"gain": GAIN | {"low": None, "high": None, "method": "none"}}}, None),
        (
            {"memory": {"signs": [SIGN]}},
            "static memory is switched off (its splats explain 0.01 %); remove --memory",
        ),
        ({"memory": _worse("memory")}, "--fit-on training`"),
        ({"external": _worse("external")}, "--no-use-memory"),
        (
            {"experts": {"layers": [{"layer": "a", "effective": 3.9}, {"layer": "b", "effective": 1.2}]}},
            "--moe-balance 0.1",
        ),
        ({"samples": {"model": {"repetition_rate": 0.4}, "human": TEXT}}, "--repetition-penalty 1.2"),
    ],
)
def test_each_problem_gets_one_recommendation(changes: dict[str, Any], said: str | None) -> None:
    found = recommendations(_subject(), _found(**changes))
    assert len(found) == (said is not None)
    assert said is None or said in found[0]
    for line in found:
        _follow(line, Config())


@pytest.mark.parametrize(
    ("settings", "changes", "said", "unsaid"),
    [
        ({"patience": 3}, {"convergence": {"verdict": "converging"}}, "--steps 2000 --patience 0`", None),
        ({}, {"convergence": {"verdict": "stalled"}}, "--lr", "--init"),
        ({"init": "uniform"}, {"convergence": {"verdict": "stalled"}}, "--init corpus", None),
        ({"enable_curriculum_learning": False}, {"splats": UNCOVERED}, "--n-splats-init 20000", None),
        ({"curriculum_target_splats": 100_000}, {"splats": UNCOVERED}, "splats 150000", None),
    ],
)  # fmt: skip
def test_a_recommendation_changes_the_setting(
    settings: dict[str, Any], changes: dict[str, Any], said: str, unsaid: str | None
) -> None:
    subject = _subject(**settings)
    (line,) = recommendations(subject, _found(**changes))
    assert said in line
    assert unsaid is None or unsaid not in line
    _follow(line, subject.run.config)


def test_more_splats_than_the_limit_are_not_recommended() -> None:
    subject = _subject(curriculum_target_splats=150_000)
    assert recommendations(subject, _found(splats=UNCOVERED)) == []


@pytest.mark.parametrize(
    "given",
    [
        {"perplexity": 300.0}, {"perplexity": 300.0, "epochs": 9.0}, {"nats": 6.0, "rose": True}, {"rate": 9.0},
    ],
)  # fmt: skip
def test_the_advice_of_training_can_be_followed(given: dict[str, Any]) -> None:
    well = {"perplexity": 30.0, "nats": 3.4, "train_nats": 3.3, "rose": False, "rate": 9e9, "epochs": 1.0}
    config = replace(Config(), {"size": "small"})
    (line,) = advice(config, **{**well, **given})
    _follow(line, config)


def _follow(line: str, config: Config) -> None:
    """Each command of a line is accepted, and each flag for a new run changes a setting."""
    for command in re.findall("`ebmvk ([^`]+)`", line):
        name, *args = shlex.split(command)
        COMMANDS[name](args if name == "train" or "--checkpoint" in args else ["--checkpoint", "run", *args], config)
    new = re.sub("`[^`]+`|remove --[^,:;]*", "", line)
    for flag, value in re.findall(r"(--[a-z][A-Za-z-]*)(?: ([\w.+-]+))?", new):
        _train([flag] if flag.startswith("--no-") else [flag, value], config)


def _train(args: list[str], config: Config) -> None:
    args = flags.fill_optional(args, "--resume", train.NEWEST)
    command = parsing.parse(
        train.TrainCommand, args, command="train", known=train.FLAGS, default=train.TrainCommand(**vars(config))
    )
    found = check(replace(config, resolve.merged({}, resolve.given_values(args, command.settings))))
    assert found != config
    if command.resume:
        check_resume(config, found)


def _memory(args: list[str], _config: Config) -> None:
    command = parsing.parse(memory.MemoryCommand, args, command="memory", known=memory.FLAGS)
    assert 1 <= command.splats <= MAX_SPLATS


def _generate(args: list[str], _config: Config) -> None:
    command = parsing.parse(generate.GenerateCommand, args, command="generate", known=generate.FLAGS)
    generate._check(command)
    generate._strategy(command, flags.flags_in(args))


def _certify(args: list[str], _config: Config) -> None:
    parsing.check_flags(args, certify.FLAGS, "certify")


COMMANDS = {"train": _train, "memory": _memory, "generate": _generate, "certify": _certify}


def test_absent_sections_recommend_nothing() -> None:
    found = {name: section for name, section in _found().items() if name in ("likelihood", "samples")}
    assert recommendations(_subject(), found) == []
