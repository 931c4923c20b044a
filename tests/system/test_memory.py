"""Memory through the commands: built, evaluated tier by tier, causal, refused with reasons."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn.functional import normalize

from ebmvk.cli import evaluate
from ebmvk.data.datasets import resolve
from ebmvk.data.windows import TokenStream, encode_split
from ebmvk.engine.device import open_device
from ebmvk.evaluation.likelihood import token_nats
from ebmvk.memory import fit as memory_module
from ebmvk.memory.files import load
from ebmvk.memory.fit import Fit, Trial
from ebmvk.memory.fitted_on import FittedOn
from ebmvk.memory.gate import Gate
from ebmvk.memory.law import TIERS, Memory, Mode, Reader, Tier
from ebmvk.memory.static import Reading, build_static, first_documents
from ebmvk.model.reading import contexts
from ebmvk.runs.folder import open_run
from ebmvk.runs.layout import MEMORY_FILE
from ebmvk.sphere.vmf import log_c_ratio

from .conftest import Command, launched

pytestmark = pytest.mark.usefixtures("no_pictures")

Floats = npt.NDArray[np.float64]


@pytest.fixture(scope="module")
def remembered(tmp_path_factory: pytest.TempPathFactory, trained: Path, device: str) -> Path:
    """A finished run with a memory; read only."""
    import importlib

    folder = tmp_path_factory.mktemp("remembered") / "run"
    shutil.copytree(trained, folder)
    args = ["--checkpoint", folder, "--splats", 60, "--device", device, "--quiet"]
    assert importlib.import_module("ebmvk.cli.memory").main([str(arg) for arg in args]) == 0
    return folder


def _evaluate(ebmvk: Command, folder: Path, device: str, *args: Any) -> dict[str, Any]:
    said = ebmvk("evaluate", "--checkpoint", folder, "--device", device, "--json", *args)
    assert said.status == 0, said.err
    record: dict[str, Any] = json.loads(said.out)
    return record


def test_every_tier_is_reported_and_scrambling_loses_the_gain(ebmvk: Command, remembered: Path, device: str) -> None:
    alone = _evaluate(ebmvk, remembered, device)
    found = _evaluate(ebmvk, remembered, device, "--memory", "both")
    scrambled = _evaluate(ebmvk, remembered, device, "--memory", "both", "--scramble-memory")
    assert alone["tiers"] == {}
    assert set(found["tiers"]) == {"calibrated", *TIERS}
    assert found["tiers"]["none"]["nats"] == pytest.approx(alone["nats"], rel=1e-6)
    assert found["nats"] == found["tiers"]["both"]["nats"]
    assert found["splats"]["static"] <= 60
    # After only eight steps of training, memory can help a lot.
    for mode in ("static", "episodic", "both"):
        gain = found["tiers"][mode]["gain"]
        assert gain["nats_per_token"] < 0
        # Validation is a single short document, so nothing can be concluded for other texts.
        assert [gain[name] for name in ("low", "high", "method", "documents")] == [None, None, "none", 1]
        lost = scrambled["tiers"][mode]["gain"]["nats_per_token"]
        assert lost > gain["nats_per_token"] / 2, mode


def test_a_tier_read_alone_gives_the_same_figures(ebmvk: Command, remembered: Path, device: str) -> None:
    both = _evaluate(ebmvk, remembered, device, "--memory", "both")["tiers"]
    for mode in ("static", "episodic"):
        alone = _evaluate(ebmvk, remembered, device, "--memory", mode)["tiers"]
        assert set(alone) == {"none", "calibrated", mode}
        assert alone[mode]["nats"] == pytest.approx(both[mode]["nats"], rel=1e-9)


def test_spreading_a_memory_over_processes_changes_no_figure(remembered: Path, tmp_path: Path, ebmvk: Command) -> None:
    """Three processes look up both tiers; the first of them reports."""
    args = ["--checkpoint", str(remembered), "--device", "cpu", "--memory", "both", "--json"]
    one, *others = launched(3, lambda: evaluate.main(args), tmp_path)
    assert (one.status, one.err) == (0, "")
    assert [(said.status, said.out, said.err) for said in others] == [(0, "", "")] * 2
    found, whole = json.loads(one.out), _evaluate(ebmvk, remembered, "cpu", "--memory", "both")
    for mode, figures in whole["tiers"].items():
        assert found["tiers"][mode]["nats"] == figures["nats"]


def test_the_number_of_splats_stays_within_the_capacity(ebmvk: Command, remembered: Path, device: str) -> None:
    found = _evaluate(ebmvk, remembered, device, "--memory", "episodic", "--memory-capacity", 40)
    assert 20 <= found["splats"]["episodic"] <= 40


def test_later_tokens_do_not_change_earlier_likelihoods(remembered: Path, text: Path) -> None:
    """Permute the tokens after a point: earlier likelihoods stay the same, bit for bit."""
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


def _entropy_and_top(law: Floats) -> list[Floats]:
    return [-(law * np.log(law)).sum(1), np.log(law).max(1)]


def _gate(gate: Gate, features: Sequence[Floats]) -> Floats:
    """(n, 1 + tiers): the softmax of 0 and linear functions of the features."""
    weight, bias, mean, scale = (part.double().numpy() for part in vars(gate).values())
    logits = (np.stack(features, 1) - mean) / scale @ weight.T + bias
    shares = np.exp(np.concatenate((np.zeros((len(logits), 1)), logits), 1))
    return shares / shares.sum(1, keepdims=True)


@pytest.mark.parametrize("scramble", [False, True])
def test_every_law_matches_plain_float64(
    scramble: bool, ebmvk: Command, remembered: Path, text: Path, device: str
) -> None:
    """The calibrated law, the static memory with its gate, and the scrambled control with its own
    gate, computed by numpy from the model's log p and the splats.
    """
    run, on = open_run(remembered, "--checkpoint", print), open_device("cpu")
    stream = encode_split(resolve(str(text)), "validation", run.tokenizer).take(301)
    memory = load(run.checkpoint.path, run.model, "static").using(None, scramble=scramble)
    store, own = memory.static, memory.calibration
    assert store
    assert own
    read = [
        (seen.h[0].double().numpy(), run.model.log_p_lex(seen)[0].double().detach().numpy(), tokens.numpy())
        for seen, tokens in contexts(run.model, stream, context=16, stride=8, device=on.torch)
    ]
    h, log_p, tokens = (np.concatenate(part) for part in zip(*read, strict=True))
    lexical, at, v = np.exp(log_p), np.arange(len(tokens)), memory.vocab_size

    flat = lexical**own.power / (lexical**own.power).sum(1, keepdims=True)
    g = _gate(own.gate, [*_entropy_and_top(lexical), *_entropy_and_top(flat)])
    calibrated = g[:, 0] * lexical[at, tokens] + g[:, 1] * flat[at, tokens]

    counts = np.zeros((store.n, v))
    counts[store.row, store.count_token] = store.count
    mass, kappa = store.mass.numpy(), store.kappa_max
    laws = (counts + store.beta / v) / (mass[:, None] + store.beta)
    mu = store.resultant.double().numpy()
    cosine = h @ (mu / np.linalg.norm(mu, axis=1, keepdims=True)).T
    shift = float(log_c_ratio(torch.tensor(kappa, dtype=torch.float64), memory.d))
    density = np.concatenate((np.full((len(h), 1), store.background), mass * np.exp(kappa * cosine + shift)), 1)
    q = density / density.sum(1, keepdims=True)
    said = q[:, 1:] @ laws + q[:, :1] / v
    pool = said**memory.share * lexical ** (1 - memory.share)
    pool /= pool.sum(1, keepdims=True)
    together = np.log(density.sum(1) / (mass.sum() + store.background))
    features = [*_entropy_and_top(lexical), cosine.max(1), together, *_entropy_and_top(pool)]
    g = _gate(memory.gates["static"], features)
    static = g[:, 0] * lexical[at, tokens] + g[:, 1] * pool[at, tokens]

    flags = ("--memory", "static", "--limit", 300, *(["--scramble-memory"] if scramble else []))
    found = _evaluate(ebmvk, remembered, device, *flags)["tiers"]
    expected = {"none": lexical[at, tokens], "calibrated": calibrated, "static": static}
    assert set(found) == set(expected)
    for law, p in expected.items():
        assert found[law]["nats_per_token"] == pytest.approx(-np.log(p).mean(), abs=2e-5), law
    gained = -np.log(static).mean() + np.log(calibrated).mean()
    assert found["static"]["gain_over_calibrated"]["nats_per_token"] == pytest.approx(gained, abs=4e-5)


def test_the_scrambled_control_is_no_worse_than_no_memory(ebmvk: Command, remembered: Path, device: str) -> None:
    """The figures are for the text that both were fitted on. A gate can close, so a scrambled
    memory is no worse than none, except for the small cost of the gate's ridge on a short text.
    """
    found = _evaluate(ebmvk, remembered, device, "--memory", "both", "--scramble-memory")
    assert found["control_fitted"] is True
    for mode in ("static", "episodic", "both"):
        assert found["tiers"][mode]["gain"]["nats_per_token"] < 0.01, mode


def test_a_switched_off_memory_gains_no_more_than_a_calibration(
    trained: Path, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With an overconfident model, splats opposite to all contexts seem to gain much: the
    background has all the mass, and the tier is a power of the model's own law. The calibrated row
    shows the same gain, and the memory is reported as switched off.
    """
    run, device = open_run(trained, "--checkpoint", print), open_device("cpu")
    outputs = run.model.outputs
    monkeypatch.setattr(run.model, "outputs", lambda *args: 3 * outputs(*args))
    run.model.bias.data.mul_(3)
    monkeypatch.setattr(memory_module, "KAPPAS", (5.0, 20.0, 80.0))
    train, valid = (encode_split(resolve(str(text)), split, run.tokenizer) for split in ("train", "validation"))
    static = build_static(run.model, train, 60, reading=Reading.evaluation(16), device=device, seed=1)
    fit = Fit(run.model, valid, reading=Reading.evaluation(16), device=device)
    away = normalize(-fit.h.mean(0), dim=0)
    store = replace(static.store, resultant=0.99 * away * static.store.length[:, None].float())
    memory = Memory.unfitted(store, d=run.model.config.latent_dim, vocab_size=run.model.vocab_size)
    fitted, nats = fit.fit(memory, lambda _: None)
    assert nats["static"] < nats["none"] - 0.1
    assert nats["static"] == pytest.approx(nats["calibrated"], abs=5e-3)
    signs = [alert.sign for alert in fit.signs(fitted)]
    assert "static memory is switched off" in signs


def test_the_higher_of_two_likelihood_maxima_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The likelihood rises from kappa 20 in both directions, and is higher at 224 than at 7."""
    nats = dict.fromkeys(memory_module.KAPPAS, 3.0) | {14.0: 2.95, 10.0: 2.9, 7.0: 2.8, 160.0: 2.9, 224.0: 2.7}
    fit = Fit.__new__(Fit)
    fit.tokens = torch.zeros(memory_module.TUNED_TOKENS, dtype=torch.int64)
    asked: list[tuple[float, int]] = []

    def at(_self: Fit, memory: Memory, _tier: str, kappa: float, _shares: object, limit: int, _say: object) -> Trial:
        asked.append((kappa, limit))
        return Trial(nats[kappa], memory.with_kappa("episodic", kappa))

    monkeypatch.setattr(Fit, "_at", at)
    found = fit._tuned(Memory.unfitted(None, d=4, vocab_size=9), "episodic", lambda _: None)
    assert found.episodic.kappa == 224.0
    assert {(160.0, memory_module.TUNED_TOKENS), (320.0, memory_module.TUNED_TOKENS)} <= set(asked)


def test_old_memory_files_without_a_calibration_are_read(
    ebmvk: Command, remembered: Path, device: str, tmp_path: Path
) -> None:
    """Earlier versions wrote such files."""
    folder = tmp_path / "run"
    shutil.copytree(remembered, folder)
    file = next(folder.glob(f"checkpoints/*/{MEMORY_FILE}"))
    kept = FittedOn.read(file)
    assert kept
    old = {
        name: value for name, value in load_file(file).items() if not {"calibration", "control"} & {*name.split(".")}
    }
    save_file(old, file, metadata=kept.metadata())
    found = _evaluate(ebmvk, folder, device, "--memory", "both", "--scramble-memory")
    assert set(found["tiers"]) == set(TIERS)
    assert (found["calibration"], found["control_fitted"]) == (None, False)
    assert "gain_over_calibrated" not in found["tiers"]["static"]
    said = ebmvk("evaluate", "--checkpoint", folder, "--device", device, "--memory", "both", "--scramble-memory").out
    assert "missing: an earlier version wrote this memory's file" in said
    assert "read with the true memory's gate" in said


def test_an_exported_model_shows_the_gain_of_its_memory(ebmvk: Command, remembered: Path, tmp_path: Path) -> None:
    assert ebmvk("export", "--checkpoint", remembered, "--to", tmp_path / "model").status == 0
    card = (tmp_path / "model" / "README.md").read_text(encoding="utf-8")
    assert "no memory, but the model calibrated on the same tokens, " in card
    assert "so the figures flatter it" in card


@pytest.mark.parametrize("mode", ["static", "episodic", "both"])
def test_generate_uses_the_memory_and_repeats_by_seed(mode: str, ebmvk: Command, remembered: Path, device: str) -> None:
    args = ("--checkpoint", remembered, "--device", device, "--prompt", "The cat", "--max-tokens", 12, "--quiet")
    texts = [ebmvk("generate", *args, "--sampler", "exact", "--memory", m).out for m in (mode, mode, "none")]
    assert texts[0] == texts[1]
    assert texts[0] != texts[2]
    said = ebmvk("generate", *args, "--memory", mode)  # samples by Langevin dynamics
    assert said.status == 0, said.err


def test_prompts_do_not_share_a_memory(ebmvk: Command, remembered: Path, device: str) -> None:
    args = ("--checkpoint", remembered, "--device", device, "--max-tokens", 8, "--sampler", "exact", "--quiet")
    both = ebmvk("generate", *args, "--memory", "both", "--prompt", "The cat sees", "She likes fish.").out
    alone = ebmvk("generate", *args, "--memory", "both", "--prompt", "The cat sees").out
    assert both.startswith(alone.rstrip("\n"))


def test_impossible_memories_are_refused_with_a_reason(
    ebmvk: Command, trained: Path, remembered: Path, device: str, tmp_path: Path
) -> None:
    def error(command: str, folder: Path, *args: Any) -> str:
        said = ebmvk(command, "--checkpoint", folder, "--device", device, *args)
        assert said.status == 2
        assert "Traceback" not in said.err
        return said.err

    assert "has no memory" in error("evaluate", trained, "--memory", "episodic")
    assert "has no memory" in error("generate", trained, "--memory", "static")
    blank = tmp_path / "a run"  # a suggested command must quote this
    shutil.copytree(trained, blank)
    assert f"`ebmvk memory --checkpoint '{blank}/checkpoints/" in error("evaluate", blank, "--memory", "episodic")
    assert "with --split train" in error("evaluate", remembered, "--memory", "static", "--split", "train")
    for few in (0, 1):
        said = error("evaluate", remembered, "--memory", "both", "--memory-capacity", few)
        assert f"--memory-capacity {few} is below 2" in said
    assert "--memory-capacity needs a memory" in error("evaluate", remembered, "--memory-capacity", 5)
    assert "--scramble-memory needs a memory" in error("evaluate", remembered, "--scramble-memory")
    assert "--splats 200000 is not between" in error("memory", trained, "--splats", 200_000)
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


def test_a_fit_on_the_training_text_leaves_it_out_of_the_splats(
    ebmvk: Command, trained: Path, device: str, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    said = ebmvk("memory", "--checkpoint", folder, "--splats", 60, "--device", device, "--fit-on", "training")
    assert said.status == 0, said.err
    covered = re.search(r"covers ([0-9.]+)% of", said.out)
    assert covered
    assert float(covered[1]) >= 80
    run = open_run(folder, "--checkpoint", print)
    memory = load(run.checkpoint.path, run.model, "both")
    chosen: dict[Tier, float] = {"static": memory.share, "episodic": memory.episodic.share}
    for tier, share in chosen.items():
        tried = re.findall(rf"{tier} +kappa ([0-9.]+), share ([0-9.]+): ([0-9.]+)", said.out)
        assert {float(kappa) for kappa, _, _ in tried} == set(memory_module.KAPPAS)
        best = min(tried, key=lambda row: float(row[2]))
        assert (memory.kappa_of(tier), share) == (float(best[0]), float(best[1]))
    tiers = _evaluate(ebmvk, folder, device, "--memory", "both")["tiers"]
    assert tiers["static"]["gain"]["nats_per_token"] < 0
    assert tiers["both"]["gain"]["nats_per_token"] < 0


@pytest.mark.usefixtures("little_search")
def test_figures_on_the_fitted_text_are_marked_in_sample(
    ebmvk: Command, remembered: Path, trained: Path, text: Path, device: str, tmp_path: Path
) -> None:
    """Marked for validation and for the training text (all or its beginning); for no other text."""
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
    assert f"{read['in_sample_tokens']:,} of the {read['tokens']:,} here. Figures with memory are in sample" in said.out


def test_a_missing_or_damaged_record_of_the_fit(ebmvk: Command, remembered: Path, device: str, tmp_path: Path) -> None:
    """Files of earlier versions without a record are read; a wrong record means damage."""
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
        assert f"{file}: the record of what the memory was fitted on" in told.err


@pytest.mark.usefixtures("little_search")
def test_a_fold_left_out_of_the_splats_claims_a_smaller_gain(trained: Path, text: Path) -> None:
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
    # These are without the fold; the whole store gets their concentration and alpha_inf
    assert fitted.static
    whole = static.fitted(fitted.static)
    assert torch.equal(whole.mass, static.store.mass)
    assert whole.kappa_max == fitted.static.kappa_max
    shares = [store.background / float(store.mass.sum()) for store in (whole, fitted.static)]
    assert shares[0] == pytest.approx(shares[1])


def test_the_fitting_text_is_whole_documents_and_at_most_a_tenth_of_the_text() -> None:
    def fold(n: int, *starts: int) -> int:
        return first_documents(TokenStream("x", np.zeros(n, np.int32), np.array([0, *starts]), False))

    assert fold(2001, 50, 180, 230) == 180
    assert fold(2001, 900) == 200
    assert fold(3_000_001, 60_000, 99_000, 120_000) == 99_000


@pytest.mark.usefixtures("little_search")
def test_without_static_splats_only_the_episodic_tier_exists(
    ebmvk: Command, trained: Path, device: str, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    said = ebmvk("memory", "--checkpoint", folder, "--splats", 0, "--device", device)
    assert said.status == 0, said.err
    assert re.search(r"episodic +kappa 5, share [0-9.]+: [0-9.]+ nats per token on [0-9,]+ tokens\n", said.out)
    assert set(_evaluate(ebmvk, folder, device, "--memory", "episodic")["tiers"]) == {"none", "calibrated", "episodic"}
    said = ebmvk("evaluate", "--checkpoint", folder, "--device", device, "--memory", "both")
    assert said.status == 2
    assert "has no static splats" in said.err


@pytest.mark.usefixtures("little_search")
def test_building_again_gives_the_same_memory(ebmvk: Command, trained: Path, device: str, tmp_path: Path) -> None:
    folder, built = tmp_path / "run", []
    shutil.copytree(trained, folder)
    for _ in range(2):
        assert ebmvk("memory", "--checkpoint", folder, "--splats", 60, "--device", device).status == 0
        file = next(folder.glob(f"checkpoints/*/{MEMORY_FILE}"))
        built.append(file.read_bytes())
        file.unlink()
    assert built[0] == built[1]
