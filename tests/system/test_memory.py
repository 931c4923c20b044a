"""Memory through the commands: built, kept with its checkpoint, evaluated tier by tier, causal, refused with why."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from ebmvk import evaluate
from ebmvk.data.datasets import resolve
from ebmvk.data.windows import TokenStream, encode_split
from ebmvk.splats.memory import TIERS, Memory, Mode, Reader
from ebmvk.training.evaluation import paired_interval, token_nats
from ebmvk.training.fitted_on import FittedOn
from ebmvk.training.memory import MEMORY_FILE, Fit, Reading, build_static, first_documents, load
from ebmvk.training.workspace import open_device, open_run

from .conftest import Command, launched


@pytest.fixture(scope="module")
def remembered(tmp_path_factory: pytest.TempPathFactory, trained: Path, device: str) -> Path:
    """The finished run with a memory, to be read only."""
    import importlib

    folder = tmp_path_factory.mktemp("remembered") / "run"
    shutil.copytree(trained, folder)
    args = ["--checkpoint", folder, "--splats", 60, "--device", device, "--quiet"]
    assert importlib.import_module("ebmvk.memory").main([str(arg) for arg in args]) == 0
    return folder


def _evaluate(ebmvk: Command, folder: Path, device: str, *args: Any) -> dict[str, Any]:
    said = ebmvk("evaluate", "--checkpoint", folder, "--device", device, "--json", *args)
    assert said.status == 0, said.err
    record: dict[str, Any] = json.loads(said.out)
    return record


def test_every_tier_is_reported_apart_and_scrambling_loses_the_gain(
    ebmvk: Command, remembered: Path, device: str
) -> None:
    alone = _evaluate(ebmvk, remembered, device)
    found = _evaluate(ebmvk, remembered, device, "--memory", "both")
    scrambled = _evaluate(ebmvk, remembered, device, "--memory", "both", "--scramble-memory")
    assert alone["tiers"] == {}
    assert set(found["tiers"]) == set(TIERS)
    assert found["tiers"]["none"]["nats"] == pytest.approx(alone["nats"], rel=1e-6)
    assert found["nats"] == found["tiers"]["both"]["nats"]
    assert found["splats"]["static"] <= 60
    # Eight steps of training leave much to remember.
    for mode in ("static", "episodic", "both"):
        gain = found["tiers"][mode]["gain"]
        assert gain["low"] <= gain["nats_per_token"] <= gain["high"] < 0
        lost = scrambled["tiers"][mode]["gain"]["nats_per_token"]
        assert lost > gain["nats_per_token"] / 2, mode


def test_static_and_episodic_alone_are_the_same_figures(ebmvk: Command, remembered: Path, device: str) -> None:
    both = _evaluate(ebmvk, remembered, device, "--memory", "both")["tiers"]
    for mode in ("static", "episodic"):
        alone = _evaluate(ebmvk, remembered, device, "--memory", mode)["tiers"]
        assert set(alone) == {"none", mode}
        assert alone[mode]["nats"] == pytest.approx(both[mode]["nats"], rel=1e-9)


def test_a_memory_that_is_spread_over_processes_is_the_same(remembered: Path, tmp_path: Path, ebmvk: Command) -> None:
    """Look-ups of both tiers by three processes; the first of them tells."""
    args = ["--checkpoint", str(remembered), "--device", "cpu", "--memory", "both", "--json"]
    one, *others = launched(3, lambda: evaluate.main(args), tmp_path)
    assert (one.status, one.err) == (0, "")
    assert [(said.status, said.out, said.err) for said in others] == [(0, "", "")] * 2
    found, whole = json.loads(one.out), _evaluate(ebmvk, remembered, "cpu", "--memory", "both")
    for mode, figures in whole["tiers"].items():
        assert found["tiers"][mode]["nats"] == figures["nats"]


def test_capacity_bounds_the_splats(ebmvk: Command, remembered: Path, device: str) -> None:
    found = _evaluate(ebmvk, remembered, device, "--memory", "episodic", "--memory-capacity", 40)
    assert 20 <= found["splats"]["episodic"] <= 40


def test_the_future_changes_no_bit(remembered: Path, text: Path) -> None:
    """Tokens from a point on are permuted: the likelihood of those before is the same, bit for bit, in every tier."""
    run, device = open_run(remembered, "--checkpoint", print), open_device("cpu")
    stream = encode_split(resolve(str(text)), "validation", run.tokenizer).take(200)
    memory = load(run.checkpoint.path, run.model, "both").using(40, scramble=False)
    random = torch.Generator().manual_seed(0)

    def nats(of: TokenStream) -> dict[Mode, torch.Tensor]:
        reader = Reader(memory, "both", device.backend)
        return token_nats(run.model, of, context=16, stride=8, device=device.torch, reader=reader)

    whole = nats(stream)
    for cut in (1, 60, 133):
        later = cut + torch.randperm(len(stream) - cut, generator=random)
        order = torch.cat((torch.arange(cut), later)).numpy()
        changed = nats(TokenStream(stream.name, stream.tokens[order], stream.starts, stream.word_level))
        for mode in TIERS:
            assert torch.equal(whole[mode][: cut - 1], changed[mode][: cut - 1]), (mode, cut)
            assert not torch.equal(whole[mode], changed[mode])


def test_the_interval_is_by_document() -> None:
    """Two documents, one worse by 1 nat, one better by 2: every resampling is a mixture of the two."""
    import numpy as np

    base = torch.zeros(30, dtype=torch.float64)
    nats = torch.cat((torch.full((9,), 1.0), torch.full((21,), -2.0))).double()
    mean, low, high = paired_interval(nats, base, np.array([0, 10]))
    assert mean == pytest.approx((9 - 42) / 30)
    assert (low, high) == (-2, 1)


@pytest.mark.parametrize("mode", ["static", "episodic", "both"])
def test_generate_uses_the_memory_and_repeats_by_seed(mode: str, ebmvk: Command, remembered: Path, device: str) -> None:
    args = ("--checkpoint", remembered, "--device", device, "--prompt", "The cat", "--max-tokens", 12, "--quiet")
    texts = [ebmvk("generate", *args, "--sampler", "exact", "--memory", m).out for m in (mode, mode, "none")]
    assert texts[0] == texts[1]
    assert texts[0] != texts[2]
    said = ebmvk("generate", *args, "--memory", mode)  # by Langevin
    assert said.status == 0, said.err


def test_prompts_do_not_read_one_another(ebmvk: Command, remembered: Path, device: str) -> None:
    args = ("--checkpoint", remembered, "--device", device, "--max-tokens", 8, "--sampler", "exact", "--quiet")
    both = ebmvk("generate", *args, "--memory", "both", "--prompt", "The cat sees", "She likes fish.").out
    alone = ebmvk("generate", *args, "--memory", "both", "--prompt", "The cat sees").out
    assert both.startswith(alone.rstrip("\n"))


def test_what_cannot_be_remembered_is_said(
    ebmvk: Command, trained: Path, remembered: Path, device: str, tmp_path: Path
) -> None:
    def error(command: str, folder: Path, *args: Any) -> str:
        said = ebmvk(command, "--checkpoint", folder, "--device", device, *args)
        assert said.status == 2
        assert "Traceback" not in said.err
        return said.err

    assert "has no memory" in error("evaluate", trained, "--memory", "episodic")
    assert "has no memory" in error("generate", trained, "--memory", "static")
    blank = tmp_path / "a run"  # what is said to be typed has to be one word to a shell
    shutil.copytree(trained, blank)
    assert f"`ebmvk memory --checkpoint '{blank}/checkpoints/" in error("evaluate", blank, "--memory", "episodic")
    assert "with --split train" in error("evaluate", remembered, "--memory", "static", "--split", "train")
    for few in (0, 1):
        said = error("evaluate", remembered, "--memory", "both", "--memory-capacity", few)
        assert f"--memory-capacity {few} is below 2" in said
    assert "--memory-capacity needs a memory" in error("evaluate", remembered, "--memory-capacity", 5)
    assert "--scramble-memory needs a memory" in error("evaluate", remembered, "--scramble-memory")
    assert "--splats 200000 is not within" in error("memory", trained, "--splats", 200_000)
    assert "fewer than --splats 150,000" in error("memory", trained, "--splats", 150_000)
    folder = tmp_path / "run"
    shutil.copytree(remembered, folder)
    file = next(folder.glob(f"checkpoints/*/{MEMORY_FILE}"))
    content = file.read_bytes()
    file.write_bytes(content[:-100])
    assert "cannot be read" in error("evaluate", folder, "--memory", "static")
    # The memory of one checkpoint beside the weights of another.
    other = next(path for path in folder.glob("checkpoints/step-*") if path != file.parent)
    (other / MEMORY_FILE).write_bytes(content)
    assert "built for other weights" in error("evaluate", other, "--memory", "static")


def test_fitted_on_the_training_text_without_itself(ebmvk: Command, trained: Path, device: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    said = ebmvk("memory", "--checkpoint", folder, "--splats", 60, "--device", device, "--fit-on", "training")
    assert said.status == 0, said.err
    covered = re.search(r"covers ([0-9.]+)% of", said.out)
    assert covered
    assert float(covered[1]) >= 80
    run = open_run(folder, "--checkpoint", print)
    memory = load(run.checkpoint.path, run.model, "both")
    chosen = {"static": memory.share, "episodic": memory.episodic.share}
    for tier, share in chosen.items():
        tried = {float(s): float(n) for s, n in re.findall(rf"{tier} +share ([0-9.]+): ([0-9.]+)", said.out)}
        assert len(tried) >= 2
        assert share in tried
        assert tried[share] == min(tried.values())
    tiers = _evaluate(ebmvk, folder, device, "--memory", "both")["tiers"]
    assert tiers["static"]["gain"]["high"] < 0
    assert tiers["both"]["gain"]["high"] < 0


def test_figures_on_what_was_fitted_on_are_said_to_be_in_sample(
    ebmvk: Command, remembered: Path, trained: Path, text: Path, device: str, tmp_path: Path
) -> None:
    """Of validation by default, all of it or its beginning; of the training text's beginning; of no other text."""
    (tmp_path / "other.txt").write_text("The old king paints a house. " * 9, encoding="utf-8")
    found = _evaluate(ebmvk, remembered, device, "--memory", "static")
    assert (found["fitted_on"]["text"], found["fitted_on"]["fit_on"]) == ("made-up/validation", "validation")
    assert found["fitted_on"]["contexts"] > found["fitted_on"]["tokens"] == found["tokens"] == found["in_sample_tokens"]
    args = ("--memory", "episodic")
    assert _evaluate(ebmvk, remembered, device, *args, "--limit", 70)["in_sample_tokens"] == 70
    for other in (("--test-file", tmp_path / "other.txt"), ("--split", "train", "--limit", 50)):
        assert _evaluate(ebmvk, remembered, device, *args, *other)["in_sample_tokens"] == 0
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    flags = ("--splats", 0, "--device", device, "--fit-on", "training", "--quiet")
    assert ebmvk("memory", "--checkpoint", folder, *flags).status == 0
    assert _evaluate(ebmvk, folder, device, *args)["in_sample_tokens"] == 0
    read = _evaluate(ebmvk, folder, device, *args, "--split", "train")
    assert 0 < read["in_sample_tokens"] == read["fitted_on"]["tokens"] <= read["tokens"] / 10
    said = ebmvk("evaluate", "--checkpoint", folder, "--device", device, *args, "--split", "train")
    assert f"{read['in_sample_tokens']:,} of the {read['tokens']:,} here, so that figures" in said.out


def test_a_memory_that_does_not_say_what_it_was_fitted_on(
    ebmvk: Command, remembered: Path, device: str, tmp_path: Path
) -> None:
    """Of an earlier version it is read; what says anything else than it should is damaged."""
    folder = tmp_path / "run"
    shutil.copytree(remembered, folder)
    file = next(folder.glob(f"checkpoints/*/{MEMORY_FILE}"))
    tensors, kept = load_file(file), dataclasses.asdict(FittedOn.read(file) or FittedOn("", "", 0, "", 0))
    save_file(tensors, file)
    found = _evaluate(ebmvk, folder, device, "--memory", "static", "--limit", 50)
    assert (found["fitted_on"], found["in_sample_tokens"]) == (None, None)
    at = ("--checkpoint", folder, "--device", device, "--memory", "static", "--limit", 50)
    assert "did not record" in ebmvk("evaluate", *at).out
    bad = ["{", "7", "{}", json.dumps(kept | {"tokens": "7"}), json.dumps(kept | {"more": 1}), json.dumps([*kept])]
    for said in bad:
        save_file(tensors, file, metadata={"fitted_on": said})
        told = ebmvk("evaluate", *at)
        assert told.status == 2
        assert f"{file}: what it was fitted on" in told.err


def test_a_fold_that_is_left_out_claims_less_than_one_that_meets_itself(trained: Path, text: Path) -> None:
    run, device = open_run(trained, "--checkpoint", print), open_device("cpu")
    train = encode_split(resolve(str(text)), "train", run.tokenizer)
    reading = Reading.training(16, bfloat16=False)
    static = build_static(run.model, train, len(train) // 3, reading=reading, device=device, seed=1)
    held = first_documents(train)
    assert static.store.mass.sum() == len(train) - 1
    assert static.without.mass.sum() == len(train) - 1 - held
    fold = Fit(run.model, train.take(held + 1), reading=reading, device=device)
    claimed = {}
    for name, store in {"trap": static.store, "left out": static.without}.items():
        memory = Memory.unfitted(store, d=run.model.config.latent_dim, vocab_size=run.model.vocab_size)
        fitted = fold.fit_static(memory, lambda _: None)
        claimed[name] = fold.nats(fitted, "static")["static"]
    assert claimed["trap"] < claimed["left out"]
    assert fitted.static  # of those without the fold: all of them get its concentration and its alpha_inf
    whole = static.fitted(fitted.static)
    assert torch.equal(whole.mass, static.store.mass)
    assert whole.kappa_max == fitted.static.kappa_max
    shares = [store.background / float(store.mass.sum()) for store in (whole, fitted.static)]
    assert shares[0] == pytest.approx(shares[1])


def test_a_fold_is_whole_documents_and_a_tenth_at_most() -> None:
    def fold(n: int, *starts: int) -> int:
        return first_documents(TokenStream("x", np.zeros(n, np.int32), np.array([0, *starts]), False))

    assert fold(2001, 50, 180, 230) == 180
    assert fold(2001, 900) == 200
    assert fold(3_000_001, 60_000, 99_000, 120_000) == 99_000


def test_without_static_splats_only_the_episodic_tier_is_there(
    ebmvk: Command, trained: Path, device: str, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    said = ebmvk("memory", "--checkpoint", folder, "--splats", 0, "--device", device)
    assert said.status == 0, said.err
    assert set(_evaluate(ebmvk, folder, device, "--memory", "episodic")["tiers"]) == {"none", "episodic"}
    said = ebmvk("evaluate", "--checkpoint", folder, "--device", device, "--memory", "both")
    assert said.status == 2
    assert "has no static splats" in said.err


def test_building_again_gives_the_same_memory(ebmvk: Command, remembered: Path, device: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(remembered, folder)
    file = next(folder.glob(f"checkpoints/*/{MEMORY_FILE}"))
    before = file.read_bytes()
    file.unlink()
    assert ebmvk("memory", "--checkpoint", folder, "--splats", 60, "--device", device).status == 0
    assert file.read_bytes() == before
