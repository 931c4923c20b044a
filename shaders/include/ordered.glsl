// Scores in order, and a sort of up to `SORTED` of them in shared memory: by score, ties by lower id.
#ifndef EBMVK_ORDERED_GLSL
#define EBMVK_ORDERED_GLSL
#include "bits.glsl"

shared uvec2 best[SORTED];  // ordered score, id

const uvec2 NOTHING = uvec2(0u, 0xffffffffu);  // comes after every score

// The bits of a float as an unsigned number with the same order; -0 counts as 0, NaN as the lowest.
uint ordered_bits(uint bits) {
    if ((bits & ~SIGN_BIT) > INFINITE_BITS) return 0u;
    return sortable(bits == SIGN_BIT ? 0u : bits);
}

uint ordered(float value) { return ordered_bits(floatBitsToUint(value)); }

float unordered(uint key) {
    return uintBitsToFloat((key & SIGN_BIT) != 0u ? key & ~SIGN_BIT : ~key);
}

bool comes_before(uvec2 a, uvec2 b) { return a.x > b.x || (a.x == b.x && a.y < b.y); }

// Sorts the first `room` places, a power of two. Places without an entry must be NOTHING.
void sort_best(uint room) {
    for (uint size = 2u; size <= room; size <<= 1)
        for (uint reach = size >> 1; reach > 0u; reach >>= 1) {
            barrier();
            for (uint n = gl_LocalInvocationIndex; n < room / 2u; n += GROUP) {
                uint low = 2u * n - (n & (reach - 1u));
                uint high = low + reach;
                bool forward = (low & size) == 0u;
                if (comes_before(best[high], best[low]) == forward) {
                    uvec2 swap = best[low];
                    best[low] = best[high];
                    best[high] = swap;
                }
            }
        }
    barrier();
}

#endif
