// cos|u| x + sinc|u| u.
#version 450
#include "interface.glsl"
#include "rows.glsl"

void main() {
    if (gl_WorkGroupID.x >= params.rows) return;
    float squares = 0.0;
    FOR_QUADS(q) squares += dot(u[ROW + q], u[ROW + q]);
    float angle = sqrt(group_sum(squares));
    float c = cos_sin(angle).x;
    float s = sinc(angle);
    FOR_QUADS(q) result[ROW + q] = c * x[ROW + q] + s * u[ROW + q];
}
