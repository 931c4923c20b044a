"""Accurate float32 functions, made of additions, products, divisions and operations on bits.

The built-in functions of SPIR-V may be far off (exp by 17 ULP on one driver), and drivers may
assume that no float is NaN. The functions here are within 4 ULP, and right at NaN, infinity, -0 and
huge arguments; they flush denormals if the device does. Each takes and returns `Value`s, so the
device and numpy run the same nodes. The polynomials are minimax fits of the relative error (Remez
exchange), with coefficients rounded to float32 one after another.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from itertools import pairwise

from ebmvk.compute.values import Graph, Value, fma, is_nan, polynomial

Function = Callable[..., Value]
FUNCTIONS: dict[str, Function] = {}

INFINITY, NAN = math.inf, math.nan
SIGN, MAGNITUDE, INFINITE_BITS, ONE_BITS = 0x80000000, 0x7FFFFFFF, 0x7F800000, 0x3F800000
LOG2_E = 1.44269504088896341
LN2_HIGH, LN2_LOW = 0.693359375, -2.12194440054690583e-4  # LN2_HIGH has 9 bits, so n·LN2_HIGH is exact
HALF_PI, HALF_PI_LOW = 1.57079637050628662, -4.37113900018624283e-8
PI, PI_LOW = 2 * HALF_PI, 2 * HALF_PI_LOW

QUARTER, QUARTER_LOW = HALF_PI * 2.0**-32, HALF_PI_LOW * 2.0**-32

EXP = (0.000150448992, 0.00139305426, 0.00834151078, 0.0416665114, 0.166666359, 0.5)
EXP2 = (1.32908945e-05, 0.000154211448, 0.00133405079, 0.00961816683, 0.0555040501, 0.240226507, 0.693147182)
LOG = (-0.0764311403, 0.127669424, -0.13159509, 0.142009497, -0.166233346, 0.200012609, -0.250008225, 0.333333313)
TANH = (0.00218527671, -0.00822145026, 0.0217176657, -0.05394971, 0.133332282, -0.333333313)
SINH = (2.78221319e-06, 0.000198428956, 0.00833331048, 0.166666672)
SIN = (-0.00019518286, 0.00833218917, -0.166666552)
COS = (2.44323273e-05, -0.00138873095, 0.0416666456)
ATAN = (
    -0.00178249332, 0.0108676292, -0.0310956687, 0.0578805991, -0.0839928314, 0.109508783, -0.142640159,
    0.199985296, -0.333332986,
)  # fmt: skip
ASIN = (0.0376878828, 0.0143182008, 0.0318387188, 0.0445133857, 0.0750052184, 0.166666597)
TWO_OVER_PI = (0, 0xA2F9836E, 0x4E441529, 0xFC2757D1, 0xF534DDC0, 0xDB629599, 0x3C439041, 0xFE5163AB)
"""32 zero bits, then the first bits of 2/pi after the point."""


def function(body: Function) -> Function:
    """Registers a function under its name, without the final underscore that some names need."""
    FUNCTIONS[body.__name__.rstrip("_")] = body
    return body


@cache
def graph_of(name: str, arity: int) -> tuple[Graph, int]:
    """A function's nodes, with its arguments as symbols "0", "1", ..., and its result's number."""
    graph = Graph()
    result = FUNCTIONS[name](*(graph.symbol(str(k), "float32") for k in range(arity)))
    return graph, result.number


# --------------------------------------------------------------------------------- building blocks


def magnitude(x: Value) -> Value:
    """|x| by its bits, so that -0 becomes 0."""
    return (x.bits() & MAGNITUDE).as_float()


def with_sign(positive: Value, x: Value) -> Value:
    """`positive`, which isn't negative, with the sign of x."""
    return (positive.bits() | (x.bits() & SIGN)).as_float()


def keep_nan(x: Value, result: Value) -> Value:
    """The result, or x if x is NaN."""
    return is_nan(x).where(x, result)


def is_zero(x: Value) -> Value:
    return (x.bits() << 1).equals(0)


def is_negative(x: Value) -> Value:
    """True if the sign bit is set, also for -0."""
    return x.as_int() < 0


def power_of_two(n: Value) -> Value:
    """2^n for an int32 from -126 to 127."""
    return ((n + 127) << 23).as_float()


def scale(x: Value, n: Value) -> Value:
    """x·2^n for an int32 n. 2^n is applied as two factors, because 2^128 isn't a float32."""
    half = n >> 1
    return x * power_of_two(half) * power_of_two(n - half)


def clamp(x: Value, low: float, high: float) -> Value:
    below = (x < low).where(x.of(low), x)
    return (below > high).where(x.of(high), below)


def exp_parts(x: Value, low: Value | float = 0.0) -> tuple[Value, Value]:
    """(n, e^r − 1) with x + low = n·ln 2 + r."""
    n = (x * LOG2_E).raw("Round")
    r = fma(n, -LN2_LOW, fma(n, -LN2_HIGH, x) + low)
    return n.to_int(), fma(r * r, polynomial(r, *EXP), r)


def split(x: Value) -> tuple[Value, Value]:
    """(e, m) with x = m·2^e and sqrt(1/2) <= m < sqrt(2), for a positive number."""
    bits = x.bits()
    denormal = bits < 0x00800000
    bits = denormal.where(bits.to_float().bits(), bits)  # x·2^149, by integers: floats may be flushed
    e = (bits - 0x3F3504F3).as_int() >> 23
    m = (bits - (e << 23).bits()).as_float()
    return denormal.where(e - 149, e), m


def log_sum(f: Value, e: Value, low: Value | float = 0.0) -> Value:
    """log(1 + f) + e·ln 2 + low, for a small f and an integer e as a float."""
    square = f * f
    y = fma(e, LN2_LOW, square * f * polynomial(f, *LOG) + low) - 0.5 * square
    return (f + y) + e * LN2_HIGH


def log_domain(x: Value, result: Value) -> Value:
    """A logarithm's result, with −infinity at 0, NaN below 0, and infinity at infinity."""
    result = (x.bits() < INFINITE_BITS).where(result, x)
    result = is_negative(x).where(x.of(NAN), result)
    return keep_nan(x, is_zero(x).where(x.of(-INFINITY), result))


# ------------------------------------------------------------------------ exponentials, logarithms


@function
def exp(x: Value) -> Value:
    n, p = exp_parts(clamp(x, -104.0, 89.0))
    return keep_nan(x, scale(p + 1.0, n))


@function
def exp2(x: Value) -> Value:
    y = clamp(x, -151.0, 129.0)
    n = y.raw("Round")
    r = y - n
    return keep_nan(x, scale(fma(r, polynomial(r, *EXP2), 1.0), n.to_int()))


@function
def expm1(x: Value) -> Value:
    n, p = exp_parts(clamp(x, -30.0, 89.0))
    half = scale(x.of(0.5), n)
    result = n.equals(0).where(p, 2.0 * (p * half + (half - 0.5)))
    return keep_nan(x, (magnitude(x) < 2.0**-25).where(x, result))


@function
def log(x: Value) -> Value:
    e, m = split(x)
    return log_domain(x, log_sum(m - 1.0, e.to_float()))


@function
def log2(x: Value) -> Value:
    e, m = split(x)
    return log_domain(x, fma(log_sum(m - 1.0, x.of(0.0)), LOG2_E, e.to_float()))


@function
def log10(x: Value) -> Value:
    # log10(2) in two parts; the first part has 9 bits, so its product with e is exact.
    e, m = split(x)
    real = e.to_float()
    low = fma(log_sum(m - 1.0, x.of(0.0)), 0.434294481903251828, real * 2.48745663981195214e-4)
    return log_domain(x, fma(real, 0.30078125, low))


@function
def log1p(x: Value) -> Value:
    u = x + 1.0
    lost = (x > 1.0).where(1.0 - (u - x), x - (u - 1.0))
    e, m = split(u)
    near = (magnitude(x) < 0.29).where(x, x.of(INFINITY)) < 1.0
    f = near.where(x, m - 1.0)
    zero = x.of(0.0)
    result = log_sum(f, near.where(zero, e.to_float()), near.where(zero, lost / u))
    result = (u.bits() < INFINITE_BITS).where(result, x)
    result = (x < -1.0).where(x.of(NAN), is_zero(u).where(x.of(-INFINITY), result))
    return keep_nan(x, (magnitude(x) < 2.0**-25).where(x, result))


@function
def sigmoid(x: Value) -> Value:
    return 1.0 / (1.0 + (-x).call("exp"))


@function
def tanh(x: Value) -> Value:
    a = magnitude(x)
    z = a * a
    far = 1.0 - 2.0 / ((a + a).call("exp") + 1.0)
    result = (a < 0.6).where(fma(a * z, polynomial(z, *TANH), a), far)
    return keep_nan(x, with_sign(result, x))


def _half_exp(a: Value) -> Value:
    """e^a / 2. It overflows only if the result does."""
    n, p = exp_parts(clamp(a, 0.0, 91.0))
    return scale(p + 1.0, n - 1)


@function
def sinh(x: Value) -> Value:
    a = magnitude(x)
    z = a * a
    e = _half_exp(a)
    result = (a < 1.0).where(fma(a * z, polynomial(z, *SINH), a), e - 0.25 / e)
    return keep_nan(x, with_sign(result, x))


@function
def cosh(x: Value) -> Value:
    e = _half_exp(magnitude(x))
    return keep_nan(x, e + 0.25 / e)


# ------------------------------------------------------------------------------------ trigonometry


def _window(start: Value) -> list[Value]:
    """96 bits of TWO_OVER_PI from bit `start` on, as three words. After Payne and Hanek."""
    word, shift = start >> 5, start & 31
    words = []
    for k in range(4):
        value = start.of(TWO_OVER_PI[k])
        for first in range(1, 5):
            value = word.equals(first).where(start.of(TWO_OVER_PI[first + k]), value)
        words.append(value)
    return [(a << shift) | ((b >> 1) >> (31 - shift)) for a, b in pairwise(words)]


def _quarters(x: Value) -> tuple[Value, Value]:
    """(r, q) with |x| = r + q·pi/2 modulo 2·pi, |r| <= pi/4, for a finite x.

    |x| is an integer of 24 bits times 2^(e − 23). Its product with 2/pi is needed modulo 4 only, so
    96 bits of 2/pi, chosen by e, are enough: 2 bits for q and 94 bits for its fraction.
    """
    a = magnitude(x)
    bits = a.bits()
    exponent = bits >> 23
    exponent = (exponent < 126).where(exponent.of(126), exponent)
    integer = (bits & 0x7FFFFF) | 0x800000
    first, second, third = _window(exponent - 120)  # e + 7
    low = integer * second
    middle = low + integer.raw("UMulHigh", third)
    one = middle.of(1)
    top = integer * first + integer.raw("UMulHigh", second) + (middle < low).where(one, 0)
    high, rest = (top << 2) | (middle >> 30), (middle << 2) | ((integer * third) >> 30)
    below = high.as_int() < 0  # the fraction is at least 1/2, so round q up
    quarter = (top >> 30) + below.where(one, 0)
    high, rest = below.where(~high, high), below.where(~rest, rest)
    empty = high.equals(0)
    zeros = empty.where(high.of(32).as_int(), 31 - high.raw("FindUMsb"))
    shift = empty.where(high.of(0).as_int(), zeros)
    digits = empty.where(rest, (high << shift.bits()) | ((rest >> 1) >> (31 - shift).bits()))
    upper, lower = (digits & 0xFFFFFF00).to_float(), (digits & 0xFF).to_float()
    r = upper * QUARTER + (upper * QUARTER_LOW + lower * QUARTER)
    r = r * power_of_two(-zeros)
    r = below.where(-r, r)
    near = a < 0.785398
    return near.where(a, r), near.where(quarter.of(0), quarter & 3)


def _sin_cos(r: Value) -> tuple[Value, Value]:
    z = r * r
    return fma(r * z, polynomial(z, *SIN), r), fma(z * z, polynomial(z, *COS), fma(z, -0.5, 1.0))


def _flip(value: Value, condition: Value) -> Value:
    return condition.where(-value, value)


def _of_finite(x: Value, result: Value) -> Value:
    """The result, or NaN if x is infinite or NaN."""
    return (magnitude(x).bits() < INFINITE_BITS).where(result, x.of(NAN))


@function
def sin(x: Value) -> Value:
    r, quarter = _quarters(x)
    s, c = _sin_cos(r)
    result = (quarter & 1).equals(0).where(s, c)
    sign = (quarter << 30) ^ x.bits()
    return _of_finite(x, (result.bits() ^ (sign & SIGN)).as_float())


@function
def cos(x: Value) -> Value:
    r, quarter = _quarters(x)
    s, c = _sin_cos(r)
    result = (quarter & 1).equals(0).where(c, s)
    sign = (quarter + 1) << 30
    return _of_finite(x, (result.bits() ^ (sign & SIGN)).as_float())


@function
def tan(x: Value) -> Value:
    r, quarter = _quarters(x)
    s, c = _sin_cos(r)
    even = (quarter & 1).equals(0)
    result = even.where(s, -c) / even.where(c, s)
    return _of_finite(x, (result.bits() ^ (x.bits() & SIGN)).as_float())


def _atan_of_ratio(t: Value) -> Value:
    """atan t for 0 <= t <= 1."""
    z = t * t
    return fma(t * z, polynomial(z, *ATAN), t)


@function
def atan(x: Value) -> Value:
    a = magnitude(x)
    far = a > 1.0
    result = _atan_of_ratio(far.where(1.0 / a, a))
    result = far.where((HALF_PI - result) + HALF_PI_LOW, result)
    return keep_nan(x, with_sign(result, x))


@function
def atan2(y: Value, x: Value) -> Value:
    """The angle of (x, y); at zeros and infinities as C's atan2."""
    up, along = magnitude(y), magnitude(x)
    steep = up > along
    big, small = steep.where(up, along), steep.where(along, up)
    factor = (big > 2.0**64).where(big.of(2.0**-64), (big < 2.0**-64).where(big.of(2.0**64), 1.0))
    ratio = (small * factor) / (big * factor)
    ratio = is_zero(big).where(big.of(0.0), ratio)
    ratio = small.bits().equals(INFINITE_BITS).where(big.of(1.0), ratio)
    angle = _atan_of_ratio(ratio)
    angle = steep.where((HALF_PI - angle) + HALF_PI_LOW, angle)
    angle = is_negative(x).where((PI - angle) + PI_LOW, angle)
    return keep_nan(x, keep_nan(y, with_sign(angle, y)))


def _arc(x: Value) -> tuple[Value, Value, Value]:
    """(|x| <= 1/2, y, asin y − y). y is |x| if |x| <= 1/2, else sin(acos(|x|) / 2)."""
    a = magnitude(x)
    near = (a > 0.5).where(x.of(0.0), x.of(1.0)) > 0.5
    z = near.where(a * a, (1.0 - a) * 0.5)
    y = near.where(a, z.raw("Sqrt"))
    return near, y, y * z * polynomial(z, *ASIN)


def _in_one(x: Value, result: Value) -> Value:
    """The result, or NaN if |x| > 1 or x is NaN."""
    return (magnitude(x).bits() > ONE_BITS).where(x.of(NAN), result)


@function
def asin(x: Value) -> Value:
    near, y, rest = _arc(x)
    result = near.where(y + rest, (HALF_PI - 2.0 * y) - (2.0 * rest - HALF_PI_LOW))
    return _in_one(x, with_sign(magnitude(result), x))


@function
def acos(x: Value) -> Value:
    near, y, rest = _arc(x)
    negative = is_negative(x)
    middle = HALF_PI - (_flip(y, negative) + (_flip(rest, negative) - HALF_PI_LOW))
    far = negative.where((PI - 2.0 * y) - (2.0 * rest - PI_LOW), 2.0 * (y + rest))
    return _in_one(x, near.where(middle, far))


# ------------------------------------------------------------------------------------------- roots


@function
def sqrt(x: Value) -> Value:
    result = x.raw("Sqrt")
    result = (is_negative(x) & ~is_zero(x)).where(x.of(NAN), result)
    return keep_nan(x, is_zero(x).where(x, result))


@function
def rsqrt(x: Value) -> Value:
    """1/sqrt(x), with a step of Newton's method, because the built-in may be 2 ULP off."""
    rough = x.raw("InverseSqrt")
    fine = rough * (1.5 - 0.5 * ((x * rough) * rough))
    bits = x.bits()
    normal = (bits - 0x00800000) < INFINITE_BITS - 0x00800000
    result = normal.where(fine, bits.equals(INFINITE_BITS).where(x.of(0.0), rough))
    result = is_zero(x).where(with_sign(x.of(INFINITY), x), result)
    return keep_nan(x, (is_negative(x) & ~is_zero(x)).where(x.of(NAN), result))


@function
def div(a: Value, b: Value) -> Value:
    """a/b. A device may divide through 1/b, which is flushed to 0 if b > 2^126, so large b are
    scaled."""
    huge = (b.bits() & MAGNITUDE) >= 0x7E800000
    factor = huge.where(a.of(2.0**-16), 1.0)
    return (a * factor) / (b * factor)


@function
def reciprocal(x: Value) -> Value:
    return div(x.of(1.0), x)
