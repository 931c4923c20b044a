"""From the name a person types to documents in splits.

`resolve` looks, in this order, for `builtin` (the default, a reserved name), a path, a name in the data folders, and a
name that the `datasets` library can fetch. What was taken, and why, is in `Corpus.reason`.
"""

from __future__ import annotations

import difflib
import hashlib
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

from ebmvk.data.files import read_text, split_files, text_files
from ebmvk.data.splitting import at_separators, hold_out, wikitext_articles
from ebmvk.errors import ConfigError, DataError

Split = Literal["train", "validation", "test"]

BUILTIN = "builtin"
ENVIRONMENT = "EBMVK_DATA_DIR"

# Words, with one end of line each, as the paper that introduced the corpus counts them.
WIKITEXT_WORDS: dict[str, dict[Split, int]] = {
    "wikitext-2": {"train": 2_088_628, "validation": 217_646, "test": 245_569},
    "wikitext-103": {"train": 103_227_021, "validation": 217_646, "test": 245_569},
}
TINY_SHAKESPEARE_CHARACTERS = 1_115_394
FETCHABLE = (*WIKITEXT_WORDS, "tiny-shakespeare")


@dataclass(frozen=True)
class Corpus:
    """Documents in splits.

    Attributes:
        name: `builtin`, `wikitext-2`, or the name of the file or folder.
        reason: one line: which source was taken and why.
        splits: documents by split; a corpus without official splits has no `test`.
        word_level: the text is already words between single blanks (WikiText): words include one end of line each.
    """

    name: str
    reason: str
    splits: Mapping[Split, list[str]]
    word_level: bool = False

    def documents(self, split: str) -> list[str]:
        """The documents of a split. Raises DataError naming the splits there are."""
        if split not in self.splits:
            raise DataError(
                f"--split {split}: the corpus {self.name} has no such split",
                why="its source has no official splits" if split == "test" else "",
                hint="take one of: " + ", ".join(self.splits),
            )
        return self.splits[cast("Split", split)]

    def words(self, split: str) -> int:
        """Words of a split: the denominator of perplexity per word."""
        return sum(count_words(document, word_level=self.word_level) for document in self.documents(split))

    def bytes(self, split: str) -> int:
        """UTF-8 bytes of the text of a split: the denominator of bits per byte."""
        return sum(len(document.encode("utf-8")) for document in self.documents(split))


def count_words(text: str, *, word_level: bool) -> int:
    """Words between white space; in word-level text each end of line counts as one word more (`<eos>`)."""
    return len(text.split()) + (text.count("\n") if word_level else 0)


def resolve(dataset: str, data_dir: Path | None = None) -> Corpus:
    """Find and read a corpus.

    Args:
        dataset: `builtin`, the path of a text file or a folder of them, or a name; with `:100000` behind it, the first
            100,000 characters, each split giving its share.
        data_dir: the folder to look names up in, before the one that the environment names.

    Raises:
        DataError: no such corpus; or it is empty, binary, not UTF-8, not the text its name promises, or too short.
    """
    whole, _, characters = dataset.rpartition(":")
    if whole and characters.isdecimal() and not Path(dataset).expanduser().exists():
        return _beginning(_find(whole, data_dir), int(characters))
    return _find(dataset, data_dir)


def _beginning(corpus: Corpus, characters: int) -> Corpus:
    """The first characters of each split, so many of all splits together."""
    sizes = {split: sum(map(len, documents)) for split, documents in corpus.splits.items()}
    total = sum(sizes.values())
    shares = {split: characters * size // total for split, size in sizes.items()}
    if characters > total or not all(shares.values()):
        raise DataError(
            f"--dataset {corpus.name}:{characters}: it has {total:,} characters in {len(sizes)} splits",
            hint=f"take from {-(-total // min(sizes.values())):,} to {total:,}, or --dataset {corpus.name} for all",
        )
    splits = {split: _cut(documents, shares[split]) for split, documents in corpus.splits.items()}
    reason = f"{corpus.reason}; the first {characters:,} of its {total:,} characters"
    return Corpus(f"{corpus.name}-{characters}", reason, splits, corpus.word_level)


def _cut(documents: Iterable[str], characters: int) -> list[str]:
    """The first so many characters of documents one after another."""
    found = []
    for document in documents:
        if characters > 0:
            found.append(document[:characters])
        characters -= len(document)
    return found


def _find(dataset: str, data_dir: Path | None) -> Corpus:
    if dataset == BUILTIN:
        return _builtin()
    if not dataset.strip():
        raise DataError(
            f"--dataset {dataset!r} is no name", hint=f"give a path, or one of: {BUILTIN}, {', '.join(FETCHABLE)}"
        )
    path = Path(dataset).expanduser()
    if path.exists():
        return _read(path, _name_of(path), f"{dataset} is a path on this machine")
    if path.parent == Path():
        for folder, flag in data_folders(data_dir):
            if (folder / dataset).exists():
                return _read(folder / dataset, _name_of(path), f"{dataset} lies in {flag} {folder}")
        if dataset in FETCHABLE:
            return _fetch(dataset)
    raise _unknown(dataset, data_dir)


def read_documents(path: Path, flag: str, separator: str | None = None) -> list[str]:
    """The documents of a text file or a folder of them, between lines `separator` (by default those of a corpus).

    Raises:
        DataError: there is no such file or folder, or something in it is no text. ConfigError: separator is no line.
    """
    if separator is not None and (not separator.strip() or len(separator.splitlines()) > 1):
        raise ConfigError(
            f"--separator {separator!r} is no line",
            hint="give the line that stands between documents, or leave --separator away for <|doc|>",
        )
    if not path.exists():
        raise DataError(f"{flag} {path}: no such file or folder", hint="name a text file, or a folder of them")
    texts = [read_text(file) for file in (text_files(path) if path.is_dir() else [path])]
    return [document for text in texts for document in at_separators(text, separator)]


def read_whole(path: Path, flag: str) -> Corpus:
    """One text file, all of it as the split `test`: text to evaluate on.

    Raises:
        DataError: it is no text file.
    """
    if path.is_dir() or not path.exists():
        raise DataError(f"{flag} {path}: no such file", hint="name a text file, or take --dataset for a folder")
    documents = at_separators(read_text(path))
    return Corpus(_name_of(path), f"{path}, all of it: {len(documents)} documents", {"test": documents})


def data_folders(data_dir: Path | None) -> list[tuple[Path, str]]:
    """The folders of data sets, each with what named it. Raises DataError where one is no folder."""
    named = [(data_dir, "--data-dir")] if data_dir else []
    if os.environ.get(ENVIRONMENT):
        named.append((Path(os.environ[ENVIRONMENT]).expanduser(), ENVIRONMENT))
    for folder, flag in named:
        if not folder.is_dir():
            raise DataError(
                f"{flag} {folder} is not a folder", hint="give the folder that holds the data sets' folders"
            )
    return named


def _unknown(dataset: str, data_dir: Path | None) -> DataError:
    folders = [] if os.sep in dataset else data_folders(data_dir)
    local = sorted(entry.name for folder, _ in folders for entry in folder.iterdir() if entry.is_dir())
    known = list(dict.fromkeys([BUILTIN, *local, *FETCHABLE]))
    close = difflib.get_close_matches(dataset, known, n=1)
    return DataError(
        f"--dataset {dataset}: no such file or folder, and no data set of that name",
        why=""
        if folders or os.sep in dataset
        else f"neither --data-dir nor {ENVIRONMENT} is given, so only paths and known names count",
        hint=f"did you mean {close[0]}?" if close else f"give a path, or one of: {', '.join(known)}",
    )


def _name_of(path: Path) -> str:
    """`wikitext-2` for a folder of that name, `input` for input.txt.gz; never empty."""
    path = path.resolve() if path.name in ("", "..") else path
    return path.name.removesuffix(".gz").removesuffix(".txt") or path.name


def _read(path: Path, name: str, reason: str) -> Corpus:
    official = split_files(path) if path.is_dir() else {}
    if official:
        return _with_official_splits({split: read_text(file) for split, file in official.items()}, name, reason)
    files = text_files(path) if path.is_dir() else [path]
    per_file = [at_separators(read_text(file)) for file in files]
    # Files of many documents are split each on its own, so that validation has of each kind; files of one are pooled.
    groups = [documents for documents in per_file if len(documents) > 1]
    pool = [documents[0] for documents in per_file if len(documents) == 1]
    train, validation = _hold_out_of_each([*groups, *([pool] if pool else [])], path)
    detail = f"{len(files)} text file{'s' * (len(files) > 1)}, no official splits: the last 10 % is validation"
    return Corpus(name, f"{reason}; {detail}", {"train": train, "validation": validation})


def _hold_out_of_each(groups: Iterable[list[str]], path: Path) -> tuple[list[str], list[str]]:
    parts = [hold_out(group) for group in groups]
    train = [document for part, _ in parts for document in part]
    validation = [document for _, part in parts for document in part]
    if not train or not validation:
        raise DataError(f"{path} is too short to split into training and validation text", hint="give a longer text")
    return train, validation


def _with_official_splits(texts: Mapping[str, str], name: str, reason: str) -> Corpus:
    word_level = name in WIKITEXT_WORDS
    into_documents = wikitext_articles if word_level else at_separators
    splits = {cast("Split", split): into_documents(text) for split, text in texts.items()}
    reason += f"; official splits: {', '.join(sorted(splits, key=['train', 'validation', 'test'].index))}"
    if "validation" not in splits:
        splits["train"], splits["validation"] = _hold_out_of_each([splits["train"]], Path(name))
        reason += "; the last 10 % of train is validation"
    corpus = Corpus(name, reason, splits, word_level=word_level)
    if word_level:
        _assert_word_counts(corpus)
    return corpus


def _assert_word_counts(corpus: Corpus) -> None:
    """Perplexities compare only on the very same words, so a WikiText of any other count is refused."""
    for split, expected in WIKITEXT_WORDS[corpus.name].items():
        found = corpus.words(split)
        if found != expected:
            raise DataError(
                f"{corpus.name}: the {split} split has {found:,} words, not the {expected:,} of the word-level v1 text",
                why="it is the raw configuration, another corpus, or not complete",
                hint=f"get the v1 configuration of {corpus.name} again, or rename the folder to use the text as it is",
            )


def _builtin() -> Corpus:
    """The documentation topics of this Python: English prose that every installation has, one document a topic.

    The topics are sorted by title, so they are put into a fixed order by a hash of it first; then the last 10 % of
    the characters, in whole topics, are test, the 10 % before them validation, the rest training.
    """
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise DataError(
            "--dataset builtin: this Python has no pydoc_data.topics",
            why="some distributions leave it out of a minimal Python",
            hint="install the whole standard library (Debian: libpython3-stdlib), or give --dataset PATH",
        ) from error
    documents = [topics[title] for title in sorted(topics, key=lambda title: hashlib.sha256(title.encode()).digest())]
    rest, test = hold_out(documents, 0.1)
    train, validation = hold_out(rest, 1 / 9)
    reason = f"builtin: the {len(documents)} documentation topics of this Python (pydoc_data.topics), no network needed"
    return Corpus(BUILTIN, reason, {"train": train, "validation": validation, "test": test})


def _fetch(name: str) -> Corpus:
    """Fetch a known corpus by the `datasets` library (it caches what it fetched)."""
    try:
        import datasets

        if name == "tiny-shakespeare":
            # The repository's own loader is a script, which the library no longer runs: its converted copy is read.
            rows = datasets.load_dataset("karpathy/tiny_shakespeare", revision="refs/convert/parquet")
        else:
            rows = datasets.load_dataset("Salesforce/wikitext", f"{name}-v1")
        texts = {split: [str(row) for row in rows[split]["text"]] for split in ("train", "validation", "test")}
    except Exception as error:  # the library raises errors of a dozen kinds of its own and of its dependencies
        first_line = (str(error).splitlines() or [""])[0]
        raise DataError(
            f"--dataset {name}: the `datasets` library could not fetch it ({type(error).__name__}: {first_line[:200]})",
            why=f"no network, or it is offline by its settings; it was in no --data-dir or {ENVIRONMENT} folder either",
            hint=f"put its files into a folder {name}/ and give --data-dir its parent, or train on --dataset {BUILTIN}",
        ) from error
    reason = f"{name} was fetched by the datasets library: it is no path and in no data folder"
    if name == "tiny-shakespeare":
        return _tiny_shakespeare("".join(part for split in texts.values() for part in split), reason)
    # The library drops the blanks of blank lines; with them back the text is the original, byte for byte.
    return _with_official_splits(
        {split: "".join(row if row.strip() else " \n" for row in part) for split, part in texts.items()}, name, reason
    )


def _tiny_shakespeare(text: str, reason: str) -> Corpus:
    if len(text) != TINY_SHAKESPEARE_CHARACTERS:
        raise DataError(
            f"tiny-shakespeare: fetched {len(text):,} characters, not {TINY_SHAKESPEARE_CHARACTERS:,}",
            hint="put input.txt into a folder tiny-shakespeare/ and give --data-dir its parent",
        )
    train, validation = hold_out([text])
    return Corpus(
        "tiny-shakespeare", f"{reason}; the last 10 % is validation", {"train": train, "validation": validation}
    )
