"""From found text to a trained model, by the commands as a person would give them."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

from .conftest import Command, made_up_text


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
    assert said.status == 0, said.err
    command = re.search(r"python -m ebmvk\.train (.*)", said.out)
    assert command
    figures = json.loads(ebmvk("analyze-corpus", "--corpus", text, "--tokenizer", tokenizer, "--json").out)
    assert figures["documents"] == len(documents)

    small = ("--n-embd", 32, "--n-layer", 2, "--n-head", 2, "--ffn-dim", 64, "--epochs", 1, "--batch-size", 4)
    own = ("--tokenizer", tokenizer, "--outdir", tmp_path / "run", "--sample-tokens", 5, "--eval-tokens", 200)
    said = ebmvk("train", *shlex.split(command[1]), *small, *own)
    assert said.status == 0, said.err
    said = ebmvk("evaluate", "--ckpt", tmp_path / "run", "--test-file", text, "--json")
    assert json.loads(said.out)["bytes"] == sum(len(part.strip("\n").encode()) + 1 for part in documents)


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
