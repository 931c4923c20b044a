// scale_n mu_n.q + bias_n for a few queries: RESULTS_ROWS of them in registers, one point per
// invocation. Each point is read once, so the device's bandwidth is the limit. Queries are the same
// for all invocations and come from the cache.
#version 450
#include "interface.glsl"
const uint RESULTS_COLUMNS = 1u;
#include "append_scores.glsl"
#include "staged.glsl"

void main() {
    uint row = gl_WorkGroupID.x * RESULTS_ROWS;
    uint column = gl_WorkGroupID.y * GROUP + gl_LocalInvocationIndex;
    if (row >= params.rows || gl_WorkGroupID.y * GROUP >= params.columns) return;
    staged_row[gl_LocalInvocationIndex] = column < params.columns ? (params.first + column) * quads : NO_ROW;
    clear_sums();
    uint query_at[RESULTS_ROWS];
    for (uint i = 0u; i < RESULTS_ROWS; ++i)
        query_at[i] = (params.first_row + min(row + i, params.rows - 1u)) * quads;
    barrier();

    for (uint first_quad = 0u; first_quad < quads; first_quad += DEPTH) {
        load_stage(first_quad);
        barrier();
        uint end = min(DEPTH, quads - first_quad);
        for (uint q = 0u; q < end; ++q) {
            vec4 point = staged_quad(q);
            for (uint i = 0u; i < RESULTS_ROWS; ++i)
                sums[i][0] = add_products(sums[i][0], queries[query_at[i] + first_quad + q], point);
        }
        barrier();
    }
    append_scores(row, 1u, column, 1u);
}
