// The inverses of symmetric positive definite matrices in pairs of float32, by Gauss-Jordan steps
// without exchanges. One workgroup per matrix.
#version 450
#include "interface.glsl"
#include "pair.glsl"

const uint N = UNITS;

shared vec2 held[N * N];

void main() {
    uint me = gl_LocalInvocationIndex, step = gl_WorkGroupSize.x, first = gl_WorkGroupID.x * N * N;
    for (uint i = me; i < N * N; i += step) held[i] = vec2(high[high_offset + first + i], low[low_offset + first + i]);
    for (uint k = 0u; k < N; ++k) {
        barrier();
        vec2 factor = over(vec2(1.0, 0.0), held[k * N + k]);
        for (uint at = me; at < N * N; at += step) {
            uint i = at / N, j = at % N;
            if (i != k && j != k)
                held[at] = minus(held[at], times(times(held[i * N + k], held[k * N + j]), factor));
        }
        barrier();
        for (uint i = me; i < N; i += step) {
            if (i == k) continue;
            held[i * N + k] = -times(held[i * N + k], factor);
            held[k * N + i] = times(held[k * N + i], factor);
        }
        barrier();
        if (me == 0u) held[k * N + k] = factor;
    }
    barrier();
    for (uint i = me; i < N * N; i += step) {
        result_high[result_high_offset + first + i] = held[i].x;
        result_low[result_low_offset + first + i] = held[i].y;
    }
}
