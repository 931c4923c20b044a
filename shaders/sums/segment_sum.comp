// sums_s += weights_e.x a_row + weights_e.y b_row over the entries e of segment s, one entry after the
// other: no atomics, and cutting the entries into other windows gives the same bits. Workgroups take
// turns with the segments. Entry e belongs to row e / per_row of a and b. Segment s has the entries
// at the places from starts_s up to starts_(s+1) - 1. sums has space for `room` segments. Rows
// are segments.
#version 450
#include "interface.glsl"
#include "window.glsl"

void main() {
    uint groups = gl_NumWorkGroups.x * gl_NumWorkGroups.y;
    uint count = min(room, params.rows - min(params.rows, window[2]));
    for (uint at = gl_WorkGroupID.x + gl_WorkGroupID.y * gl_NumWorkGroups.x; at < count; at += groups) {
        uvec2 places = places_of(window[2] + at);
        for (uint q = gl_LocalInvocationIndex; q < quads; q += GROUP) {
            vec4 sum = window[3] != 0u ? vec4(0.0) : sums[at * quads + q];
            for (uint i = places.x; i < places.y; ++i) {
                uint entry = entries[i];
                uint row = (entry / per_row) * quads + q;
                vec2 weight = weights[entry];
                sum += weight.x * a[row] + weight.y * b[row];
            }
            sums[at * quads + q] = sum;
        }
    }
}
