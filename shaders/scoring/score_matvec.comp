// scale_n mu_n.q + bias_n for a few queries: RESULTS_ROWS of them in registers, one point per
// invocation. Each point is read once, so the device's bandwidth is the limit. Queries are the same
// for all invocations and come from the cache.
#version 450
#include "interface.glsl"
#include "store_score.glsl"
#include "staged.glsl"

void main() {
    uint row = gl_WorkGroupID.y * RESULTS_ROWS;
    uint column = gl_WorkGroupID.x * GROUP + gl_LocalInvocationIndex;
    if (row >= params.rows || gl_WorkGroupID.x * GROUP >= params.columns) return;
    staged_row[gl_LocalInvocationIndex] = column < params.columns ? (params.first + column) * quads : NO_ROW;
    float sums[RESULTS_ROWS];
    uint query_at[RESULTS_ROWS];
    for (uint i = 0u; i < RESULTS_ROWS; ++i) {
        sums[i] = 0.0;
        query_at[i] = (params.first_row + min(row + i, params.rows - 1u)) * quads;
    }
    barrier();

    for (uint first_quad = 0u; first_quad < quads; first_quad += DEPTH) {
        load_stage(first_quad);
        barrier();
        uint end = min(DEPTH, quads - first_quad);
        for (uint q = 0u; q < end; ++q) {
            vec4 point = staged_quad(q);
            for (uint i = 0u; i < RESULTS_ROWS; ++i)
                sums[i] = add_products(sums[i], queries[query_at[i] + first_quad + q], point);
        }
        barrier();
    }
    for (uint i = 0u; i < RESULTS_ROWS; ++i) store_score(row + i, column, sums[i]);
}
