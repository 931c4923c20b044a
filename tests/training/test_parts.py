"""A step in parts against the whole step, in plain torch: what the programs of a device compute."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

sys.path.append(str(Path(__file__).parents[1] / "compute"))

from model_steps import Case, Made, make

from ebmvk.compute.step import CompiledStep
from ebmvk.objective.batch import Batch, prepare
from ebmvk.ranks import Share
from ebmvk.training.parts import Kept, Outline, Parts, counted, layout, pairs
from ebmvk.training.update import Rule

EXACT = 1e-6
"""Relative L2: what is asked of another split of a batch. Sums of gradients take another order."""


@pytest.fixture(autouse=True)
def nothing_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CompiledStep, "compile", lambda *_: None)


def parts_of(made: Made, most: int = 1 << 20) -> Parts:
    batch = made.batch(0)
    outline = Outline.of(made.step, made.parameters, batch["batches"][0])
    return Parts(made.step, outline, made.parameters, samples=len(batch.get("sample", ())), most=most)


def stepped(made: Made, parts: Parts, kept: Kept, batch: dict[str, Any], number: int = 0) -> tuple[Any, Kept, Any]:
    """A whole step by parts. kept: what is there before it, with moments."""
    order = [torch.tensor(place == 0) for place in range(len(batch["batches"]))]
    for own, first in zip(batch["batches"], order, strict=True):
        if parts.outline.sums:
            _, sums, _ = parts.sums(made.parameters, {"sums": kept["sums"]}, counted(own), {"first": first})
            kept = kept | sums
    start = 0
    for own, first in zip(batch["batches"], order, strict=True):
        given: dict[str, Any] = {"pass": own}
        if "sample" in batch:
            local = batch["sample"] - start
            given["mine"] = (local >= 0) & (local < len(own.targets))
            given["place"] = local * given["mine"]
        start += len(own.targets)
        mine = {name: value for name, value in kept.items() if name != "moments"}
        _, added, record = parts.one_pass(made.parameters, mine, given, {"first": first})
        assert record == {}
        kept = kept | added
    return parts.update(made.parameters, kept, {}, made.scalars(number))


def begun(made: Made, parts: Parts) -> Kept:
    return {**parts.empty(), "moments": made.state}


def difference(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> float:
    """Relative L2 of all tensors together."""
    assert set(found) == set(wanted)
    of = lambda own: torch.cat([own[name].double().flatten() for name in wanted])  # noqa: E731
    return float((of(found) - of(wanted)).norm() / of(wanted).norm())


CASES = [
    Case("plain", passes=2, optimizer="muon", sample=True),
    Case("ebm", passes=4, optimizer="muon", sample=True),
    Case("experts", passes=2),
    Case("infinito", passes=4),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_step_in_parts_is_the_whole_step(case: Case) -> None:
    """Two steps, so that nothing of the first one may stay in the second."""
    made = make(case, None)
    parts = parts_of(made, most=2000)  # several flat arrays
    assert len(parts.flats) > 1
    kept = begun(made, parts)
    for number in (0, 1):
        batch = made.batch(number)
        wanted, moments, whole = made.step(
            made.parameters, made.state, batch["batches"], made.scalars(number), batch.get("sample")
        )
        found, kept, record = stepped(made, parts, kept, batch, number)
        assert difference(found, wanted) <= EXACT
        assert difference(kept["moments"], moments) <= EXACT
        assert set(record) == set(whole)
        for name, value in whole.items():
            assert torch.allclose(record[name].double(), value.double(), rtol=4 * EXACT, atol=EXACT), name
        made.parameters, made.state = wanted, moments
        kept["moments"] = moments


def test_another_split_of_a_batch_gives_the_same_step() -> None:
    """In a step of one pass, too: processes take their shares as passes."""
    found = {}
    for passes in (4, 1, 2, 8):
        made = make(Case("experts", passes=passes), None)
        parts = parts_of(made)
        found[passes], _, _ = stepped(made, parts, begun(made, parts), made.batch(3))
        assert difference(found[passes], found[4]) <= EXACT, passes


def test_what_is_not_finite_in_any_pass_leaves_weights_and_moments() -> None:
    made = make(Case("plain", passes=4), None)
    parts, batch = parts_of(made), made.batch(0)
    wanted, _, _ = stepped(made, parts, begun(made, parts), batch)
    for bad in range(4):
        broken = [
            Batch(**{**vars(own), "portion": torch.tensor(float("nan"))}) if place == bad else own
            for place, own in enumerate(batch["batches"])
        ]
        new, kept, record = stepped(made, parts, begun(made, parts), batch | {"batches": broken})
        assert not record["finite"]
        assert all(torch.equal(new[name], own) for name, own in made.parameters.items())
        assert all(torch.equal(kept["moments"][name], own) for name, own in made.state.items())
        again, _, record = stepped(made, parts, kept, batch)  # nothing of the bad step stays
        assert record["finite"]
        assert all(torch.equal(again[name], own) for name, own in wanted.items())


def test_parameters_that_are_updated_alike_lie_side_by_side() -> None:
    shapes = {"a": (3,), "b": (8, 8), "c": (65,), "d": (640,)}
    parameters = {name: torch.zeros(shape) for name, shape in shapes.items()}
    one, other = Rule(1.0, 0.0, False), Rule(1.0, 0.1, False)
    rules = {"a": one, "b": other, "c": one, "d": other}
    assert layout(list(shapes), parameters, rules, 10000) == [["a", "c", "b", "d"]]
    assert layout(list(shapes), parameters, rules, 256) == [["a", "c", "b"], ["d"]]


def test_sums_are_kept_to_fourteen_digits() -> None:
    x = torch.randn(100, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 1e3
    assert bool(((pairs(x).double().sum(0) - x).abs() <= 2.0**-47 * x.abs()).all())


def test_ranks_take_their_shares_of_each_pass() -> None:
    """The sums of two ranks' passes are those of one process: gradients, losses and sample."""
    made = make(Case("plain", passes=2, sample=True), None)
    parts, batch = parts_of(made), made.batch(0)
    tokens = torch.randint(11, (8, 13), generator=torch.Generator().manual_seed(5))
    totals: list[Kept] = []
    for size in (1, 2):
        whole: list[Kept] = []
        for rank in range(size):
            kept = parts.empty()
            for number in range(2):
                share = Share(rank, size, batch=number, batches=2)
                own = prepare(made.net, tokens, made.config, seed=7, step=0, share=share, fixed=True)
                local = batch["sample"] - share.rows(8).start * 12
                mine = (local >= 0) & (local < len(own.targets))
                given = {"pass": own, "place": local * mine, "mine": mine}
                _, kept, _ = parts.one_pass(made.parameters, kept, given, {"first": torch.tensor(number == 0)})
            whole.append(kept)
        totals.append({"losses": sum(own["losses"] for own in whole), "sample": sum(own["sample"] for own in whole),
                       "gradients": sum(own["gradients"][0] for own in whole)})  # fmt: skip
    assert difference(totals[1], totals[0]) <= EXACT
