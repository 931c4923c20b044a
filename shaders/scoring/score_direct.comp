// scale_n mu_n.q + bias_n for a block of queries and points, without shared memory or barriers:
// each invocation keeps RESULTS_ROWS queries times RESULTS_COLUMNS points in registers. For devices
// whose workgroup memory isn't faster.
#version 450
#include "interface.glsl"
#include "append_scores.glsl"

void main() {
    uint row = gl_WorkGroupID.x * RESULTS_ROWS;
    uint column = gl_WorkGroupID.y * (GROUP * RESULTS_COLUMNS) + gl_LocalInvocationIndex;
    if (row >= params.rows || column >= params.columns) return;
    clear_sums();

    uint query_at[RESULTS_ROWS];
    uint point_at[RESULTS_COLUMNS];
    for (uint i = 0u; i < RESULTS_ROWS; ++i)
        query_at[i] = (params.first_row + min(row + i, params.rows - 1u)) * quads;
    for (uint j = 0u; j < RESULTS_COLUMNS; ++j)
        point_at[j] = (params.first + min(column + j * GROUP, params.columns - 1u)) * quads;

    for (uint q = 0u; q < quads; ++q) {
        vec4 point[RESULTS_COLUMNS];
        for (uint j = 0u; j < RESULTS_COLUMNS; ++j) point[j] = decode(points[point_at[j] + q]);
        for (uint i = 0u; i < RESULTS_ROWS; ++i) {
            vec4 query = queries[query_at[i] + q];
            for (uint j = 0u; j < RESULTS_COLUMNS; ++j) sums[i][j] = add_products(sums[i][j], query, point[j]);
        }
    }
    append_scores(row, 1u, column, GROUP);
}
