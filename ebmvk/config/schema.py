"""Configuration: frozen dataclasses, `--size` as the one dial, TOML in and out.

Precedence: size < model < preset < TOML file < flags. Names are those of the original system where it had one. The
comment beside a field is its help text on the command line; `knob` adds its range and whether `--resume` may change it.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_type_hints

import tyro

Size = Literal["nano", "tiny", "small", "base"]
SIZES: tuple[Size, ...] = get_args(Size)
Number = Annotated[float | None, tyro.conf.arg(metavar="FLOAT")]
# Models that look at all of a training window: their window is seq_length.
WHOLE_SEQUENCE = ("tinygpt", "minillm", "infinito")
WINDOWS = ("context_local", "context_medium", "context_global")
ENERGY_TERMS = ("use_splat", "use_geometric", "use_compositional")
# Where the text lies and how it is read. A resumed run may change it: a digest proves that the text is the same.
OF_TEXT = ("dataset", "data_dir", "include", "raw", "keep_bom")
Source = Literal["default", "size", "model", "stage", "preset", "file", "flag", "derived"]


def knob(default: Any, *, low: float | None = None, high: float | None = None, resume: bool = False) -> Any:
    """A field with its inclusive range; `resume` says that a resumed run may change it."""
    return field(default=default, metadata={"low": low, "high": high, "resume": resume})


@dataclass(frozen=True)
class RunConfig:
    size: Size = "tiny"  # The one dial: derives every value that is not given.
    device: str = knob("auto", resume=True)  # auto, cpu, cuda, vulkan, vulkan:INDEX or reference.
    seed: int = knob(42, low=0, high=2**63 - 1)  # Seed of everything random.
    deterministic: bool = knob(False, resume=True)  # Bit-for-bit repeatable: torch's deterministic algorithms only.


@dataclass(frozen=True)
class DataConfig:
    dataset: str = "builtin"  # A file or folder of text, wikitext-2, wikitext-103, tiny-shakespeare, or builtin.
    data_dir: Annotated[Path | None, tyro.conf.arg(metavar="PATH")] = None  # Local data sets; EBMVK_DATA_DIR.
    # Also read a folder's files with such names, for example '*.py'.
    include: Annotated[tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(metavar="PATTERN")] = ()
    raw: bool = False  # Read JSON, CSV, HTML and similar files as plain text, markup included.
    keep_bom: bool = False  # Keep the byte order mark at the start of a file as part of the text.
    tokenizer: str = "bpe"  # bpe, trained on the text; char, its characters; gpt2; or a tokenizer.json.
    end_token: Annotated[str | None, tyro.conf.arg(metavar="TOKEN")] = None  # End token, for a tokenizer.json.
    vocab_size: int = knob(2048, low=4)  # Tokens of the byte-level BPE.
    seq_length: int = knob(128, low=2)  # Tokens per training window.
    windows: Literal["stream", "document"] = "stream"  # Cut from the whole text, or from each document on its own.
    stride: Annotated[int | None, tyro.conf.arg(metavar="TOKENS")] = knob(None, low=1)  # Between a document's windows.
    num_workers: int = knob(0, low=0, high=64, resume=True)  # Threads that prepare batches ahead of the steps.

    @property
    def apart(self) -> bool:
        """Whether no window crosses from one document to the next."""
        return self.windows == "document"


@dataclass(frozen=True)
class ModelConfig:
    model: Literal["ebm", "plain", "tinygpt", "minillm", "infinito"] = "ebm"  # The energy model, or a transformer.
    latent_dim: int = knob(256, low=2)  # Dimension d of the sphere's ambient space.
    n_layers: int = knob(4, low=1)  # Layers of the trunk.
    n_heads: int = knob(4, low=1)  # Attention heads; divides latent_dim.
    ffn_dim: int = knob(1024, low=1)  # Width of the trunk's feed-forward part.
    context_local: int = knob(12, low=1)  # Attention window of the local scale, tokens.
    context_medium: int = knob(64, low=1)  # Window of the medium scale.
    context_global: int = knob(128, low=1)  # Window of the global scale.
    use_moe: bool = False  # Experts in every block of tinygpt and minillm.
    moe_experts: int = knob(4, low=1)  # Experts of the decoder, or of each block.
    moe_active: int = knob(2, low=1)  # Experts active per position.
    hidden_dim: int = knob(512, low=1)  # Width of one expert.
    dropout: float = knob(0.1, low=0.0, high=0.95)  # Dropout in the trunk.
    use_geometric: bool = True  # The geometric energy term.
    use_compositional: bool = True  # The compositional energy term.
    use_splat: bool = True  # The splat energy term; without it there is no decoder.
    use_memory: bool = True  # The external memory of infinito.
    memory_slots: int = knob(256, low=1)  # Its slots.
    gradient_checkpointing: bool = knob(False, resume=True)  # Compute blocks twice instead of keeping their inside.
    decoder: Literal["moe", "transformer", "none"] = "moe"  # Experts, a transformer block, or the state itself.


@dataclass(frozen=True)
class LangevinConfig:
    knn_k: int = knob(64, low=1, resume=True)  # Candidates of the latent law.
    langevin_steps: int = knob(200, low=1, resume=True)  # Integrator steps over all levels.
    langevin_levels: int = knob(10, low=1, resume=True)  # Annealing levels.
    langevin_dt: Number = knob(None, low=1e-9, high=1e15, resume=True)  # Step size; by rule if not given.
    langevin_gamma: Number = knob(None, low=0.0, high=1e15, resume=True)  # Friction; by rule if not given.
    langevin_T: float = knob(1.0, low=1e-6, high=1e6, resume=True)  # Temperature of the chains; 1: the model's law.
    kappa: Number = knob(None, low=1e-6, high=1e15, resume=True)  # Last concentration; by rule if not given.


@dataclass(frozen=True)
class TrainingConfig:
    steps: int = knob(1000, low=1, resume=True)  # Optimiser steps; --epochs replaces them.
    epochs: Number = knob(None, low=1e-9, resume=True)  # Passes over the text, instead of steps.
    batch_size: int = knob(32, low=1, resume=True)  # Windows computed at once.
    accumulation_steps: int = knob(1, low=1, resume=True)  # Batches per step; the result is that of one large batch.
    learning_rate: float = knob(2e-3, low=1e-12, resume=True)  # Peak rate.
    optimizer: Literal["muon", "adamw"] = "muon"  # Of hidden matrices; AdamW moves the rest.
    weight_decay: float = knob(0.01, low=0.0)  # Decoupled weight decay.
    grad_clip: float = knob(1.0, low=1e-9)  # Largest norm of the gradient.
    patience: int = knob(0, low=0, resume=True)  # Stop after so many evaluations without a better one; 0: never.
    warmup_steps: int = knob(100, low=0)  # Steps of linear warm-up before the cosine.
    precision: Annotated[
        Literal["float32", "bfloat16"], tyro.conf.arg(help_behavior_hint="(default: what this processor is faster in)")
    ] = knob("float32", resume=True)  # bfloat16 runs the trunk in autocast.
    lambda_denoise: float = knob(0.1, low=0.0)  # Weight of denoising.
    lambda_spread: float = knob(0.01, low=0.0)  # Weight of the embeddings' spread.
    moe_balance: float = knob(0.01, low=0.0)  # Weight of the experts' load balance.
    moe_z: float = knob(1e-3, low=0.0)  # Weight of the router's z loss.
    lambda_phi: float = knob(0.1, low=0.0, resume=True)  # Weight of 1 - PHI, infinito's integrated information.
    noise_levels: tuple[float, ...] = knob((), low=1e-6, high=1e6)  # Noise of denoising; none: a range by kappa_c.
    noise_unit: Literal["kappa", "angle", "sigma"] = "kappa"  # Theirs; angle: mean, degrees; sigma: per coordinate.
    denoise_form: Literal["cross-entropy", "score"] = "cross-entropy"  # Of the denoising loss.
    init: str = "corpus"  # Start: uniform, corpus, a FILE[:TENSOR] of token vectors, a hub's OWNER/NAME, or a run.

    @property
    def windows_per_step(self) -> int:
        """Windows that one step of the optimiser is an average of."""
        return self.batch_size * self.accumulation_steps


@dataclass(frozen=True)
class LoggingConfig:
    log_every: int = knob(20, low=1, resume=True)  # Steps between printed lines; metrics.jsonl has every step.
    eval_every: int = knob(200, low=1, resume=True)  # Steps between evaluations on a part of validation.
    eval_tokens: int = knob(20_000, low=2, resume=True)  # Tokens of that part.
    save_every: int = knob(200, low=1, resume=True)  # Steps between checkpoints; each epoch's end has one too.
    keep_last: int = knob(3, low=1, resume=True)  # Checkpoints kept; the best one is never deleted.
    keep_epochs: int = knob(5, low=0, resume=True)  # Epochs between checkpoints that are never deleted; 0: none.
    sample_tokens: int = knob(40, low=0, resume=True)  # Tokens of the sample written at each evaluation; 0 for none.
    tensorboard: bool = knob(False, resume=True)  # Write the metrics for TensorBoard too, an extra.


@dataclass(frozen=True)
class SplatConfig:
    enable_soc: bool = True  # Consolidate memory splats during training; the weights don't depend on it.
    n_splats_init: int = knob(10_000, low=1)  # Most splats without a curriculum.
    max_splats: int = knob(150_000, low=1, high=10_000_000)  # The hard cap.
    enable_curriculum_learning: bool = True  # Let the splats grow in three phases, 10 %, 60 % and 100 % of the target.
    curriculum_epochs: float = knob(5.0, low=1e-9)  # Epochs in which the phases follow one another.
    curriculum_target_splats: int = knob(50_000, low=1)  # Most splats in the last phase.
    soc_check_interval: int = knob(100, low=1)  # Steps between consolidations.
    soc_threshold: float = knob(0.8, low=0.0, high=1.0)  # Uncovered share that starts creation; falls to 0.2.
    soc_history: int = knob(10_000, low=16, high=10_000_000)  # Training states kept to consolidate from.
    soc_keep: float = knob(0.9, low=1e-3, high=1.0)  # Share of older statistics kept at a check: the trunk moves.
    splat_temperature: float = knob(0.1, low=1e-3, high=1e3)  # tau: concentrations are divided by it.
    splat_weight_decay: float = knob(0.0, low=0.0, high=1.0)  # Share of an old splat's mass lost per epoch.
    splat_weight_decay_start: float = knob(1.0, low=0.0)  # Age in epochs from which a splat is old.
    min_kappa: float = knob(1.0, low=1e-3)  # Least concentration of a splat, before division by tau.
    max_kappa: float = knob(50.0, low=1e-3, high=1e4)  # Largest concentration of a splat.


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
    """True if a field means anything for the model that is configured."""
    model = config.model
    experts = model.use_moe or (model.model == "ebm" and model.use_splat and model.decoder == "moe")
    if section == "splats":
        return config.splats.enable_soc or name == "enable_soc"
    if name in ("moe_experts", "moe_active", "hidden_dim", "moe_balance", "moe_z"):
        return experts
    if name in ("use_memory", "memory_slots", "lambda_phi"):
        return model.model == "infinito"
    if name in WINDOWS:
        return model.model not in WHOLE_SEQUENCE
    energy = (*ENERGY_TERMS, "decoder", "lambda_denoise", "lambda_spread", "noise_levels", "noise_unit", "denoise_form")
    return model.model == "ebm" or (section != "langevin" and name not in energy)


def flag(key: str) -> str:
    """'seq_length' or 'data.seq_length' → '--seq-length'."""
    return "--" + key.rsplit(".", 1)[-1].replace("_", "-")


def items(config: Config) -> Iterator[tuple[str, str, Any]]:
    """(section, name, value) of every field, in order."""
    for section in dataclasses.fields(config):
        part = getattr(config, section.name)
        for entry in dataclasses.fields(part):
            yield section.name, entry.name, getattr(part, entry.name)


SECTION_OF: dict[str, str] = {name: section for section, name, _ in items(Config())}


def _entry(name: str) -> dataclasses.Field[Any]:
    section = type(getattr(Config(), SECTION_OF[name]))
    return next(entry for entry in dataclasses.fields(section) if entry.name == name)


def number(name: str) -> type[int] | type[float] | None:
    """int or float where the field `name` is such a number, be it an optional one; None where it is anything else."""
    hint = get_type_hints(type(getattr(Config(), SECTION_OF[name])))[name]
    options = set(get_args(hint) or (hint,)) - {type(None)}
    return int if options == {int} else float if options == {float} else None


def nearest(name: str, known: Iterable[str], *, cutoff: float = 0.55) -> str | None:
    """The known name closest to `name`, or None where nothing is close. cutoff: the least likeness, from 0 to 1."""
    return next(iter(difflib.get_close_matches(name, list(known), n=1, cutoff=cutoff)), None)


def replace(config: Config, values: Mapping[str, Any]) -> Config:
    """`config` with the named fields (of any section) replaced."""
    parts = {section: {n: v for n, v in values.items() if SECTION_OF[n] == section} for section in SECTION_OF.values()}
    return dataclasses.replace(
        config, **{s: dataclasses.replace(getattr(config, s), **changed) for s, changed in parts.items() if changed}
    )


# ---- reading -------------------------------------------------------------------------------------------------------


# ---- writing -------------------------------------------------------------------------------------------------------


# ---- checking ------------------------------------------------------------------------------------------------------
