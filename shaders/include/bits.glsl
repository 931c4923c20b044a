// Tests of a float's bits. Vulkan lets a compiler assume that no float is NaN and that -0 is 0, so it
// may drop `isnan` and comparisons that test for them. It can't drop these functions.
#ifndef EBMVK_BITS_GLSL
#define EBMVK_BITS_GLSL

const uint INFINITE_BITS = 0x7f800000u;
const uint SIGN_BIT = 0x80000000u;

bool is_nan(float x) { return (floatBitsToUint(x) & ~SIGN_BIT) > INFINITE_BITS; }

// The bits of a float as an unsigned number with the same order, in which -0 is just below 0. NaN may
// be anywhere: ordered.glsl has a place for it.
uint sortable(uint bits) { return bits ^ (uint(int(bits) >> 31) | SIGN_BIT); }

#endif
