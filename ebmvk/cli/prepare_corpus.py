"""`ebmvk prepare-corpus`, `python -m ebmvk.prepare_corpus`: text files repaired and put together, for training."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from ebmvk.cli import parsing, running
from ebmvk.cli.parsing import Include
from ebmvk.config import flags
from ebmvk.errors import ConfigError, DataError


@dataclass(frozen=True)
class PrepareCommand:
    output: Path  # The file to write.
    input: tyro.conf.UseAppendAction[tuple[Path, ...]] = ()  # Text files, or folders of them.
    separator: Annotated[str | None, tyro.conf.arg(metavar="TEXT")] = None  # Their line between documents; <|doc|>.
    include: Include = ()  # Also read a folder's files with such names, for example '*.py'.
    raw: bool = False  # Read JSON, CSV, HTML and similar files as plain text, markup included.
    preserve_case: bool = True  # Or all in small letters.
    # Runs of blanks. auto: make them single if no line is indented; keep; single; flat: single, without indentation.
    blanks: Literal["auto", "keep", "single", "flat"] = "auto"
    narrow: bool = False  # Make full-width characters narrow; this changes Chinese and Japanese punctuation.
    keep_direction: bool = False  # Keep characters that change the direction of writing, such as U+200E and U+202E.
    same: Literal["text", "letters"] = "text"  # What makes documents equal: text, or letters and digits.


FLAGS = flags.known_flags({f.name: f.default for f in dataclasses.fields(PrepareCommand)})


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0, or 2 for a typed error."""
    args = sys.argv[1:] if argv is None else list(argv)
    return running.run(
        lambda: _prepare(
            parsing.parse(
                PrepareCommand, args, command="prepare-corpus", known=FLAGS, repeatable=("--input", "--include")
            )
        )
    )


def _prepare(command: PrepareCommand) -> int:
    if not command.input:
        raise ConfigError("--input is missing", hint="name text files, or folders of them: --input A B")
    from ebmvk.data.cleaning import Rules, clean
    from ebmvk.data.documents import read_documents, stray_note
    from ebmvk.data.files import Reading, shown
    from ebmvk.data.splitting import DOCUMENT, at_separators

    reading = Reading(tuple(command.include), command.raw)
    found = read_documents(command.input, "--input", command.separator, reading, [command.output])
    rules = Rules(command.preserve_case, command.blanks, command.narrow, command.keep_direction, command.same)
    cleaned = clean(found.texts, rules)
    if not cleaned.documents:
        what = f"--input {shown(command.input[0])}: nothing is left of {len(found.texts)} documents"
        raise DataError(what, hint="name files that hold text")
    text = f"\n{DOCUMENT}\n".join(cleaned.documents) + "\n"
    running.write_output(command.output, text, "--output")
    for note in found.notes:
        print(f"input       {note}")
    print(
        f"documents   {len(found.texts):,} read, {cleaned.documents_changed:,} changed, {len(cleaned.documents):,} kept"
    )
    for what, count in sorted(cleaned.changes.items(), key=lambda item: -item[1]):
        print(f"  {what} in {count:,}")
    print(
        f"left out    {cleaned.documents_empty:,} empty and {cleaned.documents_repeated:,} repeated documents, "
        f"{cleaned.paragraphs_repeated:,} repeated paragraphs"
    )
    print(f"written     {command.output}, {len(text.encode()):,} bytes")
    for note in [*stray_note([text]), *_parted(len(at_separators(text)), len(cleaned.documents))]:
        print(f"note        {note}")
    return 0


def _parted(read_back: int, written: int) -> Iterator[str]:
    """A line if some documents hold the separator of the output: reading it back gives more documents."""
    if read_back != written:
        yield f"{read_back:,} documents will be read from it: some contain lines <|doc|> or <|endoftext|> themselves"


if __name__ == "__main__":
    sys.exit(main())
