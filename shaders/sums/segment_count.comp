// Counts the segments that begin in a workgroup's share of the sorted entries. The counts of all
// workgroups are followed by a 0, so that scan_counts puts the number of segments there. Rows are
// entries.
#version 450
#include "interface.glsl"
#include "segments.glsl"

void main() {
    uvec2 own = own_share(params.rows);
    uint begun = 0u;
    for (uint place = own.x; place < own.y; ++place)
        if (begins_segment(place)) ++begun;
    uint before = sum_before(begun);
    if (gl_LocalInvocationIndex == GROUP - 1u) counts[gl_WorkGroupID.x] = before + begun;
    if (gl_GlobalInvocationID.x == 0u) counts[gl_NumWorkGroups.x] = 0u;
}
