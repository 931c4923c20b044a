// An upper bound of each query's norm, one row per workgroup. It is infinite if a sum might overflow,
// so that nothing counts as proved (append_scores.glsl). 1 % covers the roundings of the sum and of
// its root; the last term covers squares that are too small for a float.
#version 450
#include "interface.glsl"
#include "bits.glsl"
#include "reduce.glsl"

void main() {
    uint row = gl_WorkGroupID.x;
    if (row >= params.rows) return;
    float sum = 0.0;
    for (uint q = gl_LocalInvocationIndex; q < quads; q += GROUP) {
        vec4 query = queries[row * quads + q];
        sum += dot(query, query);
    }
    sum = group_sum(sum);
    if (gl_LocalInvocationIndex != 0u) return;
    bool bounded = !is_nan(sum) && sum < 1e37;
    norms[row] = bounded ? fma(1.01, sqrt(sum), 1e-15) : uintBitsToFloat(INFINITE_BITS);
}
