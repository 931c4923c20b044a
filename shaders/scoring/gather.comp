// Copies the candidates in one shard of the points to a table of their own, one row per workgroup;
// needed if the points span several storage-buffer ranges. The shard has the ids from `first` up to
// `end` - 1. Each row has `per_row` candidates. If `blocks` is not 0, the first row of ids to read is
// `params.first_row`.
#version 450
#include "interface.glsl"

void main() {
    uint row = gl_WorkGroupID.x + gl_WorkGroupID.y * gl_NumWorkGroups.x;
    if (row >= params.rows * per_row) return;
    uint id = ids[blocks != 0u ? params.first_row * per_row + row : row];
    if (id < first || id >= end) return;
    for (uint q = gl_LocalInvocationIndex; q < quads; q += GROUP)
        rows[row * quads + q] = points[(id - first) * quads + q];
}
