// Copies rows of words to a table with another pitch, or from and to places where a binding can't
// begin. Words beyond `width` become zero.
#version 450
#include "interface.glsl"

void main() {
    uint word = gl_LocalInvocationIndex + GROUP * (gl_WorkGroupID.x + gl_WorkGroupID.y * gl_NumWorkGroups.x);
    uint row = word / to_pitch;
    uint column = word - row * to_pitch;
    if (row >= params.rows) return;
    target[to_first + word] = column < width ? source[from_first + row * from_pitch + column] : 0u;
}
