"""Which files of a folder are read, what a report says about the others, and where lines end."""

from __future__ import annotations

import gzip
import io
import json
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ebmvk.data.corpus import Corpus
from ebmvk.data.datasets import read_whole, resolve
from ebmvk.data.documents import read_documents
from ebmvk.data.files import AS_IT_COMES, Reading, lines_of, read_text
from ebmvk.data.folders import ENVIRONMENT, listing
from ebmvk.errors import ConfigError, DataError

SENTENCE = "The quick brown fox jumps over the lazy dog, and then it rests.\n"
ROWS: list[dict[str, Any]] = [{"text": f"sun moon {i}", "id": i} for i in range(8)]
CSV_TEXT = "id,text\n" + "".join(f'{i},"sun, moon"\n' for i in range(8))


@pytest.fixture(autouse=True)
def _no_data_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ENVIRONMENT, raising=False)


def fill(folder: Path, **texts: str | bytes) -> Path:
    """Make a folder of files; `__` in a name means a slash, and the last `_` the suffix's dot."""
    for name, text in texts.items():
        path = folder / ".".join(name.replace("__", "/").rsplit("_", 1))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode() if isinstance(text, str) else text)
    return folder


def names(folder: Path, reading: Reading = AS_IT_COMES) -> set[str]:
    found = listing(folder, reading)
    return {path.relative_to(folder).as_posix() for path in found.texts(reading)}


# ---- folders -------------------------------------------------------------------------------------


def test_one_message_sums_up_a_folder(tmp_path: Path) -> None:
    fill(tmp_path, **{f"t{i}_txt": SENTENCE for i in range(3)}, **{f"c{i}_py": "x = 1\n" for i in range(12)})
    fill(
        tmp_path, e1_txt="", e2_txt=" \n", latin_txt="caf\u00e9".encode("latin-1"), README_md="about", s_txt="<|doc|>\n"
    )
    reason = resolve(str(tmp_path)).reason
    assert "3 text files" in reason
    assert reason.endswith(
        "skipped 2 empty (e1.txt, e2.txt), 1 about the text (README.md), 1 not UTF-8 (latin.txt), "
        "1 with separators only (s.txt), 12 .py (--include '*.py')"
    )
    found = read_documents([tmp_path], "--input")
    assert (len(found.texts), found.notes[0].partition("; ")[0]) == (3, f"3 read in {tmp_path}")


def test_include_adds_files_by_their_names(tmp_path: Path) -> None:
    fill(tmp_path, a_txt=SENTENCE, b_py=SENTENCE, src__c_PY=SENTENCE, src__d_c=SENTENCE, README_md=SENTENCE)
    assert names(tmp_path) == {"a.txt"}
    assert names(tmp_path, Reading(("*.py",))) == {"a.txt", "b.py", "src/c.PY"}
    assert names(tmp_path, Reading(("src/*", "readme*"))) == {"a.txt", "src/c.PY", "src/d.c", "README.md"}
    assert len(resolve(str(tmp_path), None, Reading(("*.py",))).documents("train")) == 3
    for bad in ("*.nothing", "/etc/*", "../*", ""):
        with pytest.raises(ConfigError, match="--include"):
            resolve(str(tmp_path), None, Reading((bad,)))
    for whole in (str(tmp_path / "a.txt"), "builtin"):
        with pytest.raises(ConfigError, match="isn't a folder"):
            resolve(whole, None, Reading(("*.py",)))


def test_a_folder_without_text_says_what_was_skipped(tmp_path: Path) -> None:
    fill(tmp_path, e_txt="", b_txt=b"\x01\x02\x00\x03", a_py="x = 1")
    with pytest.raises(DataError, match="holds no text file") as caught:
        resolve(str(tmp_path))
    assert caught.value.why == "skipped 1 binary (b.txt), 1 empty (e.txt), 1 .py (--include '*.py')"


def test_runs_and_models_are_refused_as_text(tmp_path: Path) -> None:
    fill(
        tmp_path,
        a_txt=SENTENCE,
        sub__run__config_toml="",
        sub__run__tokenizer_json="{}",
        sub__run__samples_txt=SENTENCE,
    )
    fill(tmp_path, model__config_json="{}", model__model_safetensors="", model__merges_txt=SENTENCE)
    # Not every folder with settings is a run
    fill(tmp_path, notes__config_toml="", notes__b_txt=SENTENCE)
    found = listing(tmp_path)
    assert names(tmp_path) == {"a.txt", "notes/b.txt"}
    assert found.left_out["run folder"] == ["sub/run"]
    assert found.left_out["model folder"] == ["model"]
    with pytest.raises(DataError, match="is a run folder"):
        resolve(str(tmp_path / "sub" / "run"))


def test_links_are_followed_once(tmp_path: Path) -> None:
    data = fill(tmp_path / "data", a_txt=SENTENCE, sub__b_txt=SENTENCE)
    other = fill(tmp_path / "other", c_txt=SENTENCE, deep__d_txt=SENTENCE)
    fill(tmp_path, beside_txt=SENTENCE)
    (data / "to-other").symlink_to(other)
    (data / "again").symlink_to(other)
    (data / "loop").symlink_to(data)
    (data / "up").symlink_to(tmp_path)
    (data / "gone").symlink_to(tmp_path / "nothing")
    (other / "back").symlink_to(data)
    (data / "sub" / "a-again.txt").symlink_to(data / "a.txt")
    os.link(data / "a.txt", data / "hard.txt")
    found = listing(data)
    read = [path.relative_to(data).as_posix() for path in found.files]
    assert read == ["a.txt", "again/c.txt", "again/deep/d.txt", "sub/b.txt"]
    assert set(found.left_out) == {"linked again", "link upwards", "broken link"}
    assert {"to-other", "loop", "hard.txt", "sub/a-again.txt"} <= set(found.left_out["linked again"])


def test_a_linked_corpus_keeps_its_name_and_is_found_from_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path, v1__a_txt=SENTENCE * 20)
    (tmp_path / "corpus").symlink_to("v1")
    monkeypatch.chdir(tmp_path)
    found = resolve("corpus:500")
    assert (found.name, found.source) == ("corpus-500", f"{tmp_path}/corpus:500")
    monkeypatch.chdir("/")
    assert resolve(found.source).splits == found.splits
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve("~/corpus").source == f"{tmp_path}/corpus"
    # A name is looked up in the data folder again
    assert resolve("corpus", tmp_path).source == "corpus"


def test_texts_with_names_like_readmes_are_read(tmp_path: Path) -> None:
    texts = ("License to Kill.txt", "Notice me.txt", "license-to-kill.txt", "Authors of the sea.md", "Readme not.txt")
    about = (
        "README.md",
        "readme.de.md",
        "LICENSE",
        "LICENSE.txt",
        "LICENSE-AFL-3.0.txt",
        "COPYING.txt",
        "sha256sums.txt",
    )
    for name in (*texts, *about):
        (tmp_path / name).write_text(SENTENCE)
    assert names(tmp_path) == set(texts)
    assert sum(map(len, listing(tmp_path).left_out.values())) == len(about)


def test_splits_are_recognised_in_any_case(tmp_path: Path) -> None:
    fill(tmp_path, Train_txt="a\n" * 9, VALID_TXT="b\n", extra_txt="c\n")
    corpus = resolve(str(tmp_path))
    assert corpus.splits == {"train": ["a\n" * 9], "validation": ["b\n"]}
    assert "1 beside the files of official splits (extra.txt)" in corpus.reason


def test_files_with_only_separators_are_refused(tmp_path: Path) -> None:
    fill(tmp_path, s_txt="<|doc|>\n\n<|endoftext|>\n", d__train_txt=SENTENCE, d__valid_txt="<|doc|>\n")
    for read in (
        lambda: read_whole(tmp_path / "s.txt", "--test-file"),
        lambda: resolve(str(tmp_path / "s.txt")),
        lambda: resolve(str(tmp_path / "d")),
        lambda: read_documents([tmp_path / "s.txt"], "--corpus"),
    ):
        with pytest.raises(DataError, match="only lines that separate"):
            read()
    (tmp_path / "custom.txt").write_text("###\n###\n")
    with pytest.raises(DataError, match="only lines that separate"):
        read_documents([tmp_path / "custom.txt"], "--corpus", "###")


def test_files_whose_names_are_not_utf_8_are_read_and_shown(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"caf\xe9.txt")).write_text(SENTENCE * 20)
    (tmp_path / os.fsdecode(b"leer\xe9.txt")).write_text("")
    assert "1 empty (leer\\xe9.txt)" in resolve(str(tmp_path)).reason
    assert resolve(str(tmp_path / os.fsdecode(b"caf\xe9.txt"))).name == "caf\\xe9"


def test_a_path_that_settings_cannot_store_stays_as_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    fill(folder, a_txt=SENTENCE * 20)
    monkeypatch.chdir(folder)
    assert resolve("a.txt").source == "a.txt"


def test_separators_that_separate_nothing_are_counted(tmp_path: Path) -> None:
    fill(tmp_path, a_txt="one <|doc|> two\n  <|doc|>\n<|doc|>\nthree <|endoftext|> <|doc|>\n" + SENTENCE)
    assert "3 lines hold <|doc|> or <|endoftext|> among other text" in resolve(str(tmp_path / "a.txt")).reason
    (tmp_path / "b.txt").write_text("one\n###\n### a heading\ntwo ###\n")
    assert "2 lines hold ###" in read_documents([tmp_path / "b.txt"], "--input", "###").notes[0]
    assert not read_documents([tmp_path / "b.txt"], "--input").notes


@pytest.mark.parametrize("name", ["x" * 5000, "~no-such-user/text.txt", "a\0b", "x" * 300 + ":100"])
def test_impossible_file_names_are_refused(name: str, tmp_path: Path) -> None:
    for refused in (
        lambda: resolve(name),
        lambda: resolve(name, tmp_path),
        lambda: read_documents([Path(name)], "--input"),
        lambda: read_whole(Path(name), "--test-file"),
        lambda: resolve("notes", Path(name)),
    ):
        with pytest.raises(DataError):
            refused()


# ---- formats -------------------------------------------------------------------------------------


def _zip(name: str) -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as file:
        file.writestr(name, "text" * 100)
    return target.getvalue()


def _numbers() -> bytes:
    target = io.BytesIO()
    np.save(target, np.arange(9))
    return target.getvalue()


JSON_LINES = "".join(json.dumps(row) + "\n" for row in ROWS)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.txt", JSON_LINES, "JSON Lines"),
        ("a.txt", JSON_LINES[:-9], "JSON Lines"),
        ("a.txt", "".join(json.dumps(row) + "\n" for row in ROWS[:2]).rstrip(), "JSON Lines"),
        ("a.txt", json.dumps(ROWS, indent=2), "JSON"),
        ("a.txt", json.dumps(ROWS), "JSON"),
        ("a.jsonl", "this is\nno row\n", "JSON Lines"),
        ("a.txt", CSV_TEXT, "CSV"),
        ("a.csv", "one line", "CSV"),
        ("a.txt", CSV_TEXT.replace(",", "\t"), "TSV"),
        ("a.txt", "<!DOCTYPE html>\n<html><body>x</body></html>", "HTML"),
        ("a.txt", "<?xml version='1.0'?><mediawiki/>", "XML"),
        ("a.txt", "{\\rtf1 x}", "RTF"),
        ("a.txt", b"PAR1\x15\x04\x15\x10\xff\x00PAR1", "Parquet"),
        ("a.txt", _zip("a.txt"), "ZIP"),
        ("a.txt", _zip("word/document.xml"), "Word"),
        ("a.docx", _zip("a.txt"), "Word"),
        ("a.txt", b"%PDF-1.7\n1 0 obj", "PDF"),
        ("a.txt", b"SQLite format 3\0" + bytes(90), "SQLite"),
        ("a.txt", _numbers(), "numbers or weights"),
    ],
)
def test_formats_are_recognised_and_refused_by_name(tmp_path: Path, name: str, content: str | bytes, said: str) -> None:
    raw = content.encode() if isinstance(content, str) else content
    (tmp_path / name).write_bytes(raw)
    (tmp_path / f"{name}.gz").write_bytes(gzip.compress(raw))
    for path in (tmp_path / name, tmp_path / f"{name}.gz"):
        with pytest.raises(DataError, match=rf"recognised as {said}\n") as caught:
            resolve(str(path))
        assert caught.value.hint
        # The tests below read it unpacked
        assert ("gunzip --keep" in caught.value.hint) == (path.suffix == ".gz")
        if isinstance(content, str):
            assert "--raw" in caught.value.hint
            assert read_text(path, Reading(raw=True)) == content
        else:
            with pytest.raises(DataError, match=rf"recognised as {said}\n"):
                read_text(path, Reading(raw=True))
    (tmp_path / "b.txt").write_text(SENTENCE * 20)
    reason = resolve(str(tmp_path)).reason
    assert f"({said})" in reason or f" {said}" in reason


@pytest.mark.parametrize(
    "text",
    [
        "[Verse 1]\nI walk the line, I walk the line\n[Chorus]\n",
        "{ and } are braces\n",
        '"To be", he said,\n"or not".\n',
        "1\n2\n3\n4\n5\n6\n",
        "Roses are red, violets are blue\n" * 9,
        "Yes, no\nA, b\nC, d\nE, f\nG, h\nI, j\n",
        "ORCHESTRA\nBZh is a sound, PAR1 a mark\n",
        "<b>bold</b> words in a text\n",
        "def f(x):\n\treturn {'a': [1, 2]}\n",
        "one\ttwo three\nfour five\nsix\tseven\n8\n9\n",
    ],
)
def test_plain_text_is_not_taken_for_a_format(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.txt").write_text(text)
    assert read_text(tmp_path / "a.txt") == text


def test_gzip_is_known_by_its_content(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(gzip.compress(SENTENCE.encode()))
    assert read_text(tmp_path / "a.txt") == SENTENCE


def test_the_advice_for_rows_of_json_works(tmp_path: Path) -> None:
    (tmp_path / "a b.jsonl").write_text(JSON_LINES)
    with pytest.raises(DataError) as caught:
        resolve(str(tmp_path / "a b.jsonl"))
    command = caught.value.hint.partition("file: ")[2].partition("; or add")[0]
    assert os.system(f"cd '{tmp_path}' && {command.replace('python -c', 'python3 -c')}") == 0  # noqa: S605
    assert read_documents([tmp_path / "text.txt"], "--input").texts == [f"{row['text']}\n" for row in ROWS]


# ---- lines and marks -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("", []),
        ("a\nb", ["a", "b"]),
        ("a\r\nb\r\n", ["a", "b"]),
        ("a\n\n", ["a", ""]),
        ("a\u2028b\x0cc\x85d\x1ee\u2029f\x0bg\n", ["a\u2028b\x0cc\x85d\x1ee\u2029f\x0bg"]),
        ("a\rb\n", ["a\rb"]),
    ],
)
def test_lines_end_at_newlines_and_nowhere_else(text: str, lines: list[str]) -> None:
    assert lines_of(text) == lines


@given(st.lists(st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]))))
def test_joined_lines_split_into_the_same_lines(lines: list[str]) -> None:
    for end in ("\n", "\r\n"):
        assert lines_of("".join(line + end for line in lines)) == lines


def test_a_byte_order_mark_is_dropped(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("\ufeff<|doc|>\none\ufeff\n".encode())
    assert read_documents([tmp_path / "a.txt"], "--input").texts == ["one\ufeff\n"]
    assert read_text(tmp_path / "a.txt", Reading(keep_bom=True)).startswith("\ufeff")


# ---- word-level text -----------------------------------------------------------------------------


def test_wikitext_given_as_a_file_counts_words_as_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    if not REAL_DATA:
        pytest.skip(f"{ENVIRONMENT} is not set")
    folder = Path(REAL_DATA, "wikitext-2")
    by_file, by_name = read_whole(folder / "test.txt", "--test-file"), resolve("wikitext-2", folder.parent)
    assert by_file.documents("test") == by_name.documents("test")
    assert by_file.words("test") == by_name.words("test") == 245_569
    assert by_file.digest("test") == by_name.digest("test")
    assert "each end of line is a word" in by_file.reason


REAL_DATA = os.environ.get(ENVIRONMENT)  # read before the fixture above hides it


@pytest.mark.parametrize("text", ["One.\n\nTwo.\n", " indented \nnot\n x \n", " a \n"])
def test_other_text_is_not_taken_for_word_level_text(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.txt").write_text(text)
    assert not read_whole(tmp_path / "a.txt", "--test-file").word_level


# ---- digests -------------------------------------------------------------------------------------


def test_a_digest_depends_on_text_and_document_borders() -> None:
    def digest(*documents: str) -> str:
        return Corpus("c", "", {"train": list(documents)}).digest("train")

    different = [("ab", "c"), ("a", "bc"), ("abc",), ("abc", ""), ("abd",), ()]
    assert len({digest(*documents) for documents in different}) == len(different)
    assert digest("é", "x") == digest("é", "x")
