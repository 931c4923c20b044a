"""Turns the value of `--dataset` into a corpus.

`resolve` looks, in this order, for `builtin` (the default, a reserved name), a path, a name in the
data folders, and a name that the `datasets` library can download. `Corpus.reason` says which one
was used, and why.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from ebmvk.data.corpus import Corpus, with_official_splits, without_splits
from ebmvk.data.documents import not_a_folder, only_separators, stray_note
from ebmvk.data.files import AS_IT_COMES, Reading, exists, from_anywhere, name_of, path_of, read_text, shown
from ebmvk.data.folders import ENVIRONMENT, data_folders, listing, split_files
from ebmvk.data.published import BUILTIN, FETCHABLE, builtin, fetch
from ebmvk.data.splitting import at_separators, is_wikitext, wikitext_articles
from ebmvk.errors import DataError


def resolve(dataset: str, data_dir: Path | None = None, reading: Reading = AS_IT_COMES) -> Corpus:
    """Find and read a corpus.

    Args:
        dataset: `builtin`, the path of a text file or a folder of them, or a name. A suffix such as
            `:100000` takes the first 100,000 characters, shared among the splits in proportion to
            their sizes.
        data_dir: the folder to look names up in, before the folder that EBMVK_DATA_DIR names.
        reading: which files of a folder are read, and how.

    Raises:
        DataError: the corpus doesn't exist, is empty, binary, not UTF-8, not plain text, too short,
            or not the text that its name stands for.
        ConfigError: `reading.include` is given without a folder, or matches nothing.
    """
    whole, _, characters = dataset.rpartition(":")
    if whole and characters.isdecimal() and not exists(path_of(dataset)):
        return _beginning(_find(whole, data_dir, reading), int(characters))
    return _find(dataset, data_dir, reading)


def _find(dataset: str, data_dir: Path | None, reading: Reading) -> Corpus:
    path = path_of(dataset)
    if dataset != BUILTIN and dataset.strip() and exists(path):
        return _read(path, f"{shown(dataset)} is a path on this machine", from_anywhere(path), reading)
    if dataset != BUILTIN and dataset.strip() and path.parent == Path():
        for folder, flag in data_folders(data_dir):
            if exists(folder / dataset):
                return _read(folder / dataset, f"{dataset} lies in {flag} {folder}", dataset, reading)
    if reading.include and dataset in (BUILTIN, *FETCHABLE):
        raise not_a_folder(f"--dataset {dataset}")
    if dataset == BUILTIN:
        return builtin()
    if not dataset.strip():
        raise DataError(
            f"--dataset {dataset!r} isn't a name", hint=f"give a path, or one of: {BUILTIN}, {', '.join(FETCHABLE)}"
        )
    if dataset in FETCHABLE:
        return fetch(dataset)
    raise _unknown(dataset, data_dir)


def _read(path: Path, reason: str, source: str, reading: Reading) -> Corpus:
    """Read a file or folder. source: the path or name under which it can be found again."""
    name = name_of(path)
    if not path.is_dir():
        if reading.include:
            raise not_a_folder(f"--dataset {shown(path)}")
        return without_splits({path: read_text(path, reading)}, path, name, reason, source)
    found = listing(path, reading)
    if official := split_files(found):
        texts = {split: read_text(file, reading) for split, file in official.items()}
        if empty := next((split for split, text in texts.items() if not at_separators(text)), None):
            raise only_separators(official[empty])
        corpus = with_official_splits(texts, name, reason, source)
    else:
        corpus = without_splits(found.texts(reading), path, name, reason, source)
    return replace(corpus, reason="; ".join(filter(None, [corpus.reason, found.summary()])))


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


def _beginning(corpus: Corpus, characters: int) -> Corpus:
    """The first characters of a corpus, shared among its splits in proportion to their sizes."""
    sizes = {split: sum(map(len, documents)) for split, documents in corpus.splits.items()}
    total = sum(sizes.values())
    shares = {split: characters * size // total for split, size in sizes.items()}
    if characters > total or not all(shares.values()):
        raise DataError(
            f"--dataset {corpus.name}:{characters}: the text has {total:,} characters in {len(sizes)} splits, "
            + ("fewer than asked for" if characters > total else "and one split would get none of them"),
            hint=f"ask for {-(-total // min(sizes.values())):,} to {total:,}, or use --dataset {corpus.name} for all",
        )
    splits = {split: _cut(documents, shares[split]) for split, documents in corpus.splits.items()}
    reason = f"{corpus.reason}; the first {characters:,} of its {total:,} characters"
    name, source = f"{corpus.name}-{characters}", f"{corpus.source}:{characters}"
    return replace(corpus, name=name, reason=reason, splits=splits, source=source)


def _cut(documents: Iterable[str], characters: int) -> list[str]:
    """The documents up to a total of `characters` characters; the last one may be cut."""
    found = []
    for document in documents:
        if characters > 0:
            found.append(document[:characters])
        characters -= len(document)
    return found


def read_whole(path: Path, flag: str, reading: Reading = AS_IT_COMES) -> Corpus:
    """One text file as a corpus whose only split is `test`, to evaluate on.

    WikiText is recognised: its words and documents are counted as for `--dataset wikitext-2`.

    Raises:
        DataError: it isn't a text file, or holds only separators.
    """
    if not exists(path) or path.is_dir():
        raise DataError(f"{flag} {shown(path)}: no such file", hint="name a text file; --dataset takes folders")
    text = read_text(path, reading)
    word_level = is_wikitext(text)
    documents = wikitext_articles(text) if word_level else at_separators(text)
    if not documents:
        raise only_separators(path)
    reason = f"{shown(path)}, all of it: {len(documents)} documents"
    if word_level:
        reason += "; word-level text like WikiText: blanks separate words, and each end of line is a word"
    reason = "; ".join([reason, *stray_note([text])])
    return Corpus(name_of(path), reason, {"test": documents}, word_level, from_anywhere(path))
