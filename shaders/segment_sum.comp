// sums_s += weights_e.x a_row + weights_e.y b_row over the entries e of segment s, one segment per workgroup, one entry
// after the other: no atomics, and the same bits however the entries are cut into dispatches. Entry e is of row
// e / per_row of a and b. Those of segment s lie from starts_s to before starts_(s+1). params: segments.
#version 450
#include "interface.glsl"

void main() {
    uint segment = gl_WorkGroupID.x;
    if (segment >= params[0]) return;
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
