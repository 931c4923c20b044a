"""Rows of tokens read by programs on a Vulkan device, where the cache stays."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call

from ebmvk.compute.chain import Call, Chain, Link
from ebmvk.compute.programs import Tree
from ebmvk.engine.vulkan import Vulkan
from ebmvk.model.language import LanguageModel
from ebmvk.model.on_device import DID, Called
from ebmvk.model.positions import rotations
from ebmvk.model.static_cache import Place, StaticCache, empty
from ebmvk.model.token_layers import Read, Rows, Wanted

CHUNK = 64
"""Positions of a row that the program for texts reads at once. There is one size, so that the
program is compiled once. It is large enough for large products, and small enough that a short
prompt isn't mostly padding."""
Links = dict[str, Link]
_NOTHING = Wanted()


class DeviceTokens:
    """Reads rows with two programs, one for pieces of texts and one for a token of each row; see
    `ebmvk.model.token_layers.TokenLayers`. Both have the weights, and the cache between calls, on
    the device.

    The programs are made when they are first needed, for as many rows as there are then; fewer rows
    use them, too. Rows that `keep` drops are still read, but their results are ignored.

    Args:
        model: programs get the weights that it has when they are made.
        made: compiles the two programs.
        doing: called before something that takes long, with a line that says what it is.
    """

    def __init__(
        self, model: LanguageModel, made: Callable[[Links], Chain], doing: Callable[[str], None] = lambda _: None
    ) -> None:
        self.model, self._made, self._doing = model, made, doing
        self._programs: Programs | None = None
        self._length, self._pads, self._at = 0, [0], [0]
        self._did: Counter[str] = Counter()
        self.starts = 0

    @classmethod
    def open(cls, model: LanguageModel, backend: Vulkan, doing: Callable[[str], None] = lambda _: None) -> DeviceTokens:
        """The programs on a device."""
        return cls(model, lambda links: Chain(links, device=backend), doing)

    def start(self, rows: Rows, wanted: Wanted) -> Read:
        """See `TokenLayers.start`.

        Raises OutOfMemory, UnsupportedOperation.
        """
        own = self._ready(len(rows), wanted)
        self.starts += 1
        longest = max(map(len, rows))
        self._at = list(range(len(rows)))
        self._length, self._pads = longest, [longest] * own.rows
        for row, tokens in enumerate(rows):
            self._pads[row] = longest - len(tokens)
        return self._found(own.text(dict(enumerate(rows)), longest, self._pads))

    def follow(self, tokens: Sequence[int]) -> Read:
        """See `TokenLayers.follow`."""
        own = self._ready(len(tokens), _NOTHING)
        new = dict(zip(self._at, tokens, strict=True))
        found = own.token([new.get(row, 0) for row in range(own.rows)], self._length, self._pads)
        self._length += 1
        return self._found(iter([found]))

    def keep(self, rows: Sequence[int]) -> None:
        """See `TokenLayers.keep`."""
        self._at = [self._at[row] for row in rows]

    def again(self, rows: Sequence[int], tokens: Rows) -> None:
        """See `TokenLayers.again`."""
        own = self._ready(len(rows), _NOTHING)
        places = [self._at[row] for row in rows]
        for place, new in zip(places, tokens, strict=True):
            self._pads[place] = self._length - len(new)
        for _ in own.text(dict(zip(places, tokens, strict=True)), self._length, self._pads):
            self._count(own)

    def did(self) -> dict[str, Any]:
        """What the device has done since the last call, as JSON values."""
        found, self._did = dict(self._did), Counter()
        return found

    def _ready(self, rows: int, wanted: Wanted) -> Programs:
        """Programs for these rows that bring back what is wanted."""
        own = self._programs
        if own is None or own.rows < rows or (wanted.query > own.wanted.query) or (wanted.states > own.wanted.states):
            self._doing("compiling the model for the device")
            self._programs = None  # frees the memory of the old programs first
            own = self._programs = Programs(self.model, self._made, rows, wanted)
        return own

    def _found(self, results: Iterator[dict[str, Tensor]]) -> Read:
        """The result of the last of several calls, with the states of all calls."""
        assert self._programs is not None
        last: dict[str, Tensor] = {}
        states = []
        for last in results:
            self._count(self._programs)
            if "h" in last:
                states.append(last["h"][self._at])
        query = last["query"][self._at] if "query" in last else None
        return Read(last["log_p"][self._at], query, torch.cat(states, 1) if states else None)

    def _count(self, own: Programs) -> None:
        self._did["cpu_ops"] += own.chain.cpu_ops
        if own.chain.ran is not None:
            self._did.update({name: getattr(own.chain.ran, name) for name in DID})


class Programs:
    """The two programs for a number of rows. wanted: what they bring to the host beside log p."""

    def __init__(self, model: LanguageModel, made: Callable[[Links], Chain], rows: int, wanted: Wanted) -> None:
        self.rows, self.wanted, self._model = rows, wanted, model
        self._width = model.config.latent_dim // model.config.n_heads
        step = _step(model, wanted)
        self.chain = made({"text": Link(step, ("cache",)), "token": Link(step, ("cache",))})
        self.chain.start(_weights(model), {"cache": empty(model, rows)})

    def text(self, rows: dict[int, Sequence[int]], end: int, pads: Sequence[int]) -> Iterator[dict[str, Tensor]]:
        """Read texts into some rows, so that all end at position `end`; yields the results piece by
        piece.

        Args:
            rows: {row: its tokens}. A row begins at the position that `pads` gives.
            pads: the position of the first token of every row, also of rows that aren't read.
        """
        longest = max(map(len, rows.values()))
        begin = end - -(-longest // CHUNK) * CHUNK
        tokens = torch.zeros(self.rows, end - begin, dtype=torch.int64)
        takes = torch.zeros(self.rows, dtype=torch.bool)
        for row, own in rows.items():
            tokens[row, end - begin - len(own) :], takes[row] = torch.tensor(own), True
        for first in range(begin, end, CHUNK):
            anew = takes if first == begin else torch.zeros_like(takes)
            part = tokens[:, first - begin :][:, :CHUNK]
            yield self._run("text", {"takes": takes, "anew": anew} | self._place(part, first, pads))

    def token(self, tokens: Sequence[int], length: int, pads: Sequence[int]) -> dict[str, Tensor]:
        """Read a token of each row. length: the positions before it."""
        return self._run("token", self._place(torch.tensor(tokens)[:, None], length, pads))

    def _place(self, tokens: Tensor, length: int, pads: Sequence[int]) -> dict[str, Tensor]:
        end = length + tokens.shape[1]
        padding = min(max(0, -length), tokens.shape[1])  # before the first position, where any angle will do
        turned = rotations(length + padding, end, self._width, torch.float32, torch.device("cpu"))
        cos, sin = (torch.cat([part.new_zeros(padding, part.shape[1]), part]) for part in turned)
        return {
            "tokens": tokens.contiguous(), "length": torch.tensor(length), "pads": torch.tensor(pads),
            "cos": cos, "sin": sin,
        }  # fmt: skip

    def _run(self, name: str, batch: Tree) -> dict[str, Tensor]:
        (found,), _ = self.chain.run([Call(name, batch, {})])
        read: dict[str, Tensor] = found
        return read


@torch.no_grad()
def _weights(model: LanguageModel) -> Tree:
    """What the programs keep of a model. The tokens' rows and outputs are made here, once."""
    weights = {name: own.detach() for name, own in model.named_parameters() if name != model.rows_name}
    rows = model.embeddings().detach()
    outputs = model.outputs(rows)
    return {"weights": weights, "rows": rows} | ({} if outputs is rows else {"outputs": outputs})


def _step(model: LanguageModel, wanted: Wanted) -> Callable[[Tree, Tree, Tree, Tree], tuple[Tree, Tree, Tree]]:
    """(`_weights`, {cache}, {tokens (B, n), fields of `Place`}, {}) -> (the same weights, {cache},
    {log_p, query?, h?})."""

    def read(kept: Tree, state: Tree, tokens: Tensor, place: Place) -> tuple[dict[str, Tensor], Tree]:
        cache = StaticCache(model, state, place)
        seen = model(tokens, kept["rows"], cache)
        query, outputs = seen.query[:, -1], kept.get("outputs", kept["rows"])
        found = {"log_p": torch.log_softmax(torch.addmm(model.bias, query, outputs.t()), -1)}
        if wanted.query:
            found["query"] = query
        if wanted.states:
            found["h"] = seen.h
        return found, cache.state()

    called = Called(model, read)

    def step(kept: Tree, state: Tree, batch: Tree, scalars: Tree) -> tuple[Tree, Tree, Tree]:
        del scalars
        values = {f"model.{name}": value for name, value in kept["weights"].items()}
        place = Place(**{name: value for name, value in batch.items() if name != "tokens"})
        found, cache = functional_call(called, values, (kept, state["cache"], batch["tokens"], place))
        return kept, {"cache": cache}, found

    return step
