// Replaces each of `total` counts by the sum of those before it. One workgroup.
#version 450
#include "interface.glsl"
#include "prefix.glsl"
#include "share.glsl"

void main() {
    uvec2 own = own_share(total);
    uint sum = 0u;
    for (uint i = own.x; i < own.y; ++i) sum += counts[i];
    uint next = sum_before(sum);
    for (uint i = own.x; i < own.y; ++i) {
        uint count = counts[i];
        counts[i] = next;
        next += count;
    }
}
