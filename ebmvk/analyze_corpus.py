"""`ebmvk analyze-corpus`, `python -m ebmvk.analyze_corpus`: what a corpus is like, and what to train on it."""

from __future__ import annotations

import dataclasses
import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from ebmvk import cli


@dataclass(frozen=True)
class AnalyzeCommand:
    dataset: Path  # A text file, or a folder of them.
    separator: Annotated[str | None, tyro.conf.arg(metavar="TEXT")] = None  # The line between documents; <|doc|>.
    tokenizer: str = "bpe"  # bpe, trained on the text; char; gpt2; or a tokenizer.json.
    vocab_size: int = 8192  # Tokens of the bpe.
    data_dir: Annotated[Path | None, tyro.conf.arg(metavar="PATH")] = None  # Where gpt2-bpe lies; EBMVK_DATA_DIR.
    json: bool = False  # Print one JSON object instead of lines.


FLAGS = cli.known_flags({f.name: f.default for f in dataclasses.fields(AnalyzeCommand)})


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0, or 2 for a typed error."""
    args = sys.argv[1:] if argv is None else list(argv)
    return cli.run(lambda: _analyze(cli.parse(AnalyzeCommand, args, command="analyze-corpus", known=FLAGS)))


def _analyze(command: AnalyzeCommand) -> int:
    from ebmvk.data.analysis import analyse
    from ebmvk.data.datasets import Corpus, data_folders, read_documents
    from ebmvk.data.tokenizer import make_tokenizer

    documents = read_documents(command.dataset, "--corpus", command.separator)
    corpus = Corpus(command.dataset.name, "", {"train": documents})
    folders = [path for path, _ in data_folders(command.data_dir)]
    tokenizer = make_tokenizer(command.tokenizer, corpus, command.vocab_size, folders)
    found = analyse(documents, tokenizer)
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
        print(f"expect      perplexity {low:.0f} to {high:.0f} per token (a trigram has {high:.0f})")
    print(
        f"train       python -m ebmvk.train --model minillm --preset {found.preset} --corpus "
        f"{shlex.quote(str(command.dataset))} --block-size {found.block_size} --stride {found.stride}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
