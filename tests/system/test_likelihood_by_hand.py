"""`ebmvk evaluate` against a plain loop over tokens, in float64, without our code for windows."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from ebmvk.data.datasets import resolve
from ebmvk.data.windows import encode_split
from ebmvk.model.language import LanguageModel
from ebmvk.runs.folder import OpenRun, open_run

from .conftest import Command, made_up_text

pytestmark = pytest.mark.usefixtures("no_pictures")

# The plain model and TinyGPT read a text as Mini-LLM does, but across documents, as "ebm" does.
MODELS = ("ebm", "minillm", "infinito", *(pytest.param(name, marks=pytest.mark.slow) for name in ("plain", "tinygpt")))
SHORT = 40  # tokens of validation that are scored
WINDOWS = [(16, 16), (16, 8), (7, 3), (5, 1), (100, 50)]  # the last one is longer than the text


def _first(target: int, begin: int, last: int, context: int, stride: int) -> int:
    """The beginning of the window that scores a target. begin, last: of the text, or of a document
    that is read alone.

    The first window scores `context` targets. Each later one ends `stride` further, at most at
    `last`, begins `context` before its end, and scores what is new.
    """
    end = begin + context
    while end < target:
        end += stride
    return max(begin, min(end, last) - context)


@torch.no_grad()
def _nats(model: LanguageModel, tokens: np.ndarray, breaks: list[int], context: int, stride: int) -> float:
    """Nats of all tokens but the first, each from its own forward pass. breaks: where documents
    that are read alone begin, including the beginning of the text."""
    total = 0.0
    for target in range(1, len(tokens)):
        begin = max(start for start in breaks if start < target)
        last = min([start for start in breaks if start >= target] + [len(tokens) - 1])
        first = _first(target, begin, last, context, stride)
        seen = torch.from_numpy(tokens[first:target].astype(np.int64))[None]
        logits = model.logits(model(seen))[0, -1].double().numpy()
        logits = logits - logits.max()
        total -= logits[tokens[target]] - math.log(np.exp(logits).sum())
    return total


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The made-up text with a separator after each sentence."""
    path = tmp_path_factory.mktemp("documents") / "made-up.txt"
    path.write_text(made_up_text(150).replace(". ", ".\n<|doc|>\n"), encoding="utf-8")
    return path


@pytest.fixture(scope="module", params=MODELS)
def run(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, documents: Path, tiny: Path
) -> OpenRun:
    """A model of each kind after two steps. minillm reads each document alone; the others read
    across documents.
    """
    from ebmvk.cli import train

    folder = tmp_path_factory.mktemp("by-hand") / "run"
    flags = (
        f"--model {request.param} --steps 2 --lr 0.05 --sample-tokens 0 --no-enable-soc --device cpu --quiet".split()
    )
    paths = ["--config", str(tiny), "--dataset", str(documents), "--run-dir", str(folder)]
    assert train.main([*flags, *paths]) == 0
    return open_run(folder, "--checkpoint", print)


def test_evaluate_matches_the_sum_over_tokens_by_hand(run: OpenRun, documents: Path, ebmvk: Command) -> None:
    whole = encode_split(resolve(str(documents)), "validation", run.tokenizer)
    starts = [int(start) for start in whole.starts if start <= SHORT]
    assert len(starts) > 2
    assert run.config.data.apart == (run.config.model.model == "minillm")
    breaks = starts if run.config.data.apart else [0]
    for context, stride in WINDOWS:
        window = ("--limit", SHORT, "--context", context, "--stride", stride)
        said = ebmvk("evaluate", "--checkpoint", run.folder, *window, "--device", "cpu", "--json")
        assert said.status == 0, said.err
        found, wanted = json.loads(said.out), _nats(run.model, whole.tokens[: SHORT + 1], breaks, context, stride)
        assert found["tokens"] == SHORT
        assert found["nats"] == pytest.approx(wanted, rel=2e-6), (context, stride)
        assert found["ppl_token"] == pytest.approx(math.exp(wanted / SHORT), rel=1e-5)
