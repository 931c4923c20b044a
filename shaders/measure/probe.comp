// Evaluates the functions of math.glsl and philox.glsl, to test their accuracy on the device at
// hand.
#version 450
#include "interface.glsl"
#include "philox.glsl"

void main() {
    uint n = gl_GlobalInvocationID.x;
    if (n >= params.rows) return;
    uvec4 words = arguments[n];
    float a = uintBitsToFloat(words.x);
    float b = uintBitsToFloat(words.y);
    uvec4 value = uvec4(0u);
    if (function == 0u) value.x = floatBitsToUint(exp_accurate(a));
    if (function == 1u) value.x = floatBitsToUint(log_accurate(a));
    if (function == 2u) value.xy = floatBitsToUint(cos_sin(a));
    if (function == 3u) value.xy = floatBitsToUint(cos_sin_turn(a));
    if (function == 4u) value.x = floatBitsToUint(sinc(a));
    if (function == 5u) value.x = floatBitsToUint(atan2_accurate(a, b));
    if (function == 6u) value.x = floatBitsToUint(inverse_sqrt(a));
    if (function == 7u) value = philox(words, key[n].xy);
    if (function == 8u) value = floatBitsToUint(normals(words, key[n].xy));
    result[n] = value;
}
