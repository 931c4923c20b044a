"""Fine-tune GPT-2 on your own text, on any Vulkan device.

    python examples/finetune_gpt2.py gpt2 text.txt tuned --device vulkan --steps 100

`gpt2` is a folder with the weights and the tokenizer, as transformers saves them. The result
is saved in `tuned`, in the same form. The model is that of transformers; `ebmvk.compile_step`
compiles the training step. With --device cpu torch runs the step itself.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from torch.func import functional_call
from torch.nn import functional as F
from transformers import AutoTokenizer, GPT2LMHeadModel

import ebmvk

BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8


def step_of(model: torch.nn.Module):
    """A training step by Adam, with the norm of the whole gradient clipped to 1."""

    def step(parameters, state, batch, scalars):
        leaves = {name: value.detach().requires_grad_() for name, value in parameters.items()}
        inputs = {"input_ids": batch["tokens"], "attention_mask": batch["mask"], "position_ids": batch["places"]}
        logits = functional_call(model, leaves, (), {**inputs, "use_cache": False}).logits
        loss = F.cross_entropy(logits.flatten(0, 1), batch["targets"].flatten())
        gradients = torch.autograd.grad(loss, list(leaves.values()))
        norm = torch.stack([(g * g).sum() for g in gradients]).sum().sqrt()
        scale = torch.clamp(1 / norm, max=1.0)
        new, mean, square = {}, {}, {}
        for (name, value), gradient in zip(parameters.items(), gradients, strict=True):
            g = scale * gradient
            mean[name] = BETA1 * state["mean"][name] + (1 - BETA1) * g
            square[name] = BETA2 * state["square"][name] + (1 - BETA2) * g * g
            size = (square[name] / (1 - BETA2 ** scalars["step"])).sqrt() + EPSILON
            new[name] = value - scalars["lr"] * mean[name] / (1 - BETA1 ** scalars["step"]) / size
        return new, {"mean": mean, "square": square}, {"loss": loss.detach(), "norm": norm}

    return step


def batch_of(tokens: torch.Tensor, size: int, length: int, chance: torch.Generator) -> dict[str, torch.Tensor]:
    """Windows of the text at random places, and the tokens that follow."""
    starts = torch.randint(len(tokens) - length, (size,), generator=chance)
    windows = torch.stack([tokens[start : start + length + 1] for start in starts])
    return {
        "tokens": windows[:, :-1].contiguous(),
        "targets": windows[:, 1:].contiguous(),
        "mask": torch.ones(size, length, dtype=torch.long),
        "places": torch.arange(length).repeat(size, 1),
    }


def main(arguments: list[str] | None = None) -> list[float]:
    """Trains and saves. Returns the loss of each step, in nats per token."""
    parser = argparse.ArgumentParser(description="Fine-tune GPT-2 on a text, on a Vulkan device.")
    parser.add_argument("weights", type=Path, help="a folder with GPT-2's weights and tokenizer")
    parser.add_argument("text", type=Path, help="a text file, UTF-8")
    parser.add_argument("out", type=Path, help="the folder to save to")
    parser.add_argument("--device", default="vulkan", help="vulkan, vulkan:<index> or cpu (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=100, help="(default: %(default)s)")
    parser.add_argument("--batch", type=int, default=2, help="windows in a step (default: %(default)s)")
    parser.add_argument("--length", type=int, default=128, help="tokens in a window (default: %(default)s)")
    parser.add_argument("--lr", type=float, default=3e-5, help="learning rate (default: %(default)s)")
    options = parser.parse_args(arguments)

    tokenizer = AutoTokenizer.from_pretrained(options.weights, local_files_only=True)
    model = GPT2LMHeadModel.from_pretrained(
        options.weights, local_files_only=True, dtype=torch.float32, attn_implementation="eager"
    )
    model.eval()  # without dropout: a step draws no random numbers
    tokens = tokenizer(options.text.read_text(encoding="utf-8"), return_tensors="pt")["input_ids"][0]
    length = min(options.length, model.config.n_positions)
    if len(tokens) <= length:
        parser.error(f"{options.text} has {len(tokens)} tokens; it needs more than --length {length}")

    parameters = {name: value.detach() for name, value in model.named_parameters()}
    state = {name: {key: torch.zeros_like(value) for key, value in parameters.items()} for name in ("mean", "square")}
    step, losses = step_of(model), []
    compiled = None if options.device == "cpu" else ebmvk.compile_step(step, device=options.device)
    if compiled is not None:
        compiled.start(parameters, state)
    chance = torch.Generator().manual_seed(0)
    begin = time.perf_counter()
    for number in range(options.steps):
        batch = batch_of(tokens, options.batch, length, chance)
        scalars = {"lr": torch.tensor(options.lr), "step": torch.tensor(number + 1.0)}
        if compiled is None:
            parameters, state, record = step(parameters, state, batch, scalars)
        else:
            record = compiled.run(batch, scalars)
        losses.append(float(record["loss"]))
        print(f"step {number + 1:5}  loss {losses[-1]:.4f}  {time.perf_counter() - begin:.1f} s", flush=True)
    if compiled is not None:
        parameters, state = compiled.read()
    model.load_state_dict(parameters, strict=False)  # the head's weight is the embedding's
    model.save_pretrained(options.out)
    tokenizer.save_pretrained(options.out)
    return losses


if __name__ == "__main__":
    main()
