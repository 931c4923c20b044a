"""`python -m bench.models`: the cost of training and generation, compared with plain code.

cache: one text of 256 tokens by a Mini-LLM of preset small with random weights, compared with
reading everything again for each token. texts: eight texts together, and one by one.

training: a TinyGPT of preset small in our trainer with everything it does (checks, records, and a
checkpoint at the end of a round, as often as by default), compared with the same model in the loop
that one writes in an afternoon: random windows, cross-entropy of the logits, no records. Both with
AdamW; both with Muon (the loop with torch's); and ours with Muon, the default, against the loop
with AdamW. Also a Mini-LLM of preset small, 2,048 tokens a step, without a checkpoint, which would
weigh more here than in a run.

experts: a step of the trainer for a TinyGPT without experts, and with four experts of which each
token visits one. Active parameters are equal, at 2,048 and at 8,192 tokens a step; with AdamW,
which does the least work per parameter, and with Muon, which orthogonalises four times as many
matrices for any number of tokens.

Ratios are medians of interleaved rounds, plain over ours: above 1 means that ours is faster.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from bench.measure import Work, facts, interleaved, introduce, write
from ebmvk.config.schema import Config, LangevinConfig, replace
from ebmvk.config.sizes import RECIPES, fast_precision
from ebmvk.config.toml import read_toml
from ebmvk.data.datasets import resolve
from ebmvk.data.tokenizer_kinds import character_tokenizer, train_tokenizer
from ebmvk.data.windows import TokenStream
from ebmvk.decoding.generate import Decoding, Generator
from ebmvk.engine.device import Device, open_device
from ebmvk.model.build import build_model
from ebmvk.model.dropout import Masks
from ebmvk.model.language import LanguageModel
from ebmvk.monitoring.monitor import Monitor
from ebmvk.runs.folder import new_model
from ebmvk.training.streams import Streams
from ebmvk.training.trainer import Trainer


@dataclass(frozen=True)
class Sizes:
    """The sizes to measure.

    tokens: how many are written in each text. steps: of a training round. rows: windows in a batch
    of a Mini-LLM; for experts, four times as many windows, a quarter as long. text: what tokenizers
    are trained on. model: settings that replace those of the presets.
    """

    vocab_size: int
    tokens: int
    steps: int
    rows: int
    text: str = "builtin"
    model: Mapping[str, object] = field(default_factory=dict)


FULL = Sizes(8192, 256, 200, 8)
QUICK = Sizes(
    300, 8, 2, 1, "builtin:20000", {"latent_dim": 32, "n_layers": 1, "n_heads": 2, "ffn_dim": 32, "batch_size": 2}
)
TEXTS, PROMPT = 8, "the quick brown fox "
Pair = tuple[Work, Work]
"""The plain code and ours."""
Optimizers = Callable[[LanguageModel], list[torch.optim.Optimizer]]


def recipe(name: str, of: Sizes, **more: object) -> Config:
    """The configuration of a preset, in the precision that training uses here."""
    values = read_toml(RECIPES / f"{name}.toml") | {"precision": fast_precision()} | {**of.model} | more
    windows = dict.fromkeys(("context_local", "context_medium", "context_global"), values["seq_length"])
    return replace(Config(), {**values, **windows})


# ---- generation ----------------------------------------------------------------------------------


def _generator(device: Device, of: Sizes) -> Generator:
    config = recipe("minillm-small", of)
    tokenizer = train_tokenizer(resolve(of.text), of.vocab_size)
    torch.manual_seed(0)
    model = build_model(config.model, tokenizer.vocab_size).to(device.torch).eval()
    with torch.no_grad():
        model.bias[tokenizer.eos_id] = -1e4  # no text ends early
    return Generator(model, tokenizer, device.backend, LangevinConfig())


def cache(device: Device, of: Sizes, _: Path) -> Pair:
    generator = _generator(device, of)
    ids, how = generator.tokenizer.encode_prompt(PROMPT).tolist(), Decoding(of.tokens, sampler="exact")
    return lambda: read_again(generator.model, ids, of.tokens), lambda: generator.generate([PROMPT], how)


def texts(device: Device, of: Sizes, _: Path) -> Pair:
    generator = _generator(device, of)
    prompts, how = [PROMPT * (1 + i) for i in range(TEXTS)], Decoding(of.tokens, sampler="exact")
    together = partial(generator.generate, prompts, how, batch_size=TEXTS)
    return partial(generator.generate, prompts, how, batch_size=1), together


@torch.no_grad()
def read_again(model: LanguageModel, ids: list[int], tokens: int) -> list[int]:
    """Draws each token from the logits of everything before it."""
    device = model.bias.device
    for _ in range(tokens):
        logits = model.logits(model(torch.tensor([ids], device=device)))[0, -1]
        ids = [*ids, int(torch.multinomial(torch.softmax(logits, dim=-1), 1))]
    return ids


# ---- training ------------------------------------------------------------------------------------


def adamw(model: LanguageModel) -> list[torch.optim.Optimizer]:
    return [torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), fused=True)]


def muon(model: LanguageModel) -> list[torch.optim.Optimizer]:
    """torch's Muon for the parameters that our Muon gets, and AdamW for the rest."""
    hidden = {name for name, p in model.named_parameters() if model.role(name, p).hidden}
    matrices, rest = ([p for n, p in model.named_parameters() if (n in hidden) == which] for which in (True, False))
    return [torch.optim.Muon(matrices, adjust_lr_fn="match_rms_adamw"), torch.optim.AdamW(rest, lr=1e-3, fused=True)]


def training(optimizer: str, optimizers: Optimizers, device: Device, of: Sizes, folder: Path) -> Pair:
    """optimizer: that of our trainer. optimizers: those of the plain loop."""
    config = recipe("tinygpt-small", of, optimizer=optimizer)
    ours, plain = (_trainer(config, of, device, folder) for _ in range(2))
    return plain_loop(plain.model, optimizers(plain.model), config, of.steps), _rounds(ours, of.steps)


def training_minillm(device: Device, of: Sizes, folder: Path) -> Pair:
    config = recipe("minillm-small", of, optimizer="adamw", batch_size=of.rows, vocab_size=of.vocab_size)
    ours, plain = (_trainer(config, of, device, folder) for _ in range(2))
    steps = max(1, of.steps // 40)

    def work() -> None:
        for _ in range(steps):
            ours.step()

    return plain_loop(plain.model, adamw(plain.model), config, steps), work


def experts(optimizer: str, times: int, device: Device, of: Sizes, folder: Path) -> Pair:
    """times: tokens per step, as a multiple of a Mini-LLM's tokens here."""
    shared = {"batch_size": 4 * of.rows * times, "moe_experts": 4, "moe_active": 1, "optimizer": optimizer}
    dense, sparse = (
        _trainer(recipe("tinygpt-small", of, **shared, use_moe=moe), of, device, folder) for moe in (False, True)
    )
    steps = max(1, of.steps // (5 * times))
    return _rounds(dense, steps), _rounds(sparse, steps)


def _trainer(config: Config, of: Sizes, device: Device, parent: Path) -> Trainer:
    text = resolve(of.text)
    of_characters = config.data.tokenizer == "char"
    tokenizer = character_tokenizer(text) if of_characters else train_tokenizer(text, config.data.vocab_size)
    ids = np.random.default_rng(0).integers(tokenizer.vocab_size, size=100_000).astype(np.int32)
    stream = TokenStream("random", ids, np.zeros(1, dtype=np.int64), word_level=False)
    never = {"eval_every": 10**9, "save_every": 10**9, "steps": 10**8}
    config = replace(config, never)
    folder = Path(tempfile.mkdtemp(dir=parent))
    monitor = Monitor(folder, quiet=True, log_every=config.logging.log_every, total=config.training.steps, done=0)
    model = new_model(config, tokenizer, stream)
    return Trainer(config, folder, model, tokenizer, Streams(stream, stream), device, monitor, lambda _: {})


def _rounds(trainer: Trainer, steps: int) -> Work:
    return lambda: trainer.run(stop_after=steps)


def plain_loop(model: LanguageModel, optimizers: list[torch.optim.Optimizer], config: Config, steps: int) -> Work:
    """The simple loop, with the same model, precision, batch and clipping."""
    training, length = config.training, config.data.seq_length
    device = model.bias.device
    text = torch.from_numpy(np.random.default_rng(0).integers(len(model.bias), size=100_000))

    def work() -> None:
        for step in range(steps):
            starts = torch.randint(len(text) - length, (training.batch_size,)).tolist()
            x, y = (torch.stack([text[i + s : i + s + length] for i in starts]).to(device) for s in (0, 1))
            with torch.autocast(device.type, torch.bfloat16, enabled=training.precision == "bfloat16"):
                logits = model.logits(model(x, masks=Masks.of_step(0, step)))
                loss = F.cross_entropy(logits.flatten(0, 1), y.flatten())
            for optimizer in optimizers:
                optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(model.parameters(), training.grad_clip)
            for optimizer in optimizers:
                optimizer.step()

    return work


COMPARED: dict[str, Callable[[Device, Sizes, Path], Pair]] = {
    "cache": cache,
    "texts": texts,
    "training": partial(training, "adamw", adamw),
    "training with Muon": partial(training, "muon", muon),
    "Muon beside AdamW": partial(training, "muon", adamw),
    "training Mini-LLM": training_minillm,
    "experts": partial(experts, "adamw", 1),
    "experts with Muon": partial(experts, "muon", 1),
    "experts, 8,192 tokens": partial(experts, "adamw", 4),
    "experts with Muon, 8,192 tokens": partial(experts, "muon", 4),
}


# ---- the command ---------------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.models", description=__doc__)
    parser.add_argument("--device", default="cpu", help="as for the commands: cpu, cuda, vulkan, ...")
    parser.add_argument("--repeats", type=int, default=5, help="measured rounds; medians are reported")
    parser.add_argument("--threads", type=int, default=None, help="torch threads; by default all")
    parser.add_argument("--only", choices=COMPARED, nargs="+", help="run only these comparisons")
    parser.add_argument("--quick", action="store_true", help="tiny sizes; only tests that it runs")
    parser.add_argument("--json", type=Path, default=None, help="write the figures to this file")
    options = parser.parse_args(argv)
    if options.threads:
        torch.set_num_threads(options.threads)
    of, device = QUICK if options.quick else FULL, open_device(options.device)
    where = facts(device.backend, "bench.models", argv)
    introduce(where)
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        for title in options.only or COMPARED:
            plain, ours = COMPARED[title](device, of, Path(name))
            timing = interleaved({"plain": plain, "ours": ours}, options.repeats)
            medians = {f"{which}_s": own.median for which, own in timing.items()}
            found.append({"compared": title, "ratio": medians["plain_s"] / medians["ours_s"], **medians})
            print("{compared:<32}{ratio:7.2f} times as fast: {ours_s:.3f} s, not {plain_s:.3f} s".format(**found[-1]))
    write(options.json, {"device": where, "sizes": vars(of), "ratios": found})


if __name__ == "__main__":
    main()
