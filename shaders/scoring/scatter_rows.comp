// Replaces rows of points, one row per workgroup, by those of a table, which begins with row `from`.
// The shard has the ids from `first` up to `end` - 1; `words` is the size of a row. No id may occur
// twice.
#version 450
#include "interface.glsl"

void main() {
    uint at = gl_WorkGroupID.x + gl_WorkGroupID.y * gl_NumWorkGroups.x;
    if (at >= room || from + at >= params.rows) return;
    uint id = ids[from + at];
    if (id < first || id >= end) return;
    for (uint w = gl_LocalInvocationIndex; w < words; w += GROUP)
        points[(id - first) * words + w] = rows[at * words + w];
}
