"""From found text to a trained model, with the commands that a person would type."""

from __future__ import annotations

import json
import math
import os
import re
import shlex
from pathlib import Path

import pytest
from tokenizers import Tokenizer as Library
from tokenizers import decoders, models, pre_tokenizers, trainers

from ebmvk.config.toml import from_toml
from ebmvk.data.datasets import resolve
from ebmvk.data.documents import read_documents
from ebmvk.data.folders import ENVIRONMENT
from ebmvk.runs.metrics import read_history

from .conftest import Command, Said, made_up_text, rows

pytestmark = pytest.mark.usefixtures("no_pictures")

RESULTS = Path(__file__).parents[2] / "bench" / "results"


def _suggested(said: Said, module: str) -> list[str]:
    """The arguments of the command that analyze-corpus suggests."""
    assert said.status == 0, said.err
    command = re.search(rf"python -m ebmvk\.{module} (.*)", said.out)
    assert command
    return shlex.split(command[1])


def test_from_found_text_to_a_model(ebmvk: Command, tmp_path: Path) -> None:
    found, text, tokenizer = tmp_path / "found", tmp_path / "text.txt", tmp_path / "tokenizer.json"
    found.mkdir()
    parts = [part.replace("house", "casaÃ±") for part in made_up_text(400).split("\n\n")]
    for i in range(2):
        (found / f"{i}.txt").write_text("\n<|doc|>\n".join(parts), encoding="utf-8")
    said = ebmvk("prepare-corpus", "--input", found, "--output", text)
    assert said.status == 0, said.err
    assert "160 read" in said.out
    assert "casañ" in text.read_text(encoding="utf-8")
    documents = text.read_text(encoding="utf-8").split("<|doc|>")
    assert len(documents) == len({part.casefold() for part in parts})

    said = ebmvk("init-tokenizer", "--files", text, "--vocab-size", 280, "--out", tokenizer)
    assert said.status == 0, said.err
    assert "280 tokens" in said.out

    said = ebmvk("analyze-corpus", "--corpus", text, "--separator", "<|doc|>", "--tokenizer", tokenizer)
    suggested = _suggested(said, "train")
    assert "prepare_corpus" not in said.out
    figures = json.loads(ebmvk("analyze-corpus", "--corpus", text, "--tokenizer", tokenizer, "--json").out)
    assert figures["documents"] == len(documents)

    small = ("--n-embd", 32, "--n-layer", 2, "--n-head", 2, "--ffn-dim", 64, "--epochs", 1, "--batch-size", 4)
    own = ("--outdir", tmp_path / "run", "--sample-tokens", 5, "--eval-tokens", 200)
    said = ebmvk("train", *suggested, *small, *own)
    assert said.status == 0, said.err
    assert from_toml(tmp_path / "run" / "config.toml").data.tokenizer == str(tokenizer)
    said = ebmvk("evaluate", "--ckpt", tmp_path / "run", "--test-file", text, "--json")
    assert json.loads(said.out)["bytes"] == sum(len(part.strip("\n").encode()) + 1 for part in documents)


def test_with_another_separator_the_advice_is_prepare_corpus(
    ebmvk: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The suggested commands train on the documents that were analysed."""
    monkeypatch.chdir(tmp_path)
    Path("found here").mkdir()
    separator = "--- next"
    for i in range(2):
        parts = made_up_text(300, seed=i).split("\n\n")
        Path("found here", f"{i}.txt").write_text(f"\n{separator}\n".join(parts), encoding="utf-8")
    given = ("--corpus", "found here", "--tokenizer", "char", f"--separator={separator}")
    analysed = ebmvk("analyze-corpus", *given)
    documents = json.loads(ebmvk("analyze-corpus", *given, "--json").out)["documents"]
    assert documents == len({part for i in range(2) for part in made_up_text(300, seed=i).split("\n\n")})
    said = ebmvk("prepare-corpus", *_suggested(analysed, "prepare_corpus"))
    assert said.status == 0, said.err
    suggested = _suggested(analysed, "train")
    (text,) = Path().glob("*-prepared.txt")
    assert suggested[suggested.index("--corpus") + 1] == str(text)
    assert len(read_documents([text], "--corpus").texts) == documents
    small = ("--n-embd", 32, "--n-layer", 1, "--n-head", 2, "--steps", 2, "--sample-tokens", 0, "--quiet")
    said = ebmvk("train", *suggested, *small, "--outdir", "run")
    assert said.status == 0, said.err


def test_the_suggested_command_keeps_the_vocabulary_size(ebmvk: Command, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(made_up_text(), encoding="utf-8")
    given = ("analyze-corpus", "--corpus", tmp_path / "text.txt")
    assert {"--tokenizer", "--vocab-size"}.isdisjoint(_suggested(ebmvk(*given), "train"))
    assert _suggested(ebmvk(*given, "--vocab-size", 300), "train")[-2:] == ["--vocab-size", "300"]


def test_the_expected_perplexity_is_of_the_tokens_that_training_measures_on(
    ebmvk: Command, trained: Path, text: Path
) -> None:
    """It is a quarter of the perplexity of the trigram, or 1, to all of it."""
    history = read_history(trained)
    at = ("--corpus", text, "--tokenizer", trained / "tokenizer.json")
    found = json.loads(ebmvk("analyze-corpus", *at, "--json").out)
    assert found["fitted"] == history.facts["text"]["train"]["tokens"] + 1
    assert found["measured"] == history.facts["text"]["validation"]["tokens"] + 1
    (end,) = rows(trained, "end")
    trigram = end["trigram"]["ppl_token"]
    assert trigram > 1
    assert found["perplexity"] == pytest.approx([max(1, trigram / 4), trigram], rel=1e-6)


@pytest.mark.slow
def test_trained_models_reach_the_expected_perplexity(ebmvk: Command) -> None:
    """The range is for the same tokens that training measures on."""
    if not os.environ.get(ENVIRONMENT):
        pytest.skip(f"{ENVIRONMENT} is not set")
    text = Path(os.environ[ENVIRONMENT], "es-historia-ciencia", "ciencia.txt.gz")
    found = json.loads(ebmvk("analyze-corpus", "--corpus", text, "--json").out)
    reached = json.loads((RESULTS / "spanish-science-minillm-small.json").read_text(encoding="utf-8"))
    low, high = found["perplexity"]
    assert low < reached["validation"]["ppl_token"] < high
    assert found["fitted"] == reached["text"]["train"]["tokens"] + 1
    assert found["measured"] == reached["validation"]["tokens"] + 1


def test_the_folder_of_a_tokenizer_is_created(ebmvk: Command, text: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "folder" / "t.json"
    assert ebmvk("init-tokenizer", "--files", text, "--vocab-size", 270, "--out", out).status == 0
    assert [path.name for path in out.parent.iterdir()] == ["t.json"]


@pytest.mark.parametrize(("out", "why"), [("text.txt/t.json", "cannot be written"), ("", "is a folder")])
def test_an_unwritable_output_is_refused_before_the_training(
    out: str, why: str, ebmvk: Command, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "text.txt").write_text("x", encoding="utf-8")
    monkeypatch.setattr("ebmvk.data.tokenizer_kinds.train_tokenizer", None)
    said = ebmvk("init-tokenizer", "--files", text, "--out", tmp_path / out)
    assert said.status == 2
    assert f"--out {tmp_path / out} {why}" in said.err
    assert "space" not in said.err


def test_a_foreign_tokenizer_works_from_training_to_resuming(
    train: Command, ebmvk: Command, text: Path, tiny: Path, tmp_path: Path
) -> None:
    """A file that truncates to eight tokens and has another end token: all text is still used."""
    made, run = Library(models.BPE()), tmp_path / "run"
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(), decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    how = trainers.BpeTrainer(vocab_size=280, initial_alphabet=alphabet, special_tokens=["</s>"], show_progress=False)
    made.train([str(text)], how)
    made.enable_truncation(8)
    made.save(str(tmp_path / "t.json"))
    said = train(run, "--tokenizer", tmp_path / "t.json", "--steps", 4)
    assert "the end of a document is </s>" in said.out
    assert "switched off: truncation to 8 tokens; the blank before each text" in said.out
    assert "characters were turned into tokens and back: every one came back" in said.out
    assert from_toml(run / "config.toml").data.end_token == "</s>"  # noqa: S105
    corpus = resolve(str(text))
    facts = read_history(run).facts
    assert facts["text"]["train"]["bytes"] == corpus.bytes("train")
    assert facts["tokenizer"]["round_trip"]["changed"] == 0
    for given in ("t.json", "run/tokenizer.json"):
        said = ebmvk("evaluate", "--ckpt", run, "--tokenizer", tmp_path / given, "--device", "cpu", "--json")
        assert json.loads(said.out)["bytes"] == corpus.bytes("validation"), said.err
    train(run, "--resume", "--steps", 5)
    from_run = train(tmp_path / "next", "--init", run, "--vocab-size", 280, "--steps", 1)
    assert from_toml(tmp_path / "next" / "config.toml").data.end_token == "</s>", from_run.out  # noqa: S105
    other = ("--init", run, "--end-token", "<x>", "--config", tiny, "--vocab-size", 280)
    said = ebmvk("train", "--run-dir", tmp_path / "x", *other)
    assert "--end-token <x>: the tokenizer of --init" in said.err


def test_unknown_characters_are_reported_and_count_their_bytes(train: Command, ebmvk: Command, tmp_path: Path) -> None:
    """Bits per byte of 猫, which training never saw, count its three bytes."""
    folder, run = tmp_path / "corpus", tmp_path / "run"
    folder.mkdir()
    (folder / "train.txt").write_text(made_up_text(), encoding="utf-8")
    (folder / "valid.txt").write_text("the cat 猫猫 sees it. " * 9, encoding="utf-8")
    said = train(run, "--dataset", folder, "--tokenizer", "char", "--steps", 2)
    assert "18 characters of the validation text are unknown tokens" in said.out
    found = json.loads(ebmvk("evaluate", "--ckpt", run, "--device", "cpu", "--json").out)
    assert (found["bytes"], found["unknown_characters"]) == (9 * 24, 18)
    assert found["bits_per_byte"] == pytest.approx(found["nats_per_token"] * found["tokens"] / math.log(2) / 216)
    lines = ebmvk("evaluate", "--ckpt", run, "--device", "cpu", "--limit", 10).out
    assert "unknown characters    2" in lines
    assert "(14 bytes)" in lines


def test_corpus_commands_refuse_missing_and_empty_files(ebmvk: Command, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text(" \n<|doc|>\n\u200b\n", encoding="utf-8")
    for args, said in (
        (("prepare-corpus", "--input", tmp_path / "none", "--output", tmp_path / "x"), "no such file or folder"),
        (("prepare-corpus", "--input", tmp_path / "empty.txt", "--output", tmp_path / "x"), "cleaning leaves nothing"),
        (("analyze-corpus", "--corpus", tmp_path / "none"), "no such file or folder"),
        (("init-tokenizer", "--files", tmp_path / "none", "--out", tmp_path / "x"), "no such file or folder"),
    ):
        found = ebmvk(*args)
        assert found.status == 2
        assert said in found.err
