"""More functions like those of math.py: powers, remainders, error functions, the gamma function."""

from __future__ import annotations

import numpy as np

from ebmvk.compute.math import (
    EXP2,
    INFINITE_BITS,
    INFINITY,
    LOG2_E,
    MAGNITUDE,
    NAN,
    ONE_BITS,
    PI,
    SIGN,
    _sin_cos,
    clamp,
    exp_parts,
    function,
    is_negative,
    is_zero,
    keep_nan,
    magnitude,
    scale,
    split,
    with_sign,
)
from ebmvk.compute.values import Value, fma, is_nan, polynomial

ERF = (7.80705741e-05, -0.000799788686, 0.00518716453, -0.0268533472, 0.112835787, -0.37612626, 0.128379166)
# erfc(x)·exp(x²): a polynomial in x − 1.5 for x from 1/2 to 2.5; above, up to 10.3, u·P(u − 1/4)
# with u = 1/x
ERFC = (
    3.08642593e-05, -9.6169133e-05, 0.000213529886, -0.000636227196, 0.00189110637, -0.00515788933, 0.0133763701,
    -0.0329286754, 0.0761510804, -0.163623035, 0.321585417,
)  # fmt: skip
ERFC_FAR = (
    0.0634736791, -0.0130620273, 0.374245673, -0.274449348, -0.0275493711, 0.21952562, -0.167788684, -0.119446956,
    0.547997832,
)  # fmt: skip
# erfinv(x)/x with w = −log(1 − x²): a polynomial in w for w < 2.5, in w − 2.5 for w < 5, and in
# sqrt(w) − 3.1575 above
ERFINV = (
    8.77329853e-07, -8.96334222e-06, 3.2645039e-05, -1.58704097e-05, -5.72439894e-05, -0.00237853685, 0.0115623418,
    0.232012197, 0.886226952,
)  # fmt: skip
ERFINV_MIDDLE = (
    6.04440586e-09, 3.45386675e-09, -1.12430698e-07, -3.08926786e-08, 1.11176485e-06, -3.16575483e-06,
    -6.72028364e-06, 0.000217679335, -0.00125079427, -0.00417686719, 0.246639684, 1.50140941,
)  # fmt: skip
ERFINV_TAIL_CENTRE = 3.157533884048462
ERFINV_TAIL = (
    6.23599954e-06, -3.00535776e-05, 9.82761194e-05, -8.21310459e-05, -0.000325604255, 0.00119872019,
    -0.00229027076, 0.0034004834, -0.00483157719, 0.00655408064, 1.00416088, 2.99098229,
)  # fmt: skip
# lgamma(x)/((x − 1)(x − 2)) about 2 for 1 <= x < 3 and about 5.5 for 3 <= x < 8
LGAMMA = (
    0.000122313781, 4.1858957e-06, -0.000435439608, 6.55989643e-05, 0.000442054996, 0.000144854363, -0.00072110258,
    0.000936849916, -0.00201632339, 0.00499333395, -0.0123956138, 0.0329654701, -0.100316897, 0.422784328,
)  # fmt: skip
LGAMMA_MIDDLE = (
    4.11717938e-10, -5.33814715e-10, -5.41737011e-09, -3.57059537e-09, 9.07711524e-08, -2.95251397e-07,
    1.55106841e-06, -1.06163643e-05, 6.89950029e-05, -0.000459804985, 0.00324829761, -0.0253476091, 0.251289785,
)  # fmt: skip
LGAMMA_FAR = (0.000861065462, -0.00277897413, 0.0833333358)
# digamma(x)/(x − root) about 1.5 for 1 <= x < 2; above, (log x − 1/(2x) − digamma x)·x² in 1/x²
DIGAMMA_ROOT, DIGAMMA_ROOT_LOW = 1.4616321325302124, 1.24381499389e-8
DIGAMMA = (
    0.00636408105, -0.016566148, 0.0199401435, -0.0256791282, 0.0402351916, -0.0620760508, 0.0950392112,
    -0.148397475, 0.240540847, -0.423627526, 0.951055884,
)  # fmt: skip
DIGAMMA_FAR = (-0.00270430581, 0.00403242838, -0.00370050687, 0.00393214263, -0.00833192375, 0.0833333135)
LOG_TAIL = (0.23419635, 0.285470903, 0.400001526)

Pair = tuple[Value, Value]

# ---------------------------------------------------- powers, in sums of two floats (after Dekker)


def _cut(a: Value) -> Pair:
    """Two floats of 12 bits each, whose sum is a."""
    high = (a.bits() & 0xFFFFF000).as_float()
    return high, a - high


def _product(a: Value, b: Value) -> Pair:
    """a·b and its rounding error."""
    p = a * b
    (ah, al), (bh, bl) = _cut(a), _cut(b)
    return p, ((ah * bh - p) + ah * bl + al * bh) + al * bl


def _sum(a: Value, b: Value) -> Pair:
    """a + b and its rounding error, for |a| >= |b| or a = 0."""
    s = a + b
    return s, b - (s - a)


def _pair_product(a: Pair, b: Pair) -> Pair:
    p, low = _product(a[0], b[0])
    return _sum(p, low + (a[0] * b[1] + a[1] * b[0]))


def _pair_constant(x: Value, value: float) -> Pair:
    return x.of(value), x.of(value - float(np.float32(value)))


def _log2_pair(x: Value) -> Pair:
    """log2 x of a positive x, with a relative error of about 2^-34."""
    e, m = split(x)
    f = m - 1.0
    g = m + 1.0
    g_low = m - (g - 1.0)
    s = f / g
    p, low = _product(s, g)
    s_pair = _sum(s, (((f - p) - low) - s * g_low) / g)
    z = _pair_product(s_pair, s_pair)
    third = _pair_constant(x, 2 / 3)
    q = _sum(third[0], third[1] + z[0] * polynomial(z[0], *LOG_TAIL))
    u = _pair_product(z, q)
    v = _sum(x.of(2.0), u[0])
    log2_m = _pair_product(_pair_product(s_pair, (v[0], v[1] + u[1])), _pair_constant(x, LOG2_E))
    high, rest = _sum(e.to_float(), log2_m[0])
    return _sum(high, rest + log2_m[1])


def _positive_power(x: Value, y: Value) -> Value:
    """x^y for a positive finite x and a finite y."""
    log2_x = _log2_pair(x)
    y = clamp(y, -(2.0**33), 2.0**33)
    p, low = _product(y, log2_x[0])
    low = low + y * log2_x[1]
    inside = magnitude(p) < 160.0
    p = clamp(p, -160.0, 160.0)
    n = p.raw("Round")
    r = (p - n) + inside.where(low, 0.0)
    return scale(fma(r, polynomial(r, *EXP2), 1.0), n.to_int())


@function
def pow_(x: Value, y: Value) -> Value:
    """x^y; at zeros, infinities and NaN as C's pow."""
    a, size = magnitude(x), magnitude(y)
    zero, infinity, one = x.of(0.0), x.of(INFINITY), x.of(1.0)
    whole = y.raw("Trunc").equals(y) | (size >= 2.0**23)
    odd = whole & (size < 2.0**24) & (y.to_int() & 1).equals(1)
    result = _positive_power(a, y)
    falls = is_negative(y)
    result = is_zero(a).where(falls.where(infinity, zero), result)
    result = a.bits().equals(INFINITE_BITS).where(falls.where(zero, infinity), result)
    shrinks = (a < 1.0) ^ falls
    at_end = a.bits().equals(ONE_BITS).where(one, shrinks.where(zero, infinity))
    result = size.bits().equals(INFINITE_BITS).where(at_end, result)
    finite = ~(a.bits().equals(INFINITE_BITS) | is_zero(a))
    result = (is_negative(x) & finite & ~whole).where(x.of(NAN), result)
    result = (is_negative(x) & odd).where(-result, result)
    result = (is_nan(x) | is_nan(y)).where(x.of(NAN), result)
    return (is_zero(y) | x.bits().equals(ONE_BITS)).where(one, result)


# ------------------------------------------------------------------------------------- remainders


def _fraction(bits: Value) -> tuple[Value, Value]:
    """(exponent, integer) of a positive float integer·2^(exponent − 150), which may be denormal."""
    exponent, digits = bits >> 23, bits & 0x7FFFFF
    denormal = exponent.equals(0)
    return denormal.where(exponent.of(1), exponent).as_int(), denormal.where(digits, digits | 0x800000)


def _assemble(exponent: Value, integer: Value) -> Value:
    """The float integer·2^(exponent − 150), for an integer below 2^24."""
    shift = 23 - integer.raw("FindUMsb")
    final = exponent - shift
    normal = (integer << shift.bits()) + ((final - 1) << 23).bits()
    bits = (final > 0).where(normal, integer << (exponent - 1).bits())
    return integer.equals(0).where(integer, bits).as_float()


@function
def fmod(x: Value, y: Value) -> Value:
    """The exact remainder of x/y rounded towards zero, by long division, 8 bits per step."""
    a, b = magnitude(x).bits(), magnitude(y).bits()
    (ea, ma), (eb, mb) = _fraction(a), _fraction(b)
    mb = mb.equals(0).where(mb.of(1), mb)
    left = (ea - eb).raw("SMax", 0)
    rest = ma % mb
    for _ in range(32):  # 253 bits at most
        step = left.raw("SMin", 8)
        rest = (rest << step.bits()) % mb
        left = left - step
    result = (a < b).where(a.as_float(), _assemble(eb, rest))
    bad = (a >= INFINITE_BITS) | (b > INFINITE_BITS) | b.equals(0)
    return bad.where(x.of(NAN), with_sign(result, x))


@function
def remainder(x: Value, y: Value) -> Value:
    """fmod, with the sign of y."""
    rest = fmod(x, y)
    other = ~is_zero(rest) & ((rest.bits() ^ y.bits()).as_int() < 0)
    return other.where(rest + y, rest)


# -------------------------------------------------------------------------------- error functions


def _erf_near(x: Value) -> Value:
    """erf x for |x| < 1."""
    return fma(x, polynomial(x * x, *ERF), x)


def _erfc_far(a: Value) -> Value:
    """erfc a for a >= 1/2. a² is computed in two parts, because exp would amplify its rounding
    error."""
    a = clamp(a, 0.5, 11.0)
    high = (a.bits() & 0xFFFFF000).as_float()
    n, p = exp_parts(-(high * high), -((a - high) * (a + high)))
    u = 1.0 / a
    scaled = (a < 2.5).where(polynomial(a - 1.5, *ERFC), u * polynomial(u - 0.25, *ERFC_FAR))
    return scale(scaled * (p + 1.0), n)


@function
def erf(x: Value) -> Value:
    a = magnitude(x)
    result = (a < 1.0).where(_erf_near(a), 1.0 - _erfc_far(a))
    return keep_nan(x, with_sign(result, x))


@function
def erfc(x: Value) -> Value:
    a = magnitude(x)
    far = _erfc_far(a)
    result = (a < 0.5).where(1.0 - _erf_near(x), is_negative(x).where(2.0 - far, far))
    return keep_nan(x, result)


@function
def erfinv(x: Value) -> Value:
    a = magnitude(x)
    w = -((1.0 - a) * (1.0 + a)).call("log")
    near = polynomial(w, *ERFINV)
    middle = polynomial(w - 2.5, *ERFINV_MIDDLE)
    far = polynomial(w.raw("Sqrt") - ERFINV_TAIL_CENTRE, *ERFINV_TAIL)
    result = x * (w < 2.5).where(near, (w < 5.0).where(middle, far))
    result = a.bits().equals(ONE_BITS).where(with_sign(x.of(INFINITY), x), result)
    return (a.bits() > ONE_BITS).where(x.of(NAN), result)


# ------------------------------------------------------------------------------------------ gamma


def _sin_pi(r: Value) -> tuple[Value, Value]:
    """(|sin|, |cos|) of pi·r for |r| <= 1/2."""
    a = magnitude(r)
    near = a < 0.25
    s, c = _sin_cos(near.where(a, 0.5 - a) * PI)
    return near.where(s, c), near.where(c, s)


def _lgamma_positive(a: Value) -> Value:
    """lgamma a for a >= 0: below 1 by lgamma(a + 1) − log a, and from 8 on by Stirling's series."""
    low = a < 1.0
    t = low.where(a, a - 1.0)
    near = t * (t - 1.0) * polynomial(low.where(a + 1.0, a) - 2.0, *LGAMMA)
    logarithm = a.call("log")
    near = low.where(near - logarithm, near)
    middle = (a - 1.0) * (a - 2.0) * polynomial(a - 5.5, *LGAMMA_MIDDLE)
    inverse = 1.0 / a
    far = (a - 0.5) * (logarithm - 1.0) + fma(inverse, polynomial(inverse * inverse, *LGAMMA_FAR), 0.418938533)
    return (a < 3.0).where(near, (a < 8.0).where(middle, far))


@function
def lgamma(x: Value) -> Value:
    """log |gamma(x)|. Below 0 it is computed by reflection, with an error of 4 ULP of the sum of
    both terms' sizes."""
    a = magnitude(x)
    positive = _lgamma_positive(a)
    r = x - x.raw("Round")
    sine = _sin_pi(r)[0]
    reflected = (1.14472988585 - (a * sine).call("log")) - positive
    reflected = (a < 2.0**-12).where(fma(x, -0.577215665, -a.call("log")), reflected)
    result = is_negative(x).where(is_zero(sine).where(x.of(INFINITY), reflected), positive)
    result = (is_zero(a) | a.bits().equals(INFINITE_BITS)).where(x.of(INFINITY), result)
    return keep_nan(x, result)


def _digamma_positive(a: Value) -> Value:
    low = a < 1.0
    t = low.where(a + 1.0, a)
    near = ((t - DIGAMMA_ROOT) - DIGAMMA_ROOT_LOW) * polynomial(t - 1.5, *DIGAMMA)
    inverse = 1.0 / a
    z = inverse * inverse
    far = (a.call("log") - 0.5 * inverse) - z * polynomial(z, *DIGAMMA_FAR)
    return low.where(near - inverse, (a < 2.0).where(near, far))


@function
def digamma(x: Value) -> Value:
    """The derivative of lgamma; −infinity at 0, infinity at −0, NaN at negative integers. Below 0
    it is computed by reflection, with an error of 4 ULP of the sum of both terms' sizes."""
    negative = is_negative(x)
    positive = _digamma_positive(negative.where(1.0 - x, x))
    r = x - x.raw("Round")
    sine, cosine = _sin_pi(r)
    cotangent = with_sign(PI * (cosine / sine), r)
    result = negative.where(is_zero(r).where(x.of(NAN), positive - cotangent), positive)
    infinite = x.bits().equals(INFINITE_BITS).where(x.of(INFINITY), result)
    at_zero = ((x.bits() & SIGN) ^ (SIGN | INFINITE_BITS)).as_float()
    result = is_zero(x).where(at_zero, infinite)
    return keep_nan(x, (negative & ((x.bits() & MAGNITUDE).equals(INFINITE_BITS))).where(x.of(NAN), result))
