// Moves entries to their places by one digit of their keys. bases: the first place for each digit
// and workgroup, as sort_count and scan_counts leave them. Rows are entries.
#version 450
#include "interface.glsl"
#include "radix.glsl"

void main() {
    uvec2 own = own_share(params.rows);
    count_digits(own);
    for (uint digit = gl_LocalInvocationIndex; digit < DIGITS; digit += GROUP) {
        uint next = bases[digit * gl_NumWorkGroups.x + gl_WorkGroupID.x];
        for (uint i = 0u; i < GROUP; ++i) {
            uint count = digit_count[i * DIGITS + digit];
            digit_count[i * DIGITS + digit] = next;
            next += count;
        }
    }
    barrier();
    uint mine = gl_LocalInvocationIndex * DIGITS;
    for (uint place = own.x; place < own.y; ++place) {
        uint entry = entry_at(place);
        sorted[digit_count[mine + digit_of(entry)]++] = entry;
    }
}
