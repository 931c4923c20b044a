// Shared by the scoring kernels: the order of additions in a dot product, so that every tiling and
// every storage of the same rows gives the same bits, and the points' weights.
#ifndef EBMVK_SCORE_GLSL
#define EBMVK_SCORE_GLSL

float add_products(float sum, vec4 a, vec4 b) {
    precise float s = fma(a.x, b.x, sum);
    s = fma(a.y, b.y, s);
    s = fma(a.z, b.z, s);
    s = fma(a.w, b.w, s);
    return s;
}

float weighted(float sum, uint id) {
    precise float value = sum;
    if (scaled != 0u) value = fma(scale[id], sum, bias[id]);
    return value;
}

#endif
