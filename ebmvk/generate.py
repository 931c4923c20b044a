"""`ebmvk generate`, `python -m ebmvk.generate`: text from a trained model."""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ebmvk import cli
from ebmvk.errors import ConfigError


@dataclass(frozen=True)
class GenerateCommand:
    checkpoint: Path  # A run folder (its latest complete checkpoint), or one checkpoint folder.
    prompt: tuple[str, ...] = ("",)  # Text to continue; several prompts give several texts. Empty: from scratch.
    max_tokens: int = 100  # Most tokens to write.
    temperature: float = 1.0  # Of the token law; 1 is the law whose perplexity is reported.
    sampler: Literal["langevin", "exact", "gibbs", "tempering", "coarse"] = "langevin"  # A state to decode; or p(v|c).
    memory: Literal["none", "static", "episodic", "both"] = "none"  # The tiers of `ebmvk memory` in the token law.
    seed: int = 42  # The same seed gives the same text.
    device: str = "auto"  # auto, cpu, cuda, vulkan, vulkan:INDEX or reference.
    quiet: bool = False  # The text only, without the prompt's headline and the chains' health.


FLAGS = cli.known_flags({f.name: f.default for f in dataclasses.fields(GenerateCommand)})


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0, or 2 for a typed error."""
    args = sys.argv[1:] if argv is None else list(argv)
    return cli.run(lambda: _generate(cli.parse(GenerateCommand, args, command="generate", known=FLAGS)))


def _check(command: GenerateCommand) -> None:
    if command.max_tokens < 1:
        raise ConfigError(f"--max-tokens {command.max_tokens} is below 1", hint="give a number of tokens")
    if not (command.temperature > 0 and math.isfinite(command.temperature)):
        raise ConfigError(
            f"--temperature {command.temperature} is not a positive number", hint="take 1, or 0.7 for safer text"
        )
    if not 0 <= command.seed < 2**63:
        raise ConfigError(f"--seed {command.seed} is not within 0 to 2^63 - 1", hint="take --seed 42")


def _generate(command: GenerateCommand) -> int:
    _check(command)
    from ebmvk.decoding.generate import Decoding, Generator
    from ebmvk.splats.memory import Reader
    from ebmvk.training.memory import load
    from ebmvk.training.workspace import open_device, open_run

    def note(text: str) -> None:
        if not command.quiet:
            print(text, file=sys.stderr)

    run = open_run(command.checkpoint, "--checkpoint", lambda text: print(text, file=sys.stderr))
    device = open_device(command.device)
    note(
        f"{run.checkpoint.path}, step {run.checkpoint.step:,}; {device.reason}; {command.sampler}, seed {command.seed}"
    )
    how = Decoding(
        command.max_tokens, command.temperature, command.sampler, command.seed, context=run.config.data.seq_length
    )
    memory = None
    if command.memory != "none":
        memory = Reader(load(run.checkpoint.path, run.model, command.memory), command.memory, device.backend)
    generator = Generator(run.model.to(device.torch), run.tokenizer, device.backend, run.config.langevin, memory)
    prompts = command.prompt or ("",)
    for number, (prompt, found) in enumerate(zip(prompts, generator.generate(prompts, how), strict=True), start=1):
        if len(prompts) > 1:
            note(f"--- {number}: {prompt!r}")
        print(run.tokenizer.decode([*found.prompt, *found.tokens]).strip("\n"))
    health, rates = generator.health.record(), generator.health.mixing()
    if rates:
        what = "changes of the component" if command.sampler == "gibbs" else "accepted exchanges, by pair of rungs"
        note(f"{what}: {', '.join(f'{rate:.2f}' for rate in rates)}")
    if health:
        note(
            f"{health['chains']:.0f} chains: kinetic temperature {health['kinetic_temperature']:.3f} "
            f"(of {run.config.langevin.langevin_T:g}), energy error {health['energy_error']:.3f} per step, "
            f"tangency {health['tangency']:.1e}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
