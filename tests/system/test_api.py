"""`ebmvk.Model` and its commands: embeddings, composition, energies, neighbours."""

from __future__ import annotations

import importlib
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import ebmvk as package
from ebmvk import Model, Strategy
from ebmvk.errors import ArgumentError, CheckpointError, ConfigError, DataError, EbmvkError
from ebmvk.memory.files import load
from ebmvk.runs.folder import open_run

from .conftest import Command, made_up_text

pytestmark = pytest.mark.usefixtures("no_pictures")

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
def test_embeddings_are_unit_vectors_and_match_a_plain_forward_pass(trained: Path, model: Model, scale: str) -> None:
    run = open_run(trained, "", print)
    found = model.embed(TEXTS, scale)  # type: ignore[arg-type]
    assert found.shape == (len(TEXTS), model.d)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(len(TEXTS)), atol=1e-5, rtol=0)
    for text, row in zip(TEXTS, found, strict=True):
        ids = torch.from_numpy(run.tokenizer.encode_prompt(text)).long()
        with torch.no_grad():
            whole = run.model(ids[None])
        field = {"point": "h", "global": "global_"}.get(scale, scale)
        # The last text is longer than the state can see back, and is cut, so its blocks and their
        # rounding differ.
        torch.testing.assert_close(row, getattr(whole, field)[0, -1], atol=1e-5, rtol=0)


def test_a_texts_vector_doesnt_depend_on_other_texts(model: Model) -> None:
    alone, among = model.embed(TEXTS[0]), model.embed([TEXTS[3], TEXTS[0], TEXTS[1]])[1]
    assert alone.shape == (model.d,)
    assert torch.equal(alone, among)
    assert model.embed([]).shape == (0, model.d)


def test_compose_takes_texts_or_points(
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


def test_energy_matches_evaluate(ebmvk: Command, trained: Path, model: Model, tmp_path: Path, device: str) -> None:
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
    with pytest.raises(DataError, match="too few to predict"):
        model.energy("")


@pytest.mark.parametrize("k", [1, 7, 10_000])
def test_nearest_tokens_match_brute_force(trained: Path, model: Model, k: int) -> None:
    mu = open_run(trained, "", print).model.embeddings().detach()
    point = model.embed(TEXTS[0])
    found = model.neighbors(TEXTS[0], k)
    cosine = mu.double() @ point.double()
    expected = cosine.sort(descending=True).values[:k]
    torch.testing.assert_close(torch.tensor([near.cosine for near in found]).double(), expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(cosine[[near.id for near in found]], expected, atol=1e-6, rtol=0)
    assert len({near.id for near in found}) == min(k, len(mu))


def test_a_tokens_nearest_token_is_itself(trained: Path, model: Model) -> None:
    run = open_run(trained, "", print)
    mu = run.model.embeddings().detach()
    for i in (5, 258, run.tokenizer.eos_id):
        (near,) = model.neighbors(mu[i], 1)
        assert (near.id, near.cosine) == (i, pytest.approx(1, abs=1e-5))


@pytest.mark.usefixtures("little_search")
def test_splats_match_the_memory(ebmvk: Command, train: Command, tmp_path: Path, device: str) -> None:
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
def test_bad_points_and_counts_are_refused(model: Model, bad: torch.Tensor) -> None:
    for call in (model.neighbors, lambda x: model.compose("a", x)):
        with pytest.raises(ArgumentError, match="unit vector"):
            call(bad)
    with pytest.raises(ArgumentError, match="below 1"):
        model.neighbors("a", 0)
    with pytest.raises(ArgumentError, match="scale 'state'"):
        model.embed("a", "state")  # type: ignore[call-overload]


# ---- commands ------------------------------------------------------------------------------------


def test_the_embed_command_matches_the_method(
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


def test_the_compose_command_gives_the_cosines_of_its_parts(
    ebmvk: Command, trained: Path, model: Model, device: str
) -> None:
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
        (("embed",), "no text is given"),
        (("embed", "--text", "a", "--npy", "/no/such/folder/x.npy"), "could not be written"),
        (("embed", "--file", "/no/such/file"), "cannot be read"),
        (("compose", "--text", "a"), "needs two texts, not 1"),
        (("compose", "--text", "a", "--text", "b", "--k", 0), "--k 0 is below 1"),
        (("neighbors", "--text", "a", "--k", 0), "--k 0 is below 1"),
        (("neighbors", "--text", "a", "--text", "b"), "given twice"),
    ],
)
def test_commands_name_a_bad_argument(
    ebmvk: Command, trained: Path, args: tuple[str, ...], message: str, device: str
) -> None:
    said = ebmvk(args[0], "--checkpoint", trained, "--device", device, *args[1:])
    assert said.status == 2
    assert message in said.err
    assert "Traceback" not in said.err


def test_generate_stream_and_their_variants_agree(model: Model) -> None:
    """The same seed gives the same text as a whole, in pieces and in a batch, under every name of a
    strategy.
    """
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


# ---- what is given to the object -----------------------------------------------------------------


def test_a_list_of_prompts_gives_a_list_of_texts(model: Model) -> None:
    texts = model.generate(["The", "A"], 6, seed=3)
    assert texts == model.generate_all(["The", "A"], 6, seed=3)
    assert len(texts) == 2
    assert texts[0] == model.generate("The", 6, seed=3)
    assert model.generate([], 6) == []
    for call in (model.generate_all, model.stream):
        with pytest.raises(ArgumentError):  # the one takes no single text, the other no list
            list(call("The" if call == model.generate_all else ["The", "A"], 6))  # type: ignore[arg-type]


def test_strategies_are_given_by_keywords_or_by_name(model: Model) -> None:
    def text(**how: Any) -> str:
        return model.generate("The cat", 10, sampler="exact", seed=1, **how)

    assert text(temperature=0.5) == text(strategy=Strategy(temperature=0.5)) != text()
    assert text(strategy="nucleus") == text(strategy="nucleus 0.9") == text(top_p=0.9)
    assert text(strategy="nucleus", top_k=1) == model.generate_greedy("The cat", 10)
    assert text(strategy="top_k", top_k=np.int64(1)) == text(strategy="greedy")
    assert "".join(model.stream("The cat", 10, sampler="exact", seed=1, temperature=0.5)) == text(temperature=0.5)


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"temprature": 0.5}, "did you mean temperature"),
        ({"strategy": "nucelus"}, "did you mean nucleus 0.9"),
        ({"strategy": "temperature"}, "temperature 0.5 or temperature 1.5"),
        ({"strategy": 0.9}, "nucleus"),
        ({"temperature": "hot"}, "is not a number"),
        ({"temperature": 10**400}, "temperature"),
        ({"top_k": 2.5}, "is not a whole number"),
        ({"top_k": True}, "is not a whole number"),
        ({"sampler": "exakt"}, "exact"),
        ({"sampler": np.array([1, 2])}, "exact"),
        ({"seed": 1.5}, "seed"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**63}, "seed"),
        ({"stop": ["a", ""]}, "empty"),
        ({"stop": 3}, "list"),
        ({"max_tokens": -1}, "max_tokens = -1"),
        ({"max_tokens": 2.5}, "max_tokens"),
        ({"max_tokens": None}, "max_tokens"),
    ],
)
def test_generate_names_a_bad_setting(model: Model, how: dict[str, Any], words: str) -> None:
    with pytest.raises(EbmvkError) as caught:
        model.generate("a", **how)
    assert words in str(caught.value)


NO_TEXTS: tuple[Any, ...] = (
    None, b"ab", 3, 2.5, object(), float("nan"), True, "\ud800", ["a", None], [b"x"], torch.ones(3), np.ones(32)
)  # fmt: skip


@pytest.mark.parametrize("bad", NO_TEXTS, ids=[repr(bad)[:20] for bad in NO_TEXTS])
def test_every_method_refuses_values_that_arent_texts(model: Model, bad: Any) -> None:
    """`splats` does, too, without a memory to look into."""
    calls = [model.embed, model.energy, model.neighbors, model.splats, lambda x: model.compose("a", x)]
    calls += [lambda x: model.compose(x, "a"), model.generate_greedy, model.generate_nucleus, model.generateV2]
    for call in [*calls, model.generate, model.generate_all, lambda x: list(model.stream(x)), Model.open]:
        with pytest.raises(EbmvkError):
            call(bad)
    for count in (model.neighbors, model.splats):
        with pytest.raises(ArgumentError):
            count("a", 0 if isinstance(bad, int) else bad)


def test_a_single_stop_string_isnt_split_into_characters(model: Model) -> None:
    whole = model.generate("The cat", 12, seed=3)
    end = whole[4:7]
    assert model.generate("The cat", 12, seed=3, stop=end) == whole[: whole.index(end)]


# ---- the commands as functions -------------------------------------------------------------------

FUNCTIONS = ("diagnose", "evaluate", "export", "train")


def test_commands_are_modules_that_can_be_called() -> None:
    assert set(package.__all__) <= set(dir(package))
    for name in FUNCTIONS:
        module = importlib.import_module(f"ebmvk.{name}")
        assert getattr(package, name) is module  # whichever was first
        assert module.main is not None


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_commands_name_survives_importing_its_module(name: str) -> None:
    """Each order runs in a process of its own: the package's attribute first, or the module
    first."""
    for begin in (f"import ebmvk; f = ebmvk.{name}", f"import ebmvk.{name}; f = ebmvk.{name}"):
        code = f"import sys; {begin}; sys.exit(not callable(f) or 'torch' in sys.modules)"
        assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    run = (sys.executable, "-m", f"ebmvk.{name}", "--help")
    assert subprocess.run(run, check=False, capture_output=True).returncode == 0


def test_train_evaluate_diagnose_and_export_as_functions(
    ebmvk: Command, text: Path, tiny: Path, tmp_path: Path, device: str
) -> None:
    given = {"dataset": text, "config": tiny, "device": device, "quiet": True, "enable_soc": False}
    run = package.train(**given, run_dir=tmp_path / "run", steps=4, lr=1e-3, stop_after=2)
    assert (run.outcome, run.step, run.validation) == ("stopped", 2, None)
    run = package.train(resume=run.folder, quiet=True)
    assert (run.outcome, run.step) == ("finished", 4)
    assert run.validation is not None
    assert run.trigram is not None
    found = package.evaluate(run.folder, device=device, limit=60)
    told = json.loads(ebmvk("evaluate", "--checkpoint", run.folder, "--device", device, "--limit", 60, "--json").out)
    assert (found.nats_per_token, found.tokens) == (told["nats_per_token"], told["tokens"]) == (told["nats"] / 60, 60)
    assert package.evaluate(run.folder, device=device, context=16, stride=16).ppl_token == pytest.approx(
        run.validation["ppl_token"]
    )
    health = package.diagnose(run.folder, device=device, quick=True, report=tmp_path / "page.html")
    assert health.verdict == "undecided"
    assert health.record["step"] == 4
    assert (tmp_path / "page.html").is_file()
    files = package.export(run.folder, tmp_path / "out")
    assert "model.safetensors" in [file.name for file in files]
    assert Model.open(tmp_path / "out", device=device).embed("a").shape == Model.open(run.folder).embed("a").shape


@pytest.mark.parametrize(
    ("name", "settings", "words"),
    [
        ("train", {"stepz": 3}, "no setting 'stepz'\n  try: did you mean steps?"),
        ("train", {"steps": b"3"}, "ebmvk.train(steps=b'3')"),
        ("train", {"steps": "many"}, "--steps"),
        ("train", {"no_enable_soc": True}, "did you mean enable_soc"),
        ("train", {"dry_run": True}, "ebmvk train --dry-run"),
        ("train", {"size": "nani"}, "did you mean nano"),
        ("evaluate", {"checkpoint": "nowhere"}, "no such folder"),
        ("evaluate", {"checkpoint": None}, "--checkpoint"),
        ("evaluate", {"checkpoint": "nowhere", "json": True}, "no setting 'json'"),
        ("diagnose", {"checkpoint": ["a", "b"], "batch": "x"}, "no setting 'batch'"),
        ("export", {"checkpoint": "nowhere", "to": "x"}, "no such folder"),
    ],
)
def test_functions_name_a_bad_setting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, settings: dict[str, Any], words: str
) -> None:
    monkeypatch.chdir(tmp_path)  # no runs/ here, whose newest run would be taken
    with pytest.raises((ConfigError, CheckpointError)) as caught:
        getattr(package, name)(**settings)
    assert words in str(caught.value)
