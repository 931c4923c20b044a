"""`ebmvk memory`: gives a trained checkpoint its memory.

Builds splats from the training text, fits the memory on another text, writes it beside the weights
and warns if it is of no use.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from ebmvk.cli import parsing, running
from ebmvk.config import flags
from ebmvk.errors import ConfigError
from ebmvk.runs.layout import CONFIG_FILE, NEWEST

if TYPE_CHECKING:
    from ebmvk.runs.folder import OpenRun
    from ebmvk.runs.metrics import Alert


@dataclass(frozen=True)
class MemoryCommand:
    # A run folder (its latest complete checkpoint), RUN/best, or a checkpoint folder.
    checkpoint: Path = Path(NEWEST)
    # The number of static splats to build. A splat sums up similar contexts of the training text
    # and the tokens that followed them. 0: only episodic memory, which remembers the text that is
    # being read.
    splats: int = 50_000
    # Use the splats that training collected, instead of building new ones from the training text.
    from_training: bool = False
    # The text on which to fit kappa (how sharp splats are) and the gates (how much weight the
    # memory gets). training: a part of the training text, which the splats used for the fit don't
    # contain.
    fit_on: Literal["validation", "training"] = "validation"
    # The path of the run's text, if it has moved.
    dataset: Annotated[str | None, tyro.conf.arg(metavar="PATH")] = None
    # The folder with local data sets. By default EBMVK_DATA_DIR.
    data_dir: Annotated[Path | None, tyro.conf.arg(metavar="PATH")] = None
    # Where to compute: auto, cpu, cuda, vulkan, vulkan:INDEX or reference (slow).
    device: str = "auto"
    quiet: bool = False  # Print only the path of the written file.


FLAGS = flags.flags_of(MemoryCommand)


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0, or 2 for an EbmvkError."""
    args = sys.argv[1:] if argv is None else list(argv)
    return running.run(
        lambda: _memory(parsing.parse(MemoryCommand, args, command="memory", known=FLAGS), flags.flags_in(args)),
        saves=True,
    )


def _memory(command: MemoryCommand, given: Sequence[str]) -> int:
    if command.from_training and "--splats" in given:
        raise ConfigError(
            f"--splats {command.splats} doesn't work with --from-training, which doesn't build splats",
            hint="remove one of the two",
        )
    if command.from_training and command.fit_on == "training":
        raise ConfigError(
            "--fit-on training doesn't work with --from-training, whose splats contain all of the training text",
            hint="remove --fit-on, or remove --from-training to build new splats",
        )
    from ebmvk.memory.static import MAX_SPLATS
    from ebmvk.runs.folder import open_run
    from ebmvk.runs.lock import locked

    if not 0 <= command.splats <= MAX_SPLATS:
        raise ConfigError(f"--splats {command.splats} is not between 0 and {MAX_SPLATS:,}", hint="use --splats 50000")
    began = time.perf_counter()

    def say(text: str) -> None:
        if not command.quiet:
            print(f"{time.perf_counter() - began:7.1f} s  {text}", flush=True)

    def warn(text: str) -> None:
        print(text, file=sys.stderr)

    run = open_run(command.checkpoint, "--checkpoint", warn)
    with locked(run.folder, warn):
        print(_build(command, run, say))
    return 0


def _build(command: MemoryCommand, run: OpenRun, say: Callable[[str], None]) -> Path:
    """Build, fit and write the memory; returns the file's path."""
    from ebmvk.data.windows import encode_split
    from ebmvk.engine.device import open_device
    from ebmvk.memory.files import save
    from ebmvk.memory.fit import Fit
    from ebmvk.memory.fitted_on import FittedOn
    from ebmvk.memory.law import Memory
    from ebmvk.memory.static import FIT_TOKENS, Reading, Static, build_static, first_documents, of_training
    from ebmvk.runs.folder import check_same_text
    from ebmvk.runs.text import check_own, own_text

    device = open_device(command.device)
    say(f"{run.checkpoint.path}, step {run.checkpoint.step:,}; {device.reason}")
    corpus = own_text(run.config, command.dataset, command.data_dir)
    check_own(run, corpus, "validation")  # for the gates
    model, context = run.model.to(device.torch), run.config.data.seq_length
    reading = Reading.training(context, bfloat16=run.config.training.precision == "bfloat16")
    static = None
    if command.from_training:
        store = of_training(run.checkpoint)
        static = Static(store, store)  # no part of the training text is left out to fit on
        say(f"static      {store.n:,} splats of {store.mass.sum():,.0f} contexts, consolidated during training")
    if command.fit_on == "training" or (command.splats and not command.from_training):
        train = encode_split(corpus, "train", run.tokenizer, apart=run.config.data.apart)
        check_same_text(run.checkpoint, train, run.config)
    if command.splats and not command.from_training:
        say(f"static      reading {len(train):,} tokens of the training text")
        static = build_static(model, train, command.splats, reading=reading, device=device, seed=run.config.run.seed)
        say(f"static      {static.store.n:,} splats of {static.store.mass.sum():,.0f} contexts of the training text")
    if command.fit_on == "training":
        whole, most = train, first_documents(train)
        splats = static.without if static else None
    else:
        whole, most = encode_split(corpus, "validation", run.tokenizer, apart=run.config.data.apart), FIT_TOKENS
        reading = Reading.evaluation(context)
        splats = static.store if static else None
    fit = Fit(model, whole.take(most + 1), reading=reading, device=device)
    say(f"{command.fit_on:<12}{len(fit.tokens):,} contexts read")
    memory, nats = fit.fit(Memory.unfitted(splats, d=model.config.latent_dim, vocab_size=model.vocab_size), say)
    alerts = list(fit.alerts(memory, consolidated=command.from_training))
    if static and memory.static:
        memory = dataclasses.replace(memory, static=static.fitted(memory.static))
    contexts = int(static.store.mass.sum()) if static else 0
    fitted_on = FittedOn.of(whole, len(fit.tokens), command.fit_on, contexts)
    path = save(run.checkpoint.path, memory, fitted_on, nats)
    _tell(run.folder, run.checkpoint.step, alerts, quiet=command.quiet)
    return path


def _tell(folder: Path, step: int, alerts: list[Alert], *, quiet: bool) -> None:
    """Write alerts into the run's metrics and report, as training does."""
    from ebmvk.monitoring.monitor import Monitor
    from ebmvk.training.session import report

    if not (folder / CONFIG_FILE).is_file():  # an exported model
        for alert in alerts:
            print(f"alert       {alert}", file=sys.stderr)
    elif alerts:
        monitor = Monitor(folder, quiet=quiet, log_every=1, total=step, done=step)
        for alert in alerts:
            monitor.alert(step, alert)
        report(folder)


if __name__ == "__main__":
    sys.exit(main())
