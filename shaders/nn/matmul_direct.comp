// Matrix products without shared memory or barriers: for processors, where shared memory is
// ordinary memory. A workgroup of DOWN x GROUP / DOWN invocations has a tile; each invocation sums
// ROWS x COLUMNS of its elements, in the order of the inner axis.
#version 450
#extension GL_EXT_control_flow_attributes : require
#include "interface.glsl"
#include "matmul.glsl"

const uint ACROSS = GROUP / DOWN;

void main() {
    Places to = places_of_group();
    uvec2 first = tile_of_group(uvec2(DOWN * ROWS, ACROSS * COLUMNS));
    first += uvec2(gl_LocalInvocationIndex / ACROSS, gl_LocalInvocationIndex % ACROSS);

    // Rows and columns beyond the last one repeat it; their sums aren't stored.
    uint a_at[ROWS];
    uint b_at[COLUMNS];
    [[unroll]] for (uint i = 0u; i < ROWS; ++i)
        a_at[i] = to.a + min(first.x + DOWN * i, rows - 1u) * a_row + to.begin * a_inner;
    [[unroll]] for (uint j = 0u; j < COLUMNS; ++j)
        b_at[j] = to.b + min(first.y + ACROSS * j, columns - 1u) * b_column + to.begin * b_inner;
    float sums[ROWS][COLUMNS];
    [[unroll]] for (uint i = 0u; i < ROWS; ++i)
        [[unroll]] for (uint j = 0u; j < COLUMNS; ++j) sums[i][j] = 0.0;

    uint count = to.end - to.begin;
    uint k = 0u;
    for (; k + UNROLL <= count; k += UNROLL) {
        float right[COLUMNS][UNROLL];
        [[unroll]] for (uint j = 0u; j < COLUMNS; ++j)
            [[unroll]] for (uint e = 0u; e < UNROLL; ++e) right[j][e] = b[b_at[j] + (k + e) * b_inner];
        [[unroll]] for (uint i = 0u; i < ROWS; ++i)
            [[unroll]] for (uint e = 0u; e < UNROLL; ++e) {
                float left = a[a_at[i] + (k + e) * a_inner];
                [[unroll]] for (uint j = 0u; j < COLUMNS; ++j) sums[i][j] = fma(left, right[j][e], sums[i][j]);
            }
    }
    for (; k < count; ++k) {
        float right[COLUMNS];
        [[unroll]] for (uint j = 0u; j < COLUMNS; ++j) right[j] = b[b_at[j] + k * b_inner];
        [[unroll]] for (uint i = 0u; i < ROWS; ++i) {
            float left = a[a_at[i] + k * a_inner];
            [[unroll]] for (uint j = 0u; j < COLUMNS; ++j) sums[i][j] = fma(left, right[j], sums[i][j]);
        }
    }
    [[unroll]] for (uint i = 0u; i < ROWS; ++i)
        [[unroll]] for (uint j = 0u; j < COLUMNS; ++j) store_product(to, first.x + DOWN * i, first.y + ACROSS * j, sums[i][j]);
}
