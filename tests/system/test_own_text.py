"""A run finds its own text from any folder, and reports if a text is another."""

from __future__ import annotations

import json
import os
import sys
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from ebmvk.config.toml import from_toml
from ebmvk.errors import ConfigError
from ebmvk.runs.folder import read_config
from ebmvk.runs.manifest import MANIFEST
from ebmvk.sweeps.experiments import table
from ebmvk.sweeps.planned import PlannedRun

from .conftest import Command, made_up_text

pytestmark = pytest.mark.usefixtures("no_pictures")

QUICK = ("--steps", 2, "--sample-tokens", 0, "--eval-tokens", 40, "--model", "plain", "--no-enable-soc", "--quiet")


def _evaluated(ebmvk: Command, *args: Any) -> tuple[dict[str, Any], str]:
    """The record of `evaluate`, and its output on stderr."""
    said = ebmvk("evaluate", *args, "--json")
    assert said.status == 0, said.err
    found: dict[str, Any] = json.loads(said.out)
    return found, said.err


def _as_of_before(run: Path, *, digests: bool = False) -> None:
    """Make a run look like an earlier version's: no settings of reading, no digests of texts."""
    config = run / "config.toml"
    lines = config.read_text(encoding="utf-8").split("\n")
    gone = ("include =", "raw =", "keep_bom =")
    config.write_text("\n".join(line for line in lines if not line.startswith(gone)), encoding="utf-8")
    for file in run.glob(f"checkpoints/*/{MANIFEST}"):
        manifest = json.loads(file.read_text(encoding="utf-8"))
        del manifest["sha256"]
        if not digests:
            del manifest["state"]["text"]
        file.write_text(json.dumps(manifest), encoding="utf-8")


def test_the_text_is_found_from_another_folder_and_changes_are_reported(
    train: Command, ebmvk: Command, device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("here", "there"):
        (tmp_path / folder).mkdir()
    monkeypatch.chdir(tmp_path / "here")
    text = Path("text.txt")
    text.write_text(made_up_text(), encoding="utf-8")
    (tmp_path / "there" / text).write_text(made_up_text(seed=9), encoding="utf-8")
    run = tmp_path / "run"
    train(run, "--dataset", text, *QUICK)
    assert read_config(run).data.dataset == str(tmp_path / "here" / text)
    of = ("--checkpoint", run, "--device", device)
    first, err = _evaluated(ebmvk, *of)
    assert (first["own_text"], err) == (True, "")
    monkeypatch.chdir(tmp_path / "there")  # this folder has a file of that name, too
    again, _ = _evaluated(ebmvk, *of)
    assert {key: value for key, value in again.items() if key != "seconds"} == {
        key: value for key, value in first.items() if key != "seconds"
    }
    other, err = _evaluated(ebmvk, *of, "--dataset", text)
    assert (other["own_text"], err) == (False, "")  # because --dataset asked for it
    assert other["sha256"] != first["sha256"]

    changed = tmp_path / "here" / text
    changed.write_text(made_up_text() + " One more.", encoding="utf-8")
    found, err = _evaluated(ebmvk, *of)
    assert found["own_text"] is False
    assert f"{changed} is not the text that" in err
    for command in ("diagnose", "memory"):
        said = ebmvk(command, *of)
        assert said.status == 2
        assert "is not the text this run was trained on: its validation text differs" in said.err
    said = ebmvk("attention", *of, "--out", tmp_path / "maps")
    assert "is not the text that" in said.err
    assert json.loads((tmp_path / "maps" / "attention.json").read_text(encoding="utf-8"))["own_text"] is False
    said = ebmvk(
        "compare-decoding", *of, "--json", "--prompts", 2, "--prompt-tokens", 4, "--max-tokens", 4, "--top-k", 2
    )
    assert json.loads(said.out)["own_text"] is False
    said = ebmvk("evaluate", *of, "--score-matching")
    assert said.status == 2  # frequencies come from the training text


@pytest.mark.usefixtures("little_search")
def test_a_moved_text_is_asked_for_and_checked_by_its_digest(
    train: Command, ebmvk: Command, device: str, tmp_path: Path
) -> None:
    run, text, moved = tmp_path / "run", tmp_path / "text.txt", tmp_path / "moved.txt"
    text.write_text(made_up_text(), encoding="utf-8")
    train(run, "--dataset", text, *QUICK)
    text.rename(moved)
    of = ("--checkpoint", run, "--device", device)
    for command, args in (
        ("evaluate", of),
        ("diagnose", of),
        ("memory", of),
        ("compare-decoding", of),
        ("attention", (*of, "--out", tmp_path / "maps")),
        ("train", ("--resume", "--run-dir", run, "--steps", 3, "--quiet")),
    ):
        said = ebmvk(command, *args)
        assert said.status == 2
        assert f"--dataset {text}: the text of this run does not exist" in said.err
        assert "--dataset PATH" in said.err
    assert _evaluated(ebmvk, *of, "--dataset", moved)[0]["own_text"] is True
    assert ebmvk("memory", *of, "--dataset", moved, "--splats", 0, "--quiet").status == 0
    said = ebmvk("train", "--resume", "--run-dir", run, "--steps", 3, "--quiet", "--dataset", moved, "--device", device)
    assert said.status == 0, said.err
    assert read_config(run).data.dataset == str(moved)
    assert _evaluated(ebmvk, *of)[0]["own_text"] is True
    other = tmp_path / "other.txt"
    other.write_text(made_up_text(seed=3), encoding="utf-8")
    said = ebmvk("train", "--resume", "--run-dir", run, "--steps", 4, "--quiet", "--dataset", other, "--device", device)
    assert said.status == 2
    assert "is not the text this run was trained on" in said.err


def test_texts_of_older_runs_are_compared_by_tokens(
    train: Command, ebmvk: Command, device: str, tmp_path: Path
) -> None:
    run, text = tmp_path / "run", tmp_path / "text.txt"
    text.write_text(made_up_text(), encoding="utf-8")
    train(run, "--dataset", text, *QUICK)
    _as_of_before(run)
    of = ("--checkpoint", run, "--device", device)
    found, err = _evaluated(ebmvk, *of)
    assert (found["own_text"], found["own_text_by"], err) == (True, "the tokens of the training text", "")
    text.write_text("Another. " + made_up_text(), encoding="utf-8")
    found, err = _evaluated(ebmvk, *of)
    assert found["own_text"] is False
    assert "the tokens of the training text differ." in err


def test_older_runs_read_their_text_as_before(train: Command, ebmvk: Command, device: str, tmp_path: Path) -> None:
    """Earlier versions read JSON and a byte order mark as text."""
    run, text = tmp_path / "run", tmp_path / "rows.txt"
    rows = [json.dumps({"text": part}) for part in made_up_text().split("\n\n")]
    text.write_text("\ufeff" + "\n".join(rows), encoding="utf-8")
    said = ebmvk("train", "--dataset", text, "--run-dir", run)
    assert said.status == 2
    assert "recognised as JSON Lines" in said.err
    train(run, "--dataset", text, "--raw", "--keep-bom", *QUICK)
    _as_of_before(run, digests=True)
    assert "raw" not in (run / "config.toml").read_text(encoding="utf-8")
    assert _evaluated(ebmvk, "--checkpoint", run, "--device", device)[0]["own_text"] is True
    assert ebmvk("train", "--resume", "--run-dir", run, "--steps", 3, "--quiet", "--device", device).status == 0
    assert read_config(run).data.raw
    assert from_toml(run / "config.toml").data.keep_bom


def test_a_run_inside_its_data_folder_is_not_read_as_data(
    train: Command, ebmvk: Command, device: str, tmp_path: Path
) -> None:
    (tmp_path / "a.txt").write_text(made_up_text(), encoding="utf-8")
    (tmp_path / "b.py").write_text(made_up_text(seed=2), encoding="utf-8")
    run = tmp_path / "runs" / "one"
    train(run, "--dataset", tmp_path, "--include", "*.py", *QUICK[:2], "--eval-every", 1, *QUICK[4:])
    assert (run / "samples.txt").is_file()
    assert ebmvk("export", "--checkpoint", run, "--to", tmp_path / "model").status == 0
    found, err = _evaluated(ebmvk, "--checkpoint", run, "--device", device)
    assert (found["own_text"], err) == (True, "")
    said = ebmvk("train", "--resume", "--run-dir", run, "--steps", 3, "--quiet", "--device", device)
    assert said.status == 0, said.err
    config = json.loads((tmp_path / "model" / "config.json").read_text(encoding="utf-8"))
    assert config["config"]["data"]["dataset"] == tmp_path.name
    assert str(tmp_path) not in (tmp_path / "model" / "README.md").read_text(encoding="utf-8")
    exported, _ = _evaluated(
        ebmvk, "--checkpoint", tmp_path / "model", "--dataset", tmp_path, "--include", "*.py", "--device", device
    )
    assert exported["own_text"] is True
    said = ebmvk("evaluate", "--checkpoint", tmp_path / "model")
    assert said.status == 2
    assert "--dataset PATH" in said.err


def test_files_without_text_are_refused_and_never_crash(
    trained: Path, ebmvk: Command, device: str, tmp_path: Path
) -> None:
    (tmp_path / "s.txt").write_text("<|doc|>\n<|doc|>\n", encoding="utf-8")
    folder = tmp_path / "corpus"
    folder.mkdir()
    (folder / "train.txt").write_text(made_up_text(), encoding="utf-8")
    (folder / "valid.txt").write_text("<|endoftext|>\n", encoding="utf-8")
    odd = tmp_path / os.fsdecode(b"caf\xe9.txt")
    odd.write_text(made_up_text(), encoding="utf-8")
    of = ("--checkpoint", trained, "--device", device)
    for command, args, wanted in (
        ("evaluate", (*of, "--test-file", tmp_path / "s.txt"), "only lines that separate documents"),
        ("train", ("--dataset", folder), "valid.txt has no text: only lines"),
        ("analyze-corpus", ("--corpus", tmp_path / "s.txt"), "only lines that separate documents"),
        ("init-tokenizer", ("--files", tmp_path / "s.txt", "--out", tmp_path / "t.json"), "only lines that separate"),
        ("prepare-corpus", ("--input", tmp_path / "s.txt", "--output", tmp_path / "o"), "only lines that separate"),
        ("evaluate", (*of, "--test-file", odd), "caf\\xe9.txt is not UTF-8"),
        ("train", ("--dataset", odd), "caf\\xe9.txt is not UTF-8"),
        ("generate", (*of, "--prompt-file", odd), "caf\\xe9.txt is not UTF-8"),
    ):
        said = ebmvk(command, *args)
        assert (said.status, wanted in said.err) == (2, True), (command, said.err)


def test_lines_of_prompts_and_texts_end_only_at_newlines(
    trained: Path, ebmvk: Command, device: str, tmp_path: Path
) -> None:
    file, found = tmp_path / "lines.txt", tmp_path / "found.jsonl"
    lines = ["the cat\u2028sees", "a dog\x0cand \x85it", "she"]
    file.write_bytes(("\ufeff" + "\r\n".join(lines) + "\r\n").encode())
    of = ("--checkpoint", trained, "--device", device)
    said = ebmvk("embed", *of, "--file", file, "--json")
    assert [json.loads(line)["text"] for line in said.out.split("\n") if line] == lines
    given = (*of, "--max-tokens", 1, "--sampler", "exact", "--output", found, "--quiet", "--prompt-file", file)
    assert ebmvk("generate", *given, "--batch-generate").status == 0
    assert [json.loads(line)["prompt"] for line in found.read_text(encoding="utf-8").split("\n") if line] == lines
    assert ebmvk("generate", *given).status == 0
    assert json.loads(found.read_text(encoding="utf-8"))["prompt"] == "\r\n".join(lines)


def test_wikitext_as_a_text_file_counts_words_as_by_name(
    trained: Path, ebmvk: Command, device: str, tmp_path: Path
) -> None:
    (tmp_path / "w.txt").write_text(" \n = One = \n \n It is . \n \n = Two = \n \n She is . \n", encoding="utf-8")
    found, _ = _evaluated(ebmvk, "--checkpoint", trained, "--test-file", tmp_path / "w.txt", "--device", device)
    assert found["words"] == 3 + 3 + 3 + 3 + 8  # words, plus one end of line each
    assert found["own_text"] is None


@pytest.mark.parametrize(("given", "seed"), [((), None), (("--seed", "7"), 7), (("--seed=8,9,10,11",), 8)])
@pytest.mark.parametrize("size", ["4", "auto", "auto:2"])
def test_the_harness_passes_on_seed_and_batch_size(
    given: tuple[str, ...], seed: int | None, size: str, ebmvk: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Checks the arguments for lm_eval without running it."""
    asked: list[list[str]] = []
    main = types.ModuleType("lm_eval.__main__")
    main.cli_evaluate = lambda: asked.append(list(sys.argv))  # type: ignore[attr-defined]
    for name, module in (("lm_eval", types.ModuleType("lm_eval")), ("lm_eval.__main__", main)):
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setitem(
        sys.modules, "ebmvk.evaluation.harness_model", types.ModuleType("ebmvk.evaluation.harness_model")
    )
    said = ebmvk("harness", "--checkpoint", "run", "--batch_size", size, "--tasks", "one", *given)
    assert said.status == 0, said.err
    ((_, *args),) = asked
    assert json.loads(args[args.index("--model_args") + 1]).get("seed") == seed
    assert args[args.index("--batch_size") + 1] == size
    assert all(part in args for part in given)
    assert ebmvk("harness", "--checkpoint", "run", "--batch-size", "many").status == 2


def test_runs_on_different_texts_are_not_put_into_one_table(tmp_path: Path) -> None:
    def run(name: str, text: Mapping[str, str]) -> PlannedRun:
        found = PlannedRun(tmp_path / name, (), {})
        found.folder.mkdir()
        found.note.write_text(json.dumps({"arguments": []}), encoding="utf-8")
        (found.folder / "config.toml").write_text("", encoding="utf-8")
        part = {"nats_per_token": 1.0, "ppl_token": 2.0, "tokens": 5_000}
        rows = [
            {"event": "start", "corpus": {"sha256": text}},
            {"event": "step", "parts": {"ce": 1.0}},
            {"event": "end", "validation": part, "progress": {"seconds": 1.0, "tokens": 1}},
        ]
        (found.folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return found

    one, same, other = run("one", {"train": "a"}), run("same", {"train": "a"}), run("other", {"train": "b"})
    assert len(list(table({"1": one, "2": same}))) == 2
    with pytest.raises(ConfigError, match="different texts"):
        list(table({"1": one, "2": other}))
