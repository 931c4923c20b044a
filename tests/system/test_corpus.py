"""From found text to a trained model, by the commands as a person would give them."""

from __future__ import annotations

import json
import os
import re
import shlex
from pathlib import Path

import pytest

from ebmvk.config import from_toml
from ebmvk.data.datasets import ENVIRONMENT, read_documents

from .conftest import Command, Said, made_up_text

RESULTS = Path(__file__).parents[2] / "bench" / "results"


def _suggested(said: Said, module: str) -> list[str]:
    """The arguments of the command that analyze-corpus says to type."""
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


def test_another_separator_leads_through_prepare_corpus(
    ebmvk: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is typed as it is said trains on the documents that were analysed."""
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


def test_a_vocabulary_that_was_analysed_is_the_one_to_train_with(ebmvk: Command, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(made_up_text(), encoding="utf-8")
    given = ("analyze-corpus", "--corpus", tmp_path / "text.txt")
    assert {"--tokenizer", "--vocab-size"}.isdisjoint(_suggested(ebmvk(*given), "train"))
    assert _suggested(ebmvk(*given, "--vocab-size", 300), "train")[-2:] == ["--vocab-size", "300"]


def test_what_was_reached_lies_in_the_expected_range(ebmvk: Command) -> None:
    """Which is of the very tokens that training measures on."""
    if not os.environ.get(ENVIRONMENT):
        pytest.skip(f"{ENVIRONMENT} is not set")
    text = Path(os.environ[ENVIRONMENT], "es-historia-ciencia", "ciencia.txt.gz")
    found = json.loads(ebmvk("analyze-corpus", "--corpus", text, "--json").out)
    reached = json.loads((RESULTS / "spanish-science-minillm-small.json").read_text(encoding="utf-8"))
    low, high = found["perplexity"]
    assert low < reached["validation"]["ppl_token"] < high
    assert found["fitted"] == reached["text"]["train"]["tokens"] + 1
    assert found["measured"] == reached["validation"]["tokens"] + 1


def test_refusals(ebmvk: Command, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text(" \n<|doc|>\n\u200b\n", encoding="utf-8")
    for args, said in (
        (("prepare-corpus", "--input", tmp_path / "none", "--output", tmp_path / "x"), "no such file or folder"),
        (("prepare-corpus", "--input", tmp_path / "empty.txt", "--output", tmp_path / "x"), "nothing is left"),
        (("analyze-corpus", "--corpus", tmp_path / "none"), "no such file or folder"),
        (("init-tokenizer", "--files", tmp_path / "none", "--out", tmp_path / "x"), "no such file or folder"),
    ):
        found = ebmvk(*args)
        assert found.status == 2
        assert said in found.err
