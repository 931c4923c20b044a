// What both scoring kernels share: the order of the additions in a dot product, so that every tiling gives the same bits,
// and the way a score is stored. params: rows, columns, first point in
// this shard, its id.
#ifndef EBMVK_SCORE_GLSL
#define EBMVK_SCORE_GLSL

float add_products(float sum, vec4 a, vec4 b) {
    precise float s = fma(a.x, b.x, sum);
    s = fma(a.y, b.y, s);
    s = fma(a.z, b.z, s);
    s = fma(a.w, b.w, s);
    return s;
}

void store_score(uint row, uint column, float sum) {
    if (row >= params[0] || column >= params[1]) return;
    precise float value = sum;
    if (scaled != 0u) value = fma(scale[params[3] + column], sum, bias[params[3] + column]);
    scores[row * stride + column] = value;
}

#endif
