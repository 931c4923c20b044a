// x / |x|. Scales by the largest coordinate first, so that no square overflows or vanishes.
#version 450
#include "interface.glsl"
#include "rows.glsl"

void main() {
    if (gl_WorkGroupID.x >= params.rows) return;
    float top = 0.0;
    FOR_QUADS(q) {
        vec4 a = abs(x[ROW + q]);
        top = max(top, max(max(a.x, a.y), max(a.z, a.w)));
    }
    top = group_max(top);
    float scale = top > 0.0 ? 1.0 / top : 0.0;
    float squares = 0.0;
    FOR_QUADS(q) {
        vec4 a = x[ROW + q] * scale;
        squares += dot(a, a);
    }
    float norm = inverse_sqrt(group_sum(squares));
    FOR_QUADS(q) result[ROW + q] = (x[ROW + q] * scale) * norm;
}
