// Rows in at most 8 bits per coordinate, packed for the products of coarse_product.h, with bounds on
// their errors.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "cpu/coarse_avx2.h"
#include "cpu/coarse_product.h"

namespace ebmvk {

// A factor that outweighs all roundings in the computation of a bound.
constexpr double kInflate = 1 + 1e-5;
// The largest norm and scale for which the bounds hold: no product of three overflows, and whatever
// underflows is far below the bounds' absolute term.
constexpr float kMostMagnitude = 0x1p30f;

// The queries of a batch.
struct CoarseQueries {
  CoarseQueries(const float* queries, size_t rows, size_t d);

  LineVector<int8_t> packed;  // (tiles, blocks, kTile, kBlock)
  LineVector<int32_t> start;  // (tiles * kTile, 16): minus what shifting the points by 128 adds to a product
  std::vector<float> step, residual, norm;  // (rows): value ~ step * code, |q - q'|, |q|
  Avx2Queries avx2;                         // only for products with AVX2
};

}  // namespace ebmvk
