#include "cpu/coarse_codes.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "cpu/coarse.h"
#include "cpu/thread_pool.h"

#if EBMVK_COARSE
#include <immintrin.h>

namespace ebmvk {
namespace {

// A row in 8 bits: value ~ step * code. Lengths are rounded up.
struct Rounded {
  float step;
  float residual;      // |row - rounded row|
  float norm;          // |row|
  float rounded_norm;  // |rounded row|
};

// Writes a whole number of vectors of codes.
EBMVK_AVX512 Rounded RoundRow(const float* row, size_t d, int8_t* code) {
  const auto lanes = [d](size_t i) { return static_cast<__mmask16>(d - i >= 16 ? 0xffff : (1u << (d - i)) - 1); };
  __m512 most = _mm512_setzero_ps();
  for (size_t i = 0; i < d; i += 16)
    most = _mm512_max_ps(_mm512_abs_ps(_mm512_maskz_loadu_ps(lanes(i), row + i)), most);
  const float step = _mm512_reduce_max_ps(most) / 127, inverse = step > 0 ? 1 / step : 0.0f;
  __m512d residual = _mm512_setzero_pd(), rounded = residual, exact = residual;
  for (size_t i = 0; i < d; i += 16) {
    const __m512 v = _mm512_maskz_loadu_ps(lanes(i), row + i);
    const __m512 within = _mm512_max_ps(_mm512_mul_ps(v, _mm512_set1_ps(inverse)), _mm512_set1_ps(-127));
    const __m512 nearest = _mm512_roundscale_ps(_mm512_min_ps(within, _mm512_set1_ps(127)), _MM_FROUND_TO_NEAREST_INT);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(code + i), _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(nearest)));
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      const __m512d value = _mm512_cvtps_pd(half ? _mm512_extractf32x8_ps(v, 1) : _mm512_castps512_ps256(v));
      const __m512d whole =
          _mm512_cvtps_pd(half ? _mm512_extractf32x8_ps(nearest, 1) : _mm512_castps512_ps256(nearest));
      const __m512d near = _mm512_mul_pd(whole, _mm512_set1_pd(step)), gone = _mm512_sub_pd(value, near);
      residual = _mm512_fmadd_pd(gone, gone, residual);
      rounded = _mm512_fmadd_pd(near, near, rounded);
      exact = _mm512_fmadd_pd(value, value, exact);
    }
  }
  const auto up = [](double squares) { return static_cast<float>(std::sqrt(squares) * kInflate); };
  return {step, up(_mm512_reduce_add_pd(residual)), up(_mm512_reduce_add_pd(exact)), up(_mm512_reduce_add_pd(rounded))};
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
#endif
