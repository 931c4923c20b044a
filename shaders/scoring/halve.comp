// Rounds rows to halves, one row per workgroup, and computes each row's radius: a bound, per unit
// of |q|, on how far the score from the halves may be from the score of the row. The bound uses the
// halves as this device reads them, so it holds however the device rounds and treats subnormal
// numbers.
#version 450
#include "interface.glsl"
#include "math.glsl"
#include "reduce.glsl"

void main() {
    uint row = gl_WorkGroupID.x + gl_WorkGroupID.y * gl_NumWorkGroups.x;
    if (row >= params.rows) return;
    float sum = 0.0;
    for (uint q = gl_LocalInvocationIndex; q < quads; q += GROUP) {
        vec4 point = points[(first_point + row) * quads + q];
        uvec2 packed = uvec2(packHalf2x16(point.xy), packHalf2x16(point.zw));
        halves[(first_half + row) * quads + q] = packed;
        vec4 error = point - vec4(unpackHalf2x16(packed.x), unpackHalf2x16(packed.y));  // exact
        sum += dot(error, error);
    }
    sum = group_sum(sum);
    // 1 % covers the roundings of this sum and of its root. A sum of m products in float32 is off
    // by at most 2 m 2^-24 |q||p| if each product is rounded before it is added. There are two such
    // sums, and a margin for the roundings of the weight and for |p| = 1.001.
    if (gl_LocalInvocationIndex == 0u)
        radius[first + row] = 1.01 * (sqrt(sum) + (16.0 * float(quads) + 16.0) * 5.9604645e-8);
}
