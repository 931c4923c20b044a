// Does as many fused multiply-adds as the device can: 16 independent sums per invocation, and no
// reads in the loop.
#version 450
#include "interface.glsl"

#define ADD_ALL a = fma(a, factor, term); b = fma(b, factor, term); c = fma(c, factor, term); d = fma(d, factor, term);

void main() {
    uint n = gl_GlobalInvocationID.x;
    if (n >= params.rows) return;
    // Read from memory, so that no compiler can compute the sums in advance; they tend to term / (1
    // - factor).
    vec4 factor = vec4(params.factor);
    vec4 term = vec4(params.term);
    vec4 a = vec4(float(n & 3u)), b = a + 1.0, c = a + 2.0, d = a + 3.0;
    for (uint round = 0u; round < rounds; ++round) {
        ADD_ALL ADD_ALL ADD_ALL ADD_ALL ADD_ALL ADD_ALL ADD_ALL ADD_ALL
    }
    result[n] = a + b + c + d;
}
