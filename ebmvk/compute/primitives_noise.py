"""Random numbers: functions of a seed and a place, by Philox (see engine/philox.py)."""

from __future__ import annotations

import math

from ebmvk.compute import expr
from ebmvk.compute.ir import Expr, View
from ebmvk.compute.lower import Lowering
from ebmvk.compute.primitives import FLOAT, primitive

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_STREAM_DROPOUT = 0xFFFFFFFD
_STREAM_NORMALS = 0xFFFFFFFC

Words = tuple[Expr, Expr, Expr, Expr]


def _word(value: int) -> Expr:
    return expr.const(value, "uint32")


def philox(counter: Words, key: tuple[Expr, Expr]) -> Words:
    """Philox4x32-10 of Salmon and others (SC 2011), on words of 32 bits."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        high0, low0 = expr.op("umulhi", c0, _word(_MULTIPLIERS[0])), expr.op("mul", c0, _word(_MULTIPLIERS[0]))
        high1, low1 = expr.op("umulhi", c2, _word(_MULTIPLIERS[1])), expr.op("mul", c2, _word(_MULTIPLIERS[1]))
        c0, c1 = expr.op("xor", expr.op("xor", high1, c1), k0), low1
        c2, c3 = expr.op("xor", expr.op("xor", high0, c3), k1), low0
        k0, k1 = expr.op("add", k0, _word(_WEYL[0])), expr.op("add", k1, _word(_WEYL[1]))
    return c0, c1, c2, c3


def _words(shape: tuple[int, ...], words: View) -> Words:
    """The words of engine.dropout.words_of, as expressions in a loop of this shape."""
    places = (View(words.tensor, shape, (0,) * len(shape), words.offset + n * words.strides[0]) for n in range(4))
    low, high, step, row = (expr.op("bitcast", expr.load(place), dtype="uint32") for place in places)
    return low, high, step, row


def random_byte(shape: tuple[int, ...], words: View, place: int) -> Expr:
    """The random byte of each element of a tensor, as engine.dropout.random_bytes defines it: byte
    E % 16 of the four words at counter (step, place, E // 16, stream), where E is the element's
    position in the whole batch, 64 bits wide.

    words: (4,) int32, the bits of seed low, seed high, step and first row.
    """
    low, high, step, row = _words(shape, words)
    width = math.prod(shape[1:])
    position: Expr = expr.const(0, "int32")
    for axis, size in enumerate(shape):
        position = expr.op("add", expr.op("mul", position, expr.const(size, "int32")), expr.axis(axis))
    within = expr.cast_to(position, "uint32")
    lower = expr.op("add", expr.op("mul", row, _word(width)), within)
    carry = expr.cast_to(expr.op("lt", lower, within), "uint32")
    upper = expr.op("add", expr.op("umulhi", row, _word(width)), carry)
    block = expr.op("or", expr.op("shl", upper, _word(28)), expr.op("shr", lower, _word(4)))
    drawn = philox((step, _word(place), block, _word(_STREAM_DROPOUT)), (low, high))
    which = expr.op("and", expr.op("shr", lower, _word(2)), _word(3))
    chosen = drawn[3]
    for number in (2, 1, 0):
        chosen = expr.where(expr.op("eq", which, _word(number)), drawn[number], chosen)
    shift = expr.op("shl", expr.op("and", lower, _word(3)), _word(3))
    return expr.op("and", expr.op("shr", chosen, shift), _word(255))


@primitive("ebmvk.dropout.default", dtypes=FLOAT, limits="fewer than 2**31 elements")
def dropout(low: Lowering, x: View, words: View, place: int, threshold: int) -> View:
    """x / (1 - rate) if the element's byte is at least the threshold, else 0 (NaN stays)."""
    kept = expr.op("ge", random_byte(x.shape, words, place), _word(threshold))
    scale = expr.where(kept, expr.const(256 / (256 - threshold), "float32"), expr.const(0.0, "float32"))
    return low.loop(x.shape, expr.op("mul", expr.load(x), scale))


@primitive("ebmvk.normals.default", dtypes=FLOAT)
def normals(low: Lowering, words: View, rows: View, d: int) -> View:
    """Standard normals (m, d), as engine.normals defines them. Each element computes all four words
    of its counter again, because invocations would otherwise have to exchange them."""
    shape = (rows.shape[0], d)
    low_word, high_word, step, _ = _words(shape, words)
    row = expr.cast_to(expr.load(View(rows.tensor, shape, (rows.strides[0], 0), rows.offset)), "uint32")
    column = expr.cast_to(expr.axis(1), "uint32")
    counter = (step, row, expr.op("shr", column, _word(2)), _word(_STREAM_NORMALS))
    u0, u1, u2, u3 = (_uniform(word) for word in philox(counter, (low_word, high_word)))
    second = expr.op("eq", expr.op("and", column, _word(2)), _word(2))
    radius = expr.op("sqrt", expr.op("mul", expr.const(-2.0, "float32"), expr.op("log", expr.where(second, u2, u0))))
    angle = expr.op("mul", expr.const(2 * math.pi, "float32"), expr.where(second, u3, u1))
    odd = expr.op("eq", expr.op("and", column, _word(1)), _word(1))
    return low.loop(shape, expr.op("mul", radius, expr.where(odd, expr.op("sin", angle), expr.op("cos", angle))))


def _uniform(word: Expr) -> Expr:
    """engine.philox.to_uniform: (word + 1/2) 2^-32 in float32, below 1."""
    u = expr.op("mul", expr.cast_to(word, "float32"), expr.const(2.0**-32, "float32"))
    u = expr.op("add", u, expr.const(2.0**-33, "float32"))
    return expr.op("minimum", u, expr.const(1 - 2.0**-24, "float32"))
