// sums_s += weights_e.x a_row + weights_e.y b_row over the entries e of segment s. One segment per
// workgroup, one entry after the other: no atomics, and cutting the entries into other dispatches
// gives the same bits. Entry e belongs to row e / per_row of a and b. Segment s has the entries
// from starts_s up to starts_(s+1) - 1.
#version 450
#include "interface.glsl"

void main() {
    uint segment = gl_WorkGroupID.x;
    if (segment >= params.rows) return;
    uint begin = starts[segment];
    uint end = starts[segment + 1u];
    for (uint q = gl_LocalInvocationIndex; q < quads; q += GROUP) {
        vec4 sum = sums[segment * quads + q];
        for (uint i = begin; i < end; ++i) {
            uint entry = entries[i];
            uint at = (entry / per_row) * quads + q;
            vec2 weight = weights[entry];
            sum += weight.x * a[at] + weight.y * b[at];
        }
        sums[segment * quads + q] = sum;
    }
}
