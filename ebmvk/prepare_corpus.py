"""`ebmvk prepare-corpus`, `python -m ebmvk.prepare_corpus`: text files repaired and put together, for training."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from ebmvk import cli
from ebmvk.errors import ConfigError, DataError


@dataclass(frozen=True)
class PrepareCommand:
    output: Path  # The file to write.
    input: tyro.conf.UseAppendAction[tuple[Path, ...]] = ()  # Text files, or folders of them.
    separator: Annotated[str | None, tyro.conf.arg(metavar="TEXT")] = None  # Their line between documents; <|doc|>.
    preserve_case: bool = True  # Or all in small letters.


FLAGS = cli.known_flags({f.name: f.default for f in dataclasses.fields(PrepareCommand)})


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0, or 2 for a typed error."""
    args = sys.argv[1:] if argv is None else list(argv)
    return cli.run(
        lambda: _prepare(
            cli.parse(PrepareCommand, args, command="prepare-corpus", known=FLAGS, repeatable=("--input",))
        )
    )


def _prepare(command: PrepareCommand) -> int:
    if not command.input:
        raise ConfigError("--input is missing", hint="name text files, or folders of them: --input A B")
    from ebmvk.data.cleaning import clean
    from ebmvk.data.datasets import read_documents
    from ebmvk.data.splitting import DOCUMENT

    documents = [document for path in command.input for document in read_documents(path, "--input", command.separator)]
    cleaned = clean(documents, preserve_case=command.preserve_case)
    if not cleaned.documents:
        what = f"--input {command.input[0]}: nothing is left of {len(documents)} documents"
        raise DataError(what, hint="name files that hold text")
    text = f"\n{DOCUMENT}\n".join(cleaned.documents) + "\n"
    cli.write_output(command.output, text, "--output")
    print(
        f"documents   {len(documents):,} read, {cleaned.documents_changed:,} changed, {len(cleaned.documents):,} kept"
    )
    print(
        f"left out    {cleaned.documents_empty:,} empty and {cleaned.documents_repeated:,} repeated documents, "
        f"{cleaned.paragraphs_repeated:,} repeated paragraphs"
    )
    print(f"written     {command.output}, {len(text.encode()):,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
