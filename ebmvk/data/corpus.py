"""A corpus: documents in the splits `train`, `validation` and `test`.

Builds one from the texts of files, either with official splits or by holding out the last tenth,
and counts the words and bytes that perplexity per word and bits per byte divide by.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

from ebmvk.data.documents import only_separators, stray_note
from ebmvk.data.splitting import at_separators, hold_out, is_wikitext, wikitext_articles
from ebmvk.errors import DataError

Split = Literal["train", "validation", "test"]

# Words in each split, as the paper that introduced the corpus counts them: each end of line is one
# word.
WIKITEXT_WORDS: dict[str, dict[Split, int]] = {
    "wikitext-2": {"train": 2_088_628, "validation": 217_646, "test": 245_569},
    "wikitext-103": {"train": 103_227_021, "validation": 217_646, "test": 245_569},
}


@dataclass(frozen=True)
class Corpus:
    """Documents in splits.

    Attributes:
        name: `builtin`, `wikitext-2`, or the name of the file or folder.
        reason: one line that says which source was used and why.
        splits: documents by split; a corpus without official splits has no `test`.
        word_level: the text is already split into words by single blanks (WikiText); each end of
            line counts as one word.
        source: pass this to `resolve` to find the corpus again from any folder: an absolute path,
            or a name.
    """

    name: str
    reason: str
    splits: Mapping[Split, list[str]]
    word_level: bool = False
    source: str = ""

    def documents(self, split: str) -> list[str]:
        """The documents of a split.

        Raises DataError, which lists the available splits, if the split does not exist.
        """
        if split not in self.splits:
            raise DataError(
                f"--split {split}: the corpus {self.name} has no such split",
                why="its source has no official splits" if split == "test" else "",
                hint="choose one of: " + ", ".join(self.splits),
            )
        return self.splits[cast("Split", split)]

    def words(self, split: str) -> int:
        """The number of words in a split: the denominator of perplexity per word."""
        return sum(count_words(document, word_level=self.word_level) for document in self.documents(split))

    def bytes(self, split: str) -> int:
        """The number of UTF-8 bytes in a split: the denominator of bits per byte."""
        return sum(len(document.encode("utf-8")) for document in self.documents(split))

    def digest(self, split: str) -> str:
        """SHA-256 of the documents of a split and their boundaries.

        Raises DataError as `documents` does.
        """
        found = hashlib.sha256()
        for document in self.documents(split):
            encoded = document.encode("utf-8")
            # So that ["a", "bc"] differs from ["ab", "c"]
            found.update(len(encoded).to_bytes(8, "little"))
            found.update(encoded)
        return found.hexdigest()

    def digests(self) -> dict[str, str]:
        """{split: digest} for all splits."""
        return {split: self.digest(split) for split in self.splits}


def count_words(text: str, *, word_level: bool) -> int:
    """Words between white space; in word-level text each end of line is one more word (`<eos>`)."""
    return len(text.split()) + (text.count("\n") if word_level else 0)


def without_splits(texts: Mapping[Path, str], path: Path, name: str, reason: str, source: str) -> Corpus:
    """A corpus without official splits: the last tenth of the files' text becomes validation.

    texts: by file; path: the file or folder they came from, for messages.

    Raises:
        DataError: the texts hold nothing but separators, or are too short to split.
    """
    per_file = [at_separators(text) for text in texts.values()]
    if not any(per_file):
        raise only_separators(path)
    # Each file with several documents is split on its own, so that validation has some of every
    # file. Files with one document are pooled.
    groups = [documents for documents in per_file if len(documents) > 1]
    pool = [documents[0] for documents in per_file if len(documents) == 1]
    train, validation = _hold_out_of_each([*groups, *([pool] if pool else [])], path)
    detail = f"{len(texts):,} text file{'s' * (len(texts) > 1)}, no official splits: the last 10 % is validation"
    reason = "; ".join([reason, detail, *_notes(texts.values())])
    return Corpus(name, reason, {"train": train, "validation": validation}, source=source)


def with_official_splits(texts: Mapping[str, str], name: str, reason: str, source: str) -> Corpus:
    """A corpus from the text of each official split.

    If there is no validation split, the last tenth of `train` becomes validation.

    Raises:
        DataError: `name` is a WikiText corpus, but the number of words is wrong; or `train` is too
            short to split.
    """
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
        _check_word_counts(corpus)
    return corpus


def _hold_out_of_each(groups: Iterable[list[str]], path: Path) -> tuple[list[str], list[str]]:
    parts = [hold_out(group) for group in groups]
    train = [document for part, _ in parts for document in part]
    validation = [document for _, part in parts for document in part]
    if not train or not validation:
        raise DataError(f"{path} is too short to split into training and validation text", hint="give a longer text")
    return train, validation


def _notes(texts: Collection[str]) -> list[str]:
    """Notes on texts that are not read as WikiText."""
    wikitext = "its lines look like WikiText, but words and documents are counted as for plain text; to change that, "
    rename = f"name its folder {' or '.join(WIKITEXT_WORDS)}"
    return [*stray_note(texts), *([wikitext + rename] if all(map(is_wikitext, texts)) else [])]


def _check_word_counts(corpus: Corpus) -> None:
    """Refuse a WikiText corpus with a wrong number of words: perplexities couldn't be compared."""
    for split, expected in WIKITEXT_WORDS[corpus.name].items():
        found = corpus.words(split)
        if found != expected:
            raise DataError(
                f"{corpus.name}: the {split} split has {found:,} words; the word-level v1 text has {expected:,}",
                why="it is the raw configuration, another corpus, or incomplete",
                hint=f"get the v1 configuration of {corpus.name} again, or rename the folder to use the text as it is",
            )
