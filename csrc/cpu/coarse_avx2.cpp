// Why 16 bits are enough. vpmaddubsw multiplies unsigned by signed bytes and adds two neighbouring
// products in 16 bits, with saturation. Points have bytes up to 255 (code + 128), and two
// neighbouring codes of a query have sizes that add up to 128 at most (a step is a 127th of the
// largest pair, and rounding adds a half to each code). 255 * 128 = 32,640 < 2^15, so no pair
// saturates.
//
// The pairs of several quads are then added in 16 bits, and may wrap around. That is harmless if
// the sum, without the shift by 128, lies within 16 bits, because sums are right modulo 2^16: the
// lane starts at minus the shift's share (-128 times its query codes). By Cauchy-Schwarz, a lane's
// sum is at most the length of its point codes times the length of its query codes. The longest
// span for which that holds for a panel and three queries is used. For two quads it always holds:
// 2 * 127 * 128 = 32,512 < 2^15.
//
// So two instructions do 32 multiply-adds, where float32 takes four, and eight quads share the two
// that widen to 32 bits.
#include "cpu/coarse_avx2.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "cpu/coarse_codes.h"
#include "cpu/coarse_loops.h"

#if EBMVK_COARSE
#include <immintrin.h>

#define EBMVK_AVX2 __attribute__((target("avx2,fma")))

namespace ebmvk {
namespace {

constexpr size_t kQuads = kBlock / 4;  // in a block
constexpr size_t kRows = Avx2Queries::kRows;

// kTall queries and a panel at a time: at most 12 sums in 16 bits stay in registers, those in 32 bits
// need not. The empty assembly keeps the compiler from adding in an order that needs more registers.
template <size_t kTall, size_t kLength>
EBMVK_AVX2 void Rows(const int8_t* query, const int32_t* shift, const uint8_t* points, size_t blocks,
                     int32_t* product) {
  constexpr size_t kWide = kPanel / 8;
  const __m256i ones = _mm256_set1_epi16(1);
  __m256i sum[kTall][kWide];
#pragma GCC unroll 3
  for (size_t r = 0; r < kTall; ++r) {
#pragma GCC unroll 4
    for (size_t c = 0; c < kWide; ++c) sum[r][c] = _mm256_setzero_si256();
  }
  for (size_t block = 0; block < blocks; ++block, query += kTile * kBlock) {
    for (size_t quad = 0; quad < kQuads; quad += kLength, shift += kTile) {
      __m256i part[kTall][kWide];
#pragma GCC unroll 3
      for (size_t r = 0; r < kTall; ++r) {
        const __m256i begin = _mm256_set1_epi32(shift[r]);
#pragma GCC unroll 4
        for (size_t c = 0; c < kWide; ++c) part[r][c] = begin;
      }
#pragma GCC unroll 16
      for (size_t i = 0; i < kLength; ++i, points += kPanel * 4) {
        __m256i p[kWide];
#pragma GCC unroll 4
        for (size_t c = 0; c < kWide; ++c) p[c] = _mm256_load_si256(reinterpret_cast<const __m256i*>(points) + c);
#pragma GCC unroll 3
        for (size_t r = 0; r < kTall; ++r) {
          int32_t four;
          std::memcpy(&four, query + r * kBlock + (quad + i) * 4, 4);
          const __m256i q = _mm256_set1_epi32(four);
#pragma GCC unroll 4
          for (size_t c = 0; c < kWide; ++c) {
            part[r][c] = _mm256_add_epi16(part[r][c], _mm256_maddubs_epi16(p[c], q));
            asm("" : "+x"(part[r][c]));
          }
        }
      }
#pragma GCC unroll 3
      for (size_t r = 0; r < kTall; ++r) {
#pragma GCC unroll 4
        for (size_t c = 0; c < kWide; ++c) {
          sum[r][c] = _mm256_add_epi32(sum[r][c], _mm256_madd_epi16(part[r][c], ones));
        }
      }
    }
  }
#pragma GCC unroll 3
  for (size_t r = 0; r < kTall; ++r) {
    __m256i* to = reinterpret_cast<__m256i*>(product + r * kPanel);
#pragma GCC unroll 4
    for (size_t c = 0; c < kWide; ++c) _mm256_store_si256(to + c, sum[r][c]);
  }
}

// Rows() for one to three queries.
template <size_t kLength>
void RowsOf(size_t tall, const int8_t* query, const int32_t* shift, const uint8_t* panel, size_t blocks,
            int32_t* product) {
  switch (tall) {
    case 1: return Rows<1, kLength>(query, shift, panel, blocks, product);
    case 2: return Rows<2, kLength>(query, shift, panel, blocks, product);
    default: return Rows<3, kLength>(query, shift, panel, blocks, product);
  }
}

// The longest span that fits for these codes.
size_t SpanFor(const SpanSquares& queries, const SpanSquares& points) {
  constexpr uint64_t kMost = 32767ull * 32767ull;
  size_t span = 0;
  while (span + 1 < kSpans && uint64_t{queries[span]} * points[span] > kMost) ++span;
  return span;
}

// Eight coordinates from i on, zeros past the end.
EBMVK_AVX2 inline __m256 Load8(const float* row, size_t d, size_t i) {
  if (i + 8 <= d) return _mm256_loadu_ps(row + i);
  float rest[8] = {};
  std::copy(row + i, row + d, rest);
  return _mm256_loadu_ps(rest);
}

EBMVK_AVX2 inline double SumOf(__m256d v) {
  double four[4];
  _mm256_storeu_pd(four, v);
  return (four[0] + four[1]) + (four[2] + four[3]);
}

EBMVK_AVX2 inline float Largest(__m256 v) {
  float lane[8];
  _mm256_storeu_ps(lane, v);
  return *std::max_element(lane, lane + 8);
}

EBMVK_AVX2 Rounded RoundRow(const float* row, size_t d, bool pairs, int8_t* code) {
  const __m256 sign = _mm256_set1_ps(-0.0f);
  __m256 sizes[2] = {_mm256_setzero_ps(), _mm256_setzero_ps()};  // of coordinates, and of pairs
  for (size_t i = 0; i < d; i += 8) {
    const __m256 size = _mm256_andnot_ps(sign, Load8(row, d, i));
    sizes[0] = _mm256_max_ps(size, sizes[0]);
    sizes[1] = _mm256_max_ps(_mm256_add_ps(size, _mm256_permute_ps(size, 0xb1)), sizes[1]);
  }
  const float of_pair = Largest(sizes[1]);
  // Steps that underflow are not exact enough for the limit of a pair.
  const bool fine = pairs && of_pair > 1e-30f;
  const float top = pairs && !fine ? kMostOfPair / 2 : 127;
  const float step = fine ? of_pair / (kMostOfPair - 1) : Largest(sizes[0]) / top, inverse = step > 0 ? 1 / step : 0.0f;
  __m256d residual = _mm256_setzero_pd(), rounded = residual, exact = residual;
  for (size_t i = 0; i < d; i += 8) {
    const __m256 v = Load8(row, d, i);
    const __m256 within = _mm256_max_ps(_mm256_mul_ps(v, _mm256_set1_ps(inverse)), _mm256_set1_ps(-top));
    const __m256i nearest = _mm256_cvtps_epi32(_mm256_min_ps(within, _mm256_set1_ps(top)));
    const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(nearest), _mm256_extracti128_si256(nearest, 1));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(code + i), _mm_packs_epi16(words, words));
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      const __m256d value = _mm256_cvtps_pd(half ? _mm256_extractf128_ps(v, 1) : _mm256_castps256_ps128(v));
      const __m256d whole =
          _mm256_cvtepi32_pd(half ? _mm256_extracti128_si256(nearest, 1) : _mm256_castsi256_si128(nearest));
      const __m256d near = _mm256_mul_pd(whole, _mm256_set1_pd(step)), gone = _mm256_sub_pd(value, near);
      residual = _mm256_fmadd_pd(gone, gone, residual);
      rounded = _mm256_fmadd_pd(near, near, rounded);
      exact = _mm256_fmadd_pd(value, value, exact);
    }
  }
  const auto up = [](double squares) { return static_cast<float>(std::sqrt(squares) * kInflate); };
  return {step, up(SumOf(residual)), up(SumOf(exact)), up(SumOf(rounded))};
}

// column[j][c] = from[c][j]: four coordinates of eight rows, transposed within 128-bit lanes.
EBMVK_AVX2 inline void LoadColumns(const float* const* from, size_t i, __m256 (&column)[4]) {
  __m256 a[4];
#pragma GCC unroll 4
  for (size_t r = 0; r < 4; ++r) {
    a[r] = _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(from[r] + i)), _mm_loadu_ps(from[4 + r] + i), 1);
  }
  const __m256d low01 = _mm256_castps_pd(_mm256_unpacklo_ps(a[0], a[1]));
  const __m256d low23 = _mm256_castps_pd(_mm256_unpacklo_ps(a[2], a[3]));
  const __m256d high01 = _mm256_castps_pd(_mm256_unpackhi_ps(a[0], a[1]));
  const __m256d high23 = _mm256_castps_pd(_mm256_unpackhi_ps(a[2], a[3]));
  column[0] = _mm256_castpd_ps(_mm256_unpacklo_pd(low01, low23));
  column[1] = _mm256_castpd_ps(_mm256_unpackhi_pd(low01, low23));
  column[2] = _mm256_castpd_ps(_mm256_unpacklo_pd(high01, high23));
  column[3] = _mm256_castpd_ps(_mm256_unpackhi_pd(high01, high23));
}

EBMVK_AVX2 void Score16(const float* query, const float* const (&row)[16], const float* const (&next)[16], size_t d,
                        const float (&scale)[16], const float (&bias)[16], float* out) {
  __m256 sum[2] = {_mm256_setzero_ps(), _mm256_setzero_ps()};
  size_t i = 0;
  for (; i + 4 <= d; i += 4) {
#pragma GCC unroll 4
    for (size_t r = 0; r < 4; ++r) __builtin_prefetch(next[i % 16 + r] + i / 16 * 16);
#pragma GCC unroll 2
    for (size_t half = 0; half < 2; ++half) {
      __m256 v[4];
      LoadColumns(row + half * 8, i, v);
#pragma GCC unroll 4
      for (size_t j = 0; j < 4; ++j) sum[half] = _mm256_fmadd_ps(_mm256_set1_ps(query[i + j]), v[j], sum[half]);
    }
  }
  _mm256_storeu_ps(out, sum[0]);
  _mm256_storeu_ps(out + 8, sum[1]);
  for (size_t h = 0; h < 16; ++h) {
    for (size_t j = i; j < d; ++j) out[h] = __builtin_fmaf(query[j], row[h][j], out[h]);
    out[h] = __builtin_fmaf(out[h], scale[h], bias[h]);
  }
}

EBMVK_AVX2 void ScorePairs16(const float* const (&query)[16], const float* const (&row)[16],
                             const float* const (&next)[16], size_t d, const float (&scale)[16],
                             const float (&bias)[16], float* out) {
  __m256 sum[2] = {_mm256_setzero_ps(), _mm256_setzero_ps()};
  size_t i = 0;
  for (; i + 4 <= d; i += 4) {
#pragma GCC unroll 4
    for (size_t r = 0; r < 4; ++r) __builtin_prefetch(next[i % 16 + r] + i / 16 * 16);
#pragma GCC unroll 2
    for (size_t half = 0; half < 2; ++half) {
      __m256 q[4], v[4];
      LoadColumns(query + half * 8, i, q);
      LoadColumns(row + half * 8, i, v);
#pragma GCC unroll 4
      for (size_t j = 0; j < 4; ++j) sum[half] = _mm256_fmadd_ps(q[j], v[j], sum[half]);
    }
  }
  _mm256_storeu_ps(out, sum[0]);
  _mm256_storeu_ps(out + 8, sum[1]);
  for (size_t h = 0; h < 16; ++h) {
    for (size_t j = i; j < d; ++j) out[h] = __builtin_fmaf(query[h][j], row[h][j], out[h]);
    out[h] = __builtin_fmaf(out[h], scale[h], bias[h]);
  }
}

EBMVK_AVX2 size_t CountReaching(const float* values, size_t count, float bar) {
  size_t reach = 0;
  for (size_t i = 0; i < count; i += 8) {
    const __m256 in = _mm256_cmp_ps(_mm256_loadu_ps(values + i), _mm256_set1_ps(bar), _CMP_GE_OQ);
    reach += static_cast<size_t>(__builtin_popcount(static_cast<unsigned>(_mm256_movemask_ps(in))));
  }
  return reach;
}

}  // namespace

const CoarseLoops& Avx2Loops() {
  static const CoarseLoops loops = {RoundRow, Score16, ScorePairs16, CountReaching};
  return loops;
}

EBMVK_AVX2 unsigned BoundRowAvx2(const int32_t* product, const Coefficients& points, const QueryBound& query,
                                 float* largest, float* high) {
  const __m256 bar = _mm256_set1_ps(query.bar), step = _mm256_set1_ps(query.step);
  const __m256 norm = _mm256_set1_ps(query.norm), residual = _mm256_set1_ps(query.residual);
  unsigned in = 0;
#pragma GCC unroll 4
  for (size_t c = 0; c < kPanel; c += 8) {
    const __m256 whole = _mm256_cvtepi32_ps(_mm256_load_si256(reinterpret_cast<const __m256i*>(product + c)));
    const __m256 middle =
        _mm256_fmadd_ps(_mm256_mul_ps(step, _mm256_load_ps(points.slope + c)), whole, _mm256_load_ps(points.bias + c));
    __m256 bound = _mm256_fmadd_ps(norm, _mm256_load_ps(points.of_norm + c), _mm256_load_ps(points.constant + c));
    bound = _mm256_fmadd_ps(residual, _mm256_load_ps(points.of_residual + c), bound);
    const __m256 upper = _mm256_add_ps(middle, bound);
    _mm256_store_ps(high + c, upper);
    _mm256_storeu_ps(largest + c, _mm256_max_ps(_mm256_sub_ps(middle, bound), _mm256_loadu_ps(largest + c)));
    in |= static_cast<unsigned>(_mm256_movemask_ps(_mm256_cmp_ps(upper, bar, _CMP_GE_OQ))) << c;
  }
  return in;
}

void RaiseSquares(const int8_t* code, size_t blocks, SpanSquares& most) {
  for (size_t span = 0; span + 1 < kSpans; ++span) {
    const size_t length = kSpan[span] * 4;
    for (const int8_t* from = code; from != code + blocks * kBlock; from += length) {
      uint32_t sum[2] = {0, 0};
      for (size_t i = 0; i < length; ++i) sum[i / 2 % 2] += static_cast<uint32_t>(from[i] * from[i]);
      most[span] = std::max({most[span], sum[0], sum[1]});
    }
  }
}

Avx2Queries::Avx2Queries(size_t tiles, size_t blocks_) : blocks(blocks_), squares(tiles * kGroups, SpanSquares{}) {
  for (size_t span = 0; span < kSpans; ++span) shifts[span].resize(tiles * blocks * (kQuads / kSpan[span]) * kTile, 0);
}

const int32_t* Avx2Queries::shift(size_t span, size_t row) const {
  return shifts[span].data() + row / kTile * blocks * (kQuads / kSpan[span]) * kTile + row % kTile;
}

void Avx2Queries::Set(size_t row, const int8_t* code) {
  RaiseSquares(code, blocks, squares[Group(row)]);
  for (size_t span = 0; span < kSpans; ++span) {
    const size_t length = kSpan[span] * 4;
    int32_t* to = shifts[span].data() + (shift(span, row) - shifts[span].data());
    for (size_t from = 0; from < blocks * kBlock; from += length, to += kTile) {
      int sum[2] = {0, 0};
      for (size_t i = 0; i < length; ++i) sum[i / 2 % 2] += code[from + i];
      const uint16_t lanes[2] = {static_cast<uint16_t>(-128 * sum[0]), static_cast<uint16_t>(-128 * sum[1])};
      std::memcpy(to, lanes, 4);
    }
  }
}

void Avx2Product(const Avx2Queries& queries, size_t first, size_t rows, const int8_t* codes, const uint8_t* panel,
                 const SpanSquares& most, int32_t* product) {
  const size_t blocks = queries.blocks;
  for (size_t r = 0; r < rows;) {
    const size_t row = first + r, tall = std::min({kRows, rows - r, kTile - r % kTile});
    const size_t span = SpanFor(queries.squares[Avx2Queries::Group(row)], most);
    const int8_t* query = codes + (r / kTile * blocks * kTile + r % kTile) * kBlock;
    const int32_t* shift = queries.shift(span, row);
    int32_t* to = product + r * kPanel;
    switch (span) {
      case 0: RowsOf<kSpan[0]>(tall, query, shift, panel, blocks, to); break;
      case 1: RowsOf<kSpan[1]>(tall, query, shift, panel, blocks, to); break;
      case 2: RowsOf<kSpan[2]>(tall, query, shift, panel, blocks, to); break;
      default: RowsOf<kSpan[3]>(tall, query, shift, panel, blocks, to);
    }
    r += tall;
  }
}

}  // namespace ebmvk
#endif
