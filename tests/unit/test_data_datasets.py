"""Where corpora are found, how they are cut into documents and splits, and what is refused."""

from __future__ import annotations

import gzip
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ebmvk.data.corpus import WIKITEXT_WORDS, count_words
from ebmvk.data.datasets import resolve
from ebmvk.data.documents import read_documents
from ebmvk.data.folders import ENVIRONMENT
from ebmvk.data.splitting import at_separators, hold_out, wikitext_articles
from ebmvk.errors import ConfigError, DataError

SENTENCE = "The quick brown fox jumps over the lazy dog, and then it rests.\n"


@pytest.fixture(autouse=True)
def _no_data_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ENVIRONMENT, raising=False)


@pytest.fixture
def real_data() -> Path:
    folder = REAL_DATA
    if not folder:
        pytest.skip(f"{ENVIRONMENT} is not set")
    return Path(folder)


REAL_DATA = os.environ.get(ENVIRONMENT)  # read before the fixture above hides it


# ------------------------------------------------------------------------------------------------ b


def test_builtin_is_complete_and_always_in_the_same_order() -> None:
    from pydoc_data.topics import topics

    corpus = resolve("builtin")
    parts = [corpus.documents(split) for split in ("train", "validation", "test")]
    assert sorted(document for part in parts for document in part) == sorted(topics.values())
    total = sum(map(len, topics.values()))
    for part, share in zip(parts, (0.8, 0.1, 0.1), strict=True):
        # Whole documents, the largest 14 % of all: the share may be off by half a document.
        assert sum(map(len, part)) / total == pytest.approx(share, abs=0.07)
    assert resolve("builtin") == corpus
    assert not corpus.word_level
    assert "documentation topics" in corpus.reason


# ------------------------------------------------------------------------------------ resolution or


def test_a_path_wins_over_a_name_in_a_data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data" / "notes").mkdir(parents=True)
    (tmp_path / "data" / "notes" / "a.txt").write_text("from the folder\n" * 9)
    (tmp_path / "notes").write_text("from the path\n" * 9)
    monkeypatch.chdir(tmp_path)
    assert resolve("notes", Path("data")).documents("train")[0].startswith("from the path")
    (tmp_path / "notes").unlink()
    corpus = resolve("notes", Path("data"))
    assert corpus.documents("train")[0].startswith("from the folder")
    assert "--data-dir data" in corpus.reason


def test_data_dir_wins_over_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for source in ("flag", "environment"):
        (tmp_path / source / "notes").mkdir(parents=True)
        (tmp_path / source / "notes" / "a.txt").write_text(f"{source}\n" * 9)
    monkeypatch.setenv(ENVIRONMENT, str(tmp_path / "environment"))
    assert resolve("notes", tmp_path / "flag").documents("train")[0].startswith("flag")
    corpus = resolve("notes")
    assert corpus.documents("train")[0].startswith("environment")
    assert ENVIRONMENT in corpus.reason


def test_gzip_is_read_directly_and_readmes_are_not_text(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "b.txt.gz").write_bytes(gzip.compress(b"second\r\n" * 20))
    (tmp_path / "a.txt").write_bytes(b"first\n" * 20)
    for name in ("README.md", "LICENSE-X.txt", "sha256sums.txt", ".hidden.txt"):
        (tmp_path / name).write_text("not the corpus")
    corpus = resolve(str(tmp_path))
    text = "".join(corpus.documents("train") + corpus.documents("validation"))
    assert text == "first\n" * 20 + "second\r\n" * 20  # exact to the byte, so "\r" stays


def test_official_splits_are_used(tmp_path: Path) -> None:
    for split in ("train", "valid", "test"):
        (tmp_path / f"{split}.txt").write_text(f"{split} text\n<|doc|>\nmore {split}\n")
    corpus = resolve(str(tmp_path))
    assert corpus.splits == {
        "train": ["train text\n", "more train\n"],
        "validation": ["valid text\n", "more valid\n"],
        "test": ["test text\n", "more test\n"],
    }


# -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b" \n\t\n", "is empty"),
        (b"text\0text", "NUL byte at offset 4"),
        ("text".encode("utf-16"), "NUL byte"),
        ("caf\u00e9".encode("latin-1"), "0xe9 at offset 3"),
        (b"\x89PNG\r\n", "picture"),
    ],
)
def test_files_that_are_not_text_are_refused_by_name(tmp_path: Path, content: bytes, said: str) -> None:
    for path, data in ((tmp_path / "c.txt", content), (tmp_path / "c.txt.gz", gzip.compress(content))):
        path.write_bytes(data)
        with pytest.raises(DataError, match=said) as caught:
            resolve(str(path))
        assert str(path) in caught.value.what
        assert caught.value.hint


@pytest.mark.parametrize(
    "damage", [lambda raw: raw[:-9], lambda raw: raw[:40] + b"\xff" * 20 + raw[60:], lambda raw: b"no"]
)
def test_a_damaged_gzip_is_refused(tmp_path: Path, damage: object) -> None:
    path = tmp_path / "c.txt.gz"
    path.write_bytes(damage(gzip.compress(os.urandom(200).hex().encode())))  # type: ignore[operator]
    with pytest.raises(DataError, match="damaged or incomplete gzip"):
        resolve(str(path))


@pytest.mark.parametrize("dataset", ["no/such/file.txt", "wikitext2", "", " ", "text.txt"])
def test_an_unknown_name_is_refused(dataset: str) -> None:
    with pytest.raises(DataError, match="--dataset"):
        resolve(dataset)


def test_a_misspelt_name_gets_a_suggestion(tmp_path: Path) -> None:
    (tmp_path / "es-historia").mkdir()
    with pytest.raises(DataError) as caught:
        resolve("wikitxt-2")
    assert caught.value.hint == "did you mean wikitext-2?"
    with pytest.raises(DataError) as caught:
        resolve("es-histora", tmp_path)
    assert caught.value.hint == "did you mean es-historia?"


def test_a_missing_data_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="--data-dir"):
        resolve("tiny-shakespeare", tmp_path / "missing")
    monkeypatch.setenv(ENVIRONMENT, str(tmp_path / "missing"))
    with pytest.raises(DataError, match=ENVIRONMENT):
        resolve("tiny-shakespeare")


def test_a_folder_without_text_and_a_split_without_documents_are_refused(tmp_path: Path) -> None:
    (tmp_path / "vocab.json").write_text("{}")
    with pytest.raises(DataError, match="holds no text file"):
        resolve(str(tmp_path))
    (tmp_path / "a.txt").write_text(SENTENCE * 20)
    with pytest.raises(DataError, match="--split test") as caught:
        resolve(str(tmp_path)).documents("test")
    assert caught.value.hint == "choose one of: train, validation"


def test_two_files_of_one_split_are_refused(tmp_path: Path) -> None:
    for name in ("train.txt", "valid.txt", "val.txt"):
        (tmp_path / name).write_text(SENTENCE)
    with pytest.raises(DataError, match="two files for the validation split"):
        resolve(str(tmp_path))


def test_a_text_too_short_to_split_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(DataError, match="too short to split"):
        resolve(str(tmp_path / "a.txt"))


def test_another_text_under_wikitexts_name_is_refused(tmp_path: Path) -> None:
    (tmp_path / "wikitext-2").mkdir()
    for split in ("train", "valid", "test"):
        (tmp_path / "wikitext-2" / f"{split}.txt").write_text(" \n = Title = \n \n Some words . \n")
    with pytest.raises(DataError, match=r"the word-level v1 text has 2,088,628"):
        resolve("wikitext-2", tmp_path)


# --------------------------------------------------------------------------------------------------


def test_fetching_offline_says_what_to_do(tmp_path: Path) -> None:
    code = "from ebmvk.data.datasets import resolve\nfrom ebmvk.errors import DataError\n"
    code += "try:\n    resolve('wikitext-2')\nexcept DataError as error:\n    print(error)\n"
    # In a new process, because the library reads these settings when it is imported.
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    environment = {key: value for key, value in os.environ.items() if key != ENVIRONMENT}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment | offline, capture_output=True, text=True, check=True, timeout=120
    )
    assert "--dataset wikitext-2: the `datasets` library could not fetch it" in done.stdout
    assert "try: put its files into a folder wikitext-2/" in done.stdout


def test_fetched_wikitext_equals_the_original(tmp_path: Path, real_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library returns one row per line, blank lines as empty rows; here the rows are made from
    the text."""
    local = resolve("wikitext-2", real_data)
    rows = {
        split: {
            "text": [
                "" if line == " \n" else line for line in "".join(local.documents(split)).splitlines(keepends=True)
            ]
        }
        for split in local.splits
    }
    asked = []
    monkeypatch.setattr("datasets.load_dataset", lambda *args, **named: asked.append((args, named)) or rows)
    fetched = resolve("wikitext-2")
    assert asked == [(("Salesforce/wikitext", "wikitext-2-v1"), {})]
    assert fetched.splits == local.splits
    assert fetched.word_level
    assert "fetched" in fetched.reason


# ---------------------------------------------------------------------------------------------- rea


def test_wikitext_2_words_and_articles(real_data: Path) -> None:
    corpus = resolve("wikitext-2", real_data)
    assert {split: corpus.words(split) for split in corpus.splits} == WIKITEXT_WORDS["wikitext-2"]
    assert {split: len(corpus.documents(split)) for split in corpus.splits} == {
        "train": 600,
        "validation": 60,
        "test": 60,
    }
    assert all(document.startswith(" \n = ") for split in corpus.splits for document in corpus.documents(split)[1:])
    assert corpus.bytes("test") == 1_256_449


def test_tiny_shakespeare_is_split_as_nanogpt_does(real_data: Path) -> None:
    corpus = resolve("tiny-shakespeare", real_data)
    assert [len(corpus.documents(split)[0]) for split in ("train", "validation")] == [1_003_854, 111_540]


def test_validation_has_some_of_every_file(real_data: Path) -> None:
    corpus = resolve("es-historia-ciencia", real_data)
    train, validation = corpus.documents("train"), corpus.documents("validation")
    assert corpus.bytes("train") + corpus.bytes("validation") == pytest.approx(
        27_100_691, rel=1e-3
    )  # minus the separators
    assert sum(map(len, validation)) / sum(map(len, train + validation)) == pytest.approx(0.1, abs=0.02)
    assert len(train) + len(validation) >= 654
    assert not any("<|doc|>" in document for document in train + validation)


# --------------------------------------------------------------------------------------------------


@given(st.lists(st.text(min_size=1, max_size=200), min_size=1, max_size=30), st.sampled_from([0.1, 1 / 9, 0.3]))
def test_hold_out_loses_nothing_and_holds_out_about_the_fraction(documents: list[str], fraction: float) -> None:
    train, held = hold_out(documents, fraction)
    assert "".join(train + held) == "".join(documents)
    total = sum(map(len, documents))
    share = sum(map(len, held)) / total
    # Between half and double, or the exact cut by characters (one character of rounding).
    assert fraction / 2 - 1 / total <= share <= max(2 * fraction, fraction + 1 / total)
    assert all(train + held)


def test_hold_out_keeps_documents_whole_if_it_can() -> None:
    documents = [str(i) * 10 for i in range(10)]
    assert hold_out(documents) == (documents[:9], documents[9:])
    assert hold_out(["a" * 90, "b" * 910]) == (["a" * 90, "b" * 810], ["b" * 100])
    assert hold_out(["0123456789" * 10]) == (["0123456789" * 9], ["0123456789"])


def test_wikitext_headings_need_blank_lines_and_one_level() -> None:
    first = " \n = One = \n \n Text with ( a = \n = 7 / 2 ) and J = \n more . \n \n = = Section = = \n \n Text . \n"
    second = " \n = <unk> = Two = \n \n Text . \n"
    assert wikitext_articles(first + second) == [first, second]
    assert wikitext_articles(" No heading . \n" + second) == [" No heading . \n", second]
    assert wikitext_articles("") == []


def test_separators_must_be_whole_lines() -> None:
    assert at_separators("one\n<|doc|>\ntwo <|doc|> two\n<|endoftext|>\nthree") == [
        "one\n",
        "two <|doc|> two\n",
        "three",
    ]
    assert at_separators("<|doc|>\r\none\n<|doc|>\n\n<|doc|>") == ["one\n"]
    assert at_separators("one\n### \r\n### two\n<|doc|>\n####\n###", "###") == ["one\n", "### two\n<|doc|>\n####\n"]
    for separator in (None, "<|doc|>", "<|endoftext|>"):
        assert at_separators("one\n<|doc|>\ntwo\n<|endoftext|>\nthree", separator) == ["one\n", "two\n", "three"]


@pytest.mark.parametrize("separator", ["", " \n", "###\n---"])
def test_a_separator_must_be_one_line(separator: str, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("some text", encoding="utf-8")
    with pytest.raises(ConfigError, match="--separator"):
        read_documents([tmp_path / "text.txt"], "--corpus", separator)


def test_ends_of_lines_count_as_words_only_in_word_level_text() -> None:
    assert count_words(" \n = A title = \n", word_level=True) == 6
    assert count_words("A title\n\nand a text\n", word_level=False) == 5


@pytest.mark.parametrize("characters", [50, 1000, 54_321])
def test_a_beginning_takes_the_first_characters_of_each_split(characters: int) -> None:
    whole, part = resolve("builtin"), resolve(f"builtin:{characters}")
    sizes = {split: len("".join(whole.documents(split))) for split in whole.splits}
    for split in whole.splits:
        text = "".join(part.documents(split))
        assert "".join(whole.documents(split)).startswith(text)
        assert len(text) == characters * sizes[split] // sum(sizes.values())
        assert all(part.documents(split))
    assert part.name == f"builtin-{characters}"
    assert f"{characters:,} of its" in part.reason


@pytest.mark.parametrize("characters", ["0", "2", "999999999"])
def test_a_beginning_longer_than_the_text_or_too_short_for_its_splits_is_refused(characters: str) -> None:
    with pytest.raises(DataError, match=f"builtin:{characters}"):
        resolve(f"builtin:{characters}")


def test_a_path_with_a_colon_and_a_number_is_a_path(tmp_path: Path) -> None:
    file = tmp_path / "part:12"
    file.write_text("some words " * 200, encoding="utf-8")
    assert resolve(str(file)).bytes("train") > 12
