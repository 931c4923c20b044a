"""Corpora known by name: the built-in one, and those that `datasets` can download.

`--dataset builtin` needs no file and no network; `wikitext-2`, `wikitext-103` and
`tiny-shakespeare` are downloaded.
"""

from __future__ import annotations

import hashlib

from ebmvk.data.corpus import WIKITEXT_WORDS, Corpus, Split, with_official_splits
from ebmvk.data.files import lines_of
from ebmvk.data.folders import ENVIRONMENT
from ebmvk.data.splitting import hold_out
from ebmvk.errors import DataError

BUILTIN = "builtin"
TINY_SHAKESPEARE_CHARACTERS = 1_115_394
FETCHABLE = (*WIKITEXT_WORDS, "tiny-shakespeare")


def builtin() -> Corpus:
    """The documentation topics of this Python, one document each.

    They are English prose that every installation has.

    Python sorts the topics by title; a hash of the title first puts them into a fixed random order.
    The last 10 % of the characters, in whole topics, are for test, the 10 % before them for
    validation, and the rest for training.

    Raises:
        DataError: this Python was installed without its documentation topics.
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
    reason = f"builtin: the {len(documents)} documentation topics that come with this Python"
    return Corpus(BUILTIN, reason, {"train": train, "validation": validation, "test": test}, source=BUILTIN)


def fetch(name: str) -> Corpus:
    """Download a known corpus with the `datasets` library, which caches its downloads.

    Raises:
        DataError: the download failed, or it isn't the expected text.
    """
    try:
        import datasets

        if name == "tiny-shakespeare":
            # The repository's own loader is a script, which the library no longer runs, so read the
            # converted copy.
            rows = datasets.load_dataset("karpathy/tiny_shakespeare", revision="refs/convert/parquet")
        else:
            rows = datasets.load_dataset("Salesforce/wikitext", f"{name}-v1")
        texts = {split: [str(row) for row in rows[split]["text"]] for split in ("train", "validation", "test")}
    except Exception as error:  # the library and its dependencies raise a dozen kinds of errors
        first_line = next(iter(lines_of(str(error))), "")
        raise DataError(
            f"--dataset {name}: the `datasets` library could not fetch it ({type(error).__name__}: {first_line[:200]})",
            why=f"there is no network, or the library is set to offline; no --data-dir or {ENVIRONMENT} folder has it",
            hint=f"put its files into a folder {name}/ and give --data-dir its parent, or train on --dataset {BUILTIN}",
        ) from error
    reason = f"{name} was fetched by the datasets library, because no path or data folder has that name"
    if name == "tiny-shakespeare":
        return _tiny_shakespeare("".join(part for split in texts.values() for part in split), reason)
    # The library drops the blank of each blank line. Put it back, so that the text is the original
    # byte for byte.
    return with_official_splits(
        {split: "".join(row if row.strip() else " \n" for row in part) for split, part in texts.items()},
        name, reason, source=name,
    )  # fmt: skip


def _tiny_shakespeare(text: str, reason: str) -> Corpus:
    if len(text) != TINY_SHAKESPEARE_CHARACTERS:
        raise DataError(
            f"tiny-shakespeare: the download has {len(text):,} characters; expected {TINY_SHAKESPEARE_CHARACTERS:,}",
            hint="put input.txt into a folder tiny-shakespeare/ and give --data-dir its parent",
        )
    train, validation = hold_out([text])
    reason += "; the last 10 % is validation"
    splits: dict[Split, list[str]] = {"train": train, "validation": validation}
    return Corpus("tiny-shakespeare", reason, splits, source="tiny-shakespeare")
