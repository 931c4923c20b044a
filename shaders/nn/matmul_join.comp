// result = alpha (the sum of the parts of matrix products) + beta c. The parts are added one after
// the other. Each has `count` elements, those of all matrices of the batch.
#version 450
#include "interface.glsl"

void main() {
    uint at = gl_GlobalInvocationID.x + gl_GlobalInvocationID.y * gl_NumWorkGroups.x * GROUP;
    if (at >= count) return;
    float sum = 0.0;
    for (uint i = 0u; i < parts; ++i) sum += partial[at + i * count];
    float value = alpha * sum;
    uint column = at % columns;
    uint row = at / columns % rows;
    uint z = at / columns / rows;
    uvec3 batch = uvec3(z / (batch_1 * batch_2), z / batch_2 % batch_1, z % batch_2);
    if (ADDED != 0u) {
        uint matrix = c_offset + batch.x * c_batch_0 + batch.y * c_batch_1 + batch.z * c_batch_2;
        value = fma(beta, c[matrix + row * c_row + column * c_column], value);
    }
    uint matrix = result_offset + batch.x * result_batch_0 + batch.y * result_batch_1 + batch.z * result_batch_2;
    result[matrix + row * result_row + column * result_column] = value;
}
