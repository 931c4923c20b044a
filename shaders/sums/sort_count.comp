// Counts the digits of the keys of a workgroup's share of the entries; count_dw of digit d and
// workgroup w is at d workgroups + w. Rows are entries.
#version 450
#include "interface.glsl"
#include "radix.glsl"

void main() {
    count_digits(own_share(params.rows));
    for (uint digit = gl_LocalInvocationIndex; digit < DIGITS; digit += GROUP) {
        uint sum = 0u;
        for (uint i = 0u; i < GROUP; ++i) sum += digit_count[i * DIGITS + digit];
        counts[digit * gl_NumWorkGroups.x + gl_WorkGroupID.x] = sum;
    }
}
