// cos mu + sin P_mu xi / |P_mu xi|, normalised: a von Mises-Fisher sample, given its angle to mu;
// one row per workgroup. The normals xi come from the Philox counters (0, first row + row, quad,
// STREAM_VMF_TANGENT).
#version 450
#include "interface.glsl"
#include "philox.glsl"
#include "reduce.glsl"

#define FOR_OWN(i, q) \
    for (uint i = 0u, q = gl_LocalInvocationIndex; i < QUADS_PER; ++i, q += GROUP) if (q < quads)

const uint STREAM_VMF_TANGENT = 0xffffffffu;

void main() {
    uint row = gl_WorkGroupID.x;
    if (row >= params.rows) return;
    vec4 mean[QUADS_PER];
    vec4 xi[QUADS_PER];
    float along = 0.0;
    FOR_OWN(i, q) {
        mean[i] = mu[row * quads + q];
        uvec4 counter = uvec4(0u, params.first_row + row, q, STREAM_VMF_TANGENT);
        vec4 free = normals(counter, uvec2(params.seed_low, params.seed_high));
        xi[i] = mix(vec4(0.0), free, lessThan(4u * q + uvec4(0u, 1u, 2u, 3u), uvec4(d)));
        along += dot(mean[i], xi[i]);
    }
    along = group_sum(along);
    float squares = 0.0;
    FOR_OWN(i, q) {
        xi[i] -= along * mean[i];
        squares += dot(xi[i], xi[i]);
    }
    vec2 angle = cosine_sine[row];
    float across = angle.y * inverse_sqrt(group_sum(squares));
    squares = 0.0;
    FOR_OWN(i, q) {
        xi[i] = angle.x * mean[i] + across * xi[i];
        squares += dot(xi[i], xi[i]);
    }
    float norm = inverse_sqrt(group_sum(squares));
    FOR_OWN(i, q) result[row * quads + q] = norm * xi[i];
}
