// Sorts blocks of BLOCK values of rows, and keeps the first `kept` of each. Equal values stay in the
// order of their ids, which are their places in the row. A bitonic network, because its order of
// comparisons is fixed.
//
// PAIRS: the values are keys and ids that this kernel wrote earlier, `count` per row. FINAL: write
// the values themselves, not their keys. Row r of the results has `pitch` places, from r pitch on; a
// block without enough values fills its places with NONE.
#version 450
#include "interface.glsl"
#include "row_keys.glsl"

shared uvec2 pair[BLOCK];  // key, id

bool comes_before(uvec2 a, uvec2 b) { return a.x < b.x || (a.x == b.x && a.y < b.y); }

uvec2 pair_at(uint row, uint place) {
    if (place >= count) return uvec2(NONE);
    if (PAIRS != 0u) return uvec2(keys[row * count + place], ids[row * count + place]);
    return uvec2(key_of(values[start_of(row) + place * stride]), place);
}

void main() {
    uint row = gl_WorkGroupID.y + gl_WorkGroupID.z * gl_NumWorkGroups.y;
    if (row >= rows) return;
    uint first = gl_WorkGroupID.x * BLOCK;
    for (uint i = gl_LocalInvocationIndex; i < BLOCK; i += GROUP) pair[i] = pair_at(row, first + i);
    for (uint size = 2u; size <= BLOCK; size <<= 1)
        for (uint reach = size >> 1; reach > 0u; reach >>= 1) {
            barrier();
            for (uint n = gl_LocalInvocationIndex; n < BLOCK / 2u; n += GROUP) {
                uint low = 2u * n - (n & (reach - 1u));
                uint high = low + reach;
                bool forward = (low & size) == 0u;
                uvec2 a = pair[low];
                uvec2 b = pair[high];
                if (comes_before(b, a) == forward) {
                    pair[low] = b;
                    pair[high] = a;
                }
            }
        }
    barrier();
    uint room = pitch - gl_WorkGroupID.x * kept;
    for (uint i = gl_LocalInvocationIndex; i < min(kept, room); i += GROUP) {
        uint at = row * pitch + gl_WorkGroupID.x * kept + i;
        sorted[sorted_offset + at] = FINAL != 0u ? values[start_of(row) + pair[i].y * stride] : pair[i].x;
        sorted_ids[ids_offset + at] = pair[i].y;
    }
}
