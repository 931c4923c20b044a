"""From the name a person types to documents in splits.

`resolve` looks, in this order, for `builtin` (the default, a reserved name), a path, a name in the data folders, and a
name that the `datasets` library can fetch. What was taken, and why, is in `Corpus.reason`.
"""

from __future__ import annotations

import difflib
import hashlib
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, cast

from ebmvk.data.files import AS_IT_COMES, Reading, exists, lines_of, listing, read_text, shown, split_files
from ebmvk.data.splitting import (
    STANDARD,
    at_separators,
    hold_out,
    is_wikitext,
    stray_separators,
    wikitext_articles,
)
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
        source: what to give `resolve` to find it again from any folder: a whole path, or a name.
    """

    name: str
    reason: str
    splits: Mapping[Split, list[str]]
    word_level: bool = False
    source: str = ""

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

    def digest(self, split: str) -> str:
        """SHA-256 of the documents of a split and of where they end. Raises DataError as `documents` does."""
        found = hashlib.sha256()
        for document in self.documents(split):
            encoded = document.encode("utf-8")
            found.update(len(encoded).to_bytes(8, "little"))  # so that ["a", "bc"] differs from ["ab", "c"]
            found.update(encoded)
        return found.hexdigest()

    def digests(self) -> dict[str, str]:
        """{split: its digest} of all splits."""
        return {split: self.digest(split) for split in self.splits}


def count_words(text: str, *, word_level: bool) -> int:
    """Words between white space; in word-level text each end of line counts as one word more (`<eos>`)."""
    return len(text.split()) + (text.count("\n") if word_level else 0)


def resolve(dataset: str, data_dir: Path | None = None, reading: Reading = AS_IT_COMES) -> Corpus:
    """Find and read a corpus.

    Args:
        dataset: `builtin`, the path of a text file or a folder of them, or a name; with `:100000` behind it, the first
            100,000 characters, each split giving its share.
        data_dir: the folder to look names up in, before the one that the environment names.
        reading: which files of a folder count, and how they are read.

    Raises:
        DataError: the corpus doesn't exist, is empty, binary, not UTF-8, not plain text, not the text its name
        promises, or too short. ConfigError: `reading.include` is given without a folder, or matches nothing.
    """
    whole, _, characters = dataset.rpartition(":")
    if whole and characters.isdecimal() and not exists(path_of(dataset)):
        return _beginning(_find(whole, data_dir, reading), int(characters))
    return _find(dataset, data_dir, reading)


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
    name, source = f"{corpus.name}-{characters}", f"{corpus.source}:{characters}"
    return replace(corpus, name=name, reason=reason, splits=splits, source=source)


def _cut(documents: Iterable[str], characters: int) -> list[str]:
    """The first so many characters of documents one after another."""
    found = []
    for document in documents:
        if characters > 0:
            found.append(document[:characters])
        characters -= len(document)
    return found


def _find(dataset: str, data_dir: Path | None, reading: Reading) -> Corpus:
    path = path_of(dataset)
    if dataset != BUILTIN and dataset.strip() and exists(path):
        return _read(path, f"{shown(dataset)} is a path on this machine", from_anywhere(path), reading)
    if dataset != BUILTIN and dataset.strip() and path.parent == Path():
        for folder, flag in data_folders(data_dir):
            if exists(folder / dataset):
                return _read(folder / dataset, f"{dataset} lies in {flag} {folder}", dataset, reading)
    if reading.include and dataset in (BUILTIN, *FETCHABLE):
        raise _no_folder(f"--dataset {dataset}")
    if dataset == BUILTIN:
        return _builtin()
    if not dataset.strip():
        raise DataError(
            f"--dataset {dataset!r} is no name", hint=f"give a path, or one of: {BUILTIN}, {', '.join(FETCHABLE)}"
        )
    if dataset in FETCHABLE:
        return _fetch(dataset)
    raise _unknown(dataset, data_dir)


def path_of(dataset: str) -> Path:
    """As --dataset gives it, with `~` expanded if there is such a user."""
    try:
        return Path(dataset).expanduser()
    except RuntimeError:
        return Path(dataset)


def _whole_path(path: Path) -> Path:
    """Without `~`, and from the root; a link keeps its own name."""
    return path.resolve() if path.name in ("", "..") else path.parent.resolve() / path.name


def from_anywhere(path: Path) -> str:
    """The absolute path; the path as given if a parent folder's name isn't UTF-8, which settings cannot store."""
    whole = str(_whole_path(path))
    try:
        whole.encode()
    except UnicodeEncodeError:
        return str(path)
    return whole


def _no_folder(what: str) -> ConfigError:
    return ConfigError(
        f"--include with {what}, which isn't a folder",
        why="--include says which files of a folder are read",
        hint="remove --include: a single file is read whatever its name",
    )


@dataclass(frozen=True)
class Documents:
    """texts: documents in order. notes: lines for people on what was read and what was left out."""

    texts: list[str]
    notes: list[str]


def read_documents(
    paths: Sequence[Path],
    flag: str,
    separator: str | None = None,
    reading: Reading = AS_IT_COMES,
    written: Collection[Path] = (),
) -> Documents:
    """The documents of text files and folders, split at lines `separator` (by default at the standard separators).

    written: files that the command itself writes; in a folder they are skipped.

    Raises:
        DataError: a file or folder doesn't exist or holds no text. ConfigError: `separator` isn't one line, or
            `reading.include` is given without a folder.
    """
    if separator is not None and (not separator.strip() or len(lines_of(separator)) > 1):
        raise ConfigError(
            f"--separator {separator!r} is no line",
            hint="give the line that stands between documents, or leave --separator away for <|doc|>",
        )
    if missing := next((path for path in paths if not exists(path)), None):
        what = f"{flag} {shown(missing)}: no such file or folder"
        raise DataError(what, hint="name a text file, or a folder of them")
    if reading.include and not any(path.is_dir() for path in paths):
        raise _no_folder(f"{flag} {shown(paths[0])}")
    found: list[str] = []
    notes: list[str] = []
    for path in paths:
        texts, note = _texts(path, reading, written)
        notes += [note] if note else []
        parts = [at_separators(text, separator) for text in texts]
        if not any(parts):
            raise _only_separators(path)
        found += [document for part in parts for document in part]
        notes += stray_note(texts, separator)
    return Documents(found, notes)


def _texts(path: Path, reading: Reading, written: Collection[Path]) -> tuple[list[str], str]:
    """The texts of a file or folder; for a folder also a note: how many were read and what was left out."""
    if not path.is_dir():
        return [read_text(path, reading)], ""
    found = listing(path, reading, written)
    texts = list(found.texts(reading).values())
    return texts, "; ".join(filter(None, [f"{len(texts):,} read in {shown(path)}", found.summary()]))


def stray_note(texts: Iterable[str], separator: str | None = None) -> list[str]:
    """A line about separators that separate nothing because other text shares their line; empty if there are none."""
    if not (count := sum(stray_separators(text, separator) for text in texts)):
        return []
    named = " or ".join(STANDARD) if separator is None else separator
    lines = "lines hold" if count > 1 else "line holds"
    return [f"{count:,} {lines} {named} among other text, so no document ends there"]


def _only_separators(path: Path) -> DataError:
    return DataError(
        f"{shown(path)} has no text: only lines that separate documents", hint="give a file or folder that holds text"
    )


def read_whole(path: Path, flag: str, reading: Reading = AS_IT_COMES) -> Corpus:
    """One text file, all of it as the split `test`, to evaluate on. WikiText is recognised, so its words and documents
    are counted as for `--dataset wikitext-2`.

    Raises:
        DataError: it isn't a text file, or holds only separators.
    """
    if not exists(path) or path.is_dir():
        raise DataError(f"{flag} {shown(path)}: no such file", hint="name a text file, or take --dataset for a folder")
    text = read_text(path, reading)
    word_level = is_wikitext(text)
    documents = wikitext_articles(text) if word_level else at_separators(text)
    if not documents:
        raise _only_separators(path)
    reason = f"{shown(path)}, all of it: {len(documents)} documents"
    if word_level:
        reason += "; word-level text like WikiText: words stand between blanks, and each end of line is a word"
    reason = "; ".join([reason, *stray_note([text])])
    return Corpus(_name_of(path), reason, {"test": documents}, word_level, from_anywhere(path))


def data_folders(data_dir: Path | None) -> list[tuple[Path, str]]:
    """The folders of data sets, each with what named it. Raises DataError where one is no folder."""
    named = [(data_dir, "--data-dir")] if data_dir else []
    if os.environ.get(ENVIRONMENT):
        named.append((Path(os.environ[ENVIRONMENT]).expanduser(), ENVIRONMENT))
    for folder, flag in named:
        if not exists(folder) or not folder.is_dir():
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
    name = shown(_whole_path(path).name)
    return name.removesuffix(".gz").removesuffix(".txt") or name


def _read(path: Path, reason: str, source: str, reading: Reading) -> Corpus:
    """Read a file or folder. source: the path or name to find it again."""
    name = _name_of(path)
    if not path.is_dir():
        if reading.include:
            raise _no_folder(f"--dataset {shown(path)}")
        return _without_splits({path: read_text(path, reading)}, path, name, reason, source)
    found = listing(path, reading)
    if official := split_files(found):
        texts = {split: read_text(file, reading) for split, file in official.items()}
        if empty := next((split for split, text in texts.items() if not at_separators(text)), None):
            raise _only_separators(official[empty])
        corpus = _with_official_splits(texts, name, reason, source)
        return replace(corpus, reason="; ".join(filter(None, [corpus.reason, found.summary()])))
    corpus = _without_splits(found.texts(reading), path, name, reason, source)
    return replace(corpus, reason="; ".join(filter(None, [corpus.reason, found.summary()])))


def _without_splits(texts: Mapping[Path, str], path: Path, name: str, reason: str, source: str) -> Corpus:
    """A corpus without official splits: the last tenth of the files' text is validation."""
    per_file = [at_separators(text) for text in texts.values()]
    if not any(per_file):
        raise _only_separators(path)
    # Files of many documents are split each on its own, so that validation has of each kind; files of one are pooled.
    groups = [documents for documents in per_file if len(documents) > 1]
    pool = [documents[0] for documents in per_file if len(documents) == 1]
    train, validation = _hold_out_of_each([*groups, *([pool] if pool else [])], path)
    detail = f"{len(texts):,} text file{'s' * (len(texts) > 1)}, no official splits: the last 10 % is validation"
    reason = "; ".join([reason, detail, *_notes(texts.values())])
    return Corpus(name, reason, {"train": train, "validation": validation}, source=source)


def _hold_out_of_each(groups: Iterable[list[str]], path: Path) -> tuple[list[str], list[str]]:
    parts = [hold_out(group) for group in groups]
    train = [document for part, _ in parts for document in part]
    validation = [document for _, part in parts for document in part]
    if not train or not validation:
        raise DataError(f"{path} is too short to split into training and validation text", hint="give a longer text")
    return train, validation


def _notes(texts: Collection[str]) -> list[str]:
    """Notes on texts that are not read as WikiText."""
    wikitext = "its lines look like WikiText, but words and documents are not counted as for WikiText: call its folder "
    names = " or ".join(WIKITEXT_WORDS)
    return [*stray_note(texts), *([wikitext + names] if all(map(is_wikitext, texts)) else [])]


def _with_official_splits(texts: Mapping[str, str], name: str, reason: str, source: str) -> Corpus:
    word_level = name in WIKITEXT_WORDS
    into_documents = wikitext_articles if word_level else at_separators
    splits = {cast("Split", split): into_documents(text) for split, text in texts.items()}
    reason += f"; official splits: {', '.join(sorted(splits, key=['train', 'validation', 'test'].index))}"
    if "validation" not in splits:
        splits["train"], splits["validation"] = _hold_out_of_each([splits["train"]], Path(name))
        reason += "; the last 10 % of train is validation"
    reason = "; ".join([reason, *([] if word_level else _notes(texts.values()))])
    corpus = Corpus(name, reason, splits, word_level, source)
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
    return Corpus(BUILTIN, reason, {"train": train, "validation": validation, "test": test}, source=BUILTIN)


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
        first_line = next(iter(lines_of(str(error))), "")
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
        {split: "".join(row if row.strip() else " \n" for row in part) for split, part in texts.items()},
        name, reason, source=name,
    )  # fmt: skip


def _tiny_shakespeare(text: str, reason: str) -> Corpus:
    if len(text) != TINY_SHAKESPEARE_CHARACTERS:
        raise DataError(
            f"tiny-shakespeare: fetched {len(text):,} characters, not {TINY_SHAKESPEARE_CHARACTERS:,}",
            hint="put input.txt into a folder tiny-shakespeare/ and give --data-dir its parent",
        )
    train, validation = hold_out([text])
    reason += "; the last 10 % is validation"
    splits: dict[Split, list[str]] = {"train": train, "validation": validation}
    return Corpus("tiny-shakespeare", reason, splits, source="tiny-shakespeare")
