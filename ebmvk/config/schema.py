"""Configuration: frozen dataclasses, `--size` as the one dial, TOML in and out.

Precedence: size < model < preset < TOML file < flags. Names are those of the original system where it had one. The
comment beside a field is its help text on the command line; `knob` adds its range and whether `--resume` may change it.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
import tomllib
import types
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import tyro

from ebmvk.errors import ConfigError

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


def read_toml(path: Path, flag: str = "--config ") -> dict[str, Any]:
    """Flat {field: value} of a configuration file; unknown sections, unknown keys and wrong types are rejected.

    Args:
        flag: what named the file, with a blank after it, for messages.

    Raises:
        ConfigError: naming the file, the key and its value, with the nearest known name.
    """
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise ConfigError(f"{flag}{path}: no such file", hint="check the path; a run's config.toml is one") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(
            f"{flag}{path}: cannot be read as TOML", why=str(error), hint="compare it with another run's config.toml"
        ) from None
    return _flat(tables, path)


def _flat(tables: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """{field: value} of {section: {field: value}}, as `read_toml` says."""
    values: dict[str, Any] = {}
    for section, table in tables.items():
        names = [n for n, s in SECTION_OF.items() if s == section]
        if not names and section in SECTION_OF:
            hint = f"put it below a line [{SECTION_OF[section]}]"
            raise ConfigError(f"{path}: '{section}' stands outside of its section", hint=hint)
        if not names or not isinstance(table, dict):
            raise _unknown(path, section, set(SECTION_OF.values()))
        for name, value in table.items():
            if name not in names:
                raise _unknown(path, f"{section}.{name}", [f"{section}.{n}" for n in names])
            values[name] = _coerce(name, value, f"{path}: {section}.{name}")
    return values


def _unknown(path: Path, key: str, known: Iterable[str]) -> ConfigError:
    close = nearest(key, known)
    hint = f"write '{close}'" if close else f"known here: {', '.join(sorted(known))}"
    return ConfigError(f"{path}: unknown key '{key}'", why="a misspelt key would be ignored", hint=hint)


def _coerce(name: str, value: Any, where: str) -> Any:
    """`value` as the type of field `name`; a TOML integer is fine where a float is wanted, nothing else converts."""
    hint = get_type_hints(type(getattr(Config(), SECTION_OF[name])))[name]
    options = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    for option in options:
        if get_origin(option) is Literal:
            if value in get_args(option):
                return value
        elif get_origin(option) is tuple:
            words = get_args(option)[0] is str
            if isinstance(value, list) and all(type(v) in ((str,) if words else (int, float)) for v in value):
                return tuple(value if words else map(float, value))
        elif option is Path and isinstance(value, str):
            return Path(value)
        elif option is float and isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
        elif type(value) is option:
            return value
    wanted = " or ".join(_words(option) for option in options if option is not type(None))
    raise ConfigError(f"{where} = {value!r}: not {wanted}", hint=f"give {wanted}, or leave the key away")


def _words(option: Any) -> str:
    if get_origin(option) is Literal:
        return "one of " + ", ".join(map(str, get_args(option)))
    if get_origin(option) is tuple:
        return "an array of strings" if get_args(option)[0] is str else "an array of numbers"
    return {int: "a whole number", float: "a number", str: "a string", bool: "true or false", Path: "a path"}[option]


_BEFORE = {"raw": True, "keep_bom": True}
"""Values that earlier versions used where they had no such setting: they read every file as plain text."""


# ---- writing -------------------------------------------------------------------------------------------------------


def write_toml(config: Config, sources: Mapping[str, Source] | None = None) -> str:
    """The configuration as TOML; unset (None) values are left out, sources stand as comments beside their values."""
    lines: list[str] = []
    current = ""
    for section, name, value in items(config):
        if section != current:
            lines += [*([""] if lines else []), f"[{section}]"]
            current = section
        if value is not None:
            comment = f"  # {sources[name]}" if sources and name in sources else ""
            lines.append(f"{name} = {_toml(value)}{comment}")
    return "\n".join(lines) + "\n"


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, float):
        return repr(value) if math.isfinite(value) else str(value)
    if isinstance(value, int):
        return str(value)
    text = str(value).replace("\\", "\\\\").replace('"', '\\"')
    return '"' + "".join(c if c >= " " and c != "\x7f" else f"\\u{ord(c):04x}" for c in text) + '"'


def sources_in(path: Path) -> dict[str, Source]:
    """{field: where its value came from}, as `write_toml` notes it; defaults have no note."""
    known = "|".join(get_args(Source))
    found: dict[str, Source] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        if entry := re.fullmatch(rf"(\w+) = .*?(?:  # ({known}))?", line):
            found[entry[1]] = next((source for source in get_args(Source) if source == entry[2]), "default")
    return found


def from_toml(path: Path) -> Config:
    """A complete configuration from a file written by `write_toml`; a missing field gets the value that
    versions without that field used."""
    return replace(Config(), _BEFORE | read_toml(path, flag=""))


def from_tables(tables: Mapping[str, Any], path: Path) -> Config:
    """A complete configuration from what `to_tables` gave. path: its file, for messages. Raises ConfigError."""
    return replace(Config(), _BEFORE | _flat(tables, path))


def to_tables(config: Config) -> dict[str, dict[str, Any]]:
    """{section: {field: value}}, JSON-able; unset (None) values are left out."""
    tables: dict[str, dict[str, Any]] = {}
    for section, name, value in items(config):
        plain = str(value) if isinstance(value, Path) else list(value) if isinstance(value, tuple) else value
        tables.setdefault(section, {}).update({} if value is None else {name: plain})
    return tables


# ---- checking ------------------------------------------------------------------------------------------------------


def check(config: Config) -> Config:
    """The configuration itself when every value is in range and no two contradict each other.

    Raises:
        ConfigError: naming the flag, its value and the bound or the other flag.
    """
    for _, name, value in items(config):
        _check_range(name, value)
    check_model(config.model)
    data, langevin = config.data, config.langevin
    _require(
        config.model.model != "ebm" or langevin.knn_k < data.vocab_size,
        f"--knn-k {langevin.knn_k} is not below --vocab-size {data.vocab_size}",
        f"take --knn-k {data.vocab_size - 1} or less",
    )
    _require(
        data.stride is None or data.windows == "document",
        f"--stride {data.stride} with --windows {data.windows}",
        "take --windows document: windows of the whole text follow one another",
    )
    _require(
        data.stride is None or data.stride <= data.seq_length,
        f"--stride {data.stride} exceeds --seq-length {data.seq_length}",
        f"take --stride {data.seq_length} or less: what lies between windows would never be read",
    )
    _require(
        langevin.langevin_levels <= langevin.langevin_steps,
        f"--langevin-levels {langevin.langevin_levels} exceeds --langevin-steps {langevin.langevin_steps}",
        f"take --langevin-levels {langevin.langevin_steps} or less: a level needs a step",
    )
    _check_splats(config.splats)
    return config


def with_windows(config: Config, given: Iterable[str]) -> Config:
    """The configuration whose windows are those of its model. given: names of fields that a person set.

    Raises:
        ConfigError: a window was set of a model that looks at all of its sequence.
    """
    if config.model.model not in WHOLE_SEQUENCE:
        return config
    for name in sorted(set(WINDOWS) & set(given)):
        if getattr(config.model, name) != config.data.seq_length:
            raise ConfigError(
                f"{flag(name)} {getattr(config.model, name)} with --model {config.model.model}",
                why="it looks at all of its training window",
                hint=f"leave {flag(name)} away; --seq-length says how long the window is",
            )
    return replace(config, dict.fromkeys(WINDOWS, config.data.seq_length))


def _check_splats(splats: SplatConfig) -> None:
    for name in ("n_splats_init", "curriculum_target_splats"):
        _require(
            getattr(splats, name) <= splats.max_splats,
            f"{flag(name)} {getattr(splats, name)} exceeds --max-splats {splats.max_splats}",
            f"take {flag(name)} {splats.max_splats} or less",
        )
    _require(
        splats.min_kappa <= splats.max_kappa,
        f"--min-kappa {splats.min_kappa} exceeds --max-kappa {splats.max_kappa}",
        f"take --min-kappa {splats.max_kappa} or less",
    )
    _require(
        splats.soc_history >= splats.soc_check_interval,
        f"--soc-history {splats.soc_history} is below --soc-check-interval {splats.soc_check_interval}",
        f"take --soc-history {splats.soc_check_interval} or more: a step adds a state",
    )


def check_model(model: ModelConfig) -> None:
    """Raises ConfigError for sizes of a model that contradict each other."""
    _require(
        model.latent_dim % (2 * model.n_heads) == 0,
        f"--latent-dim {model.latent_dim} is not a multiple of 2 x --n-heads {model.n_heads}",
        f"take --latent-dim {2 * model.n_heads * max(1, round(model.latent_dim / (2 * model.n_heads)))}",
    )
    _require(
        model.moe_active <= model.moe_experts,
        f"--moe-active {model.moe_active} exceeds --moe-experts {model.moe_experts}",
        f"take --moe-active {model.moe_experts} or less",
    )
    if model.model != "ebm":
        _check_transformer(model)
    _require(
        not (model.use_moe and model.model not in ("tinygpt", "minillm")),
        f"--use-moe with --model {model.model}",
        "take --model tinygpt or minillm; the energy model has --decoder moe",
    )
    _require(
        any(getattr(model, name) for name in ENERGY_TERMS),
        "--no-use-splat, --no-use-geometric and --no-use-compositional leave no energy term",
        "leave one of them away: the energy needs a term",
    )
    _require(
        model.context_local <= model.context_medium <= model.context_global,
        f"--context-local {model.context_local}, --context-medium {model.context_medium}, "
        f"--context-global {model.context_global} do not widen",
        "order them local <= medium <= global",
    )


def _check_transformer(model: ModelConfig) -> None:
    """A switch that would do nothing must not look as if it had."""
    switches = {f"--no-{name.replace('_', '-')}": not getattr(model, name) for name in ENERGY_TERMS}
    switches[f"--decoder {model.decoder}"] = model.decoder != ModelConfig.decoder
    for switch, given in switches.items():
        _require(
            not given,
            f"{switch} with --model {model.model}, which has neither energy terms nor a decoder",
            f"leave {switch} away, or take --model ebm",
        )


def _check_range(name: str, value: Any) -> None:
    bounds = _entry(name).metadata
    low, high = bounds.get("low"), bounds.get("high")
    if value is None or (low is None and high is None):
        return
    for number in value if isinstance(value, tuple) else (value,):
        _require(math.isfinite(number), f"{flag(name)} {number} is not finite", "give a finite number")
        _require(low is None or number >= low, f"{flag(name)} {number} is below {low}", f"take {low} or more")
        _require(high is None or number <= high, f"{flag(name)} {number} is above {high}", f"take {high} or less")


def _require(condition: bool, what: str, hint: str) -> None:
    if not condition:
        raise ConfigError(what, hint=hint)


def check_resume(old: Config, new: Config) -> None:
    """Only learning rate, batch size, length, device, sampling, logging and the place of the text may change when a run
    is resumed.

    Raises:
        ConfigError: naming the first key that may not, and both values.
    """
    before = {name: value for _, name, value in items(old)}
    for section, name, value in items(new):
        if value != before[name] and not _entry(name).metadata.get("resume") and name not in OF_TEXT:
            raise ConfigError(
                f"--resume: {section}.{name} is {value!r} now but was {before[name]!r}",
                why="a run can't change its model, data or objective half way",
                hint=f"leave {flag(name)} away, or start a new run with another --run-dir",
            )
