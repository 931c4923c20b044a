"""Makes a tokenizer.json from elsewhere faithful: its tokens then stand for the whole text.

Published files do more than cut a text into tokens: they truncate or pad it, put special tokens
around it, add a blank before it, or change its characters. Steps that can be switched off are
switched off and reported. Files with other such steps are refused.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from tokenizers import Tokenizer as _Bpe
from tokenizers import pre_tokenizers

from ebmvk.errors import DataError

END_OF_TEXT = "<|endoftext|>"
# Usual end-of-text tokens, the most common first. <|im_end|> ends a turn of a chat, not a text;
# --end-token can name it.
END_TOKENS = (
    *(END_OF_TEXT, "<|end_of_text|>", "</s>", "<eos>", "<EOS>", "[EOS]", "<|eos|>"),
    *("<｜end▁of▁sentence｜>", "[SEP]"),
)
BYTES = 256
Description = dict[str, Any]
_INNER = {
    "normalizer": "normalizers", "pre_tokenizer": "pretokenizers", "decoder": "decoders", "post_processor": "processors"
}  # fmt: skip
# These parts keep every character
_CUTTING = ("ByteLevel", "Split", "Digits", "Punctuation", "UnicodeScripts")
_CONTEXT = 20  # characters shown on either side of a place in a text


# ---- reading it ----------------------------------------------------------------------------------


def parts(description: Description, step: str) -> list[dict[str, Any]]:
    """The parts of a step, without nested sequences.

    step: `normalizer`, `pre_tokenizer`, `decoder` or `post_processor`.
    """

    def flat(part: dict[str, Any] | None) -> Iterator[dict[str, Any]]:
        if part and part["type"] == "Sequence":
            for inner in part[_INNER[step]]:
                yield from flat(inner)
        elif part:
            yield part

    return list(flat(description.get(step)))


def _set_parts(description: Description, step: str, found: list[dict[str, Any]]) -> None:
    if found != parts(description, step):  # otherwise leave the file unchanged
        one = found[0] if len(found) == 1 else {"type": "Sequence", _INNER[step]: found}
        description[step] = one if found else None


def _has(description: Description, step: str, kind: str) -> bool:
    return any(part["type"] == kind for part in parts(description, step))


def model_vocabulary(description: Description) -> dict[str, int]:
    """{token: id} of the model, without the added tokens."""
    found = description["model"]["vocab"]
    return found if isinstance(found, dict) else {piece: i for i, (piece, _) in enumerate(found)}


def added_tokens(description: Description) -> dict[str, dict[str, Any]]:
    """{content: entry} of the added tokens."""
    return {token["content"]: token for token in description["added_tokens"]}


def is_byte_level(description: Description) -> bool:
    """True if tokens are spelled in the byte-level alphabet, one letter for each byte."""
    return any(_has(description, step, "ByteLevel") for step in ("pre_tokenizer", "normalizer"))


def changes(description: Description) -> bool:
    """True if a step before the model may add, change or remove characters."""
    before = parts(description, "normalizer") + parts(description, "pre_tokenizer")
    return any(
        part["type"] not in _CUTTING or part.get("add_prefix_space") or part.get("behavior") == "Removed"
        for part in before
    )


def missing_bytes(description: Description) -> list[str]:
    """The single-byte tokens that a vocabulary lacks; if it has all of them, it spells any text."""
    if description["model"]["type"] not in ("BPE", "Unigram"):
        return ["single bytes"]
    if is_byte_level(description):
        letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    elif description["model"].get("byte_fallback"):
        letters = [f"<0x{byte:02X}>" for byte in range(BYTES)]
    else:
        return ["single bytes"]
    known = model_vocabulary(description)
    return [letter for letter in letters if letter not in known]


def unknown_token(description: Description) -> str | None:
    """The token for everything that the vocabulary cannot spell; None if there isn't one."""
    model, known = description["model"], model_vocabulary(description)
    if model["type"] == "Unigram":
        at = model.get("unk_id")
        return None if at is None else next((piece for piece, i in known.items() if i == at), None)
    name = model.get("unk_token")
    return name if name in known else None


def needed_unknown(description: Description) -> str | None:
    """The token for everything that the vocabulary cannot spell; None if it can spell any text.

    Raises:
        DataError: the vocabulary needs such a token but has none.
    """
    missing = missing_bytes(description)
    found = unknown_token(description) if missing else None
    if missing and found is None:
        raise DataError(
            f"the tokenizer has no unknown token, and no token for {', '.join(missing[:4])}",
            why="characters that it cannot spell would vanish",
            hint="add <unk> to its vocabulary, as the unk_token of its model",
        )
    return found


def usual_end(description: Description) -> str | None:
    """The first usual end-of-text token in the vocabulary; None if it has none.

    Special tokens come first, because some vocabularies also contain </s> as an HTML tag.
    """
    added = added_tokens(description)
    known = model_vocabulary(description).keys() | added.keys()
    special = {name for name, token in added.items() if token["special"]} | ({END_OF_TEXT} & known)
    return next((name for names in (special, known) for name in END_TOKENS if name in names), None)


def end_token(description: Description, wanted: str | None) -> str:
    """The token that ends a document: `wanted`, or by default the usual one.

    Raises:
        DataError: the vocabulary has no such token.
    """
    known = model_vocabulary(description).keys() | added_tokens(description).keys()
    found = usual_end(description) if wanted is None else wanted
    if found is None or found not in known:
        special = [name for name, token in added_tokens(description).items() if token["special"]][:8]
        raise DataError(
            f"the tokenizer has no token {wanted!r}" if found else "the tokenizer has no end-of-text token",
            why="" if found else f"none of its tokens is {', '.join(END_TOKENS)}",
            hint=f"name one of its special tokens with --end-token: {', '.join(special)}"
            if special
            else f"add {END_OF_TEXT} to its special tokens",
        )
    return found


# ---- made faithful -------------------------------------------------------------------------------


def faithful(description: Description, texts: Iterable[str], wanted: str | None) -> tuple[Description, list[str]]:
    """The description without anything that changes text, and a list of what was switched off.

    Args:
        texts: the corpus; a normaliser that cannot be switched off must leave it unchanged.
        wanted: the end token, or None for the usual one.

    Raises:
        DataError: a part that cannot be switched off changes a text; the end token is missing; a
            text can spell the end token; or the vocabulary cannot spell every text and has no
            unknown token.
    """
    found = copy.deepcopy(description)
    end = end_token(found, wanted)
    needed_unknown(found)
    mends: tuple[Callable[[Description], Iterator[str]], ...] = (_lengths, _chance, _surroundings, _blanks, _decoder)
    off = [said for mend in mends for said in mend(found)]
    off += _normalizer(found, texts)
    off += _swallowed(found)
    off += _misread(found)
    off += _end(found, end)
    return found, off


def _lengths(found: Description) -> Iterator[str]:
    if found["truncation"]:
        yield f"truncation to {found['truncation']['max_length']} tokens"
    if found["padding"]:
        yield f"padding with {found['padding']['pad_token']}"
    found["truncation"] = found["padding"] = None


def _chance(found: Description) -> Iterator[str]:
    if dropout := found["model"].get("dropout"):
        found["model"]["dropout"] = None
        yield f"dropout of {dropout:g} of the merges"


def _surroundings(found: Description) -> Iterator[str]:
    """Removes post-processors that put special tokens around a text.

    ByteLevel, which only moves offsets, stays.
    """
    processors = parts(found, "post_processor")
    adding = [part["type"] for part in processors if part["type"] != "ByteLevel"]
    _set_parts(found, "post_processor", [part for part in processors if part["type"] == "ByteLevel"])
    if adding:
        yield f"special tokens around each text ({', '.join(adding)})"


def _blanks(found: Description) -> Iterator[str]:
    """Removes the steps that put a blank before each text and the steps that remove it again."""
    before = copy.deepcopy([found[step] for step in ("normalizer", "pre_tokenizer")])
    for part in [*parts(found, "pre_tokenizer"), *parts(found, "decoder")]:
        if part["type"] == "Metaspace":
            part["prepend_scheme"] = "never"
    for part in parts(found, "pre_tokenizer"):
        if part["type"] == "ByteLevel":
            part["add_prefix_space"] = False
    _set_parts(found, "normalizer", [part for part in parts(found, "normalizer") if part["type"] != "Prepend"])
    _set_parts(found, "decoder", [part for part in parts(found, "decoder") if part["type"] != "Strip"])
    if before != [found[step] for step in ("normalizer", "pre_tokenizer")]:
        yield "the blank before each text"


def _decoder(found: Description) -> Iterator[str]:
    """Adds a missing decoder: without one, blanks would appear between decoded tokens."""
    if found["decoder"] is None:
        meta = next((part for part in parts(found, "pre_tokenizer") if part["type"] == "Metaspace"), None)
        if meta or is_byte_level(found):
            bytes_ = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
            found["decoder"] = copy.deepcopy(meta) if meta else bytes_
            yield "blanks between decoded tokens"


def _undone(part: dict[str, Any], found: Description) -> bool:
    """True if the decoder reverses what this part of the normaliser does."""
    if part["type"] != "Replace":
        return bool(part["type"] == "ByteLevel")
    was, becomes = part["pattern"].get("String"), part["content"]
    return any(
        (other["type"] == "Replace" and (other["pattern"].get("String"), other["content"]) == (becomes, was))
        or (other["type"] == "Metaspace" and other["replacement"] == becomes and was == " ")
        for other in parts(found, "decoder")
    )


def _normalizer(found: Description, texts: Iterable[str]) -> Iterator[str]:
    """Removes the parts of the normaliser that change characters for good.

    A vocabulary with all bytes can spell the text without these parts. Any other vocabulary was
    made for the changed text. It is accepted only if these parts don't change `texts`.

    Raises:
        DataError: the vocabulary lacks bytes, and these parts change one of the texts.
    """
    changing = [part for part in parts(found, "normalizer") if not _undone(part, found)]
    if not changing:
        return
    names = ", ".join(dict.fromkeys(part["type"] for part in changing))
    if missing_bytes(found):
        _check_unchanged(found, changing, names, texts)
    _set_parts(found, "normalizer", [part for part in parts(found, "normalizer") if _undone(part, found)])
    yield f"the normaliser {names}"


def _check_unchanged(found: Description, changing: list[dict[str, Any]], names: str, texts: Iterable[str]) -> None:
    normalizer = built({**found, "normalizer": {"type": "Sequence", "normalizers": changing}}).normalizer
    for text in texts:
        if normalizer and (other := normalizer.normalize_str(text)) != text:
            was, becomes = difference(text, other)
            raise DataError(
                f"the tokenizer's normaliser {names} changes the text: {was!r} becomes {becomes!r}",
                why="its tokens were made for the changed text, so the original text cannot be recovered from them",
                hint="use a tokenizer without it (bpe, gpt2), or change the text in the same way before training",
            )


def difference(text: str, other: str) -> tuple[str, str]:
    """Both texts around the first place where they differ."""
    at = next((i for i, (a, b) in enumerate(zip(text, other, strict=False)) if a != b), min(len(text), len(other)))
    cut = slice(max(0, at - _CONTEXT), at + _CONTEXT)
    return text[cut], other[cut]


def _swallowed(found: Description) -> Iterator[str]:
    """Stops added tokens from absorbing the blanks beside them."""
    eating = [token for token in found["added_tokens"] if token["lstrip"] or token["rstrip"]]
    for token in eating:
        token["lstrip"] = token["rstrip"] = False
    if eating:
        yield f"absorbing of blanks by {', '.join(token['content'] for token in eating[:4])}"


def _misread(found: Description) -> Iterator[str]:
    """Makes added tokens special if they decode to other letters, so they never stand for text."""
    bpe = built(found)
    wrong = [
        token
        for token in found["added_tokens"]
        if not token["special"] and bpe.decode([token["id"]], skip_special_tokens=False) != token["content"]
    ]
    for token in wrong:
        token["special"] = True
    if wrong:
        yield f"matching in text of the added tokens {', '.join(token['content'] for token in wrong[:4])}"


def _end(found: Description, end: str) -> Iterator[str]:
    """Makes the end token a special token that no text can spell.

    Raises:
        DataError: a text can still spell it.
    """
    token = added_tokens(found).get(end)
    if token is None:
        token = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        token = {"id": model_vocabulary(found)[end], "content": end, **token}
        found["added_tokens"] = sorted([*found["added_tokens"], token], key=lambda one: one["id"])
    token["special"] = True
    if missing_bytes(found) and unknown_token(found) == end:
        raise DataError(
            f"{end!r} is both the end token and the unknown token",
            why="a character that the vocabulary cannot spell would end the text",
            hint="name another token with --end-token",
        )
    if not _written(found, end):
        return
    # Cut the token after its first letter, so that the model never sees the whole token.
    cut = {"Regex": f"{re.escape(end[0])}(?={re.escape(end[1:])})"}
    split = {"type": "Split", "pattern": cut, "behavior": "Isolated", "invert": False}
    _set_parts(found, "pre_tokenizer", [split, *parts(found, "pre_tokenizer")])
    if len(end) < 2 or _written(found, end):
        raise DataError(
            f"the end token {end!r} can be spelled in a text",
            why="a text that contains these letters would end there",
            hint="name another token with --end-token",
        )
    yield f"matching of {end} as one token in text"


def _written(found: Description, end: str) -> bool:
    """True if a text can contain the end token."""
    bpe = built(found)
    bpe.encode_special_tokens = True
    texts = [end, f" {end}", f"a {end} b", f"a{end}{end}b", f"{end}\n"]
    encodings = bpe.encode_batch(texts, add_special_tokens=False)
    return any(bpe.token_to_id(end) in encoding.ids for encoding in encodings)


def built(description: Description) -> _Bpe:
    """The tokenizers library's object for a description."""
    return _Bpe.from_str(json.dumps(description))
