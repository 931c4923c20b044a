"""`ebmvk.Model` and its commands: embeddings, composition, energies, neighbours."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import ebmvk as package
from ebmvk import Model, Strategy
from ebmvk.errors import ArgumentError, ConfigError, DataError
from ebmvk.training.memory import load
from ebmvk.training.workspace import open_run

from .conftest import Command, made_up_text

TEXTS = ("The cat sees a house.", "She", "", "the old king likes fish. " * 12)


@pytest.fixture(scope="module")
def model(trained: Path, device: str) -> Model:
    return Model.open(trained, device=device)


def test_importing_the_package_needs_no_torch() -> None:
    code = "import sys, ebmvk; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert len(package.__all__) <= 20
    assert all(hasattr(package, name) for name in package.__all__)
    with pytest.raises(AttributeError, match="no attribute 'modle'"):
        _ = package.modle


@pytest.mark.parametrize("scale", ["point", "local", "medium", "global", "composed"])
def test_embeddings_are_unit_and_those_of_a_plain_forward_pass(trained: Path, model: Model, scale: str) -> None:
    run = open_run(trained, "", print)
    found = model.embed(TEXTS, scale)  # type: ignore[arg-type]
    assert found.shape == (len(TEXTS), model.d)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(len(TEXTS)), atol=1e-5, rtol=0)
    for text, row in zip(TEXTS, found, strict=True):
        ids = torch.from_numpy(run.tokenizer.encode_prompt(text)).long()
        with torch.no_grad():
            whole = run.model(ids[None])
        field = {"point": "h", "global": "global_"}.get(scale, scale)
        # The last text is longer than the state can see back, and is cut: other blocks, other roundings.
        torch.testing.assert_close(row, getattr(whole, field)[0, -1], atol=1e-5, rtol=0)


def test_a_text_gets_the_same_vector_in_any_company(model: Model) -> None:
    alone, among = model.embed(TEXTS[0]), model.embed([TEXTS[3], TEXTS[0], TEXTS[1]])[1]
    assert alone.shape == (model.d,)
    assert torch.equal(alone, among)
    assert model.embed([]).shape == (0, model.d)


def test_composition_is_of_texts_or_points(
    ebmvk: Command, trained: Path, text: Path, tiny: Path, tmp_path: Path, device: str
) -> None:
    model = Model.open(trained, device=device)
    a, b = model.embed(TEXTS[:2])
    composed = model.compose(a, b)
    assert torch.equal(composed, model.compose(*TEXTS[:2]))
    assert float(composed.norm()) == pytest.approx(1, abs=1e-5)
    # The stage `pretrain` has no composition to ask.
    args = ("--dataset", text, "--config", tiny, "--device", device, "--steps", 2, "--sample-tokens", 0, "--quiet")
    assert ebmvk("pretrain", "--run-dir", tmp_path / "run", *args).status == 0
    stage = Model.open(tmp_path / "run", device=device)
    with pytest.raises(ConfigError, match="composition"):
        stage.compose(a, b)
    with pytest.raises(ConfigError, match="'composed'"):
        stage.embed(TEXTS[0], "composed")


def test_the_energy_of_a_text_is_what_evaluate_says(
    ebmvk: Command, trained: Path, model: Model, tmp_path: Path, device: str
) -> None:
    text = made_up_text(150, seed=3).replace("\n\n", " ")
    path = tmp_path / "one.txt"
    path.write_text(text, encoding="utf-8")
    said = ebmvk("evaluate", "--checkpoint", trained, "--dataset", path, "--device", device, "--json")
    held = json.loads(said.out)
    from ebmvk.data.datasets import resolve

    (document,) = resolve(str(path)).documents("validation")
    energy = model.energy(document)
    assert "".join(energy.tokens) == document
    assert len(energy.tokens) == len(energy.nats) == held["tokens"]
    assert energy.total == pytest.approx(held["nats"], rel=1e-9)
    with pytest.raises(DataError, match="none to predict"):
        model.energy("")


@pytest.mark.parametrize("k", [1, 7, 10_000])
def test_nearest_tokens_are_those_of_brute_force(trained: Path, model: Model, k: int) -> None:
    mu = open_run(trained, "", print).model.embeddings().detach()
    point = model.embed(TEXTS[0])
    found = model.neighbors(TEXTS[0], k)
    cosine = mu.double() @ point.double()
    expected = cosine.sort(descending=True).values[:k]
    torch.testing.assert_close(torch.tensor([near.cosine for near in found]).double(), expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(cosine[[near.id for near in found]], expected, atol=1e-6, rtol=0)
    assert len({near.id for near in found}) == min(k, len(mu))


def test_a_token_is_its_own_nearest(trained: Path, model: Model) -> None:
    run = open_run(trained, "", print)
    mu = run.model.embeddings().detach()
    for i in (5, 258, run.tokenizer.eos_id):
        (near,) = model.neighbors(mu[i], 1)
        assert (near.id, near.cosine) == (i, pytest.approx(1, abs=1e-5))


def test_splats_are_those_of_the_memory(ebmvk: Command, train: Command, tmp_path: Path, device: str) -> None:
    run = tmp_path / "run"
    train(run, "--steps", 2, "--sample-tokens", 0, "--quiet")
    assert Model.open(run, device=device).splats("The cat") == []
    assert ebmvk("memory", "--checkpoint", run, "--splats", 60, "--device", device, "--quiet").status == 0
    model, opened = Model.open(run, device=device), open_run(run, "", print)
    store = load(opened.checkpoint.path, opened.model, "static").static
    assert store is not None
    found = model.splats("The cat", 9)
    cosine = store.mu.double() @ model.embed("The cat").double()
    expected = cosine.sort(descending=True).values[:9]
    torch.testing.assert_close(torch.tensor([near.cosine for near in found]).double(), expected, atol=1e-6, rtol=0)
    for near in found:
        assert (near.kappa, near.mass) == (float(store.kappa[near.id]), float(store.mass[near.id]))
        own = store.row == near.id
        law = torch.full((store.vocab_size,), store.beta / store.vocab_size, dtype=torch.float64)
        law[store.count_token[own]] += store.count[own]
        law /= near.mass + store.beta
        assert [p for _, p in near.tokens] == pytest.approx(law.sort(descending=True).values[:5].tolist(), rel=1e-5)
    said = ebmvk("neighbors", "--checkpoint", run, "--text", "The cat", "--k", 9, "--device", device, "--json")
    listed = json.loads(said.out)
    assert [near["id"] for near in listed["splats"]] == [near.id for near in found]
    assert [near["id"] for near in listed["tokens"]] == [near.id for near in model.neighbors("The cat", 9)]
    assert "kappa" in ebmvk("neighbors", "--checkpoint", run, "--text", "x", "--device", device).out


@pytest.mark.parametrize("bad", [torch.ones(32), torch.ones(3) / math.sqrt(3), torch.full((32,), math.nan)])
def test_points_are_checked(model: Model, bad: torch.Tensor) -> None:
    for call in (model.neighbors, lambda x: model.compose("a", x)):
        with pytest.raises(ArgumentError, match="unit vector"):
            call(bad)
    with pytest.raises(ArgumentError, match="below 1"):
        model.neighbors("a", 0)
    with pytest.raises(ArgumentError, match="scale 'state'"):
        model.embed("a", "state")  # type: ignore[call-overload]


# ---- commands ------------------------------------------------------------------------------------------------------


def test_embed_writes_what_the_object_returns(
    ebmvk: Command, trained: Path, model: Model, tmp_path: Path, device: str
) -> None:
    (tmp_path / "texts.txt").write_text(f"{TEXTS[1]}\n{TEXTS[3]}\n", encoding="utf-8")
    common = ("embed", "--checkpoint", trained, "--device", device, "--text", TEXTS[0], "--text", "a house")
    said = ebmvk(*common, "--file", tmp_path / "texts.txt", "--npy", tmp_path / "p.npy", "--json", "--energy")
    assert said.status == 0, said.err
    expected = model.embed([TEXTS[0], "a house", TEXTS[1], TEXTS[3]])
    assert np.array_equal(np.load(tmp_path / "p.npy"), expected.numpy())
    records = [json.loads(line) for line in said.out.splitlines()]
    assert [record["text"] for record in records] == [TEXTS[0], "a house", TEXTS[1], TEXTS[3]]
    assert records[0]["point"] == pytest.approx(expected[0].tolist())
    assert records[0]["energy"] == pytest.approx(model.energy(TEXTS[0]).total)
    assert "nats" in ebmvk(*common, "--energy").out
    local = ebmvk(*common, "--json", "--scale", "local").out.splitlines()
    assert json.loads(local[0])["point"] == pytest.approx(model.embed(TEXTS[0], "local").tolist())


def test_compose_says_how_far_the_parts_are(ebmvk: Command, trained: Path, model: Model, device: str) -> None:
    common = ("compose", "--checkpoint", trained, "--device", device, "--text", "the cat", "--text", "she", "--k", 4)
    found = json.loads(ebmvk(*common, "--json").out)
    a, b, composed = model.embed("the cat"), model.embed("she"), model.compose("the cat", "she")
    cosines = {"a": float(composed @ a), "b": float(composed @ b), "a_b": float(a @ b)}
    assert found["cosines"] == pytest.approx(cosines, abs=1e-6)
    assert [token["id"] for token in found["tokens"]] == [near.id for near in model.neighbors(composed, 4)]
    assert "between the two" in ebmvk(*common).out


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("embed",), "no text"),
        (("embed", "--text", "a", "--npy", "/no/such/folder/x.npy"), "could not be written"),
        (("embed", "--file", "/no/such/file"), "cannot be read"),
        (("compose", "--text", "a"), "1 texts, not two"),
        (("compose", "--text", "a", "--text", "b", "--k", 0), "--k 0 is below 1"),
        (("neighbors", "--text", "a", "--k", 0), "--k 0 is below 1"),
        (("neighbors", "--text", "a", "--text", "b"), "given twice"),
    ],
)
def test_bad_calls_are_named(ebmvk: Command, trained: Path, args: tuple[str, ...], message: str, device: str) -> None:
    said = ebmvk(args[0], "--checkpoint", trained, "--device", device, *args[1:])
    assert said.status == 2
    assert message in said.err
    assert "Traceback" not in said.err


def test_it_writes(model: Model) -> None:
    """Whole, in pieces, for several at once; the strategies by the names they are known by."""
    whole = model.generate("The cat", 12, seed=3)
    assert (
        whole == model.generate_all(["The cat", "She"], 12, seed=3)[0] == "".join(model.stream("The cat", 12, seed=3))
    )
    assert whole != model.generate("The cat", 12, seed=4)
    greedy = model.generate_greedy("The cat", 8)
    assert greedy == model.generateV2("The cat", 8, top_k=1) == model.generateV2("The cat", 8, temperature=1e-9)
    assert greedy == model.generate("The cat", 8, strategy=Strategy(top_k=1))  # by Langevin chains
    nucleus = model.generate_nucleus("The cat", 8, 0.5, seed=1)
    assert nucleus == model.generateV2("The cat", 8, top_p=0.5, seed=1)
    assert model.generate("The cat", 12, seed=3, stop=[whole[4:6]]) == whole[: whole.index(whole[4:6])]
    with pytest.raises(ArgumentError, match="max_tokens = 0"):
        model.generate("The cat", 0)
