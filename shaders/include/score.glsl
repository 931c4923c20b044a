// Shared by the scoring kernels: the points' weights, and the order of additions in a dot product,
// with which every tiling and every storage of the same rows gives the same bits.
#ifndef EBMVK_SCORE_GLSL
#define EBMVK_SCORE_GLSL

float add_product(float sum, float a, float b) {
    precise float s = fma(a, b, sum);
    return s;
}

float add_products(float sum, vec4 a, vec4 b) {
    return add_product(add_product(add_product(add_product(sum, a.x, b.x), a.y, b.y), a.z, b.z), a.w, b.w);
}

float weigh(float sum, float weight, float shift) {
    precise float value = fma(weight, sum, shift);
    return value;
}

float weighted(float sum, uint id) { return scaled != 0u ? weigh(sum, scale[id], bias[id]) : sum; }

#endif
