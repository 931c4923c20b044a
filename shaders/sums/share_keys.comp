// Keys and weights of entries with shares: an entry without a share gets the key `limit`, which
// belongs to no point. Rows are entries.
#version 450
#include "interface.glsl"

void main() {
    uint entry = gl_GlobalInvocationID.x + gl_GlobalInvocationID.y * gl_NumWorkGroups.x * GROUP;
    if (entry >= params.rows) return;
    uint share = shares[entry];  // as bits: drivers may take a share below 2^-126 for 0
    keys[entry] = share != 0u && share < 0x80000000u ? ids[entry] : limit;
    weights[entry] = vec2(uintBitsToFloat(share), 0.0);
}
