// The `k` best of each row's `kept` points by their float32 scores, one row per workgroup; ties go to
// the lower id. `bounds` of the same points descend. A row is proved if no other point can be among
// its best: each scores at most the last bound. `complete`: there are no other points.
#version 450
#include "interface.glsl"
#include "ordered.glsl"

shared uint lost;  // 1 if a score is NaN

void main() {
    uint row = gl_WorkGroupID.x;
    if (row >= params.rows) return;
    if (gl_LocalInvocationIndex == 0u) lost = 0u;
    barrier();
    for (uint i = gl_LocalInvocationIndex; i < SORTED; i += GROUP) {
        best[i] = NOTHING;
        if (i >= kept) continue;
        float score = scores[row * kept + i];
        if (is_nan(score)) lost = 1u;
        best[i] = uvec2(ordered(score), ids[row * kept + i]);
    }
    sort_best(SORTED);
    for (uint i = gl_LocalInvocationIndex; i < k; i += GROUP) {
        best_scores[row * k + i] = unordered(best[i].x);
        best_ids[row * k + i] = best[i].y;
    }
    if (gl_LocalInvocationIndex != 0u) return;
    bool above = complete != 0u || best[k - 1u].x > ordered(bounds[row * kept + kept - 1u]);
    unproved[row] = above && lost == 0u ? 0u : 1u;
}
