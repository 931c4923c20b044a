"""Compares texts written by compiled layers with torch, which has its own cache."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from ebmvk.compute.chain import Call, Chain
from ebmvk.config.schema import LangevinConfig
from ebmvk.decoding.generate import Decoding, Generator
from ebmvk.engine.recording import Recorder
from ebmvk.engine.reference import Reference
from ebmvk.errors import ArgumentError
from ebmvk.model import tokens_on_device
from ebmvk.model.language import LanguageModel
from ebmvk.model.static_cache import newest
from ebmvk.model.token_layers import Read, Rows, TokenLayers, TorchTokens, Wanted
from ebmvk.model.tokens_on_device import DeviceTokens, Links

sys.path.append(str(Path(__file__).parents[1] / "unit"))

from model_support import SMALL, VARIANTS, VOCABULARY, build, variant

CLOSE = 1e-5  # error of log p, in nats, that a device may have
TINY = dataclasses.replace(
    SMALL, latent_dim=16, ffn_dim=24, hidden_dim=12, context_local=3, context_medium=5, context_global=12
)
PROMPTS = ["abc", "", "longer than the reach", "xy"]


class Letters:
    """A tokenizer without merges: 0 ends a text, other tokens are letters."""

    eos_id, vocab_size = 0, VOCABULARY

    def encode_prompt(self, text: str) -> list[int]:
        return [0, *(1 + ord(letter) % (VOCABULARY - 1) for letter in text)]

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(chr(64 + token) for token in ids)


class Eager:
    """Stands in for a `Chain`: calls the steps without compiling them."""

    ran, cpu_ops = None, 0

    def __init__(self, links: Links) -> None:
        self._links = links

    def start(self, kept: Any, state: Any) -> None:
        self._kept, self._state = kept, state

    def run(self, calls: Sequence[Call]) -> Any:
        (call,) = calls
        _, self._state, found = self._links[call.step].step(self._kept, self._state, call.batch, call.scalars)
        return [found], {}


class Both:
    """Runs two kinds of layers and compares their results at each call.

    did: what the first kind of layers did on the device, for each token.
    """

    def __init__(self, own: DeviceTokens, other: TokenLayers) -> None:
        self.own, self.other = own, other
        self.did: list[dict[str, Any]] = []

    @property
    def starts(self) -> int:
        return self.own.starts

    def start(self, rows: Rows, wanted: Wanted) -> Read:
        found, other = self.own.start(rows, wanted), self.other.start(rows, wanted)
        return self._same(found, other, [len(row) for row in rows])

    def follow(self, tokens: Sequence[int]) -> Read:
        self.own.did()
        found = self.own.follow(tokens)
        self.did.append(self.own.did())
        return self._same(found, self.other.follow(tokens), [1] * len(tokens))

    def keep(self, rows: Sequence[int]) -> None:
        for layers in (self.own, self.other):
            layers.keep(rows)

    def again(self, rows: Sequence[int], tokens: Rows) -> None:
        for layers in (self.own, self.other):
            layers.again(rows, tokens)

    @staticmethod
    def _same(found: Read, wanted: Read, new: list[int]) -> Read:
        pairs = [(found.log_p, wanted.log_p), (found.query, wanted.query)]
        if found.h is not None and wanted.h is not None:
            pairs += [(found.h[i, -n:], wanted.h[i, -n:]) for i, n in enumerate(new)]
        for own, other in pairs:
            if own is not None and other is not None:
                assert own.shape == other.shape
                assert (own.double() - other.double()).abs().max() <= CLOSE
        return found


@cache
def network(name: str, layers: int, heads: int = 2) -> LanguageModel:
    """A network with laws so sharp that texts differ. Its texts rarely end by themselves."""
    net: LanguageModel = build(variant(name, dataclasses.replace(TINY, n_layers=layers, n_heads=heads)))
    with torch.no_grad():
        net.bias.mul_(5)
        net.bias[0] = -1
    return net


def written(net: LanguageModel, own: DeviceTokens, how: Decoding) -> tuple[list[Any], Both]:
    """Texts written by `own` and by torch's layers at once, and the pair of both layers."""
    with torch.no_grad():
        both = Both(own, TorchTokens(net, net.embeddings()))
    return generator(net, both).generate(PROMPTS, how), both


def generator(net: LanguageModel, layers: TokenLayers | None = None) -> Generator:
    settings = LangevinConfig(knn_k=8, langevin_steps=4, langevin_levels=2)
    tokenizer: Any = Letters()
    return Generator(net, tokenizer, Reference(), settings, layers=layers)


def exact(n: int, **how: Any) -> Decoding:
    return Decoding(n, sampler="exact", **how)


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes pieces small, so that prompts have several pieces."""
    monkeypatch.setattr(tokens_on_device, "CHUNK", 8)


def eager(links: Links) -> Any:
    return Eager(links)


@pytest.mark.parametrize("name", VARIANTS)
def test_a_cache_of_fixed_shapes_gives_the_results_of_a_growing_cache(name: str) -> None:
    """Prompts are shorter and longer than a piece, a window and the reach. Some texts end early."""
    net = network(name, 2)
    found, _ = written(net, DeviceTokens(net, eager), exact(10, stop=tuple("ABCDEFGHIJKLMNO"), seed=3))
    assert len({len(text.tokens) for text in found}) > 1


def test_a_single_head_keeps_no_early_keys() -> None:
    net = network("plain", 1, 1)
    written(net, DeviceTokens(net, eager), exact(4))


def test_texts_that_fill_the_reach_are_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some rows are read again while others go on; later all rows are read again together."""
    net, rows = network("tinygpt", 1), list[int]()
    monkeypatch.setattr(net, "reach", 9)
    own = DeviceTokens(net, eager)
    again = own.again
    monkeypatch.setattr(own, "again", lambda *args: (rows.append(len(args[0])), again(*args)))
    written(net, own, exact(20))
    assert rows
    before = own.starts
    generator(net, own).generate(PROMPTS[:1], exact(20))
    assert own.starts > before + 1


def test_a_sampler_gets_queries_and_a_memory_states() -> None:
    """Programs that return more than is wanted are also used."""
    net, said = network("ebm", 1), list[str]()
    own = DeviceTokens(net, eager, said.append)
    for query, states, programs in ((True, False, 1), (True, True, 2), (True, False, 2), (False, True, 2)):
        found = own.start([[0, 5, 6], [0]], Wanted(query, states))
        assert found.query is not None
        assert found.h is not None or not states
        assert len(said) == programs


def test_fewer_rows_use_the_programs_that_are_there() -> None:
    net, said = network("ebm", 1), list[str]()
    own = DeviceTokens(net, eager, said.append)
    for prompts, programs in ((PROMPTS[:3], 1), (PROMPTS[:1], 1), (PROMPTS, 2), (PROMPTS[:2], 2)):
        wanted = generator(net).generate(prompts, exact(4))
        assert generator(net, own).generate(prompts, exact(4)) == wanted
        assert len(said) == programs


def test_two_texts_may_be_written_by_turns() -> None:
    """Each text is the same as if it were written alone, though both use the same cache."""
    net = network("infinito", 1)
    alone = [list(generator(net).stream(prompt, exact(15))) for prompt in ("ab", "cde")]
    own = generator(net, DeviceTokens(net, eager))
    streams = [own.stream(prompt, exact(15)) for prompt in ("ab", "cde")]
    pieces: list[list[str]] = [[], []]
    turns = torch.randint(2, (40,), generator=torch.Generator().manual_seed(0)).tolist()
    for number in [*turns, *[0] * 20, *[1] * 20]:
        pieces[number] += [piece] if (piece := next(streams[number], "")) else []
    assert pieces == alone


@pytest.mark.parametrize(("slots", "length"), [(1, 0), (1, 5), (4, -3), (4, 0), (4, 3), (4, 4), (7, 100)])
def test_a_ring_has_the_newest_positions(slots: int, length: int) -> None:
    found = newest(slots, torch.tensor(length)).tolist()
    assert sorted(found) == list(range(length - slots, length))
    assert [place % slots for place in found] == list(range(slots))


def test_a_module_that_does_not_say_what_it_keeps_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    net = network("infinito", 1)
    monkeypatch.delattr("ebmvk.model.infinito.ExternalMemory.rooms")
    with pytest.raises(ArgumentError, match="ExternalMemory keeps something in a cache"):
        DeviceTokens(net, eager).start([[0]], Wanted())


# ---- compiled ------------------------------------------------------------------------------------


def test_programs_write_what_torch_writes() -> None:
    """The programs run in numpy. The compiler also compares them with torch at other weights."""
    net = network("without splat", 1)
    own = DeviceTokens(net, lambda links: Chain(links, backend="reference"))
    how = Decoding(5, sampler="langevin")
    assert written(net, own, how)[0] == generator(net).generate(PROMPTS, how)


def test_a_token_is_one_wait_and_its_cache_stays_on_the_device(recorder: Recorder) -> None:
    net = network("infinito", 1)
    own = DeviceTokens(net, lambda links: Chain(links, device=recorder, check=False))
    how = exact(12, stop=tuple("ABCDEF"))
    found, both = written(net, own, how)
    assert found == generator(net).generate(PROMPTS, how)
    rows, word = len(PROMPTS), 4
    for did in both.did:
        assert (did["submissions"], did["cpu_ops"]) == (1, 0)
        # Copies are the upload, the download, and the external memory, which is read after it is
        # written. Keys and values aren't copied.
        assert did["copies"] == 3
        assert did["bytes_down"] <= rows * VOCABULARY * word + 256  # log p, up to a multiple of 256
        assert did["bytes_up"] <= 2 * word * rows + 1024  # tokens, padding, angles, the length
