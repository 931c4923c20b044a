"""What a memory was fitted on, kept in its file: figures on the same text are in sample."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

from ebmvk.data.windows import TokenStream
from ebmvk.errors import CheckpointError
from ebmvk.runs.folder import digest

_KEY = "fitted_on"  # in the metadata of the file


@dataclass(frozen=True)
class FittedOn:
    """The text that concentrations and gates of a memory were fitted on.

    text: `corpus/split`; sha256: of all its ids under the model's tokenizer; tokens: the first of them, that were
    fitted on; fit_on: as --fit-on; contexts: of the training text, that its static splats hold.
    """

    text: str
    sha256: str
    tokens: int
    fit_on: str
    contexts: int

    @classmethod
    def of(cls, whole: TokenStream, tokens: int, fit_on: str, contexts: int) -> FittedOn:
        """whole: the split, of which the first `tokens` after its beginning were fitted on."""
        return cls(whole.name, digest(whole), tokens, fit_on, contexts)

    @classmethod
    def read(cls, file: Path) -> FittedOn | None:
        """Of a memory's file; None where an earlier version wrote it, which kept no such thing.

        Raises:
            CheckpointError: the file is damaged.
        """
        try:
            with safe_open(file, "pt") as opened:
                said = (opened.metadata() or {}).get(_KEY)
            found = None if said is None else cls(**json.loads(said))
            bad = [e.name for e in dataclasses.fields(cls) if found and type(getattr(found, e.name)).__name__ != e.type]
            if bad:
                raise TypeError(f"{bad[0]} is {getattr(found, bad[0])!r}")
        except (OSError, SafetensorError, ValueError, TypeError, RecursionError) as error:
            raise CheckpointError(
                f"{file}: what it was fitted on cannot be read ({error})",
                hint="build the memory again with `ebmvk memory`",
            ) from None
        return found

    def metadata(self) -> dict[str, str]:
        """For safetensors."""
        return {_KEY: json.dumps(dataclasses.asdict(self))}

    def among(self, whole: TokenStream, tokens: int) -> int:
        """How many of the first `tokens` tokens of a split, all but its very first, were fitted on."""
        return min(tokens, self.tokens) if digest(whole) == self.sha256 else 0
