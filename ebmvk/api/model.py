"""`ebmvk.Model`: a trained model that writes, embeds, composes, scores and finds neighbours."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from inspect import Parameter
from pathlib import Path
from typing import Any, Literal, TypeVar, overload

import numpy as np
import torch
from torch import Tensor

from ebmvk.api.arguments import positive, text_of, texts_of, unit_vector, whole
from ebmvk.api.results import Energy, NearSplat, NearToken
from ebmvk.data.tokenizer import Ids
from ebmvk.data.windows import TokenStream
from ebmvk.decoding.generate import Decoding, Generator
from ebmvk.decoding.layers import token_layers
from ebmvk.decoding.strategies import GREEDY, Strategy, of
from ebmvk.engine.api import Points
from ebmvk.engine.device import Device, open_device
from ebmvk.errors import ArgumentError, ConfigError
from ebmvk.evaluation.likelihood import token_nats
from ebmvk.memory.files import load
from ebmvk.runs.folder import OpenRun, open_run
from ebmvk.runs.layout import MEMORY_FILE
from ebmvk.sampling.registry import SamplerName, named
from ebmvk.sphere.geometry import projx
from ebmvk.splats.store import SplatStore

Scale = Literal["point", "local", "medium", "global", "composed"]
_FIELD: dict[Scale, str] = {
    "point": "h", "local": "local", "medium": "medium", "global": "global_", "composed": "composed"
}  # fmt: skip
AS_IT_IS = Strategy()
_TOP_TOKENS = 5  # shown for each splat


Method = TypeVar("Method", bound=Callable[..., Any])


def _takes_settings(method: Method) -> Method:
    """Show the fields of `Strategy` in the method's signature, in place of its `**settings`."""
    own = inspect.signature(method)
    given = [parameter for parameter in own.parameters.values() if parameter.kind is not Parameter.VAR_KEYWORD]
    settings = [
        Parameter(entry.name, Parameter.KEYWORD_ONLY, default=entry.default, annotation=entry.type)
        for entry in dataclasses.fields(Strategy)
    ]
    vars(method)["__signature__"] = own.replace(parameters=[*given, *settings])
    return method


class Model:
    """A trained model, opened for use. Points are unit vectors (d,), float32, on the CPU.

    >>> model = ebmvk.Model.open("runs/first")
    >>> model.embed("The value of").shape == (model.d,)
    True
    """

    def __init__(self, run: OpenRun, device: Device, asked: str) -> None:
        self._run, self._device, self._asked = run, device, asked
        self._model = run.model.to(device.torch)
        self._memory: tuple[SplatStore, Points] | None = None
        with torch.no_grad():
            # Only their directions count: a model off the sphere has rows of any length.
            self._points = device.backend.points(projx(self._model.embeddings().float()))

    def __dir__(self) -> list[str]:
        return [name for name in super().__dir__() if not name.startswith("_")]

    def __repr__(self) -> str:
        return f"<ebmvk.Model {self.name}>"

    @classmethod
    def open(cls, checkpoint: str | Path, *, device: str = "auto") -> Model:
        """Open a run (its newest usable checkpoint), one checkpoint folder, or an exported model.

        >>> ebmvk.Model.open("runs/first", device="cpu")
        <ebmvk.Model ...runs/first/checkpoints/step-...>

        With `device="vulkan"` the layers write texts on the device, with programs that are compiled
        at the first text; with "auto" they do so on the CPU.

        Raises:
            ArgumentError: `checkpoint` isn't a path.
            CheckpointError: the checkpoint is missing, corrupt, or doesn't fit its run.
            DeviceError: the device does not exist.
        """
        if not isinstance(checkpoint, str | Path):
            raise ArgumentError(f"checkpoint {checkpoint!r} isn't a path", hint='give a folder, such as "runs/first"')
        text_of(device, "device")
        return cls(open_run(Path(checkpoint), "checkpoint", lambda _: None), open_device(device), device)

    @property
    def d(self) -> int:
        """The dimension of points."""
        return self._model.config.latent_dim

    @property
    def name(self) -> str:
        """The path of the checkpoint."""
        return str(self._run.checkpoint.path)

    @overload
    def embed(self, text: str, scale: Scale = "point") -> Tensor: ...
    @overload
    def embed(self, text: Sequence[str], scale: Scale = "point") -> Tensor: ...
    def embed(self, text: str | Sequence[str], scale: Scale = "point") -> Tensor:
        """The model's state after a text: (d,) for one text, (n, d) for several.

        Each text is read alone, so no vector depends on the others. scale: "point" is the state
        h_hat, which is compared with the tokens; "local", "medium" and "global" are the three
        context vectors; "composed" is their composition.

        >>> model.embed(["The value of", "She"]).shape == (2, model.d)
        True

        Raises:
            ArgumentError: `text` isn't a text, or the scale isn't known. ConfigError: the model has
                no such scale.
        """
        if not isinstance(scale, str) or scale not in _FIELD:
            raise ArgumentError(f"scale {scale!r} is not known", hint=f"use one of {', '.join(_FIELD)}")
        if isinstance(text, str):
            return self._embed(text_of(text, "text"), scale)
        rows = [self._embed(one, scale) for one in texts_of(text, "text")]
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
            f"the model of {self.name} has no {what}",
            why="it is another kind of model, or it was trained without the compositional energy term",
            hint="open a run of --model ebm with --use-compositional",
        )

    def _reach(self) -> int:
        """The most tokens that the last state depends on: each layer sees a window and the token
        before.
        """
        if self._model.reach is not None:
            return self._model.reach
        return 1 + self._model.config.n_layers * self._model.config.context_global

    @torch.no_grad()
    def compose(self, a: str | Tensor, b: str | Tensor) -> Tensor:
        """The composition (d,) of two texts (of their points) or of two unit vectors; it is a unit
        vector.

        The model learned to compose the context vectors of one text. Two texts are composed in the
        same way, which was never trained.

        >>> model.compose("the cat", "a house").shape == (model.d,)
        True

        Raises:
            ArgumentError: a or b is neither a text nor a unit vector. ConfigError: the model has no
                composition.
        """
        composition = getattr(self._model, "composition", None)
        if composition is None:
            raise self._lacks("composition")
        pair = [self._point(x)[None].to(self._device.torch) for x in (a, b)]
        composed: Tensor = composition(*pair)[0]
        return composed.float().cpu()

    @overload
    def generate(  # type: ignore[overload-overlap]  # a text is a sequence of texts, too: the first one wins
        self, prompt: str, max_tokens: int = 100, *, strategy: Strategy | str = AS_IT_IS,
        sampler: SamplerName | None = None, seed: int = 42, stop: str | Sequence[str] = (), **settings: float,
    ) -> str: ...  # fmt: skip
    @overload
    def generate(
        self, prompt: Sequence[str], max_tokens: int = 100, *, strategy: Strategy | str = AS_IT_IS,
        sampler: SamplerName | None = None, seed: int = 42, stop: str | Sequence[str] = (), **settings: float,
    ) -> list[str]: ...  # fmt: skip
    @_takes_settings
    def generate(
        self,
        prompt: str | Sequence[str],
        max_tokens: int = 100,
        *,
        strategy: Strategy | str = AS_IT_IS,
        sampler: SamplerName | None = None,
        seed: int = 42,
        stop: str | Sequence[str] = (),
        **settings: float,
    ) -> str | list[str]:
        """The text that the model writes after a prompt. For several prompts, a list of texts,
        written as one batch.

        >>> text = model.generate("The value of", 20, temperature=0.7, top_k=50)
        >>> texts = model.generate(["The", "She"], 20, top_p=0.9, seed=1)
        >>> len(texts)
        2

        Args:
            strategy: a Strategy, or its name, such as "nucleus". By default p(v|c) isn't changed.
            settings: values of the strategy to replace, such as temperature, top_k or top_p.
            sampler: how states are drawn, or "exact". By default annealed Langevin if the model is
                on the sphere, else "exact".
            seed: from 0 to 2^63 - 1. The same seed gives the same text.
            stop: one or more strings that end the text. They aren't part of it.

        Raises:
            ArgumentError: a prompt isn't a text, or a count is below 1. ConfigError: the strategy
                or a setting doesn't exist, a value is out of range, or the sampler doesn't fit the
                model.
        """
        prompts = [text_of(prompt, "prompt")] if isinstance(prompt, str) else texts_of(prompt, "prompt")
        how = self._how(max_tokens, of(strategy, settings), sampler, seed, stop)
        found = [text.text for text in self._generator.generate(prompts, how)]
        return found[0] if isinstance(prompt, str) else found

    @_takes_settings
    def generate_all(
        self,
        prompts: Sequence[str],
        max_tokens: int = 100,
        *,
        strategy: Strategy | str = AS_IT_IS,
        sampler: SamplerName | None = None,
        seed: int = 42,
        stop: str | Sequence[str] = (),
        **settings: float,
    ) -> list[str]:
        """`generate` for a list of prompts. Each has random numbers of its own."""
        several = texts_of(prompts, "prompts")
        return self.generate(several, max_tokens, strategy=strategy, sampler=sampler, seed=seed, stop=stop, **settings)

    @_takes_settings
    def stream(
        self,
        prompt: str,
        max_tokens: int = 100,
        *,
        strategy: Strategy | str = AS_IT_IS,
        sampler: SamplerName | None = None,
        seed: int = 42,
        stop: str | Sequence[str] = (),
        **settings: float,
    ) -> Iterator[str]:
        """The text that `generate` returns for one prompt, piece by piece while it is written.

        >>> text = "".join(model.stream("The", 5))
        """
        how = self._how(max_tokens, of(strategy, settings), sampler, seed, stop)
        return self._generator.stream(text_of(prompt, "prompt"), how)

    def generate_greedy(self, prompt: str, max_tokens: int = 100) -> str:
        """`generate` with the most probable token at each step."""
        return self.generate(prompt, max_tokens, strategy=GREEDY, sampler="exact")

    def generate_nucleus(self, prompt: str, max_tokens: int = 100, p: float = 0.9, *, seed: int = 42) -> str:
        """`generate` from the fewest most probable tokens whose probabilities add up to p."""
        return self.generate(prompt, max_tokens, sampler="exact", seed=seed, top_p=p)

    def generateV2(  # noqa: N802  # its name in the original system
        self,
        prompt: str,
        max_tokens: int = 100,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        *,
        seed: int = 42,
    ) -> str:
        """`generate` with temperature, top-k and top-p in any combination."""
        strategy = of(AS_IT_IS, {"temperature": temperature, "top_k": top_k, "top_p": top_p})
        return self.generate(prompt, max_tokens, strategy=strategy, sampler="exact", seed=seed)

    @cached_property
    def _generator(self) -> Generator:
        run, device = self._run, self._device
        layers, _ = token_layers(self._model, run.config, device, self._asked)
        return Generator(self._model, run.tokenizer, device.backend, run.config.langevin, layers=layers)

    def _how(
        self, max_tokens: int, strategy: Strategy, sampler: SamplerName | None, seed: int, stop: str | Sequence[str]
    ) -> Decoding:
        usual = self._model.default_sampler
        if sampler is not None:
            named(sampler)
        if whole(seed, "seed") < 0 or seed >= 2**63:
            raise ArgumentError(f"seed = {seed} is not between 0 and 2^63 - 1", hint="use seed=42")
        ends = [text_of(stop, "stop")] if isinstance(stop, str) else texts_of(stop, "stop")
        if "" in ends:
            raise ArgumentError("stop has an empty string, which every text contains", hint="give the text to stop at")
        most = positive(max_tokens, "max_tokens", "token")
        return Decoding(most, strategy, sampler or usual, int(seed), tuple(ends))

    def energy(self, text: str) -> Energy:
        """Exact energies of a text's tokens, read as `ebmvk evaluate` reads a document, without
        memory.

        >>> energy = model.energy("The value of")
        >>> "".join(energy.tokens)
        'The value of'

        Raises:
            ArgumentError: `text` isn't a text. DataError: the text is empty.
        """
        ids = self._run.tokenizer.encode_prompt(text_of(text, "text"))
        context = self._run.config.data.seq_length
        stream = TokenStream.of_text(ids, word_level=self._run.tokenizer.word_level)
        found = token_nats(self._model, stream, context=context, stride=max(1, context // 2), device=self._device.torch)
        return Energy(self._labels(ids[1:]), found["none"])

    def neighbors(self, x: str | Tensor, k: int = 10) -> list[NearToken]:
        """The k tokens nearest to a text's point or to a unit vector (d,), by cosine.

        >>> len(model.neighbors("The value of", k=3))
        3

        Raises:
            ArgumentError: x is neither a text nor a unit vector, or k is below 1.
        """
        most = min(positive(k, "k", "neighbour"), self._points.n)
        found = self._device.backend.topk(self._query(x), self._points, most)
        ids = found.ids[0].cpu()
        texts = self._labels(ids.numpy())
        return [NearToken(int(i), t, float(c)) for i, t, c in zip(ids, texts, found.scores[0].cpu(), strict=True)]

    def splats(self, x: str | Tensor, k: int = 10) -> list[NearSplat]:
        """The k splats of the static memory nearest to a text's point or to a unit vector (d,).

        Empty if the checkpoint has no memory; `ebmvk memory` builds one.

        Raises:
            ArgumentError: x is neither a text nor a unit vector, or k is below 1.
            CheckpointError: the memory is damaged, or was built for other weights.
        """
        query, most = self._query(x), positive(k, "k", "splat")
        if self._memory is None and (self._run.checkpoint.path / MEMORY_FILE).is_file():
            store = load(self._run.checkpoint.path, self._run.model, "episodic").static
            self._memory = (store, self._device.backend.points(store.mu)) if store else None
        if self._memory is None:
            return []
        store, points = self._memory
        found = self._device.backend.topk(query, points, min(most, store.n))
        ids = found.ids[0].cpu()
        law = store.token_law(ids[:, None], torch.ones(len(ids), 1))
        top = law.topk(min(_TOP_TOKENS, store.vocab_size), dim=1)
        return [
            NearSplat(
                *(int(i), float(cosine), float(store.kappa[i]), float(store.mass[i])),
                list(zip(self._labels(own.numpy()), p.tolist(), strict=True)),
            )
            for i, cosine, own, p in zip(ids, found.scores[0].cpu(), top.indices, top.values, strict=True)
        ]

    def _labels(self, ids: Ids) -> list[str]:
        return [self._run.tokenizer.label(int(i)) for i in ids]

    def _query(self, x: str | Tensor) -> Tensor:
        return self._point(x)[None].to(self._device.torch).contiguous()

    def _point(self, x: str | Tensor) -> Tensor:
        """The point (d,) of a text, or a unit vector itself, checked."""
        if isinstance(x, str):
            return self.embed(x)
        return unit_vector(x, self.d)
