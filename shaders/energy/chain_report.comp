// Turns the records of chains into their diagnostics, one chain per invocation, with the bits that
// the host gets by multiplying in double precision.
#version 450
#include "interface.glsl"

// a times (high + low), rounded once: the product with `high` is exact, in two parts (Dekker 1971).
float times(float a, float high, float low) {
    precise float product = a * high;
    precise float ta = 4097.0 * a;
    precise float tb = 4097.0 * high;
    precise float a1 = ta - (ta - a);
    precise float b1 = tb - (tb - high);
    precise float a2 = a - a1;
    precise float b2 = high - b1;
    precise float rest = ((a1 * b1 - product) + a1 * b2 + a2 * b1) + a2 * b2;
    precise float sum = product + (rest + a * low);
    return sum;
}

void main() {
    uint chain = gl_GlobalInvocationID.x;
    if (chain >= params.rows) return;
    float high = params.each_high;
    float low = params.each_low;
    vec4 record = records[2u * chain];
    energy[chain] = record.x;
    kinetic[chain] = times(record.y, high, low);
    energy_error[chain] = times(record.z, high, low);
    tangency[chain] = record.w;
    acceptance[chain] = params.metropolis != 0u ? times(records[2u * chain + 1u].x, high, low) : 1.0;
}
