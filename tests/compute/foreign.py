"""Models that other people wrote, or could have written, and their training text."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional as F

TEXT = "the quick brown fox jumps over the lazy dog, and the dog sleeps on. "
LETTERS = sorted(set(TEXT))


def batches(size: int, length: int, count: int) -> list[dict[str, torch.Tensor]]:
    """Windows of a text that repeats itself, so that a model can learn it in a few steps."""
    letters = torch.tensor([LETTERS.index(letter) for letter in TEXT * (2 + length // len(TEXT))])
    chance = torch.Generator().manual_seed(0)
    made = []
    for _ in range(count):
        starts = torch.randint(len(TEXT), (size,), generator=chance).tolist()
        windows = torch.stack([letters[start : start + length + 1] for start in starts])
        made.append({"ids": windows[:, :-1].contiguous(), "labels": windows[:, 1:].contiguous()})
    return made


def for_transformers(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The batch with a mask and positions, which a model of transformers would otherwise make."""
    size, length = batch["ids"].shape
    mask = torch.ones(size, length, dtype=torch.long)
    return {**batch, "mask": mask, "positions": torch.arange(length).repeat(size, 1)}


def transformers_loss(call: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    given = {"input_ids": batch["ids"], "attention_mask": batch["mask"], "position_ids": batch["positions"]}
    logits = call(**given, use_cache=False).logits
    return F.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten())


def ids_loss(call: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    return F.cross_entropy(call(batch["ids"]).flatten(0, 1), batch["labels"].flatten())


def gpt2(words: int, length: int, width: int = 16, layers: int = 1, heads: int = 2) -> torch.nn.Module:
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        vocab_size=words, n_positions=length, n_embd=width, n_layer=layers, n_head=heads, resid_pdrop=0, embd_pdrop=0,
        attn_pdrop=0, attn_implementation="eager", bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    return transformers.GPT2LMHeadModel(config)


def llama(words: int, length: int, width: int = 16, layers: int = 1, heads: int = 4) -> torch.nn.Module:
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=words, hidden_size=width, intermediate_size=3 * width // 2, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=heads // 2, max_position_embeddings=length,
        attn_implementation="eager",
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config)


class Convolutions(torch.nn.Module):
    """Convolutions over tokens: a causal one, a depthwise one, and one with a stride."""

    def __init__(self, words: int, length: int) -> None:
        super().__init__()
        self.length = length
        self.words = torch.nn.Embedding(words, 8)
        self.wide = torch.nn.Conv1d(8, 12, 3, padding=2, dilation=1)
        self.each = torch.nn.Conv1d(12, 12, 3, padding=1, groups=12)
        self.strided = torch.nn.Conv1d(12, 8, 4, stride=2, padding=1)
        self.head = torch.nn.Linear(8, words)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.words(ids).transpose(1, 2)
        x = F.silu(self.wide(x)[..., : self.length])
        x = self.strided(F.relu(self.each(x)))
        return self.head(x.transpose(1, 2).repeat_interleave(2, 1))


class Recurrent(torch.nn.Module):
    """An LSTM cell of plain operations."""

    def __init__(self, words: int, length: int) -> None:
        super().__init__()
        del length
        self.words = torch.nn.Embedding(words, 8)
        self.gates = torch.nn.Linear(16, 32)
        self.head = torch.nn.Linear(8, words)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.words(ids)
        h = c = torch.zeros(ids.shape[0], 8)
        seen = []
        for t in range(ids.shape[1]):
            i, f, g, o = self.gates(torch.cat([x[:, t], h], -1)).chunk(4, -1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
            seen.append(h)
        return self.head(torch.stack(seen, 1))


class Experts(torch.nn.Module):
    """A mixture of four experts, two for each token, that doesn't read values on the host."""

    def __init__(self, words: int, length: int) -> None:
        super().__init__()
        del length
        self.words = torch.nn.Embedding(words, 8)
        self.router = torch.nn.Linear(8, 4)
        self.up = torch.nn.Parameter(torch.randn(4, 8, 16) / 4)
        self.down = torch.nn.Parameter(torch.randn(4, 16, 8) / 4)
        self.norm = torch.nn.RMSNorm(8)
        self.head = torch.nn.Linear(8, words)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.words(ids).flatten(0, 1)
        weights, chosen = torch.topk(torch.softmax(self.router(x), -1), 2)
        share = torch.zeros(x.shape[0], 4).scatter(1, chosen, weights / weights.sum(-1, keepdim=True))
        every = torch.einsum("enf,efd->end", F.relu(torch.einsum("nd,edf->enf", x, self.up)) ** 2, self.down)
        x = x + (share.t().unsqueeze(-1) * every).sum(0)
        return self.head(self.norm(x)).unflatten(0, ids.shape)


class LstmModule(torch.nn.Module):
    """torch's own nn.LSTM, which runs as one operation in eager torch."""

    def __init__(self, words: int, length: int) -> None:
        super().__init__()
        del length
        self.words = torch.nn.Embedding(words, 8)
        self.cell = torch.nn.LSTM(8, 8, batch_first=True)
        self.head = torch.nn.Linear(8, words)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.cell(self.words(ids))[0])


class SelectedExperts(torch.nn.Module):
    """A mixture of experts in the most usual form: each expert gets the rows that chose it. The
    number of these rows depends on values, so the model can't be compiled."""

    def __init__(self, words: int, length: int) -> None:
        super().__init__()
        del length
        self.words = torch.nn.Embedding(words, 8)
        self.router = torch.nn.Linear(8, 4)
        self.experts = torch.nn.ModuleList(torch.nn.Linear(8, 8) for _ in range(4))
        self.head = torch.nn.Linear(8, words)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.words(ids).flatten(0, 1)
        share, chosen = torch.softmax(self.router(x), -1).max(-1)
        y = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            rows = (chosen == number).nonzero().flatten()
            y = y.index_add(0, rows, expert(x[rows]))
        return self.head(x + share[:, None] * y).unflatten(0, ids.shape)
