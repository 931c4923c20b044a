"""Samples of steps that stay on a device."""

from __future__ import annotations

import pytest
import torch

from ebmvk.config.schema import Config, replace
from ebmvk.memory.while_training import samples
from ebmvk.training import seen


def asked(**values: object) -> Config:
    return replace(Config(), {"enable_soc": True, **values})


@pytest.mark.parametrize("slots", [1, 3])
def test_a_sample_is_put_into_its_slot_and_nothing_else_changes(slots: int) -> None:
    kept = torch.randn(slots, 4, 5, generator=torch.Generator().manual_seed(slots))
    for slot in range(slots):
        sample = torch.full((4, 5), float(slot))
        found = seen.put(kept, sample, torch.tensor(slot))
        assert torch.equal(found[slot], sample)
        assert torch.equal(found[torch.arange(slots) != slot], kept[torch.arange(slots) != slot])


@pytest.mark.parametrize(
    ("interval", "history", "d"), [(100, 10_000, 64), (20, 10_000, 256), (1, 16, 8), (10_000, 10_000_000, 64)]
)
def test_slots_hold_what_a_check_asks_for_within_their_bytes(interval: int, history: int, d: int) -> None:
    config = asked(soc_check_interval=interval, soc_history=history, latent_dim=d)
    (kept,) = seen.empty(config).values()
    assert kept.shape[1:] == (samples(config), d + 1)
    assert 1 <= len(kept) <= interval
    assert len(kept) == interval or kept.nbytes + kept[0].nbytes > seen.MOST_BYTES
    assert kept.nbytes <= max(seen.MOST_BYTES, kept[0].nbytes)


def test_nothing_is_kept_without_consolidation() -> None:
    assert seen.empty(replace(Config(), {"enable_soc": False})) == {}
