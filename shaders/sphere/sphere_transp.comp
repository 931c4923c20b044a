// Parallel transport of u from x to y: u - (y.u) / (1 + x.y) (x + y), with 1 + x.y = |x + y|^2 / 2,
// which doesn't cancel.
#version 450
#include "interface.glsl"
#include "rows.glsl"

void main() {
    if (gl_WorkGroupID.x >= params.rows) return;
    vec2 sums = vec2(0.0);  // y.u, |x + y|^2
    FOR_QUADS(q) {
        vec4 chord = x[ROW + q] + y[ROW + q];
        sums += vec2(dot(y[ROW + q], u[ROW + q]), dot(chord, chord));
    }
    sums = group_sum(sums);
    float scale = 2.0 * sums.x / sums.y;
    FOR_QUADS(q) result[ROW + q] = u[ROW + q] - scale * (x[ROW + q] + y[ROW + q]);
}
