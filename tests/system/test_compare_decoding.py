"""`ebmvk compare-decoding`: figures of each strategy's texts, beside those of the human text."""

from __future__ import annotations

import importlib
import json
import math
from pathlib import Path
from typing import Any

import pytest

from ebmvk.cli.compare_decoding import _advice
from ebmvk.evaluation.comparison import Judge
from ebmvk.runs.folder import open_run

from .conftest import Command, need_vulkan

pytestmark = pytest.mark.usefixtures("no_pictures")

SMALL = ("--prompts", 6, "--prompt-tokens", 4, "--max-tokens", 8)


@pytest.fixture(scope="module")
def by_characters(tmp_path_factory: pytest.TempPathFactory, text: Path, tiny: Path, device: str) -> Path:
    """A run on the same text with characters as tokens. Tests must not change it."""
    folder = tmp_path_factory.mktemp("characters") / "run"
    args = ["--run-dir", folder, "--dataset", text, "--config", tiny, "--device", device, "--quiet"]
    own = ["--tokenizer", "char", "--knn-k", 4, "--sample-tokens", 0]
    assert importlib.import_module("ebmvk.train").main([str(arg) for arg in (*args, *own)]) == 0
    return folder


@pytest.fixture
def compared(ebmvk: Command, trained: Path, device: str) -> Any:
    def call(*args: Any) -> dict[str, dict[str, Any]]:
        said = ebmvk("compare-decoding", "--checkpoint", trained, "--device", device, *SMALL, *args, "--json")
        assert said.status == 0, said.err
        return {row["strategy"]: row for row in json.loads(said.out)["rows"]}

    return call


def test_every_strategy_has_its_figures(compared: Any, trained: Path) -> None:
    rows = compared("--judge", trained)
    assert next(iter(rows)) == "human"
    assert rows["human"]["tokens"] == 48
    assert rows["human"]["tokens_per_second"] is None
    assert rows["greedy"]["settings"] == {"top_k": 1}
    for row in rows.values():
        assert 0 <= row["repetition_rate"] <= 1
        assert 0 < row["distinct_1"] <= row["distinct_2"] <= 1
        # A judge with the same weights says the same of the same tokens.
        assert (row["judge_unit"], row["judge_nats"]) == ("token", row["nats_per_token"])
        assert row["judge_perplexity"] == row["perplexity"] == pytest.approx(math.exp(row["nats_per_token"]))
        assert row["judge_bits_per_byte"] > 0
    assert len({row["nats_per_token"] for row in rows.values()}) == len(rows)
    # What the model finds likeliest costs it least; drawing more boldly costs it more than its own
    # law does.
    assert (
        rows["greedy"]["nats_per_token"]
        < rows["sampling"]["nats_per_token"]
        < rows["temperature 1.5"]["nats_per_token"]
    )


def test_a_judge_with_other_tokens_is_compared_by_bytes(
    compared: Any, ebmvk: Command, trained: Path, by_characters: Path, device: str
) -> None:
    rows = compared("--judge", by_characters, "--strategy", "sampling")
    for row in rows.values():
        assert row["judge_unit"] == "byte"
        assert row["judge_nats"] == pytest.approx(row["judge_bits_per_byte"] * math.log(2))
        assert row["judge_perplexity"] == pytest.approx(2 ** row["judge_bits_per_byte"])
    args = ("--checkpoint", trained, "--device", device, *SMALL, "--strategy", "greedy")
    lines = ebmvk("compare-decoding", *args, "--judge", by_characters).out.splitlines()
    assert "judge PPL/byte  judge b/B" in lines[0]
    assert "per byte" in lines[3]
    assert "judge PPL/token  judge b/B" in ebmvk("compare-decoding", *args, "--judge", trained).out
    assert "judge" not in ebmvk("compare-decoding", *args).out


def test_both_ways_to_judge_agree_if_the_tokens_are_the_same(by_characters: Path) -> None:
    """Tokens of single characters are always the same, whether written or read."""
    run = open_run(by_characters, "--checkpoint", print)
    judge = Judge(run.model, run.tokenizer, run.config.data.seq_length)
    prompt, text = "The cat sees", " a house. She paints it."
    begun, whole = (run.tokenizer.encode_prompt(part).tolist() for part in (prompt, prompt + text))
    assert len(whole) - len(begun) == len(text)
    assert judge.nats_of_text(prompt, text) == pytest.approx(judge.nats(begun, whole[len(begun) :]))


def test_settings_of_the_user_add_a_custom_row(compared: Any) -> None:
    flags = ("--temperature", 0.5, "--min-p", 0.1, "--typical-p", 0.9, "--no-repeat-ngram", 3)
    rows = compared("--strategy", "greedy", *flags)
    assert list(rows) == ["human", "greedy", "custom"]
    assert rows["custom"]["settings"] == {
        "temperature": 0.5, "min_p": 0.1, "typical_p": 0.9, "no_repeat_ngram": 3
    }  # fmt: skip
    # A strategy is its settings: those of a named strategy give the same figures.
    same = compared("--strategy", "temperature 0.5", "--temperature", 0.5)
    assert same["custom"]["nats_per_token"] == same["temperature 0.5"]["nats_per_token"]


@pytest.mark.parametrize(
    "settings", [{}, {"repetition_penalty": 1.2}, {"repetition_penalty": 1.2, "no_repeat_ngram": 4}]
)
def test_advice_against_repetition_changes_the_settings(settings: dict[str, float]) -> None:
    rows = [
        {"strategy": "human", "settings": {}, "repetition_rate": 0.03, "tokens": 1280},
        {"strategy": "mine", "settings": settings, "repetition_rate": 0.5},
    ]
    (line,) = _advice(rows)
    flag, value = line.split()[-2:]
    assert settings.get(flag[2:].replace("-", "_")) != float(value)
    assert list(_advice([rows[0], rows[1] | {"repetition_rate": 0.04}])) == []
    assert list(_advice([rows[0] | {"tokens": 1279}, rows[1]])) == []  # too short to compare


def test_the_same_seed_gives_the_same_figures(compared: Any) -> None:
    speed = "tokens_per_second"
    one, two, other = (compared("--strategy", "sampling", "--seed", seed)["sampling"] for seed in (1, 1, 2))
    assert one | {speed: 0} == two | {speed: 0}
    assert one | {speed: 0} != other | {speed: 0}


def test_a_vulkan_device_writes_and_scores_the_same_texts(ebmvk: Command, trained: Path) -> None:
    need_vulkan()

    def found(device: str) -> list[dict[str, Any]]:
        args = ("--prompts", 2, "--prompt-tokens", 4, "--max-tokens", 3, "--strategy", "sampling", "--judge", trained)
        said = ebmvk("compare-decoding", "--checkpoint", trained, "--device", device, *args, "--json")
        assert said.status == 0, said.err
        assert ("the layers run there, too" in said.err) == (device != "cpu")
        return json.loads(said.out)["rows"]

    for own, other in zip(found("cpu"), found("vulkan"), strict=True):
        assert own.keys() == other.keys()
        for name, value in own.items():
            # Floats in sums of another order: 1e-5 nats for each token.
            wanted = pytest.approx(value, abs=1e-5, rel=1e-5) if isinstance(value, float) else value
            assert name == "tokens_per_second" or other[name] == wanted, name


def test_the_command_prints_a_table(ebmvk: Command, trained: Path, device: str) -> None:
    said = ebmvk("compare-decoding", "--checkpoint", trained, "--device", device, *SMALL, "--strategy", "greedy")
    lines = said.out.splitlines()
    assert lines[0].split()[:2] == ["strategy", "repetition"]
    assert [line.split()[0] for line in lines[1:3]] == ["human", "greedy"]
    assert all("repeats itself" in line for line in lines[3:])


def test_bad_arguments_are_named(ebmvk: Command, trained: Path, device: str) -> None:
    at = ("--checkpoint", trained, "--device", device)
    for args, said in (
        (("--strategy", "magic"), "--strategy 'magic'"),
        (("--prompts", 0), "--prompts 0"),
        (("--top-p", 3), "--top-p 3"),
        (("--prompts", 10_000), "fewer than 10000"),
    ):
        found = ebmvk("compare-decoding", *at, *args)
        assert found.status == 2
        assert said in found.err
