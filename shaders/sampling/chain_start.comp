// Where chains begin, one row per workgroup: x uniform on the sphere, v normal in its tangent space
// with variance `scale`^2. The normals come from the Philox counters (0, first chain + row, quad,
// stream).
#version 450
#include "interface.glsl"
#include "philox.glsl"
#include "reduce.glsl"

#define FOR_OWN(i, q) \
    for (uint i = 0u, q = gl_LocalInvocationIndex; i < QUADS_PER; ++i, q += GROUP) if (q < quads)

vec4 normals_of(uint row, uint q, uint stream) {
    uvec4 counter = uvec4(0u, params.first_chain + row, q, stream);
    vec4 free = normals(counter, uvec2(params.seed_low, params.seed_high));
    return mix(vec4(0.0), free, lessThan(4u * q + uvec4(0u, 1u, 2u, 3u), uvec4(d)));
}

void main() {
    uint row = gl_WorkGroupID.x;
    if (row >= params.rows) return;
    vec4 place[QUADS_PER];
    vec4 speed[QUADS_PER];
    float squares = 0.0;
    FOR_OWN(i, q) {
        place[i] = normals_of(row, q, params.x_stream);
        squares += dot(place[i], place[i]);
    }
    float norm = inverse_sqrt(group_sum(squares));
    float along = 0.0;
    FOR_OWN(i, q) {
        place[i] *= norm;
        speed[i] = normals_of(row, q, params.v_stream);
        along += dot(place[i], speed[i]);
    }
    along = group_sum(along);
    FOR_OWN(i, q) {
        x[row * quads + q] = place[i];
        v[row * quads + q] = params.scale * (speed[i] - along * place[i]);
    }
}
