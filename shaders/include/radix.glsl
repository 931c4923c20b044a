// One pass of a stable radix sort: counts the digits of the keys. Each invocation counts the digits
// in its own share of the entries, so nothing is atomic, and the order is kept.
//
// interface.glsl must define params, keys, order; the push constants per_key, shift, unsorted; and
// the specialisation constant DIGITS, a power of two. GROUP x DIGITS is at most 2048.
#ifndef EBMVK_RADIX_GLSL
#define EBMVK_RADIX_GLSL
#include "share.glsl"

// The count of invocation i and digit d is at i DIGITS + d, so an invocation's loop over digits
// passes through memory in order. The size is fixed because some drivers don't size shared arrays
// by specialisation constants.
shared uint digit_count[2048];

uint entry_at(uint place) { return unsorted != 0u ? place : order[place]; }

uint digit_of(uint entry) { return (keys[entry / per_key] >> shift) & (DIGITS - 1u); }

void count_digits(uvec2 own) {
    uint mine = gl_LocalInvocationIndex * DIGITS;
    for (uint digit = 0u; digit < DIGITS; ++digit) digit_count[mine + digit] = 0u;
    for (uint place = own.x; place < own.y; ++place) ++digit_count[mine + digit_of(entry_at(place))];
    barrier();
}

#endif
