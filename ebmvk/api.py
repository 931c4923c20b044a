"""A trained model as an object (`ebmvk.Model`): text, embeddings, composition, energies and neighbours; and what the
functions `ebmvk.train`, `ebmvk.evaluate` and `ebmvk.diagnose` return."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args, overload

import numpy as np
import torch
from torch import Tensor

from ebmvk.data.tokenizer import Ids
from ebmvk.data.windows import TokenStream
from ebmvk.decoding.generate import Decoding, Generator, Sampler
from ebmvk.decoding.strategies import GREEDY, Strategy, of
from ebmvk.engine.api import Points
from ebmvk.engine.device import Device, open_device
from ebmvk.errors import ArgumentError, ConfigError
from ebmvk.evaluation.likelihood import token_nats
from ebmvk.memory.files import load
from ebmvk.runs.folder import OpenRun, open_run
from ebmvk.runs.layout import MEMORY_FILE
from ebmvk.sampling.states import StateSampler
from ebmvk.sphere.geometry import projx
from ebmvk.splats.store import SplatStore

__all__ = ["Diagnosed", "Energy", "Evaluated", "Model", "NearSplat", "NearToken", "Strategy", "Trained"]

Scale = Literal["point", "local", "medium", "global", "composed"]
_FIELD: dict[Scale, str] = {
    "point": "h", "local": "local", "medium": "medium", "global": "global_", "composed": "composed"
}  # fmt: skip
AS_IT_IS = Strategy()
TOP_TOKENS = 5  # of a splat's token law
SAMPLERS: tuple[Sampler, ...] = ("exact", *get_args(StateSampler))


@dataclass(frozen=True)
class Energy:
    """Exact E(v|c) = -log p(v|c) of each token of a text. nats: (n,) float64; tokens: their texts; total: the sum."""

    tokens: list[str]
    nats: Tensor

    @property
    def total(self) -> float:
        return float(self.nats.sum())


@dataclass(frozen=True)
class NearToken:
    """A token, and the cosine of its direction mu_v to a point."""

    id: int
    text: str
    cosine: float


@dataclass(frozen=True)
class NearSplat:
    """A splat of the static memory: cosine of mu_k to a point, kappa_hat, mass n_k, likeliest tokens under V_k."""

    id: int
    cosine: float
    kappa: float
    mass: float
    tokens: list[tuple[str, float]]


@dataclass(frozen=True)
class Trained:
    """How a training run ended. step: the number of steps done. validation, trigram: figures over all of validation
    (`nats_per_token`, `ppl_token`, `ppl_word`, `bits_per_byte`, `tokens` …), for the model and for a Kneser-Ney trigram
    on the same tokens; None unless the run is finished."""

    folder: Path
    outcome: Literal["finished", "stopped", "interrupted"]
    step: int
    validation: dict[str, Any] | None
    trigram: dict[str, Any] | None


@dataclass(frozen=True)
class Evaluated:
    """Exact figures of a text. ppl_word is None where the text has no words. record: everything that `ebmvk evaluate
    --json` prints."""

    nats_per_token: float
    ppl_token: float
    ppl_word: float | None
    bits_per_byte: float
    tokens: int
    words: int
    bytes: int
    record: dict[str, Any]


@dataclass(frozen=True)
class Diagnosed:
    """verdict: converging, converged, stalled, diverging or undecided, with its reason; None if the run has no metrics.
    recommendations: lines that name a flag and a value. record: everything that `ebmvk diagnose --json` prints."""

    verdict: str | None
    reason: str | None
    recommendations: list[str]
    record: dict[str, Any]


class Model:
    """A trained model, opened for use. Points are unit rows (d,) float32 on the CPU.

    >>> model = ebmvk.Model.open("runs/first")
    >>> model.embed("The value of").shape
    torch.Size([64])
    """

    def __init__(self, run: OpenRun, device: Device) -> None:
        self._run, self._device = run, device
        self._model = run.model.to(device.torch)
        self._memory: tuple[SplatStore, Points] | None = None
        with torch.no_grad():
            # Their directions: a model that is not on the sphere has rows of any length.
            self._points = device.backend.points(projx(self._model.embeddings().float()))

    @classmethod
    def open(cls, checkpoint: str | Path, *, device: str = "auto") -> Model:
        """Open a run folder (its newest usable checkpoint), one checkpoint folder, or a folder that was exported.

        Raises:
            ArgumentError: `checkpoint` isn't a path. CheckpointError: it is missing, corrupt, or doesn't fit its run.
            DeviceError: no such device.
        """
        if not isinstance(checkpoint, str | Path):
            raise ArgumentError(f"checkpoint {checkpoint!r} isn't a path", hint='give a folder, such as "runs/first"')
        _text(device, "device")
        return cls(open_run(Path(checkpoint), "checkpoint", lambda _: None), open_device(device))

    @property
    def d(self) -> int:
        return self._model.config.latent_dim

    @property
    def name(self) -> str:
        """Which checkpoint this is."""
        return str(self._run.checkpoint.path)

    @overload
    def embed(self, text: str, scale: Scale = "point") -> Tensor: ...
    @overload
    def embed(self, text: Sequence[str], scale: Scale = "point") -> Tensor: ...
    def embed(self, text: str | Sequence[str], scale: Scale = "point") -> Tensor:
        """Where the model stands after a text: (d,) of one, (n, d) of several.

        Each text is read alone, so no vector depends on the others. scale: the point h_hat that is compared with the
        tokens, one of the three context vectors, or their composition.
        """
        if not isinstance(scale, str) or scale not in _FIELD:
            raise ArgumentError(f"scale {scale!r} is not known", hint=f"take one of {', '.join(_FIELD)}")
        if isinstance(text, str):
            return self._embed(_text(text, "text"), scale)
        rows = [self._embed(one, scale) for one in _texts(text, "text")]
        return torch.stack(rows) if rows else torch.zeros(0, self.d)

    @torch.no_grad()
    def _embed(self, text: str, scale: Scale) -> Tensor:
        ids = self._run.tokenizer.encode_prompt(text)[-self._reach() :]
        tokens = torch.from_numpy(ids.astype(np.int64))[None].to(self._device.torch)
        row: Tensor | None = getattr(self._model(tokens), _FIELD[scale], None)
        if row is None:
            raise self._lacks(f"scale {scale!r}")
        return row[0, -1].float().cpu()

    def _lacks(self, what: str) -> ConfigError:
        return ConfigError(
            f"{what}: {self.name} has none",
            why="its model is plain, or was trained without the compositional energy term",
            hint="open a run of --model ebm with --use-compositional",
        )

    def _reach(self) -> int:
        """Tokens that the last state can depend on at most: each layer sees a window, and the token before it; and that
        the model has learned to read."""
        if self._model.reach is not None:
            return self._model.reach
        return 1 + self._model.config.n_layers * self._model.config.context_global

    @torch.no_grad()
    def compose(self, a: str | Tensor, b: str | Tensor) -> Tensor:
        """comp(a, b) of two texts (their points) or unit vectors: (d,).

        The composition is learned for the context vectors of one text; of two texts it is what it makes of them.

        Raises:
            ConfigError: the model has no composition.
        """
        composition = getattr(self._model, "composition", None)
        if composition is None:
            raise self._lacks("a composition")
        pair = [self._point(x)[None].to(self._device.torch) for x in (a, b)]
        composed: Tensor = composition(*pair)[0]
        return composed.float().cpu()

    @overload
    def generate(  # type: ignore[overload-overlap]  # a text is a sequence of texts, too: the first one wins
        self, prompt: str, max_tokens: int = 100, *, strategy: Strategy | str = AS_IT_IS,
        sampler: Sampler | None = None, seed: int = 42, stop: str | Sequence[str] = (), **settings: float,
    ) -> str: ...  # fmt: skip
    @overload
    def generate(
        self, prompt: Sequence[str], max_tokens: int = 100, *, strategy: Strategy | str = AS_IT_IS,
        sampler: Sampler | None = None, seed: int = 42, stop: str | Sequence[str] = (), **settings: float,
    ) -> list[str]: ...  # fmt: skip
    def generate(
        self,
        prompt: str | Sequence[str],
        max_tokens: int = 100,
        *,
        strategy: Strategy | str = AS_IT_IS,
        sampler: Sampler | None = None,
        seed: int = 42,
        stop: str | Sequence[str] = (),
        **settings: float,
    ) -> str | list[str]:
        """The text that the model writes after a prompt; for several prompts, a list of texts, written as one batch.

        strategy: a Strategy, or its name, such as "nucleus"; by default p(v|c) as it is. settings: change values of the
        strategy: temperature, top_k, top_p, min_p, typical_p, repetition_penalty, no_repeat_ngram. sampler: how states
        are drawn, or "exact"; by default annealed Langevin if the model is on the sphere. stop: strings that end
        the text; they are left out of it.

        >>> model.generate("The value of", 60, temperature=0.7, top_k=50)

        Raises:
            ArgumentError: a prompt isn't a text, or a count is below 1. ConfigError: the strategy or setting doesn't
            exist, its value is out of range, or the sampler does not fit the model.
        """
        prompts = [_text(prompt, "prompt")] if isinstance(prompt, str) else _texts(prompt, "prompt")
        how = self._how(max_tokens, of(strategy, settings), sampler, seed, stop)
        found = [text.text for text in self._generator.generate(prompts, how)]
        return found[0] if isinstance(prompt, str) else found

    def generate_all(
        self,
        prompts: Sequence[str],
        max_tokens: int = 100,
        *,
        strategy: Strategy | str = AS_IT_IS,
        sampler: Sampler | None = None,
        seed: int = 42,
        stop: str | Sequence[str] = (),
        **settings: float,
    ) -> list[str]:
        """`generate` for each of several prompts, at once; each draws for itself."""
        several = _texts(prompts, "prompts")
        return self.generate(several, max_tokens, strategy=strategy, sampler=sampler, seed=seed, stop=stop, **settings)

    def stream(
        self,
        prompt: str,
        max_tokens: int = 100,
        *,
        strategy: Strategy | str = AS_IT_IS,
        sampler: Sampler | None = None,
        seed: int = 42,
        stop: str | Sequence[str] = (),
        **settings: float,
    ) -> Iterator[str]:
        """What `generate` returns for one prompt, piece by piece while it is written."""
        how = self._how(max_tokens, of(strategy, settings), sampler, seed, stop)
        return self._generator.stream(_text(prompt, "prompt"), how)

    def generate_greedy(self, prompt: str, max_tokens: int = 100) -> str:
        """Always the most probable token."""
        return self.generate(prompt, max_tokens, strategy=GREEDY, sampler="exact")

    def generate_nucleus(self, prompt: str, max_tokens: int = 100, p: float = 0.9, *, seed: int = 42) -> str:
        """Only the fewest most probable tokens that hold the mass p."""
        return self.generate(prompt, max_tokens, sampler="exact", seed=seed, top_p=p)

    def generateV2(  # noqa: N802, as the system it comes from calls it
        self,
        prompt: str,
        max_tokens: int = 100,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        *,
        seed: int = 42,
    ) -> str:
        """Temperature, top-k and top-p in any combination."""
        strategy = of(AS_IT_IS, {"temperature": temperature, "top_k": top_k, "top_p": top_p})
        return self.generate(prompt, max_tokens, strategy=strategy, sampler="exact", seed=seed)

    @cached_property
    def _generator(self) -> Generator:
        run = self._run
        return Generator(self._model, run.tokenizer, self._device.backend, run.config.langevin)

    def _how(
        self, max_tokens: int, strategy: Strategy, sampler: Sampler | None, seed: int, stop: str | Sequence[str]
    ) -> Decoding:
        usual: Sampler = self._model.default_sampler
        if sampler is not None and not (isinstance(sampler, str) and sampler in SAMPLERS):
            raise ArgumentError(f"sampler {sampler!r} is not known", hint=f"take one of {', '.join(SAMPLERS)}")
        if _whole(seed, "seed") < 0 or seed >= 2**63:
            raise ArgumentError(f"seed = {seed} is not within 0 to 2^63 - 1", hint="take seed=42")
        ends = [_text(stop, "stop")] if isinstance(stop, str) else _texts(stop, "stop")
        if "" in ends:
            raise ArgumentError("stop has an empty string, which every text contains", hint="give the text to stop at")
        most = _positive(max_tokens, "max_tokens", "token")
        return Decoding(most, strategy, sampler or usual, int(seed), tuple(ends))

    def energy(self, text: str) -> Energy:
        """Exact energies of the tokens of a text, read as `ebmvk evaluate` reads a document, without memory.

        Raises:
            ArgumentError: `text` isn't a text. DataError: the text is empty.
        """
        ids = self._run.tokenizer.encode_prompt(_text(text, "text"))
        context = self._run.config.data.seq_length
        stream = TokenStream.of_text(ids, word_level=self._run.tokenizer.word_level)
        found = token_nats(self._model, stream, context=context, stride=max(1, context // 2), device=self._device.torch)
        return Energy(self._texts(ids[1:]), found["none"])

    def neighbors(self, x: str | Tensor, k: int = 10) -> list[NearToken]:
        """The k tokens of largest cosine to a text's point or a unit vector (d,), best first."""
        most = min(_positive(k, "k", "neighbour"), self._points.n)
        found = self._device.backend.topk(self._query(x), self._points, most)
        ids = found.ids[0].cpu()
        texts = self._texts(ids.numpy())
        return [NearToken(int(i), t, float(c)) for i, t, c in zip(ids, texts, found.scores[0].cpu(), strict=True)]

    def splats(self, x: str | Tensor, k: int = 10) -> list[NearSplat]:
        """The k splats of the checkpoint's static memory nearest to a text's point or a unit vector; none without one.

        Raises:
            CheckpointError: the memory is damaged, or was built for other weights.
        """
        query, most = self._query(x), _positive(k, "k", "splat")
        if self._memory is None and (self._run.checkpoint.path / MEMORY_FILE).is_file():
            store = load(self._run.checkpoint.path, self._run.model, "episodic").static
            self._memory = (store, self._device.backend.points(store.mu)) if store else None
        if self._memory is None:
            return []
        store, points = self._memory
        found = self._device.backend.topk(query, points, min(most, store.n))
        ids = found.ids[0].cpu()
        law = store.token_law(ids[:, None], torch.ones(len(ids), 1))
        top = law.topk(min(TOP_TOKENS, store.vocab_size), dim=1)
        return [
            NearSplat(
                *(int(i), float(cosine), float(store.kappa[i]), float(store.mass[i])),
                list(zip(self._texts(own.numpy()), p.tolist(), strict=True)),
            )
            for i, cosine, own, p in zip(ids, found.scores[0].cpu(), top.indices, top.values, strict=True)
        ]

    def _texts(self, ids: Ids) -> list[str]:
        return [self._run.tokenizer.label(int(i)) for i in ids]

    def _query(self, x: str | Tensor) -> Tensor:
        return self._point(x)[None].to(self._device.torch).contiguous()

    def _point(self, x: str | Tensor) -> Tensor:
        """(d,) of a text, or a unit vector, checked."""
        if isinstance(x, str):
            return self.embed(x)
        if not isinstance(x, Tensor) or not x.is_floating_point():
            raise ArgumentError(
                f"a point is {x!r}; expected a text or a unit vector", hint="pass a text, or what `embed` returned"
            )
        if x.shape != (self.d,) or not abs(float(torch.linalg.vector_norm(x.double())) - 1) < 1e-3:
            raise ArgumentError(
                f"a point of shape {tuple(x.shape)} and norm {float(x.double().norm()):.4g}, where a unit vector of "
                f"shape ({self.d},) is needed",
                hint="pass a text, or what `embed` returned",
            )
        return x.float()


# ---- arguments -----------------------------------------------------------------------------------------------------


def _text(value: object, name: str) -> str:
    """The value. Raises ArgumentError unless it is a text that UTF-8 can encode."""
    if not isinstance(value, str):
        hint = "decode it first: value.decode()" if isinstance(value, bytes) else "pass a str"
        raise ArgumentError(f"{name} {value!r} isn't a text; its type is {type(value).__name__}", hint=hint)
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ArgumentError(
            f"{name} {value!r} has half a surrogate pair, which isn't a character",
            hint='take text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")',
        ) from None
    return value


def _texts(values: object, name: str) -> list[str]:
    """The values. Raises ArgumentError unless they are several texts: one text isn't taken as a list of characters."""
    if isinstance(values, str | bytes) or not isinstance(values, Iterable):
        raise ArgumentError(f"{name} {values!r} isn't a list of texts", hint=f"pass a list, such as [{values!r}]")
    return [_text(value, name) for value in values]


def _whole(value: object, name: str) -> int:
    try:
        if not isinstance(value, bool):
            return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        pass
    raise ArgumentError(f"{name} = {value!r} isn't a whole number", hint="pass an int")


def _positive(value: object, name: str, what: str) -> int:
    if (number := _whole(value, name)) < 1:
        raise ArgumentError(f"{name} = {number} is below 1", hint=f"ask for one {what} or more")
    return number
