"""`ebmvk init-tokenizer`: trains a tokenizer on text files, to use with `--tokenizer FILE`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from ebmvk.cli import parsing
from ebmvk.cli.parsing import Include
from ebmvk.config import flags
from ebmvk.errors import ConfigError, StorageError


@dataclass(frozen=True)
class TokenizerCommand:
    out: Path  # The tokenizer.json to write.
    # Text files, or folders of text files.
    files: tyro.conf.UseAppendAction[tuple[Path, ...]] = ()
    # In folders, also read files whose names match, for example '*.py'.
    include: Include = ()
    raw: bool = False  # Read JSON, CSV, HTML and similar files as plain text, markup included.
    vocab_size: int = 32_000  # The number of tokens, at least 258; a short text may give fewer.


REPEATABLE = ("--files", "--include")
FLAGS = flags.flags_of(TokenizerCommand)


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0, or 2 for an EbmvkError."""
    return parsing.run(
        TokenizerCommand, _train, argv, command="init-tokenizer", known=FLAGS, repeatable=("--files", "--include")
    )


def _make_place(out: Path) -> None:
    """Make the output file's folder and check that it is writable, before the work starts.

    Raises:
        ConfigError: the output is a folder.
        StorageError: it cannot be written.
    """
    if out.is_dir():
        raise ConfigError(f"--out {out} is a folder", hint=f"name a file: --out {out / 'tokenizer.json'}")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        # `save` writes this file first, then renames it
        partial = out.with_name(out.name + ".partial")
        partial.touch()
        partial.unlink()
    except OSError as error:
        raise StorageError(
            f"--out {out} cannot be written: {error.strerror or error}", hint="name a file in another folder"
        ) from error


def _train(command: TokenizerCommand) -> int:
    if not command.files:
        raise ConfigError("--files is missing", hint="name text files, or folders of text files: --files A B")
    from ebmvk.data.corpus import Corpus
    from ebmvk.data.documents import read_documents
    from ebmvk.data.files import Reading
    from ebmvk.data.tokenizer_kinds import train_tokenizer

    _make_place(command.out)
    found = read_documents(command.files, "--files", reading=Reading(tuple(command.include), command.raw))
    documents = found.texts
    tokenizer = train_tokenizer(Corpus("files", "", {"train": documents}), command.vocab_size)
    tokenizer.save(command.out)
    size, tokens = sum(len(d.encode()) for d in documents), sum(map(len, tokenizer.encode_many(documents)))
    for note in found.notes:
        print(note)
    print(
        f"{command.out}  {tokenizer.vocab_size:,} tokens; {size / tokens:.2f} bytes per token on {size:,} bytes of text"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
