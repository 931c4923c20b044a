// Merges pairs of neighbouring sorted runs of `run` keys in rows of `count`. Each invocation finds
// the place of one key, by the number of keys before it in its own run and in the other run. Among
// equal keys, those of the left run come first. Of each row, the first `kept` places are written.
// FINAL: write the values, not their keys.
#version 450
#include "interface.glsl"
#include "row_keys.glsl"

void main() {
    uint row = gl_WorkGroupID.y + gl_WorkGroupID.z * gl_NumWorkGroups.y;
    uint me = gl_WorkGroupID.x * GROUP + gl_LocalInvocationIndex;
    if (row >= rows || me >= count) return;
    uint base = row * count;
    uint first = me / (2u * run) * (2u * run);
    uint middle = min(first + run, count);
    bool left = me < middle;
    uint key = keys[base + me];
    uint low = left ? middle : first;
    uint high = left ? min(first + 2u * run, count) : middle;
    uint begin = low;
    while (low < high) {
        uint half_way = low + (high - low) / 2u;
        uint other = keys[base + half_way];
        if (other < key || (other == key && !left))
            low = half_way + 1u;
        else
            high = half_way;
    }
    uint place = first + (me - (left ? first : middle)) + (low - begin);
    if (place >= kept) return;
    uint id = ids[base + me];
    sorted[sorted_offset + row * kept + place] = FINAL != 0u ? values[start_of(row) + id * stride] : key;
    sorted_ids[ids_offset + row * kept + place] = id;
}
