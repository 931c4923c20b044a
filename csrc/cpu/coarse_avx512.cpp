#include <algorithm>
#include <cmath>

#include "cpu/coarse_codes.h"
#include "cpu/coarse_loops.h"

#if EBMVK_COARSE
#include <immintrin.h>

namespace ebmvk {
namespace {

EBMVK_AVX512 Rounded RoundRow(const float* row, size_t d, bool, int8_t* code) {
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

// Four coordinates of four times four points are loaded and transposed
// within 128-bit lanes. Rows are scattered in memory, so the rows `next` are prefetched at the same
// pace: each time a cache line of four of the 16 rows.
EBMVK_AVX512 void Score16(const float* query, const float* const (&row)[16], const float* const (&next)[16], size_t d,
                          const float (&scale)[16], const float (&bias)[16], float* out) {
  __m512 sum = _mm512_setzero_ps();
  size_t i = 0;
  for (; i + 4 <= d; i += 4) {
#pragma GCC unroll 4
    for (size_t r = 0; r < 4; ++r) __builtin_prefetch(next[i % 16 + r] + i / 16 * 16);
    __m512 a[4];
#pragma GCC unroll 4
    for (size_t r = 0; r < 4; ++r) {
      a[r] = _mm512_castps128_ps512(_mm_loadu_ps(row[r] + i));
      a[r] = _mm512_mask_broadcast_f32x4(a[r], 0x00f0, _mm_loadu_ps(row[4 + r] + i));
      a[r] = _mm512_mask_broadcast_f32x4(a[r], 0x0f00, _mm_loadu_ps(row[8 + r] + i));
      a[r] = _mm512_mask_broadcast_f32x4(a[r], 0xf000, _mm_loadu_ps(row[12 + r] + i));
    }
    const __m512d low01 = _mm512_castps_pd(_mm512_unpacklo_ps(a[0], a[1]));
    const __m512d low23 = _mm512_castps_pd(_mm512_unpacklo_ps(a[2], a[3]));
    const __m512d high01 = _mm512_castps_pd(_mm512_unpackhi_ps(a[0], a[1]));
    const __m512d high23 = _mm512_castps_pd(_mm512_unpackhi_ps(a[2], a[3]));
    const __m512 v[4] = {
        _mm512_castpd_ps(_mm512_unpacklo_pd(low01, low23)), _mm512_castpd_ps(_mm512_unpackhi_pd(low01, low23)),
        _mm512_castpd_ps(_mm512_unpacklo_pd(high01, high23)), _mm512_castpd_ps(_mm512_unpackhi_pd(high01, high23))};
#pragma GCC unroll 4
    for (size_t j = 0; j < 4; ++j) sum = _mm512_fmadd_ps(_mm512_set1_ps(query[i + j]), v[j], sum);
  }
  _mm512_storeu_ps(out, sum);
  for (; i < d; ++i) {
    for (size_t h = 0; h < 16; ++h) out[h] = __builtin_fmaf(query[i], row[h][i], out[h]);
  }
  for (size_t h = 0; h < 16; ++h) out[h] = __builtin_fmaf(out[h], scale[h], bias[h]);
}

EBMVK_AVX512 size_t CountReaching(const float* values, size_t count, float bar) {
  size_t reach = 0;
  for (size_t i = 0; i < count; i += 16) {
    const __mmask16 in = _mm512_cmp_ps_mask(_mm512_loadu_ps(values + i), _mm512_set1_ps(bar), _CMP_GE_OQ);
    reach += static_cast<size_t>(__builtin_popcount(in));
  }
  return reach;
}

}  // namespace

const CoarseLoops& Avx512Loops() {
  static const CoarseLoops loops = {RoundRow, Score16, nullptr, CountReaching};
  return loops;
}

}  // namespace ebmvk
#endif
