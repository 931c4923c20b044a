// Rows of points, one for each invocation of the workgroup, passed through shared memory DEPTH quads at a time.
//
// A point's products are added by one invocation in the order of the coordinates, so neighbours need different rows,
// and reading those directly would be 16 bytes here and there. DEPTH neighbours read DEPTH quads in a row instead, a
// whole cache line in float32. DEPTH + 1 quads from row to row: 9 is odd, so the quads that a phase of neighbours reads
// (8 of 16 bytes, 16 of 8) lie in different banks. 64 invocations share 9.5 KiB: any device has room, and a GPU room
// for a dozen workgroups at once, which hides the wait between the loads and the barrier.
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
