"""`ebmvk certify`: what it prints and writes, and its exit status."""

from __future__ import annotations

import json
import re
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from ebmvk.certification import contexts, evidence, suite
from ebmvk.certification.results import Sizes
from ebmvk.cli.certify import CertifyCommand, _contexts
from ebmvk.engine.cpu import Cpu
from ebmvk.engine.device import open_device

TINY = Sizes(1000, 400, looks=24, long_chains=1, long_steps=2000, token_chains=100, token_dimension=16)


@pytest.fixture(autouse=True)
def _tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suite, "sizes_for", lambda backend, quick: TINY)
    monkeypatch.setattr(contexts, "synthetic", partial(contexts.synthetic, count=2))
    monkeypatch.setattr(evidence, "MOST_STEPS", 200)


@pytest.mark.slow
def test_a_right_device_exits_with_0(ebmvk: Any, tmp_path: Path) -> None:
    said = ebmvk(
        "certify", "--device", "cpu", "--json", tmp_path / "figures" / "all.json", "--plots", tmp_path / "plots"
    )
    assert said.status == 0, said.out
    assert "FAIL" not in said.out
    assert "made-up laws" in said.out
    mutants = len(suite.CAUGHT_BY) + len(suite.SEEN_BY)
    assert f"{mutants} of {mutants} mutants are caught" in said.out
    record = json.loads((tmp_path / "figures" / "all.json").read_text(encoding="utf-8"))
    assert record["ok"]
    assert {check["number"] for check in record["checks"]} == set(range(1, 13))
    names = [check["name"] for check in record["checks"]]
    assert len(names) == len(set(names))
    named = {mutant: name for mutant, (_, name) in [*suite.CAUGHT_BY.items(), *suite.SEEN_BY.items()]}
    assert [mutant["mutant"] for mutant in record["mutants"]] == list(named)
    assert all(mutant["check"]["name"].endswith(named[mutant["mutant"]]) for mutant in record["mutants"])
    values = [check["p"] for check in record["checks"] if check["p"] is not None]
    assert record["alpha"] == pytest.approx(1e-3 / len(values))
    pictures = {path.name for path in (tmp_path / "plots").iterdir()}
    assert {"energy-error.svg", "bias.svg", "tokens.svg", "weights-ghmc.svg", "vmf-d8-ghmc.svg"} <= pictures
    assert all(path.read_text(encoding="utf-8").rstrip().endswith("</svg>") for path in (tmp_path / "plots").iterdir())


class Hot(Cpu):
    """Runs chains at 1.1 times the temperature."""

    def langevin(self, *args: Any, temperature: float = 1.0, **more: Any) -> Any:
        return super().langevin(*args, temperature=1.1 * temperature, **more)


class Broken(Cpu):
    """Ends chains a little off the sphere."""

    def langevin(self, *args: Any, **more: Any) -> Any:
        found = super().langevin(*args, **more)
        return type(found)(1.001 * found.x, found.v, found.diagnostics)


def test_a_wrong_device_exits_with_1(ebmvk: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # What does not matter here is left out.
    kept = {name: suite.SAMPLING[name] for name in ("1 constraints", "5 equipartition, free")}
    monkeypatch.setattr(suite, "SAMPLING", kept)
    monkeypatch.setattr(suite, "MIXING", {})
    monkeypatch.setattr(suite, "CAUGHT_BY", {})
    monkeypatch.setattr(suite, "SEEN_BY", {})
    failed = {}
    for backend in (Hot(), Broken()):
        monkeypatch.setattr("ebmvk.engine.device.open_choice", lambda _, backend=backend: backend)
        said = ebmvk("certify", "--device", "cpu", "--json", tmp_path / "wrong.json")
        assert said.status == 1
        assert "FAIL" in said.out
        checks = json.loads((tmp_path / "wrong.json").read_text(encoding="utf-8"))["checks"]
        failed[type(backend)] = {check["name"] for check in checks if not check["ok"]}
    assert "equipartition, free, gbaoab" in failed[Hot]
    assert "cpu = float64 reference, gbaoab" in failed[Hot]
    assert not {"constraints, gbaoab", "constraints, ghmc"} & failed[Hot]
    assert {"constraints, gbaoab", "constraints, ghmc"} <= failed[Broken]


def test_an_uncaught_mutant_exits_with_1(ebmvk: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    test, name = suite.CAUGHT_BY["no transport"]
    monkeypatch.setattr(suite, "SAMPLING", {"3 rotation": test})
    monkeypatch.setattr(suite, "MIXING", {})
    # GHMC's momentum flip plays no part if nothing is rejected.
    monkeypatch.setattr(suite, "CAUGHT_BY", {"no negation": (test, name)})
    monkeypatch.setattr(suite, "SEEN_BY", {})
    said = ebmvk("certify", "--device", "cpu")
    assert said.status == 1
    assert "0 of 1 mutants are caught" in said.out


def test_certify_takes_contexts_from_a_checkpoint(
    ebmvk: Any, trained: Path, monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    monkeypatch.setattr(suite, "SAMPLING", {})
    monkeypatch.setattr(suite, "MIXING", {})
    monkeypatch.setattr(suite, "CAUGHT_BY", {})
    monkeypatch.setattr(suite, "SEEN_BY", {})
    said = ebmvk("certify", "--device", device, "--checkpoint", trained)
    assert said.status == 0, said.out + said.err
    assert "20 contexts of made-up" in said.out
    assert len(re.findall(r"^ok +8 +tokens, context", said.out, re.MULTILINE)) == 20


@pytest.mark.usefixtures("little_search")
def test_contexts_consult_the_memory_of_a_checkpoint(ebmvk: Any, trained: Path, tmp_path: Path, device: str) -> None:
    """Every second context then has another law, which is normalised, too."""
    path = shutil.copytree(trained, tmp_path / "run")
    command, backend = CertifyCommand(device, checkpoint=path), open_device(device).backend
    before = _contexts(command, TINY, backend)
    assert ebmvk("memory", "--checkpoint", path, "--splats", 30, "--device", device).status == 0
    after = _contexts(command, TINY, backend)
    assert "static memory" in after.source
    assert "static memory" not in before.source
    assert before.log_p[::2].equal(after.log_p[::2])
    assert float((before.log_p[1::2] - after.log_p[1::2]).abs().amax(1).min()) > 0
    torch.testing.assert_close(after.log_p.exp().sum(1), torch.ones(20))


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--device", "abacus"], "abacus"),
        (["--devise", "cpu"], "--device"),
        (["--seed", "-1"], "--seed"),
        (["--device", "cpu", "--checkpoint", "/nowhere/run"], "--checkpoint"),
    ],
    ids=str,
)
def test_bad_arguments_exit_with_2(ebmvk: Any, args: list[str], words: str) -> None:
    said = ebmvk("certify", *args)
    assert said.status == 2
    assert words in said.err
    assert "try:" in said.err
