"""Records which text a memory was fitted on.

Figures on that text are in sample; the record is kept in the memory's file so that they can be
marked.
"""

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
    """The text that a memory's concentrations and gates were fitted on.

    text: `corpus/split`. sha256: digest of all its token ids under the model's tokenizer. tokens:
    how many of its first tokens were used. fit_on: the value of --fit-on. contexts: the number of
    contexts of the training text in the static splats.
    """

    text: str
    sha256: str
    tokens: int
    fit_on: str
    contexts: int

    @classmethod
    def of(cls, whole: TokenStream, tokens: int, fit_on: str, contexts: int) -> FittedOn:
        """The record of a fit on the tokens 1 to `tokens` of `whole`; token 0 is never
        predicted."""
        return cls(whole.name, digest(whole), tokens, fit_on, contexts)

    @classmethod
    def read(cls, file: Path) -> FittedOn | None:
        """The record in a memory's file; None if an earlier version wrote the file.

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
                f"{file}: the record of what the memory was fitted on cannot be read ({error})",
                hint="build the memory again with `ebmvk memory`",
            ) from None
        return found

    def metadata(self) -> dict[str, str]:
        """The record as metadata for safetensors."""
        return {_KEY: json.dumps(dataclasses.asdict(self))}

    def among(self, whole: TokenStream, tokens: int) -> int:
        """How many of a split's tokens 1 to `tokens` were used for the fit."""
        return min(tokens, self.tokens) if digest(whole) == self.sha256 else 0
