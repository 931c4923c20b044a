"""`ebmvk prepare-corpus`: repairs text files and writes them into one file to train on.

Reads files and folders, cleans the documents, drops repetitions and prints what changed.
"""

from __future__ import annotations

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
    output: Path  # The text file to write.
    # Text files, or folders of text files.
    input: tyro.conf.UseAppendAction[tuple[Path, ...]] = ()
    # The line that separates documents in the input. By default <|doc|> or <|endoftext|>.
    separator: Annotated[str | None, tyro.conf.arg(metavar="TEXT")] = None
    # In folders, also read files whose names match, for example '*.py'.
    include: Include = ()
    raw: bool = False  # Read JSON, CSV, HTML and similar files as plain text, markup included.
    # Keep capital letters; with --no-preserve-case everything becomes lower case.
    preserve_case: bool = True
    # What to do with runs of blanks in a line. keep: leave them; single: make each one blank; flat:
    # single, and remove indentation; auto: single if no line of the document is indented, else
    # keep.
    blanks: Literal["auto", "keep", "single", "flat"] = "auto"
    # Make full-width characters narrow. This changes Chinese and Japanese punctuation.
    narrow: bool = False
    # Keep marks that change the direction of writing, such as U+200E and U+202E.
    keep_direction: bool = False
    # When two documents count as equal, so that only the first is kept: text: all characters agree;
    # letters: letters and digits agree, ignoring case.
    same: Literal["text", "letters"] = "text"


FLAGS = flags.flags_of(PrepareCommand)


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0, or 2 for an EbmvkError."""
    return parsing.run(
        PrepareCommand, _prepare, argv, command="prepare-corpus", known=FLAGS, repeatable=("--input", "--include")
    )


def _prepare(command: PrepareCommand) -> int:
    if not command.input:
        raise ConfigError("--input is missing", hint="name text files, or folders of text files: --input A B")
    from ebmvk.data.cleaning import Rules, clean
    from ebmvk.data.documents import read_documents, stray_note
    from ebmvk.data.files import Reading, shown
    from ebmvk.data.splitting import DOCUMENT, at_separators

    reading = Reading(tuple(command.include), command.raw)
    found = read_documents(command.input, "--input", command.separator, reading, [command.output])
    rules = Rules(command.preserve_case, command.blanks, command.narrow, command.keep_direction, command.same)
    cleaned = clean(found.texts, rules)
    if not cleaned.documents:
        what = f"--input {shown(command.input[0])}: cleaning leaves nothing of {len(found.texts)} documents"
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
    """Yields a note if documents contain separators of the output, because reading it would then
    give more documents.
    """
    if read_back != written:
        yield f"{read_back:,} documents will be read from it, because some of them contain <|doc|> or <|endoftext|>"


if __name__ == "__main__":
    sys.exit(main())
