// Pairs of a word from each of two arrays.
#version 450
#include "interface.glsl"

void main() {
    uint row = gl_GlobalInvocationID.x + gl_GlobalInvocationID.y * gl_NumWorkGroups.x * GROUP;
    if (row < params.rows) pairs[row] = uvec2(first[row], second[row]);
}
