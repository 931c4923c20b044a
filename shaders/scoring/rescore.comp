// scale_n mu_n.q + bias_n for the points `ids`, `kept` for each query, with the same bits as the
// scoring kernels. A workgroup has GROUP points of one query and scores those in this shard.
#version 450
#include "interface.glsl"
#include "score.glsl"
#include "staged.glsl"

void main() {
    uint row = gl_WorkGroupID.y;
    if (row >= params.rows) return;
    uint place = gl_WorkGroupID.x * GROUP + gl_LocalInvocationIndex;
    uint id = place < kept ? ids[row * kept + place] : NO_ROW;
    bool mine = id >= first && id < end;
    staged_row[gl_LocalInvocationIndex] = mine ? (id - first) * quads : NO_ROW;
    float sum = 0.0;
    barrier();

    for (uint first_quad = 0u; first_quad < quads; first_quad += DEPTH) {
        load_stage(first_quad);
        barrier();
        uint here = min(DEPTH, quads - first_quad);
        for (uint q = 0u; q < here; ++q)
            sum = add_products(sum, queries[row * quads + first_quad + q], staged_quad(q));
        barrier();
    }
    if (mine) scores[row * kept + place] = weighted(sum, id);
}
