// Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011) and normals
// from it.
#ifndef EBMVK_PHILOX_GLSL
#define EBMVK_PHILOX_GLSL
#include "math.glsl"

uvec4 philox(uvec4 counter, uvec2 key) {
    for (int i = 0; i < 10; ++i) {
        uint high0, low0, high1, low1;
        umulExtended(0xD2511F53u, counter.x, high0, low0);
        umulExtended(0xCD9E8D57u, counter.z, high1, low1);
        counter = uvec4(high1 ^ counter.y ^ key.x, low1, high0 ^ counter.w ^ key.y, low0);
        key += uvec2(0x9E3779B9u, 0xBB67AE85u);
    }
    return counter;
}

// (bits + 1/2) 2^-32. It is kept below 1, which rounding to float32 could reach: log 1 is 0.
float open_uniform(uint bits) {
    precise float u = (float(bits) + 0.5) * 2.3283064365386963e-10;
    return clamp(u, 1.1641532182693481e-10, 0.99999994);
}

// Box and Muller (1958).
vec2 normal_pair(uint bits0, uint bits1) {
    precise float radius = sqrt(-2.0 * log_accurate(open_uniform(bits0)));
    return radius * cos_sin_turn(open_uniform(bits1));
}

// Four standard normals from one counter.
vec4 normals(uvec4 counter, uvec2 key) {
    uvec4 bits = philox(counter, key);
    return vec4(normal_pair(bits.x, bits.y), normal_pair(bits.z, bits.w));
}

#endif
