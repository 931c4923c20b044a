"""`ebmvk analyze-corpus`: measures a corpus and prints the command to train on it.

Suggests preset, block size and stride, and the perplexity to expect.
"""

from __future__ import annotations

import dataclasses
import json
import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from ebmvk.cli import parsing
from ebmvk.cli.parsing import Include
from ebmvk.config import flags
from ebmvk.config import sizes as presets

if TYPE_CHECKING:
    from ebmvk.data.analysis import Analysis

MODEL = "minillm"


@dataclass(frozen=True)
class AnalyzeCommand:
    dataset: Path  # A text file, or a folder of text files.
    # The line that separates documents. By default <|doc|> or <|endoftext|>.
    separator: Annotated[str | None, tyro.conf.arg(metavar="TEXT")] = None
    # In folders, also read files whose names match, for example '*.py'.
    include: Include = ()
    raw: bool = False  # Read JSON, CSV, HTML and similar files as plain text, markup included.
    # How to cut text into tokens. bpe: trained on this text; char: one token per character; gpt2;
    # or the path of a tokenizer.json.
    tokenizer: str = "bpe"
    # The token of a tokenizer.json that ends a document. By default its usual end-of-text token.
    end_token: Annotated[str | None, tyro.conf.arg(metavar="TOKEN")] = None
    # The number of tokens for bpe. By default the suggested preset's number.
    vocab_size: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
    # The folder that contains gpt2-bpe, for --tokenizer gpt2. By default EBMVK_DATA_DIR.
    data_dir: Annotated[Path | None, tyro.conf.arg(metavar="PATH")] = None
    json: bool = False  # Print one JSON object instead of lines.


FLAGS = flags.flags_of(AnalyzeCommand)


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0, or 2 for an EbmvkError."""
    return parsing.run(AnalyzeCommand, _analyze, argv, command="analyze-corpus", known=FLAGS, repeatable=("--include",))


def _analyze(command: AnalyzeCommand) -> int:
    from ebmvk.data.analysis import REACHED, analyse, preset_for
    from ebmvk.data.corpus import Corpus
    from ebmvk.data.documents import read_documents
    from ebmvk.data.fidelity import round_trip
    from ebmvk.data.files import Reading
    from ebmvk.data.folders import data_folders
    from ebmvk.data.splitting import hold_out
    from ebmvk.data.tokenizer_kinds import OWN_KINDS, make_tokenizer

    reading = Reading(tuple(command.include), command.raw)
    read = read_documents([command.dataset], "--corpus", command.separator, reading)
    documents = read.texts
    preset = preset_for(documents)
    recipe = presets.recipe(MODEL, preset)
    # Training makes its tokens from this part only
    corpus = Corpus(command.dataset.name, "", {"train": hold_out(documents)[0]})
    folders = [path for path, _ in data_folders(command.data_dir)]
    vocab_size = command.vocab_size or recipe["vocab_size"]
    tokenizer = make_tokenizer(command.tokenizer, corpus, vocab_size, folders, command.end_token)
    if command.tokenizer not in OWN_KINDS:
        for line in (*tokenizer.notes, str(round_trip(tokenizer, command.tokenizer, documents))):
            print(f"tokenizer   {line}", file=sys.stderr)
    found = analyse(documents, tokenizer, preset, recipe["seq_length"])
    for note in read.notes:
        print(f"read        {note}", file=sys.stderr if command.json else sys.stdout)
    if command.json:
        print(json.dumps(dataclasses.asdict(found)))
        return 0
    print(f"text        {found.bytes:,} bytes, {found.tokens:,} tokens of {tokenizer.vocab_size:,}")
    print(
        f"documents   {found.documents:,}; tokens each: mean {found.mean:,.1f}, median {found.median:,.0f}, "
        f"{found.least:,} to {found.most:,}"
    )
    print(f"block size  {found.block_size}, stride {found.stride}")
    if found.perplexity:
        low, high = found.perplexity
        least, most = REACHED
        print(
            f"expect      perplexity {low:.1f} to {high:.1f} per token of the last tenth, which training holds out. "
            f"That is {least:g} to {most:g} times the perplexity of a trigram, which was fitted on {found.fitted:,} "
            f"tokens and measured on {found.measured:,} (and at least 1)"
        )
    for line in _commands(command, found):
        print(line)
    return 0


def _commands(command: AnalyzeCommand, found: Analysis) -> Iterator[str]:
    """Yields the commands to type next. If training doesn't know the separator, the first command
    replaces it."""
    from ebmvk.data.splitting import STANDARD

    text = command.dataset
    if command.separator not in (None, *STANDARD):
        text = Path(f"{text.resolve().name.removesuffix('.gz').removesuffix('.txt')}-prepared.txt")
        given = [f"--separator={command.separator}", "--input", str(command.dataset), "--output", str(text)]
        given += _reading_flags(command)
        yield f"first       python -m ebmvk.prepare_corpus {shlex.join(given)}"
    given = ["--model", MODEL, "--preset", found.preset, "--corpus", str(text)]
    given += _reading_flags(command) if text == command.dataset else []
    given += ["--block-size", str(found.block_size), "--stride", str(found.stride)]
    # The expected perplexity is per token, so it holds only for the same tokenizer.
    given += ["--tokenizer", command.tokenizer] if command.tokenizer != "bpe" else []
    given += [f"--end-token={command.end_token}"] if command.end_token else []
    given += ["--vocab-size", str(command.vocab_size)] if command.tokenizer == "bpe" and command.vocab_size else []
    given += ["--data-dir", str(command.data_dir)] if command.data_dir else []
    yield f"train       python -m ebmvk.train {shlex.join(given)}"


def _reading_flags(command: AnalyzeCommand) -> list[str]:
    return [f"--include={pattern}" for pattern in command.include] + (["--raw"] if command.raw else [])


if __name__ == "__main__":
    sys.exit(main())
