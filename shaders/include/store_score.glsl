// How the scoring kernels store a score.
#ifndef EBMVK_STORE_SCORE_GLSL
#define EBMVK_STORE_SCORE_GLSL
#include "bits.glsl"
#include "score.glsl"

// An upper bound of the point's float32 score, given its score in halves. Because radius_n >= |p -
// p16| + the roundings of both sums per unit of |q| (halve.comp), the sums differ by at most norm
// radius_n. The rest covers the roundings of weighted() and of this line, and numbers too small for
// a float. Rounding is monotonic, so a bound of the exact value also bounds the rounded one. NaN
// becomes infinite, so that the point is kept and the row counts as not proved.
float upper_bound(float value, uint row, uint id) {
    float weight = scaled != 0u ? abs(scale[id]) : 1.0;
    precise float margin = fma(abs(value), 4.76837158e-7, weight * (norms[params.first_row + row] * radius[id])) + 1e-37;
    precise float bound = value + margin;
    return is_nan(bound) ? uintBitsToFloat(INFINITE_BITS) : bound;
}

void store_score(uint row, uint column, float sum) {
    if (row >= params.rows || column >= params.columns) return;
    float value = weighted(sum, params.first_id + column);
    scores[row * stride + column] = bounded != 0u ? upper_bound(value, row, params.first_id + column) : value;
}
#endif
