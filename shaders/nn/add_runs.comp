// Sums of rows with the same key: sum_key = the sum of source_(order_p) over the places p with that
// key, in their order. `keys` are sorted, `count` of them; those from `limit` on are left out. A
// workgroup has GROUP columns.
//
// each = 0: a workgroup has one run of equal keys; workgroups of places where no run begins do
// nothing. Otherwise a workgroup has a chunk of `each` places. It writes the sums of runs that lie
// within its chunk. For add_parts it writes the part of a run that began earlier to partial_(2 chunk),
// and the part of a run that begins here and continues in the next chunk to partial_(2 chunk + 1).
#version 450
#include "interface.glsl"

bool begins(uint place) { return place == 0u || keys[place - 1u] != keys[place]; }

void main() {
    uint column = gl_WorkGroupID.x * GROUP + gl_LocalInvocationIndex;
    uint chunk = gl_WorkGroupID.y + gl_WorkGroupID.z * gl_NumWorkGroups.y;
    uint first = chunk * max(each, 1u);
    if (first >= count || column >= width) return;
    bool begun = begins(first);
    if (each == 0u && !begun) return;
    uint end = each == 0u ? count : min(first + each, count);
    float sum = 0.0;
    for (uint place = first; place < end; ++place) {
        uint key = keys[place];
        if (key >= limit) return;
        sum += source[source_offset + order[place] * source_row + column * source_column];
        bool last = place + 1u == count || keys[place + 1u] != key;
        if (!last && place + 1u < end) continue;
        if (begun && last)
            sums[sums_offset + key * width + column] = sum;
        else
            partial[(2u * chunk + (begun ? 1u : 0u)) * width + column] = sum;
        if (each == 0u) return;
        begun = true;
        sum = 0.0;
    }
}
