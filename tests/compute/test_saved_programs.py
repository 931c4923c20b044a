"""Tests that steps on a device whose programs are read from disk give the same bits, and aren't
compiled again."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from vulkan_open import open_vulkan

from ebmvk.compute import programs
from ebmvk.compute.step import CompiledStep, compile_step
from ebmvk.engine.recording import Recorder
from ebmvk.errors import UnsupportedOperation

pytestmark = pytest.mark.usefixtures("extension")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EBMVK_CACHE_DIR", str(tmp_path))
    return tmp_path


class Step:
    """Least squares by gradient descent. factor: a constant that multiplies the gradient."""

    def __init__(self, factor: float = 1.0) -> None:
        self.factor = factor

    def __call__(self, parameters: Any, state: Any, batch: Any, scalars: Any) -> Any:
        weight = parameters["w"].detach().requires_grad_()
        loss = ((batch["x"] @ weight - batch["y"]) ** 2).mean()
        (gradient,) = torch.autograd.grad(loss, weight)
        moment = 0.9 * state["m"] + self.factor * gradient
        return {"w": parameters["w"] - scalars["lr"] * moment}, {"m": moment}, {"loss": loss.detach()}


def arguments(rows: int = 5) -> Any:
    chance = torch.Generator().manual_seed(0)
    batch = {name: torch.randn(rows, size, generator=chance) for name, size in (("x", 3), ("y", 2))}
    return {"w": torch.randn(3, 2, generator=chance)}, {"m": torch.zeros(3, 2)}, batch, {"lr": torch.tensor(0.1)}


def results(step: CompiledStep, given: Any) -> list[bytes]:
    parameters, state, record = step(*given)
    return [own.numpy().tobytes() for own in (parameters["w"], state["m"], record["loss"])]


def saved(step: CompiledStep) -> list[bool]:
    return [made.saved for made in step.programs.values()]


def test_a_saved_program_has_the_same_bits_and_is_not_compiled_again(
    folder: Path, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    fresh = compile_step(Step(), device=recorder)
    want = results(fresh, arguments())
    assert saved(fresh) == [False]
    for module, name in ((programs, "finished"), (programs, "fuse"), (programs, "lower")):
        monkeypatch.setattr(module, name, lambda *_, name=name, **__: pytest.fail(f"{name} was called"))
    monkeypatch.setattr("ebmvk.compute.compiled.make_plan", lambda *_, **__: pytest.fail("make_plan was called"))
    again = compile_step(Step(), device=recorder)
    assert results(again, arguments()) == want
    assert saved(again) == [True]
    assert len(list((folder / "programs").iterdir())) == 1


def test_another_process_finds_the_program(folder: Path, recorder: Recorder) -> None:
    program = (
        "import test_saved_programs as tests\n"
        "from ebmvk.compute.step import compile_step\n"
        "from ebmvk.engine.recording import Recorder\n"
        "step = compile_step(tests.Step(), device=Recorder(tests.open_vulkan()))\n"
        "print([own.hex() for own in tests.results(step, tests.arguments())], tests.saved(step))"
    )
    here = Path(__file__).parent
    paths = [here.parents[1], here, here.parent / "ops"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, paths)), "PYTHONHASHSEED": "7"}
    found = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    here_too = compile_step(Step(), device=recorder)
    want = [own.hex() for own in results(here_too, arguments())]
    assert found.stdout.strip() == f"{want} [False]"
    assert saved(here_too) == [True]


def test_other_constants_shapes_and_devices_are_other_programs(folder: Path, recorder: Recorder) -> None:
    first = compile_step(Step(), device=recorder)
    want = results(first, arguments())
    other = compile_step(Step(factor=2.0), device=recorder)
    assert results(other, arguments()) != want
    rows = compile_step(Step(), device=recorder)
    results(rows, arguments(rows=6))
    narrow = compile_step(Step(), device=Recorder(open_vulkan(pretend="smallest")))
    results(narrow, arguments())
    unchecked = compile_step(Step(), device=recorder, check=False)
    assert results(unchecked, arguments()) == want
    assert [saved(step) for step in (first, other, rows, narrow, unchecked)] == [[False]] * 5


def test_a_damaged_program_is_compiled_again(folder: Path, recorder: Recorder) -> None:
    want = results(compile_step(Step(), device=recorder), arguments())
    (path,) = (folder / "programs").iterdir()
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 64
    path.write_bytes(data)
    again = compile_step(Step(), device=recorder)
    with pytest.warns(RuntimeWarning, match="it is damaged"):
        assert results(again, arguments()) == want
    assert saved(again) == [False]
    third = compile_step(Step(), device=recorder)
    assert results(third, arguments()) == want
    assert saved(third) == [True]


def test_a_step_that_changes_after_its_trace_is_refused_with_a_saved_program(folder: Path, recorder: Recorder) -> None:
    """The step has the same graph as a sound step, whose program is on disk."""

    class Counting(Step):
        def __call__(self, *given: Any) -> Any:
            found = super().__call__(*given)
            self.factor += 1
            return found

    class Sound(Step):
        def __call__(self, *given: Any) -> Any:
            return super().__call__(*given)

    results(compile_step(Sound(), device=recorder), arguments())
    with pytest.raises(UnsupportedOperation, match="isn't the step itself"):
        results(compile_step(Counting(), device=recorder), arguments())


def test_nothing_is_kept_if_the_cache_is_off(
    tmp_path: Path, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EBMVK_CACHE_DIR", "off")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        step = compile_step(Step(), device=recorder)
        results(step, arguments())
        assert saved(step) == [False]
    assert list(tmp_path.iterdir()) == []
