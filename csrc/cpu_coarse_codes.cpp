#include "cpu_coarse_codes.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "cpu_coarse.h"
#include "thread_pool.h"

namespace ebmvk {
namespace {

// A row in 8 bits: value ~ step * code. The lengths are rounded up.
struct Rounded {
  float step;
  float residual;      // |row - rounded row|
  float norm;          // |row|
  float rounded_norm;  // |rounded row|
};

// Sums in double over lanes, so that compilers make vectors of them.
Rounded RoundRow(const float* row, size_t d, int8_t* code) {
  constexpr size_t kLanes = 16;
  float most[kLanes] = {};
  const size_t whole = d / kLanes * kLanes;
  for (size_t i = 0; i < whole; i += kLanes) {
    for (size_t j = 0; j < kLanes; ++j) most[j] = std::max(most[j], std::abs(row[i + j]));
  }
  for (size_t i = whole; i < d; ++i) most[0] = std::max(most[0], std::abs(row[i]));
  const float step = *std::max_element(most, most + kLanes) / 127, inverse = step > 0 ? 1 / step : 0.0f;
  double residual[kLanes] = {}, rounded[kLanes] = {}, exact[kLanes] = {};
  const auto one = [&](size_t i, size_t j) {
    // To the nearest: a sum with 1.5 * 2^23 has no fraction left.
    constexpr float kShift = 12582912.0f;
    const float nearest = (std::min(127.0f, std::max(-127.0f, row[i] * inverse)) + kShift) - kShift;
    code[i] = static_cast<int8_t>(static_cast<int32_t>(nearest));
    const double value = row[i], near = static_cast<double>(step) * nearest, gone = value - near;
    residual[j] += gone * gone;
    rounded[j] += near * near;
    exact[j] += value * value;
  };
  for (size_t i = 0; i < whole; i += kLanes) {
    for (size_t j = 0; j < kLanes; ++j) one(i + j, j);
  }
  for (size_t i = whole; i < d; ++i) one(i, 0);
  const auto up = [](const double(&squares)[kLanes]) {
    double sum = 0;
    for (const double square : squares) sum += square;
    return static_cast<float>(std::sqrt(sum) * kInflate);
  };
  return {step, up(residual), up(exact), up(rounded)};
}

}  // namespace

CoarsePoints::CoarsePoints(const float* points, size_t n, size_t d)
    : n_(n),
      d_(d),
      blocks_((d + kBlock - 1) / kBlock),
      packed_((n + kPanel - 1) / kPanel * kPanel * blocks_ * kBlock, 128),
      step_(n),
      residual_(n),
      norm_(n) {
  SharedPool().Run((n + kPanel - 1) / kPanel, [&](size_t panel, size_t) {
    std::vector<int8_t> code(blocks_ * kBlock, 0);
    for (size_t c = 0; c < std::min(kPanel, n - panel * kPanel); ++c) {
      const size_t point = panel * kPanel + c;
      const Rounded row = RoundRow(points + point * d, d, code.data());
      step_[point] = row.step;
      residual_[point] = row.residual;
      norm_[point] = std::max(row.norm, row.rounded_norm);
      uint8_t* to = packed_.data() + (panel * blocks_ * kBlock * kPanel) + c * 4;
      for (size_t i = 0; i < code.size(); i += 4, to += kPanel * 4) {
        uint32_t four;
        std::memcpy(&four, &code[i], 4);
        four ^= 0x80808080u;  // + 128 in each byte
        std::memcpy(to, &four, 4);
      }
    }
  });
}

const uint8_t* CoarsePoints::panel(size_t p) const { return packed_.data() + p * blocks_ * kBlock * kPanel; }

CoarseQueries::CoarseQueries(const float* queries, size_t rows, size_t d) : step(rows), residual(rows), norm(rows) {
  const size_t tiles = (rows + kTile - 1) / kTile, blocks = (d + kBlock - 1) / kBlock;
  packed.resize(tiles * blocks * kTile * kBlock);
  start.resize(tiles * kTile * 16);
  SharedPool().Run(tiles, [&](size_t tile, size_t) {
    std::vector<int8_t> code(blocks * kBlock, 0);
    for (size_t row = tile * kTile; row < std::min(rows, (tile + 1) * kTile); ++row) {
      const Rounded rounded = RoundRow(queries + row * d, d, code.data());
      step[row] = rounded.step;
      residual[row] = rounded.residual;
      norm[row] = rounded.norm;
      int8_t* to = packed.data() + (tile * blocks * kTile + row % kTile) * kBlock;
      int32_t sum = 0;
      for (size_t block = 0; block < blocks; ++block)
        std::memcpy(to + block * kTile * kBlock, &code[block * kBlock], kBlock);
      for (const int8_t value : code) sum += value;
      std::fill_n(&start[row * 16], 16, -128 * sum);
    }
  });
}

}  // namespace ebmvk
