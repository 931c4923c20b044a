// totals_s += weights_e.x over the entries e of segment s, one after the other. One segment per
// invocation; otherwise as segment_sum. Rows are segments.
#version 450
#include "interface.glsl"
#include "window.glsl"

void main() {
    uint at = gl_GlobalInvocationID.x + gl_GlobalInvocationID.y * gl_NumWorkGroups.x * GROUP;
    uint segment = window[2] + at;
    if (at >= room || segment >= params.rows) return;
    uvec2 places = places_of(segment);
    float total = window[3] != 0u ? 0.0 : totals[at];
    for (uint i = places.x; i < places.y; ++i) total += weights[entries[i]].x;
    totals[at] = total;
}
