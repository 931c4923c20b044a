// Writes the start, the key and the token of each segment. The last start is followed by the end of
// the last segment. bases: the number of segments before each workgroup, then the number of all.
// found: the number of segments. Rows are entries.
#version 450
#include "interface.glsl"
#include "segments.glsl"

void main() {
    uvec2 own = own_share(params.rows);
    uint all = bases[gl_NumWorkGroups.x];
    uint begun = 0u;
    for (uint place = own.x; place < own.y; ++place)
        if (begins_segment(place)) ++begun;
    uint segment = bases[gl_WorkGroupID.x] + sum_before(begun);
    for (uint place = own.x; place < own.y; ++place) {
        if (begins_segment(place)) {
            uint entry = order[place];
            starts[segment] = place;
            segment_keys[segment] = keys[entry];
            if (per_token != 0u) segment_tokens[segment] = tokens[entry / per_token];
            ++segment;
        }
        if (in_segment(place) && (place + 1u == params.rows || !in_segment(place + 1u))) starts[all] = place + 1u;
    }
    if (gl_GlobalInvocationID.x == 0u) found[0] = all;
}
