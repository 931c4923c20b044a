"""The settings of a run, as frozen dataclasses.

The comment above a field is its help text on the command line; `knob` adds its range and other
facts. A setting that one of the four original systems had keeps its name from there. Which model
has which setting is listed in `ebmvk.config.models`.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_type_hints

import tyro

from ebmvk.config import integrators
from ebmvk.config.models import HELP, MODELS

if TYPE_CHECKING:
    ModelName = str
    SchemeName = str
else:  # mypy can't follow a Literal that is computed
    ModelName = Literal[tuple(MODELS)]
    SchemeName = Literal[(integrators.AUTO, *integrators.METROPOLIS)]
Size = Literal["nano", "tiny", "small", "base"]
SIZES: tuple[Size, ...] = get_args(Size)
Number = Annotated[float | None, tyro.conf.arg(metavar="FLOAT")]
# Where the text lies and how it is read. A resumed run may change it: a digest proves that the text
# is the same.
OF_TEXT = ("dataset", "data_dir", "include", "raw", "keep_bom")
Source = Literal["default", "size", "model", "stage", "preset", "file", "flag", "derived"]


def knob(
    default: Any, *, low: float | None = None, high: float | None = None, resume: bool = False, common: bool = False
) -> Any:
    """A field of a section.

    low, high: its inclusive range. resume: `--resume` may change it. common: it is one of the few
    settings that most people change, which `--help` shows first.
    """
    return field(default=default, metadata={"low": low, "high": high, "resume": resume, "common": common})


@dataclass(frozen=True)
class RunConfig:
    # Size of the model. It sets every value that you don't give.
    size: Size = knob("tiny", common=True)
    # Where to compute: auto, cpu, cuda, vulkan, vulkan:INDEX (one of several cards), vulkan:RANK (a
    # card for each process of torchrun) or reference (slow and exact).
    device: str = knob("auto", resume=True, common=True)
    # Seed of all random numbers: the same seed gives the same run.
    seed: int = knob(42, low=0, high=2**63 - 1, common=True)
    # Use only torch's deterministic algorithms, so that a run can be repeated bit for bit. Slower
    # on a GPU.
    deterministic: bool = knob(False, resume=True)


@dataclass(frozen=True)
class DataConfig:
    # Text to learn: a file, a folder, wikitext-2, wikitext-103, tiny-shakespeare or builtin (a
    # short text that is installed with ebmvk).
    dataset: str = knob("builtin", common=True)
    # Folder with data sets that were downloaded before. The environment variable EBMVK_DATA_DIR
    # also names such a folder.
    data_dir: Annotated[Path | None, tyro.conf.arg(metavar="PATH")] = None
    # Also read files of the folder whose names match, for example '*.py'.
    include: Annotated[tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(metavar="PATTERN")] = ()
    # Read JSON, CSV, HTML and similar files as plain text, with their markup.
    raw: bool = False
    # Keep the byte order mark at the start of a file as part of the text.
    keep_bom: bool = False
    # How text becomes tokens: bpe (byte-level BPE, trained on the text), char (one token per
    # character), gpt2, or the path of a tokenizer.json.
    tokenizer: str = knob("bpe", common=True)
    # The token that ends a document, if your tokenizer.json doesn't mark one.
    end_token: Annotated[str | None, tyro.conf.arg(metavar="TOKEN")] = None
    # Number of tokens in the vocabulary of --tokenizer bpe.
    vocab_size: int = knob(2048, low=4, common=True)
    # Length of a training window, in tokens.
    seq_length: int = knob(128, low=2, common=True)
    # Cut training windows from the whole text (stream), or from each document on its own
    # (document).
    windows: Literal["stream", "document"] = "stream"
    # Tokens from the start of one window of a document to the start of the next. By default
    # --seq-length.
    stride: Annotated[int | None, tyro.conf.arg(metavar="TOKENS")] = knob(None, low=1)
    # Threads that prepare the next batches while a step is computed. 0: no extra thread.
    num_workers: int = knob(0, low=0, high=64, resume=True)

    @property
    def apart(self) -> bool:
        """True if no window crosses from one document to the next."""
        return self.windows == "document"


@dataclass(frozen=True)
class ModelConfig:
    model: Annotated[ModelName, tyro.conf.arg(help=HELP)] = knob("ebm", common=True)
    # Width d of the model: the length of the vector of a token, and of the state after each layer.
    latent_dim: int = knob(256, low=2, common=True)
    # Number of transformer layers.
    n_layers: int = knob(4, low=1, common=True)
    # Attention heads in each layer. --latent-dim must be a multiple of twice this number.
    n_heads: int = knob(4, low=1)
    # Width of the feed-forward part of each layer, by default four times --latent-dim.
    ffn_dim: int = knob(1024, low=1)
    # How many tokens the lowest third of the layers sees (the local scale).
    context_local: int = knob(12, low=1)
    # How many tokens the middle third of the layers sees (the medium scale).
    context_medium: int = knob(64, low=1)
    # How many tokens the highest third of the layers sees (the global scale).
    context_global: int = knob(128, low=1)
    # Put a mixture of experts into each layer of tinygpt or minillm, in place of its feed-forward
    # part.
    use_moe: bool = False
    # Number of experts, in the decoder of the energy model or in each layer with --use-moe.
    moe_experts: int = knob(4, low=1)
    # How many experts compute each token.
    moe_active: int = knob(2, low=1)
    # Width of one expert of the decoder.
    hidden_dim: int = knob(512, low=1)
    # Share of values set to zero at random in training, against overfitting. 0: none.
    dropout: float = knob(0.1, low=0.0, high=0.95)
    # Use the geometric energy term, which compares a token with the context at each of the three
    # scales.
    use_geometric: bool = True
    # Use the compositional energy term, which compares a token with the three scales joined into
    # one vector.
    use_compositional: bool = True
    # Use the splat energy term, which compares a token with the decoded state. Without it there is
    # no decoder.
    use_splat: bool = True
    # Use infinito's external memory: tokens write to it, and later tokens read from it.
    use_memory: bool = True
    # Number of slots in the external memory of infinito.
    memory_slots: int = knob(256, low=1)
    # Compute each layer twice instead of keeping its intermediate values: less memory, more time.
    gradient_checkpointing: bool = knob(False, resume=True)
    # What turns the state into the point that tokens are compared with: moe (a mixture of experts),
    # transformer (one more layer) or none (the state itself).
    decoder: Literal["moe", "transformer", "none"] = "moe"


@dataclass(frozen=True)
class LangevinConfig:
    # Number of candidate tokens that a chain moves among. More is slower.
    knn_k: int = knob(64, low=1, resume=True)
    # Steps of a Langevin chain, over all annealing levels.
    langevin_steps: int = knob(200, low=1, resume=True)
    # Annealing levels: a chain starts among all tokens and ends close to one, in this many stages.
    langevin_levels: int = knob(10, low=1, resume=True)
    langevin_scheme: Annotated[SchemeName, tyro.conf.arg(help=integrators.HELP)] = knob(integrators.AUTO, resume=True)
    # Length of a step of the chain. By default it is chosen at each level.
    langevin_dt: Number = knob(None, low=1e-9, high=1e15, resume=True)
    # Friction of the chain. By default it is the square root of the level's concentration.
    langevin_gamma: Number = knob(None, low=0.0, high=1e15, resume=True)
    # Temperature of the chains. 1 samples from the model's own distribution.
    langevin_T: float = knob(1.0, low=1e-6, high=1e6, resume=True)
    # Concentration of the last level: the larger, the closer to a single token. By default 1.4
    # kappa_c, where kappa_c is the concentration at which one token can be told from the others.
    kappa: Number = knob(None, low=1e-6, high=1e15, resume=True)


@dataclass(frozen=True)
class TrainingConfig:
    # How long to train, in optimiser steps. --epochs replaces it.
    steps: int = knob(1000, low=1, resume=True, common=True)
    # How long to train, in passes over the text. It replaces --steps.
    epochs: Number = knob(None, low=1e-9, resume=True, common=True)
    # Training windows computed at once.
    batch_size: int = knob(32, low=1, resume=True, common=True)
    # Batches per optimiser step. The step equals that of one batch this many times larger, but
    # needs only the memory of a single batch.
    accumulation_steps: int = knob(1, low=1, resume=True)
    # Highest learning rate, reached after the warm-up.
    learning_rate: float = knob(2e-3, low=1e-12, resume=True, common=True)
    # muon (Muon for the hidden matrices, AdamW for everything else) or adamw (AdamW for
    # everything).
    optimizer: Literal["muon", "adamw"] = "muon"
    # Weight decay of the hidden matrices.
    weight_decay: float = knob(0.01, low=0.0)
    # Largest norm of the gradient; a longer gradient is scaled down to it.
    grad_clip: float = knob(1.0, low=1e-9)
    # Stop early after this many evaluations without a better one. 0: never.
    patience: int = knob(0, low=0, resume=True)
    # Steps over which the learning rate rises from 0. After them it falls to 0 along a cosine.
    warmup_steps: int = knob(100, low=0)
    # Number format of the layers. bfloat16 is faster on processors that compute it natively.
    precision: Annotated[
        Literal["float32", "bfloat16"], tyro.conf.arg(help_behavior_hint="(default: what this processor is faster in)")
    ] = knob("float32", resume=True, common=True)
    # Weight of the denoising loss: recognise a token's vector after noise was added. 0 switches it
    # off.
    lambda_denoise: float = knob(0.1, low=0.0)
    # Weight of the spread loss, which keeps the vectors of tokens apart.
    lambda_spread: float = knob(0.01, low=0.0)
    # Weight of the loss that spreads tokens evenly over the experts.
    moe_balance: float = knob(0.01, low=0.0)
    # Weight of the loss that keeps the router's scores for experts small.
    moe_z: float = knob(1e-3, low=0.0)
    # Weight of infinito's loss 1 - PHI. PHI, from 0 to 1, measures integration: how much hidden
    # units tell about one another across their weakest cut into two groups.
    lambda_phi: float = knob(0.1, low=0.0, resume=True)
    # Noise levels of the denoising loss, in --noise-unit. By default they are drawn from a range
    # around kappa_c, the concentration at which one token can be told from the others.
    noise_levels: tuple[float, ...] = knob((), low=1e-6, high=1e6)
    # Unit of --noise-levels: kappa (concentration), angle (mean, in degrees) or sigma (per
    # coordinate).
    noise_unit: Literal["kappa", "angle", "sigma"] = "kappa"
    # Form of the denoising loss: cross-entropy of the token, or the squared error of the score.
    denoise_form: Literal["cross-entropy", "score"] = "cross-entropy"
    # Where the vectors of tokens start: corpus (from the text's statistics), uniform (random), a
    # FILE[:TENSOR] of token vectors, OWNER/NAME on the hub, or a run (its layers too).
    init: str = knob("corpus", common=True)

    @property
    def windows_per_step(self) -> int:
        """Number of windows over which one optimiser step is averaged."""
        return self.batch_size * self.accumulation_steps


@dataclass(frozen=True)
class LoggingConfig:
    # Steps between two printed lines. The file metrics.jsonl has every step.
    log_every: int = knob(20, low=1, resume=True)
    # Steps between two evaluations on a part of the validation text.
    eval_every: int = knob(200, low=1, resume=True)
    # Length of that part, in tokens.
    eval_tokens: int = knob(20_000, low=2, resume=True)
    # Steps between two checkpoints. The end of each epoch has one too.
    save_every: int = knob(200, low=1, resume=True)
    # How many of the newest checkpoints to keep. The best one is always kept.
    keep_last: int = knob(3, low=1, resume=True)
    # Epochs between two checkpoints that are kept for good. 0: none.
    keep_epochs: int = knob(5, low=0, resume=True)
    # Tokens of text to generate at each evaluation, as a sample. 0: none.
    sample_tokens: int = knob(40, low=0, resume=True)
    # Also write the metrics for TensorBoard, which must be installed.
    tensorboard: bool = knob(False, resume=True)


@dataclass(frozen=True)
class SplatConfig:
    # Build a memory while the model trains. Its entries are splats: clusters of similar
    # contexts, with the tokens that followed them. The weights don't depend on it.
    enable_soc: bool = True
    # Most splats of the memory without --enable-curriculum-learning.
    n_splats_init: int = knob(10_000, low=1)
    # Most splats, with or without --enable-curriculum-learning.
    max_splats: int = knob(150_000, low=1, high=10_000_000)
    # Let the memory grow in three phases, to 10 %, 60 % and 100 % of --curriculum-target-splats.
    enable_curriculum_learning: bool = True
    # Epochs over which the three phases are spread.
    curriculum_epochs: float = knob(5.0, low=1e-9)
    # Most splats in the last phase.
    curriculum_target_splats: int = knob(50_000, low=1)
    # Steps between two consolidations, which sort new contexts into splats and create, split, merge
    # and remove splats.
    soc_check_interval: int = knob(100, low=1)
    # Create splats while more than this share of held-out contexts isn't explained by any. It falls
    # to 0.2 by the end.
    soc_threshold: float = knob(0.8, low=0.0, high=1.0)
    # Number of training contexts kept between consolidations.
    soc_history: int = knob(10_000, low=16, high=10_000_000)
    # Share of its older statistics that a splat keeps at each consolidation: contexts move while
    # the model learns.
    soc_keep: float = knob(0.9, low=1e-3, high=1.0)
    # Concentrations of splats are divided by this temperature: the larger, the wider the splats.
    splat_temperature: float = knob(0.1, low=1e-3, high=1e3)
    # Share of its mass that an old splat loses in each epoch.
    splat_weight_decay: float = knob(0.0, low=0.0, high=1.0)
    # A splat counts as old from this age, in epochs.
    splat_weight_decay_start: float = knob(1.0, low=0.0)
    # Least concentration of a splat, before it is divided by --splat-temperature.
    min_kappa: float = knob(1.0, low=1e-3)
    # Largest concentration of a splat, before it is divided by --splat-temperature.
    max_kappa: float = knob(50.0, low=1e-3, high=1e4)


@dataclass(frozen=True)
class Config:
    run: RunConfig = field(default_factory=RunConfig)
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    langevin: LangevinConfig = field(default_factory=LangevinConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)
    splats: SplatConfig = field(default_factory=SplatConfig)


def concerns(config: Config, section: str, name: str) -> bool:
    """True if a setting has an effect with this model and the other settings as they are."""
    if section == "splats":
        return config.splats.enable_soc or name == "enable_soc"
    return MODELS[config.model.model].reads(name, {name: value for _, name, value in items(config)})


def flag(key: str) -> str:
    """'seq_length' or 'data.seq_length' → '--seq-length'."""
    return "--" + key.rsplit(".", 1)[-1].replace("_", "-")


def items(config: Config) -> Iterator[tuple[str, str, Any]]:
    """(section, name, value) of every setting, in order."""
    for section in dataclasses.fields(config):
        part = getattr(config, section.name)
        for entry in dataclasses.fields(part):
            yield section.name, entry.name, getattr(part, entry.name)


COMMON: frozenset[str] = frozenset(
    entry.name
    for section in dataclasses.fields(Config)
    for entry in dataclasses.fields(getattr(Config(), section.name))
    if entry.metadata.get("common")
)
"""The settings that most people change; `--help` shows them first."""
SECTION_OF: dict[str, str] = {name: section for section, name, _ in items(Config())}


@cache
def hints() -> dict[str, Any]:
    """{setting: its type}. Cached: resolving the annotations of a section takes a millisecond."""
    sections = {type(getattr(Config(), section.name)) for section in dataclasses.fields(Config)}
    return {name: hint for section in sections for name, hint in get_type_hints(section).items()}


def _entry(name: str) -> dataclasses.Field[Any]:
    section = type(getattr(Config(), SECTION_OF[name]))
    return next(entry for entry in dataclasses.fields(section) if entry.name == name)


def number(name: str) -> type[int] | type[float] | None:
    """int or float, the type of a numeric setting (which may also be None); None for others."""
    hint = hints()[name]
    options = set(get_args(hint) or (hint,)) - {type(None)}
    return int if options == {int} else float if options == {float} else None


def nearest(name: str, known: Iterable[str], *, cutoff: float = 0.55) -> str | None:
    """The known name closest to `name`; None if none is close.

    cutoff: the least similarity, from 0 to 1.
    """
    return next(iter(difflib.get_close_matches(name, list(known), n=1, cutoff=cutoff)), None)


def replace(config: Config, values: Mapping[str, Any]) -> Config:
    """`config` with other values for the named settings, of any section."""
    parts = {section: {n: v for n, v in values.items() if SECTION_OF[n] == section} for section in SECTION_OF.values()}
    return dataclasses.replace(
        config, **{s: dataclasses.replace(getattr(config, s), **changed) for s, changed in parts.items() if changed}
    )
