// The candidates' weights at one concentration for each row: logw = logp + shift. One candidate per
// invocation.
#version 450
#include "interface.glsl"

void main() {
    uint entry = gl_LocalInvocationIndex + GROUP * (gl_WorkGroupID.x + gl_WorkGroupID.y * gl_NumWorkGroups.x);
    uint row = entry / k;
    if (row >= params.rows) return;
    logw[entry] = logp[entry] + shift[row];
    kappa[entry] = concentration[row];
}
