"""Train a small GPT, written in plain torch, on any Vulkan device.

    python examples/nanogpt.py --device vulkan --steps 200

The text is the documentation that comes with Python, and its characters are the tokens. The model
and the training step are torch code that knows nothing of Vulkan; `ebmvk.compile_step` compiles
the step. With --device cpu torch runs the step itself.
"""

from __future__ import annotations

import argparse
import math
import time
from pydoc_data.topics import topics

import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

import ebmvk

BETA1, BETA2, EPSILON, DECAY = 0.9, 0.95, 1e-8, 0.1


class Block(nn.Module):
    """Attention and a feed-forward layer."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, width = x.shape
        parts = self.qkv(self.norm1(x)).split(width, dim=2)
        q, k, v = (part.view(batch, length, self.heads, -1).transpose(1, 2) for part in parts)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).reshape(batch, length, width))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class GPT(nn.Module):
    def __init__(self, words: int, length: int, width: int, layers: int, heads: int) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(words, width), nn.Embedding(length, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, words, bias=False)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.words(tokens) + self.places(torch.arange(tokens.shape[1]))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def step_of(model: nn.Module):
    """A step by AdamW: (parameters, state, batch, scalars) -> (parameters, state, record)."""

    def step(parameters, state, batch, scalars):
        leaves = {name: value.detach().requires_grad_() for name, value in parameters.items()}
        logits = functional_call(model, leaves, (batch["tokens"],))
        loss = F.cross_entropy(logits.flatten(0, 1), batch["targets"].flatten())
        gradients = torch.autograd.grad(loss, list(leaves.values()))
        new, mean, square = {}, {}, {}
        for (name, value), g in zip(parameters.items(), gradients, strict=True):
            mean[name] = BETA1 * state["mean"][name] + (1 - BETA1) * g
            square[name] = BETA2 * state["square"][name] + (1 - BETA2) * g * g
            size = (square[name] / (1 - BETA2 ** scalars["step"])).sqrt() + EPSILON
            moved = mean[name] / (1 - BETA1 ** scalars["step"]) / size
            new[name] = value - scalars["lr"] * (moved + (DECAY * value if value.dim() > 1 else 0))
        return new, {"mean": mean, "square": square}, {"loss": loss.detach()}

    return step


def batch_of(tokens: torch.Tensor, size: int, length: int, chance: torch.Generator) -> dict[str, torch.Tensor]:
    """Windows of the text at random places, and the tokens that follow."""
    starts = torch.randint(len(tokens) - length, (size,), generator=chance)
    windows = torch.stack([tokens[start : start + length + 1] for start in starts])
    return {"tokens": windows[:, :-1].contiguous(), "targets": windows[:, 1:].contiguous()}


def write(model: nn.Module, alphabet: list[str], length: int, count: int, chance: torch.Generator) -> str:
    """Text from the model, on the CPU."""
    tokens = [alphabet.index("\n")]
    for _ in range(count):
        with torch.no_grad():
            logits = model(torch.tensor([tokens[-length:]]))[0, -1]
        tokens.append(int(torch.multinomial(logits.softmax(0), 1, generator=chance)))
    return "".join(alphabet[token] for token in tokens[1:])


def main(arguments: list[str] | None = None) -> list[float]:
    """Trains and writes a line of text. Returns the loss of each step, in nats."""
    parser = argparse.ArgumentParser(description="Train a small GPT in plain torch on a Vulkan device.")
    parser.add_argument("--device", default="vulkan", help="vulkan, vulkan:<index> or cpu (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=200, help="(default: %(default)s)")
    parser.add_argument("--batch", type=int, default=12, help="windows in a step (default: %(default)s)")
    parser.add_argument("--length", type=int, default=64, help="characters in a window (default: %(default)s)")
    parser.add_argument("--width", type=int, default=128, help="width of the model (default: %(default)s)")
    parser.add_argument("--layers", type=int, default=4, help="(default: %(default)s)")
    parser.add_argument("--heads", type=int, default=4, help="(default: %(default)s)")
    parser.add_argument("--lr", type=float, default=1e-3, help="the largest learning rate (default: %(default)s)")
    parser.add_argument("--write", type=int, default=200, help="characters to write (default: %(default)s)")
    options = parser.parse_args(arguments)

    text = "\n".join(topics[name] for name in sorted(topics))
    alphabet = sorted(set(text))
    places = {letter: place for place, letter in enumerate(alphabet)}
    tokens = torch.tensor([places[letter] for letter in text])

    torch.manual_seed(0)
    model = GPT(len(alphabet), options.length, options.width, options.layers, options.heads)
    parameters = {name: value.detach() for name, value in model.named_parameters()}
    state = {name: {key: torch.zeros_like(value) for key, value in parameters.items()} for name in ("mean", "square")}
    step, losses = step_of(model), []
    compiled = None if options.device == "cpu" else ebmvk.compile_step(step, device=options.device)
    if compiled is not None:
        compiled.start(parameters, state)
    chance = torch.Generator().manual_seed(1)
    begin = time.perf_counter()
    for number in range(options.steps):
        batch = batch_of(tokens, options.batch, options.length, chance)
        lr = options.lr * min(1, (number + 1) / 20) * (0.5 + 0.5 * math.cos(math.pi * number / options.steps))
        scalars = {"lr": torch.tensor(lr), "step": torch.tensor(number + 1.0)}
        if compiled is None:
            parameters, state, record = step(parameters, state, batch, scalars)
        else:
            record = compiled.run(batch, scalars)
        losses.append(float(record["loss"]))
        if number % max(1, options.steps // 20) == 0 or number + 1 == options.steps:
            print(f"step {number + 1:5}  loss {losses[-1]:.4f}  {time.perf_counter() - begin:.1f} s", flush=True)
    if compiled is not None:
        parameters, state = compiled.read()
    model.load_state_dict(parameters)
    print(write(model, alphabet, options.length, options.write, chance))
    return losses


if __name__ == "__main__":
    main()
