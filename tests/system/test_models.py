"""All commands work with every model, every decoder and every set of energy terms."""

from __future__ import annotations

import csv
import importlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from ebmvk import Model
from ebmvk.training import passes

from .conftest import Command, rows

STEADY = ("--deterministic", "--quiet", "--dropout", 0.2)
PLAIN = ("--model", "plain")
pytestmark = pytest.mark.usefixtures("no_pictures")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory, text: Path, tiny: Path, device: str) -> Path:
    """A finished run of the plain model, to be read only."""
    folder = tmp_path_factory.mktemp("plain") / "run"
    args = ["--run-dir", folder, "--dataset", text, "--config", tiny, "--device", device, *STEADY, *PLAIN]
    assert importlib.import_module("ebmvk.train").main([str(arg) for arg in args]) == 0
    return folder


@pytest.mark.usefixtures("little_search")
@pytest.mark.parametrize("flags", [PLAIN, pytest.param(("--no-use-splat",), marks=pytest.mark.slow)], ids=str)
def test_a_model_without_decoder_gets_a_memory(
    flags: tuple[str, ...], plain: Path, train: Command, ebmvk: Command, tmp_path: Path, device: str
) -> None:
    run = tmp_path / "run"
    if flags == PLAIN:
        shutil.copytree(plain, run)
    else:
        train(run, *STEADY, *flags, "--sample-tokens", 0)
    at = ("--checkpoint", run, "--device", device)
    assert ebmvk("memory", *at, "--splats", 60, "--quiet").status == 0
    said = ebmvk("evaluate", *at, "--memory", "both", "--json")
    assert said.status == 0, said.err
    tiers = json.loads(said.out)["tiers"]
    assert tiers["both"]["nats"] < tiers["none"]["nats"]  # eight steps of training leave much to remember
    said = ebmvk("generate", *at, "--sampler", "exact", "--memory", "both", "--max-tokens", 5)
    assert said.status == 0, said.err


def test_two_runs_compared_on_the_same_tokens(
    plain: Path, train: Command, ebmvk: Command, tmp_path: Path, device: str
) -> None:
    """The difference of a pair is that of its two figures; for a run with itself it is 0."""
    train(tmp_path / "short", *STEADY, *PLAIN, "--steps", 3)
    figures = {}
    for name, run in {"long": plain, "short": tmp_path / "short"}.items():
        said = ebmvk("evaluate", "--checkpoint", run, "--against", plain, "--device", device, "--json")
        assert said.status == 0, said.err
        figures[name] = json.loads(said.out)
    against = figures["short"]["against"]
    assert against["nats_per_token"] == pytest.approx(figures["long"]["nats_per_token"], abs=1e-12)
    own = figures["short"]["nats_per_token"] - figures["long"]["nats_per_token"]
    assert against["modes"]["none"]["nats_per_token"] == pytest.approx(own, abs=1e-9)
    own = figures["long"]["against"]["modes"]["none"]
    assert own == {"nats_per_token": 0.0, "low": None, "high": None, "method": "none", "documents": 1}

    train(tmp_path / "other", *STEADY, *PLAIN, "--steps", 1, "--vocab-size", 270)
    said = ebmvk("evaluate", "--checkpoint", plain, "--against", tmp_path / "other", "--device", device)
    assert said.status == 2
    assert "it has another tokenizer than" in said.err


@pytest.mark.usefixtures("little_search")
def test_a_run_compared_with_another_that_has_a_memory_of_its_own(
    plain: Path, train: Command, ebmvk: Command, tmp_path: Path, device: str
) -> None:
    """Each law of the one against the same cache with the other model: differences are those of the
    runs' own figures, and a run with its own memory differs from itself by nothing."""
    train(tmp_path / "short", *STEADY, "--steps", 3, "--sample-tokens", 0)
    shutil.copytree(plain, tmp_path / "other")
    short, other = ("--checkpoint", tmp_path / "short"), ("--checkpoint", tmp_path / "other")
    how = ("--device", device, "--json")
    for run in (short, other):
        said = ebmvk("memory", *run, "--splats", 0, "--device", device, "--quiet")
        assert said.status == 0, said.err
    alone, other_run = (json.loads(ebmvk("evaluate", *run, "--memory", "episodic", *how).out) for run in (short, other))
    episodic = ("--against", tmp_path / "other", "--against-memory", "episodic")
    said = ebmvk("evaluate", *short, "--memory", "episodic", *episodic, *how)
    assert said.status == 0, said.err
    against = json.loads(said.out)["against"]
    assert against["memory"] == "episodic"
    assert against["fitted_on"]["tokens"] == against["in_sample_tokens"] == other_run["in_sample_tokens"]
    base = other_run["tiers"]["episodic"]["nats_per_token"]
    assert base < other_run["tiers"]["none"]["nats_per_token"] - 0.01
    assert against["nats_per_token"] == pytest.approx(base, abs=1e-12)
    assert against["laws"] == pytest.approx({law: row["nats_per_token"] for law, row in other_run["tiers"].items()})
    assert set(against["modes"]) == {"none", "calibrated", "episodic"}
    for law, difference in against["modes"].items():
        own = alone["tiers"][law]["nats_per_token"] - base
        assert difference["nats_per_token"] == pytest.approx(own, abs=1e-9), law
    scrambled = json.loads(ebmvk("evaluate", *other, "--memory", "episodic", "--scramble-memory", *episodic, *how).out)
    assert scrambled["against"]["nats_per_token"] == pytest.approx(base, abs=1e-12)  # other_run is not scrambled
    small = ("--memory-capacity", 4, *how)  # of other_run, too
    bounded = json.loads(ebmvk("evaluate", *short, *episodic, *small).out)["against"]
    assert bounded["splats"]["episodic"] <= 4
    assert bounded["nats_per_token"] > base
    itself = json.loads(ebmvk("evaluate", *other, "--memory", "episodic", *episodic, *how).out)["against"]["modes"]
    assert itself["episodic"]["nats_per_token"] == 0
    said = ebmvk("evaluate", *short, *episodic, "--device", device)
    assert said.status == 0, said.err
    assert "with its own memory episodic: " in said.out
    assert "its memory fitted on " in said.out


def test_comparing_with_a_missing_memory_is_refused(plain: Path, ebmvk: Command) -> None:
    for flags, message in (
        (("--against-memory", "episodic"), "--against-memory episodic needs another run"),
        (("--against", plain, "--against-memory", "episodic"), "has no memory"),
        (
            ("--against", plain, "--against-memory", "static", "--split", "train"),
            "--against-memory static doesn't work with",
        ),
    ):
        said = ebmvk("evaluate", "--checkpoint", plain, *flags)
        assert said.status == 2
        assert message in said.err


def test_models_off_the_sphere_have_no_denoising_and_no_langevin(plain: Path, ebmvk: Command, device: str) -> None:
    run = plain
    assert {name for row in rows(run, "step") for name in row["parts"]} == {"ce"}
    for row in rows(run, "eval"):
        assert row["score_matching"] == []
        assert "langevin" not in row
    assert "exact, temperature 1" in (run / "samples.txt").read_text(encoding="utf-8")
    assert "Perplexity" in (run / "report.html").read_text(encoding="utf-8")
    assert "; exact, seed" in ebmvk("generate", "--checkpoint", run, "--device", device, "--max-tokens", 2).err
    said = ebmvk("generate", "--checkpoint", run, "--device", device, "--sampler", "langevin")
    assert said.status == 2
    assert "--sampler exact" in said.err
    said = ebmvk("certify", "--checkpoint", run, "--device", device, "--quick")
    assert said.status == 2
    assert "--model plain" in said.err


def test_a_seed_gives_every_model_the_same_text(
    train: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[tuple[str, ...], list[Any]] = {}
    objective = passes.objective
    for flags in ((), PLAIN, ("--decoder", "transformer", "--no-use-geometric")):

        def spy(model: Any, tokens: torch.Tensor, *args: Any, at: Any = flags, **more: Any) -> Any:
            seen.setdefault(at, []).append(tokens.tolist())
            return objective(model, tokens, *args, **more)

        monkeypatch.setattr(passes, "objective", spy)
        train(tmp_path / str(len(seen)), "--quiet", "--sample-tokens", 0, "--steps", 3, "--seed", 5, *flags)
    one, *others = seen.values()
    assert all(batches == one for batches in others)
    assert one[0] != one[1]


def test_a_checkpoint_without_a_newer_setting_gets_its_default(trained: Path, ebmvk: Command, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    path = run / "checkpoints" / "step-8" / "state.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    del manifest["sha256"]
    for key in ("use_splat", "decoder"):
        del manifest["state"]["model"][key]
    path.write_text(json.dumps(manifest), encoding="utf-8")
    config = run / "config.toml"
    lines = [
        line
        for line in config.read_text(encoding="utf-8").splitlines()
        if not line.startswith(("use_splat", "decoder"))
    ]
    config.write_text("\n".join(lines), encoding="utf-8")
    assert ebmvk("evaluate", "--checkpoint", run, "--limit", 20).status == 0
    config.write_text("\n".join(lines).replace("[model]", "[model]\nuse_splat = false"), encoding="utf-8")
    said = ebmvk("evaluate", "--checkpoint", run, "--limit", 20)
    assert said.status == 2
    assert "model.use_splat was True" in said.err


def test_a_model_without_energy_terms_is_refused(ebmvk: Command, tmp_path: Path) -> None:
    off = ("--no-use-splat", "--no-use-geometric", "--no-use-compositional")
    said = ebmvk("train", "--run-dir", tmp_path / "run", *off)
    assert said.status == 2
    assert "leave no energy term" in said.err


@pytest.mark.parametrize("switch", ["--no-use-splat", "--no-use-geometric", "--decoder none"])
def test_a_switch_of_another_model_is_refused(switch: str, ebmvk: Command, tmp_path: Path) -> None:
    said = ebmvk("train", "--run-dir", tmp_path / "run", "--model", "plain", *switch.split())
    assert said.status == 2
    assert f"{switch} doesn't work with --model plain" in said.err


def test_accumulated_batches_equal_one_large_batch(train: Command, tmp_path: Path) -> None:
    """Eight windows at once, or four times two: the same text and, up to rounding, the same
    gradient."""
    for name, flags in {"one": ("--batch-size", 8), "four": ("--batch-size", 2, "--accumulation-steps", 4)}.items():
        train(tmp_path / name, "--deterministic", "--quiet", "--precision", "float32", "--dropout", 0, *PLAIN, *flags)
    one, four = ([row["parts"]["ce"] for row in rows(tmp_path / name, "step")] for name in ("one", "four"))
    assert four == pytest.approx(one, rel=1e-3)
    assert four != one


def test_patience_ends_a_run(train: Command, ebmvk: Command, tmp_path: Path) -> None:
    """Nothing is learned, so no evaluation is better than the first; with more patience the run
    continues."""
    run = tmp_path / "run"
    said = train(run, *PLAIN, "--lr", 1e-12, "--patience", 2, "--eval-every", 1, "--steps", 9)
    assert "stopped early" in said.out
    assert rows(run, "end")[-1]["step"] == 3
    assert (run / "report.html").is_file()
    train(run, "--resume", "--patience", 4)
    assert rows(run, "end")[-1]["step"] == 5


@pytest.mark.parametrize("model", ["ebm", pytest.param("minillm", marks=pytest.mark.slow)])
def test_windows_from_single_documents_score_the_same_tokens(
    model: str, ebmvk: Command, tiny: Path, tmp_path: Path
) -> None:
    """Windows have unequal lengths in training, consolidation and evaluation; the same tokens are
    scored."""
    text = tmp_path / "documents.txt"
    text.write_text("\n<|doc|>\n".join("It is a fish. " * (i % 4) + "Yes." for i in range(90)), encoding="utf-8")
    flags = ("--dataset", text, "--config", tiny, "--model", model, "--quiet", "--sample-tokens", 0)
    for name, how in {"apart": ("--windows", "document", "--stride", 9), "stream": ("--windows", "stream")}.items():
        said = ebmvk("train", "--run-dir", tmp_path / name, *flags, *how)
        assert said.status == 0, said.err
    found = []
    for name in ("apart", "stream"):
        said = ebmvk("evaluate", "--checkpoint", tmp_path / name, "--json")
        assert said.status == 0, said.err
        found.append(json.loads(said.out))
    assert found[0]["tokens"] == found[1]["tokens"]
    seen = [rows(tmp_path / name, "end")[-1]["progress"]["tokens"] for name in ("apart", "stream")]
    assert seen[0] < seen[1]  # short windows


def test_attention_and_experts_as_files_and_in_the_report(
    train: Command, ebmvk: Command, trained: Path, device: str, tmp_path: Path
) -> None:
    run = tmp_path / "moe"
    train(run, "--model", "tinygpt", "--use-moe", "--moe-active", 1, "--quiet")
    for folder, experts in ((run, 3), (trained, 1)):
        said = ebmvk(
            "attention", "--checkpoint", folder, "--device", device, "--text", "the cat", "--out", tmp_path / "a"
        )
        assert said.status == 0, said.err
        found = json.loads((tmp_path / "a" / "attention.json").read_text(encoding="utf-8"))
        assert "".join(found["tokens"]) == "<|endoftext|>the cat"
        assert len(found["experts"]) == experts
        with (tmp_path / "a" / "experts.csv").open(encoding="utf-8", newline="") as file:
            table = list(csv.DictReader(file))
        assert {row["layer"] for row in table} == {own["layer"] for own in found["experts"]}
        for own in found["experts"]:  # tokens and their shares add up to the experts' loads
            assert sum(own["load"]) == pytest.approx(1, abs=1e-3)
            rows_of = [row for row in table if row["layer"] == own["layer"]]
            total = sum(int(row["count"]) for row in rows_of)
            for expert, load in enumerate(own["load"], start=1):
                share = sum(int(row["count"]) * float(row[f"expert {expert}"]) for row in rows_of) / total
                assert share == pytest.approx(load, abs=1e-3)
        assert (tmp_path / "a" / "attention.svg").read_text(encoding="utf-8").count("<image") == sum(
            len(layer["weights"]) for layer in found["attention"]
        )
        page = (folder / "report.html").read_text(encoding="utf-8")
        assert "<h2>Attention</h2>" in page
        assert "<h2>Experts</h2>" in page
    said = ebmvk("attention", "--checkpoint", run, "--device", device, "--tokens", 0, "--out", tmp_path)
    assert said.status == 2
    assert "--tokens 0" in said.err


def test_a_plain_model_opens_in_python(plain: Path, device: str) -> None:
    model = Model.open(plain, device=device)
    assert len(model.generate("the cat", 5)) > 0
    found = model.neighbors("the cat", 3)
    assert [near.cosine for near in found] == sorted((near.cosine for near in found), reverse=True)
    assert all(abs(near.cosine) <= 1 + 1e-6 for near in found)
    assert model.embed("the cat").norm() == pytest.approx(1, abs=1e-5)
