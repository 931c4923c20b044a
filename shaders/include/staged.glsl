// Rows of points, one for each invocation of the workgroup, passed through shared memory DEPTH
// quads at a time.
//
// One invocation adds a point's products in the order of coordinates, so neighbours need different
// rows, and reading these directly would give scattered loads of 16 bytes. Instead, DEPTH
// neighbours read DEPTH consecutive quads, in float32 a whole cache line. Rows are DEPTH + 1 quads
// apart: 9 is odd, so the quads that neighbours read at once (8 of 16 bytes, or 16 of 8) are in
// different banks. 64 invocations share 9.5 KiB. Every device has that much, and a GPU has room for
// a dozen workgroups, which hides the wait between loads and barrier.
#ifndef EBMVK_STAGED_GLSL
#define EBMVK_STAGED_GLSL
#include "quad.glsl"

const uint DEPTH = 8u;
const uint NO_ROW = 0xffffffffu;

shared uint staged_row[GROUP];  // first quad of the row of each invocation; NO_ROW: none
shared QUAD staged[GROUP * (DEPTH + 1u)];

void load_stage(uint first_quad) {
    for (uint n = gl_LocalInvocationIndex; n < GROUP * DEPTH; n += GROUP) {
        uint row = n / DEPTH;
        uint q = first_quad + n % DEPTH;
        staged[row * (DEPTH + 1u) + n % DEPTH] =
            q < quads && staged_row[row] != NO_ROW ? points[staged_row[row] + q] : QUAD(0);
    }
}

vec4 staged_quad(uint q) { return decode(staged[gl_LocalInvocationIndex * (DEPTH + 1u) + q]); }

#endif
