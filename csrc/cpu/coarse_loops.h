// The loops of the coarse top-k that are written once for each instruction set.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cpu/coarse_product.h"

namespace ebmvk {

// A row in few bits: value ~ step * code. Lengths are rounded up.
struct Rounded {
  float step;
  float residual;      // |row - rounded row|
  float norm;          // |row|
  float rounded_norm;  // |rounded row|
};

// For the points of a panel, the coefficients that turn an integer product into a score with its
// bound:
//     score = product * q.step * slope + bias,
//     within q.norm * of_norm + q.residual * of_residual + constant.
struct Coefficients {
  alignas(64) float slope[kPanel], bias[kPanel], of_norm[kPanel], of_residual[kPanel], constant[kPanel];
};

// The same for a query, and its bar.
struct QueryBound {
  float step, norm, residual, bar;
};

struct CoarseLoops {
  // Codes of a row from -127 to 127; with `pairs` (only AVX2), within kMostOfPair. Writes whole
  // vectors of at most 16 codes.
  Rounded (*round_row)(const float* row, size_t d, bool pairs, int8_t* code);
  // float32 scores of 16 points: sum over coordinates in order by fused multiply-adds, as in
  // topk.cpp, then fused sum * scale + bias. Prefetches the rows `next` at the same pace.
  void (*score16)(const float* query, const float* const (&row)[16], const float* const (&next)[16], size_t d,
                  const float (&scale)[16], const float (&bias)[16], float* out);
  // The same for 16 pairs of a query and a point; null where nobody wrote such a loop.
  // Prefetches the queries `next`.
  void (*score_pairs16)(const float* const (&query)[16], const float* const (&row)[16], const float* const (&next)[16],
                        size_t d, const float (&scale)[16], const float (&bias)[16], float* out);
  // The number of values that reach `bar`; `count` is a multiple of 16.
  size_t (*count_reaching)(const float* values, size_t count, float bar);
};

const CoarseLoops& Avx512Loops();
const CoarseLoops& Avx2Loops();

// Raises `largest` (kPanel) to the lower ends of the scores of a panel's points, writes the upper
// ends to `high` (kPanel), and returns a bit for each that reaches the query's bar.
unsigned BoundRowAvx2(const int32_t* product, const Coefficients& points, const QueryBound& query, float* largest,
                      float* high);

}  // namespace ebmvk
