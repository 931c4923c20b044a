"""The package as Python code and editors see it: signatures, completion, help, examples that
run."""

from __future__ import annotations

import dataclasses
import doctest
import importlib
import inspect
import pydoc
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import ebmvk as package
from ebmvk import Diagnosed, Energy, Evaluated, Model, NearSplat, NearToken, Strategy, Trained
from ebmvk.cli.signatures import UNSETTLED
from ebmvk.cli.train import asked
from ebmvk.config.models import MODELS
from ebmvk.config.schema import SIZES, items

FUNCTIONS = ("diagnose", "evaluate", "export", "train")


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_signature_has_the_settings_of_its_command(name: str) -> None:
    function = getattr(package, name)
    own = inspect.signature(function).parameters
    flags = importlib.import_module(f"ebmvk.cli.{name}").FLAGS
    named = [parameter for parameter in own if own[parameter].kind is not inspect.Parameter.VAR_KEYWORD]
    assert {f"--{setting.replace('_', '-')}" for setting in named} <= set(flags)
    assert "json" not in named


def test_settings_have_types_and_defaults() -> None:
    own = inspect.signature(package.train).parameters
    assert {"size", "dataset", "steps", "learning_rate", "run_dir", "resume", "preset"} <= set(own)
    assert str(own["grad_clip"]) == "grad_clip: float = 1.0"
    assert str(own["batch_size"]) == "batch_size: int = ..."
    assert (own["run_dir"].annotation, own["run_dir"].default) == (Path | None, None)
    assert "dry_run" not in own
    inspect.signature(package.train).bind(size="nano", lr=1e-3)
    assert "limit: int | None = None" in pydoc.render_doc(package.evaluate)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("size", SIZES)
def test_the_signature_of_train_shows_no_default_that_a_run_does_not_use(size: str, model: str) -> None:
    given = ("--size", size, "--model", model, "--dataset", "builtin")
    used = {name: value for _, name, value in items(asked(given)[1].config)}
    shown = {name: own.default for name, own in inspect.signature(package.train).parameters.items()}
    wrong = {name for name in used.keys() - {"size", "model"} if shown[name] not in (UNSETTLED, used[name])}
    assert wrong == set()
    assert "`...`" in pydoc.render_doc(package.train)


@pytest.mark.parametrize("method", [Model.generate, Model.generate_all, Model.stream])
def test_methods_that_write_show_the_settings_of_a_strategy(method: Callable[..., Any]) -> None:
    own = inspect.signature(method).parameters
    assert {entry.name for entry in dataclasses.fields(Strategy)} <= set(own)
    assert str(own["temperature"]) == "temperature: 'float' = 1.0"
    assert "settings" not in own


def test_importing_a_command_builds_no_signature() -> None:
    code = (
        "import ebmvk.train, sys; from ebmvk.cli.signatures import signature_of;"
        "sys.exit(signature_of.cache_info().currsize)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_completion_shows_public_names_only(trained: Path, device: str) -> None:
    assert dir(package) == sorted(package.__all__)
    model = Model.open(trained, device=device)
    assert {"d", "embed", "generate", "neighbors", "open", "stream"} <= set(dir(model))
    assert not [name for name in dir(model) if name.startswith("_")]
    assert repr(model) == f"<ebmvk.Model {model.name}>"


def _results() -> Iterator[tuple[Any, str]]:
    """(result with long contents, what its `repr` begins with)."""
    figures = {"bits_per_byte": 2.0641, "record": "x" * 1000}
    trained = partial(Trained, outcome="finished", step=300, validation=figures, trigram=figures | {"bits_per_byte": 2})
    yield trained(Path("runs/first")), "Trained(runs/first, finished at step 300, 2.064 bits per byte (trigram 2.000))"
    yield trained(Path("/long" * 40 + "/last")), "Trained(…"
    yield Trained(Path("runs/first"), "stopped", 2, None, None), "Trained(runs/first, stopped at step 2)"
    evaluated = Evaluated(3.01, 20.31, None, 2.1423, 29_734, 0, 60_305, figures)
    yield evaluated, "Evaluated(2.1423 bits per byte, perplexity 20.31 per token, 29,734 tokens)"
    yield Diagnosed("converged", "is flat " * 40, ["one"], figures), "Diagnosed(converged, 1 recommendation, is flat"
    yield Diagnosed(None, None, [], figures), "Diagnosed(no verdict, 0 recommendations)"
    yield Energy(["a"] * 1000, torch.ones(1000).double()), "Energy(1,000 tokens, 1000.0000 nats)"
    yield NearToken(5, " of", 0.9), "NearToken(id=5, text=' of', cosine=0.9)"
    tokens = [(f" word{i}", 0.1) for i in range(50)]
    yield NearSplat(3, 0.9, 12.0, 40.5, tokens), "NearSplat(id=3, cosine=0.9000, mass=40.5, ' word0' 0.10 ' word1' 0.10"


@pytest.mark.parametrize(("result", "begins"), list(_results()), ids=[begins[:20] for _, begins in _results()])
def test_a_result_is_shown_as_one_short_line(result: Any, begins: str) -> None:
    assert repr(result).startswith(begins)
    assert len(repr(result)) <= 100
    assert "\n" not in repr(result)


class _AnyOutput(doctest.OutputChecker):
    """Accepts any output of an example that shows none."""

    def check_output(self, want: str, got: str, optionflags: int) -> bool:
        return not want or super().check_output(want, got, optionflags)


def _documented() -> Iterator[tuple[str, Any]]:
    """(name, object) of everything whose examples run here. `train` is left out: its example takes
    minutes."""
    yield "ebmvk", package
    yield "Model", Model
    for name, method in inspect.getmembers(Model, callable):
        if not name.startswith("_"):
            yield name, method
    for name in ("diagnose", "evaluate", "export"):
        yield name, getattr(importlib.import_module(f"ebmvk.cli.{name}"), name)


@pytest.mark.parametrize(("name", "documented"), list(_documented()), ids=[name for name, _ in _documented()])
def test_examples_in_docstrings_run(
    name: str, documented: Any, trained: Path, device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    examples = doctest.DocTestParser().get_examples(inspect.getdoc(documented) or "")
    shutil.copytree(trained, tmp_path / "runs" / "first")
    monkeypatch.chdir(tmp_path)
    known = {"ebmvk": package}
    if name not in FUNCTIONS and examples:
        known["model"] = Model.open("runs/first", device=device)
    told: list[str] = []
    runner = doctest.DocTestRunner(_AnyOutput(), optionflags=doctest.ELLIPSIS, verbose=False)
    result = runner.run(doctest.DocTest(examples, known, name, None, None, None), out=told.append)
    assert result.failed == 0, "".join(told)


def test_most_public_methods_have_an_example() -> None:
    without = [name for name, method in _documented() if ">>>" not in (inspect.getdoc(method) or "")]
    assert set(without) <= {"generateV2", "generate_all", "generate_greedy", "generate_nucleus", "splats"}
