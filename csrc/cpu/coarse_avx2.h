// 8-bit products for processors with AVX2 but without VNNI. coarse_avx2.cpp says why they are exact.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "cpu/coarse_product.h"

namespace ebmvk {

// The most that the sizes of two neighbouring codes of a query add up to, so that two products with
// points' bytes fit into 16 bits.
constexpr int kMostOfPair = 128;

// A span is a number of quads whose products are added in 16 bits. The last always fits.
constexpr size_t kSpans = 4;
constexpr size_t kSpan[kSpans] = {16, 8, 4, 2};

// For each span but the last: the largest sum of squares of the codes that are added in one
// 16-bit lane.
using SpanSquares = std::array<uint32_t, kSpans - 1>;

// Raises `most` to the sums of a row of `blocks` blocks of codes.
void RaiseSquares(const int8_t* code, size_t blocks, SpanSquares& most);

// What the products need to know of queries besides their codes.
struct Avx2Queries {
  static constexpr size_t kRows = 3;  // queries of a tile in registers together: a group
  static constexpr size_t kGroups = (kTile + kRows - 1) / kRows;
  static size_t Group(size_t row) { return row / kTile * kGroups + row % kTile / kRows; }

  Avx2Queries() = default;
  Avx2Queries(size_t tiles, size_t blocks);
  // Of one row. Rows of the same tile must not be set at the same time.
  void Set(size_t row, const int8_t* code);
  const int32_t* shift(size_t span, size_t row) const;

  size_t blocks = 0;
  LineVector<int32_t>
      shifts[kSpans];  // (tiles, spans in a row, kTile): minus what adding 128 to bytes adds, twice 16 bits
  std::vector<SpanSquares> squares;  // for each group
};

// As Product in coarse_product.h, for rows first .. first + rows - 1 of the queries; `first` is a
// multiple of kTile. `codes` are those of row `first`. `most`: the squares of the panel's points.
void Avx2Product(const Avx2Queries& queries, size_t first, size_t rows, const int8_t* codes, const uint8_t* panel,
                 const SpanSquares& most, int32_t* product);

}  // namespace ebmvk
