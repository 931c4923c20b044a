// P_x u = u - (x.u) x.
#version 450
#include "interface.glsl"
#include "rows.glsl"

void main() {
    if (gl_WorkGroupID.x >= params.rows) return;
    float along = 0.0;
    FOR_QUADS(q) along += dot(x[ROW + q], u[ROW + q]);
    along = group_sum(along);
    FOR_QUADS(q) result[ROW + q] = u[ROW + q] - along * x[ROW + q];
}
