// How the scoring kernels hand over their scores. An invocation appends scores that may be among the
// best of their row to the row's list, in any order: select_topk.comp sorts them. A list has space for
// all scores of a block, so it never overflows.
//
// `bars` has the lowest key (sortable()) that a row still wants. It comes from the points before the
// block. These have lower ids, so a score of the block that equals their k-th best is not wanted. NaN
// may be appended although it is not wanted; select_topk.comp then leaves it out.
#ifndef EBMVK_APPEND_SCORES_GLSL
#define EBMVK_APPEND_SCORES_GLSL
#include "bits.glsl"
#include "score.glsl"

float sums[RESULTS_ROWS][RESULTS_COLUMNS];  // of the invocation's queries and points

void clear_sums() {
    for (uint i = 0u; i < RESULTS_ROWS; ++i)
        for (uint j = 0u; j < RESULTS_COLUMNS; ++j) sums[i][j] = 0.0;
}

// An upper bound of the point's float32 score, given its score in halves. Because radius_n >= |p -
// p16| + the roundings of both sums per unit of |q| (halve.comp), the sums differ by at most norm
// radius_n. The rest covers the roundings of weighted() and of this line, and numbers too small for
// a float. Rounding is monotonic, so a bound of the exact value also bounds the rounded one. NaN
// becomes infinite, so that the point is kept and the row counts as not proved.
float upper_bound(float value, float weight, float norm, float reach) {
    precise float margin = fma(abs(value), 4.76837158e-7, weight * (norm * reach)) + 1e-37;
    precise float bound = value + margin;
    return is_nan(bound) ? uintBitsToFloat(INFINITE_BITS) : bound;
}

// The invocation's rows are row, row + row_step, …, and its columns column, column + column_step, …;
// those beyond params.rows and params.columns are left out. What belongs to a row or a column is read
// once for all its scores.
void append_scores(uint row, uint row_step, uint column, uint column_step) {
    uint last_row = params.rows - 1u;
    uint last_column = params.columns - 1u;
    float weight[RESULTS_COLUMNS];
    for (uint j = 0u; j < RESULTS_COLUMNS; ++j) weight[j] = 1.0;
    if (scaled != 0u) {
        float shift[RESULTS_COLUMNS];
        for (uint j = 0u; j < RESULTS_COLUMNS; ++j) {
            uint id = params.first_id + min(column + column_step * j, last_column);
            weight[j] = scale[id];
            shift[j] = bias[id];
        }
        for (uint i = 0u; i < RESULTS_ROWS; ++i)
            for (uint j = 0u; j < RESULTS_COLUMNS; ++j) sums[i][j] = weigh(sums[i][j], weight[j], shift[j]);
    }
    if (bounded != 0u) {
        float reach[RESULTS_COLUMNS];
        for (uint j = 0u; j < RESULTS_COLUMNS; ++j)
            reach[j] = radius[params.first_id + min(column + column_step * j, last_column)];
        for (uint i = 0u; i < RESULTS_ROWS; ++i) {
            float norm = norms[params.first_row + min(row + row_step * i, last_row)];
            for (uint j = 0u; j < RESULTS_COLUMNS; ++j)
                sums[i][j] = upper_bound(sums[i][j], abs(weight[j]), norm, reach[j]);
        }
    }

    uint bar[RESULTS_ROWS];
    uint wanted[RESULTS_ROWS];  // bit j: the score of column j
    uint place[RESULTS_ROWS];   // in the row's list
    for (uint i = 0u; i < RESULTS_ROWS; ++i) bar[i] = bars[params.first_row + min(row + row_step * i, last_row)];
    for (uint i = 0u; i < RESULTS_ROWS; ++i) {
        wanted[i] = 0u;
        for (uint j = 0u; j < RESULTS_COLUMNS; ++j)
            if (column + column_step * j <= last_column && sortable(floatBitsToUint(sums[i][j])) >= bar[i])
                wanted[i] |= 1u << j;
        if (row + row_step * i > last_row) wanted[i] = 0u;
    }
    for (uint i = 0u; i < RESULTS_ROWS; ++i)
        if (wanted[i] != 0u)
            place[i] = atomicAdd(counts[params.first_row + row + row_step * i], uint(bitCount(wanted[i])));
    for (uint i = 0u; i < RESULTS_ROWS; ++i) {
        if (wanted[i] == 0u) continue;
        uint at = (row + row_step * i) * stride + place[i];
        for (uint j = 0u; j < RESULTS_COLUMNS; ++j)
            if ((wanted[i] & (1u << j)) != 0u)
                found[at++] = uvec2(floatBitsToUint(sums[i][j]), params.first_id + column + column_step * j);
    }
}
#endif
