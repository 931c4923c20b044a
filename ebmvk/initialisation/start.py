"""What a new run starts from (`--init`): random directions, its own text, a table, or another run's trunk."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

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
# What the stage `pretrain` trains, and what has to be the same in the run that goes on from it.
_TRANSFERRED = ("points", "table", "bias", "trunk.", "blocks.", "energy.log_scale")
_SAME = (
    *("model", "latent_dim", "n_layers", "n_heads", "ffn_dim"),
    *("context_local", "context_medium", "context_global"),
)
Say = Callable[[str], None]


@dataclass(frozen=True)
class Start:
    """--init, read: the run it names, opened; or the file or hub folder, with the tensor in it; or neither."""

    init: str
    run: OpenRun | None = None
    table: Path | None = None
    tensor: str | None = None


def open_start(init: str, say: Say) -> Start:
    """What --init names, found before anything slow.

    Raises:
        ConfigError: it is neither a word, nor a path, nor a hub's name. DataError: the hub could not be reached.
        CheckpointError: the run it names has no usable checkpoint.
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
        f"--init {init}: no such file or folder, and no name of a model on the hub (OWNER/NAME)",
        hint=f"did you mean {close}?" if close else f"take {CORPUS}, {UNIFORM}, or a file of token vectors",
    )


def _is_run(path: Path) -> bool:
    """A run folder, one checkpoint of a run, its name in the run folder, or an exported model."""
    at = path.resolve()
    folder = at.parent.parent if is_checkpoint(at) else at.parent if names_checkpoint(at) else at
    return (folder / CONFIG_FILE).is_file() or is_exported(path)


def _download(name: str) -> Path:
    """The folder of a hub's model with its weights and its tokenizer; what was downloaded before is not again."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=[WEIGHTS_FILE, TOKENIZER_FILE, SETTINGS]))
    except Exception as error:  # the library raises errors of a dozen kinds of its own and of its dependencies
        first = (str(error).splitlines() or [""])[0]
        raise DataError(
            f"--init {name}: the hub's model could not be fetched ({type(error).__name__}: {first[:200]})",
            why="no network, the library is offline by its settings, or there is no model of that name",
            hint=f"put {WEIGHTS_FILE} and {TOKENIZER_FILE} into a folder for --init FOLDER, or take --init {CORPUS}",
        ) from error


def check_same_trunk(start: OpenRun, config: Config) -> None:
    """Raises CheckpointError naming the first setting in which the trunk of --init is another than the new one."""
    for name in _SAME:
        was, now = getattr(start.config.model, name), getattr(config.model, name)
        if was != now:
            raise CheckpointError(
                f"--init {start.folder}: its model.{name} is {was!r}, the new run's is {now!r}",
                why="a trunk can only go on as the one it was trained as",
                hint=f"give --{name.replace('_', '-')} {was}, or the --size of that run",
            )


@torch.no_grad()
def apply_start(
    start: Start, model: LanguageModel, config: Config, tokenizer: Tokenizer, train: TokenStream, say: Say
) -> dict[str, object]:
    """Set the parameters that --init knows; the others stay random. Returns what was done, JSON-able."""
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


def transfer(source: nn.Module, target: nn.Module) -> None:
    """Copy embeddings, biases, trunk and scale; both models are known to have them of one shape."""
    weights = {name: value for name, value in source.state_dict().items() if name.startswith(_TRANSFERRED)}
    target.load_state_dict(weights, strict=False)
