// dist(x, y) P_x y / |P_x y|. P_x y is computed as P_x (y - x), which doesn't cancel if y is near
// x.
#version 450
#include "interface.glsl"
#include "rows.glsl"

void main() {
    if (gl_WorkGroupID.x >= params.rows) return;
    vec3 sums = vec3(0.0);  // x.(y - x), |y - x|^2, |y + x|^2
    FOR_QUADS(q) {
        vec4 a = x[ROW + q];
        vec4 step = y[ROW + q] - a;
        vec4 chord = y[ROW + q] + a;
        sums += vec3(dot(a, step), dot(step, step), dot(chord, chord));
    }
    sums = group_sum(sums);
    float squares = 0.0;
    FOR_QUADS(q) {
        vec4 tangent = (y[ROW + q] - x[ROW + q]) - sums.x * x[ROW + q];
        squares += dot(tangent, tangent);
    }
    float length_tangent = sqrt(group_sum(squares));
    float angle = 2.0 * atan2_accurate(sqrt(sums.y), sqrt(sums.z));
    float scale = length_tangent > 0.0 ? angle / length_tangent : 1.0;
    FOR_QUADS(q) result[ROW + q] = scale * ((y[ROW + q] - x[ROW + q]) - sums.x * x[ROW + q]);
}
