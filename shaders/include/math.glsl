// Elementary functions that are accurate to a few units in the last place (ULP) in float32. The
// built-in functions may be far worse, and on some drivers are: log(1 - 2^-24) is 73 % off, exp 17
// ULP. Uses minimax polynomials after Cephes (Moshier) and reduces arguments in two or three exact
// parts (Cody and Waite). `precise` doesn't reach into an `fma`, so only polynomials are written with
// it; there it doesn't matter if a device rounds once or twice. Both sides of a condition are computed
// if that is cheaper than a branch.
#ifndef EBMVK_MATH_GLSL
#define EBMVK_MATH_GLSL
#include "bits.glsl"

#define INFINITE uintBitsToFloat(INFINITE_BITS)
const float PI = 3.14159265358979324;
const float HALF_PI = 1.57079632679489662;

// e^x. Below -87.3, where the result would be denormal: 0. Above 88.72: infinite.
float exp_accurate(float x) {
    precise float n = roundEven(x * 1.44269504088896341);
    precise float r = x - n * 0.693359375;  // exact: 9 bits times at most 8
    r = r - n * -2.12194440e-4;
    precise float p = fma(1.9875691500e-4, r, 1.3981999507e-3);
    p = fma(p, r, 8.3334519073e-3);
    p = fma(p, r, 4.1665795894e-2);
    p = fma(p, r, 1.6666665459e-1);
    p = fma(p, r, 5.0000001201e-1);
    p = fma(p, r * r, r);
    int half_n = int(n) >> 1;  // two factors, because 2^128 isn't a float
    precise float value =
        (p + 1.0) * uintBitsToFloat(uint(half_n + 127) << 23) * uintBitsToFloat(uint(int(n) - half_n + 127) << 23);
    return x < -87.3 ? 0.0 : x > 88.72 ? INFINITE : value;
}

// Natural logarithm of a normal positive float; -infinite at 0.
float log_accurate(float x) {
    uint bits = floatBitsToUint(x);
    int e = int(bits >> 23) - 126;
    precise float m = uintBitsToFloat((bits & 0x007fffffu) | 0x3f000000u);  // [1/2, 1)
    bool low = m < 0.707106781186547524;
    e = low ? e - 1 : e;
    m = low ? m + m : m;
    precise float z = m - 1.0;
    precise float z2 = z * z;
    precise float p = fma(7.0376836292e-2, z, -1.1514610310e-1);
    p = fma(p, z, 1.1676998740e-1);
    p = fma(p, z, -1.2420140846e-1);
    p = fma(p, z, 1.4249322787e-1);
    p = fma(p, z, -1.6668057665e-1);
    p = fma(p, z, 2.0000714765e-1);
    p = fma(p, z, -2.4999993993e-1);
    p = fma(p, z, 3.3333331174e-1);
    precise float y = p * z * z2 + float(e) * -2.12194440e-4 - 0.5 * z2;
    precise float value = (z + y) + float(e) * 0.693359375;
    return x <= 0.0 ? -INFINITE : value;
}

// (cos, sin) of r + quadrant * pi/2, |r| <= pi/4.
vec2 cos_sin_reduced(float r, int quadrant) {
    precise float z = r * r;
    precise float s = fma(fma(fma(-1.9515295891e-4, z, 8.3321608736e-3), z, -1.6666654611e-1) * z, r, r);
    precise float c = fma(fma(2.443315711809948e-5, z, -1.388731625493765e-3), z, 4.166664568298827e-2) * z * z;
    c = (c - 0.5 * z) + 1.0;
    vec2 cs = (quadrant & 1) != 0 ? vec2(-s, c) : vec2(c, s);
    return (quadrant & 2) != 0 ? -cs : cs;
}

// (cos x, sin x) for |x| <= 8192.
vec2 cos_sin(float x) {
    precise float n = roundEven(x * 0.636619772367581343);
    precise float r = x - n * 1.5703125;
    r = r - n * 4.837512969970703125e-4;
    r = r - n * 7.54978995489188216e-8;
    return cos_sin_reduced(r, int(n));
}

// (cos, sin) of a whole turn times u, 0 <= u <= 1: the reduction is exact.
vec2 cos_sin_turn(float u) {
    precise float quarters = 4.0 * u;
    precise float n = roundEven(quarters);
    return cos_sin_reduced((quarters - n) * HALF_PI, int(n));
}

// sin(x)/x; uses the series near 0, where the quotient is 0/0.
float sinc(float x) {
    precise float z = x * x;
    if (z < 0.01) return 1.0 - z * (1.0 / 6.0 - z * (1.0 / 120.0 - z * (1.0 / 5040.0)));
    return cos_sin(x).y / x;
}

// Arc tangent of y/x in the right quadrant; 0 at (0, 0).
float atan2_accurate(float y, float x) {
    float ay = abs(y);
    float ax = abs(x);
    float top = max(ax, ay);
    if (top == 0.0) return 0.0;
    precise float t = min(ax, ay) / top;
    precise float base = 0.0;
    if (t > 0.414213562373095049) {  // tan(pi/8)
        base = 0.785398163397448310;
        t = (t - 1.0) / (t + 1.0);
    }
    precise float z = t * t;
    precise float a =
        (((8.05374449538e-2 * z - 1.38776856032e-1) * z + 1.99777106478e-1) * z - 3.33329491539e-1) * z * t + t;
    a = base + a;
    if (ay > ax) a = HALF_PI - a;
    if (x < 0.0) a = PI - a;
    return y < 0.0 ? -a : a;
}

// 1/sqrt(n) with one Newton step on top of the built-in, which may be 2 ULP off.
float inverse_sqrt(float n) {
    precise float s = inversesqrt(n);
    return s * (1.5 - 0.5 * (n * s) * s);
}

#endif
