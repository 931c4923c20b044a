// Matrix products for processors. A workgroup is one subgroup of LANES invocations, with a tile of
// LANES ROWS rows and LANES COLUMNS columns. Lane n keeps the columns n, n + LANES, …. For each place
// on the inner axis, it reads the rows n, n + LANES, …, and all lanes take these from it in turn. So
// each element of a and b is read once for the tile. On a processor, reads by lanes at different
// places are slow, because they happen one after the other.
#version 450
#extension GL_EXT_control_flow_attributes : require
#extension GL_KHR_shader_subgroup_ballot : require
#include "interface.glsl"
#include "matmul.glsl"

#define TAKE(LANE)                                                                                              \
    if (LANE < GROUP) {                                                                                         \
        float left[TERMS];                                                                                      \
        [[unroll]] for (uint e = 0u; e < TERMS; ++e) left[e] = subgroupBroadcast(own[e], LANE);                 \
        [[unroll]] for (uint j = 0u; j < COLUMNS; ++j)                                                          \
            [[unroll]] for (uint e = 0u; e < TERMS; ++e)                                                        \
                sums[i * GROUP + LANE][j] = fma(left[e], right[j][e], sums[i * GROUP + LANE][j]);               \
    }

void main() {
    Places to = places_of_group();
    uvec2 first = tile_of_group(uvec2(GROUP * ROWS, GROUP * COLUMNS));
    uint lane = gl_LocalInvocationIndex;

    // Rows and columns beyond the last one repeat it; their sums aren't stored.
    uint a_at[ROWS];
    uint b_at[COLUMNS];
    [[unroll]] for (uint i = 0u; i < ROWS; ++i)
        a_at[i] = to.a + min(first.x + lane + GROUP * i, rows - 1u) * a_row + to.begin * a_inner;
    [[unroll]] for (uint j = 0u; j < COLUMNS; ++j)
        b_at[j] = to.b + min(first.y + lane + GROUP * j, columns - 1u) * b_column + to.begin * b_inner;
    float sums[GROUP * ROWS][COLUMNS];
    [[unroll]] for (uint i = 0u; i < GROUP * ROWS; ++i)
        [[unroll]] for (uint j = 0u; j < COLUMNS; ++j) sums[i][j] = 0.0;

    uint count = to.end - to.begin;
    for (uint k = 0u; k < count; k += TERMS) {
        float right[COLUMNS][TERMS];
        [[unroll]] for (uint j = 0u; j < COLUMNS; ++j)
            [[unroll]] for (uint e = 0u; e < TERMS; ++e) {
                float value = b[b_at[j] + min(k + e, count - 1u) * b_inner];
                right[j][e] = k + e < count ? value : 0.0;
            }
        [[unroll]] for (uint i = 0u; i < ROWS; ++i) {
            float own[TERMS];
            [[unroll]] for (uint e = 0u; e < TERMS; ++e) {
                float value = a[a_at[i] + min(k + e, count - 1u) * a_inner];
                own[e] = k + e < count ? value : 0.0;
            }
            TAKE(0u) TAKE(1u) TAKE(2u) TAKE(3u) TAKE(4u) TAKE(5u) TAKE(6u) TAKE(7u)
            TAKE(8u) TAKE(9u) TAKE(10u) TAKE(11u) TAKE(12u) TAKE(13u) TAKE(14u) TAKE(15u)
        }
    }
    // Through an array, so that one store in a loop is compiled, with all that a program may compute
    // there, and not hundreds.
    float kept[GROUP * ROWS * COLUMNS];
    [[unroll]] for (uint i = 0u; i < GROUP * ROWS; ++i)
        [[unroll]] for (uint j = 0u; j < COLUMNS; ++j) kept[i * COLUMNS + j] = sums[i][j];
    [[dont_unroll]] for (uint n = 0u; n < GROUP * ROWS * COLUMNS; ++n)
        store_product(to, first.x + n / COLUMNS, first.y + lane + GROUP * (n % COLUMNS), kept[n]);
}
