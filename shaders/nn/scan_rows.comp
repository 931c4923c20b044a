// Running sums along rows of `count` values, one workgroup per row. A workgroup passes through its
// row in pieces of GROUP EACH values: each invocation sums EACH neighbouring values, and a tree in a
// fixed order adds up the sums of invocations. KIND: as in row_keys.glsl.
#version 450
#extension GL_EXT_control_flow_attributes : require
#include "interface.glsl"

shared uint part[GROUP];

uint plus(uint a, uint b) { return KIND == 2u ? floatBitsToUint(uintBitsToFloat(a) + uintBitsToFloat(b)) : a + b; }

void main() {
    uint row = gl_WorkGroupID.x + gl_WorkGroupID.y * gl_NumWorkGroups.x;
    if (row >= rows) return;
    uint start = offset + row / (batch_1 * batch_2) * row_0 + row / batch_2 % batch_1 * row_1 + row % batch_2 * row_2;
    uint me = gl_LocalInvocationIndex;
    uint before = 0u;  // the sum of all earlier pieces; the bits of 0.0 are those of 0
    for (uint first = 0u; first < count; first += GROUP * EACH) {
        uint own[EACH];
        [[unroll]] for (uint i = 0u; i < EACH; ++i) {
            uint at = first + me * EACH + i;
            uint value = at < count ? values[start + at * stride] : 0u;
            own[i] = i == 0u ? value : plus(own[i - 1u], value);
        }
        part[me] = own[EACH - 1u];
        barrier();
        for (uint reach = 1u; reach < GROUP; reach <<= 1) {
            uint below = me >= reach ? part[me - reach] : 0u;
            barrier();
            part[me] = plus(below, part[me]);
            barrier();
        }
        uint mine = me > 0u ? plus(before, part[me - 1u]) : before;
        before = plus(before, part[GROUP - 1u]);
        barrier();
        [[unroll]] for (uint i = 0u; i < EACH; ++i) {
            uint at = first + me * EACH + i;
            if (at < count) sums[sums_offset + row * count + at] = plus(mine, own[i]);
        }
    }
}
