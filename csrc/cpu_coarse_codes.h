// Rows in 8 bits per coordinate, packed for the products of cpu_coarse_product.h, with what bounds their errors.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "cpu_coarse_product.h"

namespace ebmvk {

// More than every rounding of a bound's own arithmetic.
constexpr double kInflate = 1 + 1e-5;
// Largest norm and scale that the bounds hold for: no product of three overflows, and what underflows is far below
// their absolute term.
constexpr float kMostMagnitude = 0x1p30f;

// The queries of a batch.
struct CoarseQueries {
  CoarseQueries(const float* queries, size_t rows, size_t d);

  LineVector<int8_t> packed;  // (tiles, blocks, kTile, kBlock)
  LineVector<int32_t> start;  // (tiles * kTile, 16): minus what the points' shift by 128 adds to each product
  std::vector<float> step, residual, norm;  // (rows), of each: value ~ step * code, |q - q'|, |q|
};

}  // namespace ebmvk
