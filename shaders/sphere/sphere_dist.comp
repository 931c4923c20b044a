// 2 atan2(|x - y|, |x + y|): accurate near 0 and pi, where the arc cosine of x.y isn't.
#version 450
#include "interface.glsl"
#include "rows.glsl"

void main() {
    if (gl_WorkGroupID.x >= params.rows) return;
    vec2 sums = vec2(0.0);
    FOR_QUADS(q) {
        vec4 step = x[ROW + q] - y[ROW + q];
        vec4 chord = x[ROW + q] + y[ROW + q];
        sums += vec2(dot(step, step), dot(chord, chord));
    }
    sums = group_sum(sums);
    if (gl_LocalInvocationIndex == 0u) result[gl_WorkGroupID.x] = 2.0 * atan2_accurate(sqrt(sums.x), sqrt(sums.y));
}
