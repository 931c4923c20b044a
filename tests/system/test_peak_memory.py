"""A text of any length is scored in the memory of a piece of it, in every process, whatever its
heap is like."""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from ebmvk.config.schema import ModelConfig
from ebmvk.data.windows import TokenStream
from ebmvk.engine import select
from ebmvk.evaluation.likelihood import token_nats
from ebmvk.memory.episodic import EpisodicConfig
from ebmvk.memory.gate import LEXICAL, Gate
from ebmvk.memory.law import Memory, Reader
from ebmvk.model.build import build_model
from ebmvk.model.language import LanguageModel
from ebmvk.splats.recall import FEATURES

pytestmark = pytest.mark.usefixtures("no_pictures")

VOCABULARY, TOKENS = 50_258, 1500  # all of the text's logits: 302 MB
PROCESSES = 10
MOST = 100e6  # bytes beyond what the model takes: two pieces of logits are 34 MB
SMALL = ModelConfig(
    latent_dim=16, n_layers=1, n_heads=2, ffn_dim=32, context_local=4, context_medium=8, context_global=16,
    hidden_dim=16, dropout=0.0,
)  # fmt: skip


def _peak() -> int:
    """Bytes: the most that this process has held since its birth."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


def _held() -> int:
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _grown(work: Callable[[], object], number: int) -> int:
    """Bytes at the peak of `work` in a process of its own, less those before. number: of the
    process."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        # No two heaps are alike: some arrays were used and freed before, and others stay.
        draw = random.Random(number)
        kept = [bytes(draw.randrange(1 << 18)) for _ in range(200)]
        kept = kept[:: 1 + number % 3]
        before = _held()
        work()
        os.write(write, str(_peak() - before).encode())
        os._exit(0 if kept else 1)
    os.close(write)
    with os.fdopen(read) as said:
        found = said.read()
    assert os.waitpid(child, 0)[1] == 0
    return int(found)


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    torch.manual_seed(0)
    return build_model(SMALL, VOCABULARY).eval()


def _reader(model: LanguageModel) -> Reader:
    wide = LEXICAL + FEATURES
    gate = Gate(torch.zeros(1, wide), torch.zeros(1), torch.zeros(wide), torch.ones(wide))
    memory = Memory(model.config.latent_dim, VOCABULARY, None, 4, 0.5, EpisodicConfig(capacity=50), {"episodic": gate})
    return Reader(memory, "episodic", select("reference"))


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
def test_the_peak_of_an_evaluation_is_that_of_a_piece_of_the_text(model: LanguageModel) -> None:
    peaks = [_grown(partial(_evaluated, model, TOKENS, None), number) for number in range(PROCESSES)]
    assert max(peaks) < MOST, [f"{peak / 1e6:.0f} MB" for peak in peaks]


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
def test_with_a_memory_the_peak_is_that_of_a_few_pieces(model: LanguageModel) -> None:
    peaks = [_grown(partial(_evaluated, model, TOKENS // 3, _reader(model)), number) for number in range(2)]
    assert max(peaks) < 3 * MOST, [f"{peak / 1e6:.0f} MB" for peak in peaks]


def _evaluated(model: LanguageModel, tokens: int, reader: Reader | None) -> None:
    ids = np.random.default_rng(0).integers(VOCABULARY, size=tokens).astype(np.int32)
    token_nats(*(model, TokenStream.of_text(ids)), context=64, stride=32, device=torch.device("cpu"), reader=reader)
