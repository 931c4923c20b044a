"""Decoding strategies compared on one run: figures that are true of the texts, beside those of the human text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from .conftest import Command

SMALL = ("--prompts", 6, "--prompt-tokens", 4, "--max-tokens", 8)


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
        assert row["judge_bits_per_byte"] > 0
    assert len({row["nats_per_token"] for row in rows.values()}) == len(rows)
    # What the model finds likeliest costs it least; drawing more boldly costs it more than its own law does.
    assert (
        rows["greedy"]["nats_per_token"]
        < rows["sampling"]["nats_per_token"]
        < rows["temperature 1.5"]["nats_per_token"]
    )


def test_the_same_seed_gives_the_same_figures(compared: Any) -> None:
    speed = "tokens_per_second"
    one, two, other = (compared("--strategy", "sampling", "--seed", seed)["sampling"] for seed in (1, 1, 2))
    assert one | {speed: 0} == two | {speed: 0}
    assert one | {speed: 0} != other | {speed: 0}


def test_it_prints_a_table(ebmvk: Command, trained: Path, device: str) -> None:
    said = ebmvk("compare-decoding", "--checkpoint", trained, "--device", device, *SMALL, "--strategy", "greedy")
    lines = said.out.splitlines()
    assert lines[0].split()[:2] == ["strategy", "repetition"]
    assert [line.split()[0] for line in lines[1:3]] == ["human", "greedy"]
    assert all("repeats itself" in line for line in lines[3:])


def test_refusals(ebmvk: Command, trained: Path, device: str) -> None:
    at = ("--checkpoint", trained, "--device", device)
    for args, said in (
        (("--strategy", "magic"), "--strategy 'magic'"),
        (("--prompts", 0), "--prompts 0"),
        (("--prompts", 10_000), "fewer than 10000"),
    ):
        found = ebmvk("compare-decoding", *at, *args)
        assert found.status == 2
        assert said in found.err
