"""Where a new run starts (`--init`): random directions, its own text, a table, or the layers of
another run."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from ebmvk.config.schema import Config, nearest
from ebmvk.data.tokenizer import TOKENIZER_FILE, WEIGHTS_FILE, Tokenizer
from ebmvk.data.windows import TokenStream
from ebmvk.errors import CheckpointError, ConfigError, DataError
from ebmvk.initialisation.lexical import Directions, from_corpus, from_table
from ebmvk.initialisation.tables import read_table
from ebmvk.model.language import LanguageModel
from ebmvk.runs.folder import OpenRun, open_run
from ebmvk.runs.hub import SETTINGS, is_exported, is_hub_name
from ebmvk.runs.layout import CONFIG_FILE
from ebmvk.runs.steps import is_checkpoint, names_checkpoint

UNIFORM, CORPUS = "uniform", "corpus"
# Settings that have to be the same in both runs.
_SAME = (
    *("model", "latent_dim", "n_layers", "n_heads", "ffn_dim"),
    *("context_local", "context_medium", "context_global"),
)
Say = Callable[[str], None]


@dataclass(frozen=True)
class Start:
    """What --init names: an open run; a file or folder, with a tensor's name; or neither."""

    init: str
    run: OpenRun | None = None
    table: Path | None = None
    tensor: str | None = None


def open_start(init: str, say: Say) -> Start:
    """Find what --init names, before slow work begins.

    Raises:
        ConfigError: `init` is not a known word, a path, or a name on the hub.
        DataError: the hub can't be reached.
        CheckpointError: the run that it names has no usable checkpoint.
    """
    if init in (UNIFORM, CORPUS):
        return Start(init)
    path = Path(init).expanduser()
    if _is_run(path):
        return Start(init, run=open_run(path, "--init", say))
    if path.exists():
        return Start(init, table=path)
    file, colon, tensor = init.rpartition(":")
    if colon and Path(file).expanduser().is_file():
        return Start(init, table=Path(file).expanduser(), tensor=tensor)
    if is_hub_name(init):
        folder = _download(init)
        return Start(init, run=open_run(folder, "--init", say)) if is_exported(folder) else Start(init, table=folder)
    close = nearest(init, (UNIFORM, CORPUS))
    raise ConfigError(
        f"--init {init}: no such file or folder, and not the name of a model on the hub (OWNER/NAME)",
        hint=f"did you mean {close}?" if close else f"use {CORPUS}, {UNIFORM}, or a file of token vectors",
    )


def _is_run(path: Path) -> bool:
    """True for a run folder, a checkpoint of a run, a checkpoint's name in the run folder, or an
    exported model."""
    at = path.resolve()
    folder = at.parent.parent if is_checkpoint(at) else at.parent if names_checkpoint(at) else at
    return (folder / CONFIG_FILE).is_file() or is_exported(path)


def _download(name: str) -> Path:
    """The folder with weights and tokenizer of a model on the hub. Nothing is downloaded twice."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=[WEIGHTS_FILE, TOKENIZER_FILE, SETTINGS]))
    except Exception as error:  # the library and its dependencies raise a dozen kinds of errors
        first = (str(error).splitlines() or [""])[0]
        raise DataError(
            f"--init {name}: can't download the model from the hub ({type(error).__name__}: {first[:200]})",
            why="there is no network, the hub library is set to offline, or no model has that name",
            hint=f"put {WEIGHTS_FILE} and {TOKENIZER_FILE} into a folder for --init FOLDER, or use --init {CORPUS}",
        ) from error


def check_same_trunk(start: OpenRun, config: Config) -> None:
    """Raises CheckpointError if the layers of --init differ from those of the new run. The message
    names the first setting that differs."""
    for name in _SAME:
        was, now = getattr(start.config.model, name), getattr(config.model, name)
        if was != now:
            raise CheckpointError(
                f"--init {start.folder}: its model.{name} is {was!r}, the new run's is {now!r}",
                why="its layers can only be used with the settings that they were trained with",
                hint=f"give --{name.replace('_', '-')} {was}, or the --size of that run",
            )


@torch.no_grad()
def apply_start(
    start: Start, model: LanguageModel, config: Config, tokenizer: Tokenizer, train: TokenStream, say: Say
) -> dict[str, object]:
    """Set the parameters that come from --init; the others stay random.

    Returns what was done, for JSON.
    """
    began = time.perf_counter()
    facts: dict[str, object] = {"from": start.init}
    if start.run is not None:
        transfer(start.run.model, model)
        facts |= {"run": str(start.run.checkpoint.path), "step": start.run.checkpoint.step}
        say(f"start       embeddings and trunk of {start.run.checkpoint.path}, step {start.run.checkpoint.step:,}")
        return facts
    found = _directions(start, config, tokenizer, train)
    if found is None:
        say("start       random directions")
        return facts
    model.start_from_directions(found.known, found.mu)
    seconds = time.perf_counter() - began
    whole = f"; {found.facts['whole']:,} as they are, {found.facts['pieces']:,} by their pieces" if start.table else ""
    share = f"{int(found.known.sum()):,} of {len(found.known):,} tokens"
    say(f"start       {start.init}: directions for {share}{whole}, the others random; {seconds:.1f} s")
    return facts | found.facts | {"vocabulary": len(found.known), "seconds": seconds}


def _directions(start: Start, config: Config, tokenizer: Tokenizer, train: TokenStream) -> Directions | None:
    d, seed = config.model.latent_dim, config.run.seed
    if start.table is not None:
        words = {tokenizer.decode([i]).removeprefix(" ") for i in range(tokenizer.vocab_size)}
        return from_table(read_table(start.table, start.tensor, words), tokenizer, d, seed)
    if start.init == CORPUS:
        return from_corpus(train.tokens, tokenizer.vocab_size, d, seed)
    return None


def transfer(source: LanguageModel, target: LanguageModel) -> None:
    """Copy what `target` inherits (token vectors, bias, layers).

    Both models have these in the same shapes.
    """
    weights = {name: value for name, value in source.state_dict().items() if name.startswith(target.inherited)}
    target.load_state_dict(weights, strict=False)
