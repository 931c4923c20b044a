// Exactness. Let p' and q' be a point and a query rounded to 8 bits a coordinate (times their steps). Then
//
//     |q.p - q'.p'| = |q.(p - p') + (q - q').p'| <= |q| |p - p'| + |q - q'| |p'|,
//
// and q'.p' is an integer product that is computed exactly. With the roundings of the float32 score and of this
// arithmetic added, every point has a certain interval for its score. A point whose upper end lies below a score
// that k points reach is out; the others are scored in float32 with the same operations in the same order as the
// kernels of cpu_topk.cpp, so that the result is theirs bit for bit, whichever way was taken.
//
// 8 bits rather than bfloat16: on processors that have both, the dot product of 8-bit numbers is twice as fast and
// reads half the bytes; its bound is wider but leaves only hundreds of 50,000 points. Intrinsics rather than Highway:
// Highway 1.0.3 has neither of these instructions.
#include "cpu_coarse.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>

#include "cpu_topk_select.h"
#include "thread_pool.h"

#if defined(__x86_64__) && defined(__GNUC__)
#define EBMVK_COARSE 1
#include <immintrin.h>
#define EBMVK_VNNI __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,fma")))
#endif

namespace ebmvk {

namespace {

constexpr size_t kPanel = CoarsePoints::kPanel;
// A tile of 12 queries and 2 vectors of 16 points takes 24 of 32 registers.
constexpr size_t kQueries = 12;
// Rows worked off together: bounds the memory of their candidates.
constexpr size_t kBatch = 1024;
// More than every rounding of a bound's own arithmetic.
constexpr double kInflate = 1 + 1e-5;

// A row in 8 bits: value ~ step * code.
struct Rounded {
  float step, residual, norm, exact_norm;
};

Rounded RoundRow(const float* row, size_t d, int8_t* code) {
  float largest = 0;
  for (size_t i = 0; i < d; ++i) largest = std::max(largest, std::abs(row[i]));
  const float step = largest / 127, inverse = step > 0 ? 1 / step : 0.0f;
  double residual = 0, norm = 0, exact = 0;
  for (size_t i = 0; i < d; ++i) {
    const float nearest = std::nearbyint(std::min(127.0f, std::max(-127.0f, row[i] * inverse)));
    code[i] = static_cast<int8_t>(nearest);
    const double rounded = static_cast<double>(step) * nearest, gone = row[i] - rounded;
    residual += gone * gone;
    norm += rounded * rounded;
    exact += static_cast<double>(row[i]) * row[i];
  }
  const auto up = [](double square) { return static_cast<float>(std::sqrt(square) * kInflate); };
  return {step, up(residual), up(norm), up(exact)};
}

}  // namespace

CoarsePoints::CoarsePoints(const float* points, size_t n, size_t d)
    : n_(n),
      d_(d),
      quads_((d + 3) / 4),
      packed_((n + kPanel - 1) / kPanel * kPanel * quads_ * 4, 128),
      step_(n),
      residual_(n),
      norm_(n) {
  ThreadPool& pool = SharedPool();
  std::vector<std::vector<int8_t>> codes(pool.threads(), std::vector<int8_t>(quads_ * 4, 0));
  pool.Run((n + kPanel - 1) / kPanel, [&](size_t panel, size_t thread) {
    int8_t* code = codes[thread].data();
    for (size_t c = 0; c < std::min(kPanel, n - panel * kPanel); ++c) {
      const size_t point = panel * kPanel + c;
      const Rounded row = RoundRow(points + point * d, d, code);
      step_[point] = row.step;
      residual_[point] = row.residual;
      norm_[point] = std::max(row.norm, row.exact_norm);
      uint8_t* to = packed_.data() + (panel * quads_ * kPanel + c) * 4;
      for (size_t i = 0; i < d; ++i) {
        to[i / 4 * kPanel * 4 + i % 4] = static_cast<uint8_t>(static_cast<int>(code[i]) + 128);
      }
    }
  });
}

#if !EBMVK_COARSE
bool HasCoarse() { return false; }

void CoarseTopK(const TopKProblem&, const CoarsePoints&, float*, int64_t*, std::vector<size_t>&) {}
#else
bool HasCoarse() {
  static const bool has = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                          __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
                          __builtin_cpu_supports("avx512vnni");
  return has;
}

namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// A point and the interval its float32 score lies in.
struct Candidate {
  float low, high;
  uint32_t id;
};

// float32 scores of 16 points, each product summed over coordinates in order by fused multiply-adds, as the kernels of
// cpu_topk.cpp do. Four coordinates of four times four points are loaded and transposed within 128-bit lanes.
EBMVK_VNNI void Score16(const float* query, const float* const (&row)[16], size_t d, float* out) {
  __m512 sum = _mm512_setzero_ps();
  size_t i = 0;
  for (; i + 4 <= d; i += 4) {
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
}

// Appends the float32 scores of candidates to `hits`.
EBMVK_VNNI void Rescore(const TopKProblem& p, size_t query, const Candidate* first, size_t count,
                        std::vector<Hit>& hits) {
  const float* from = p.queries + query * p.d;
  for (size_t at = 0; at < count; at += 16) {
    // The rows after these lie anywhere in memory: fetch their beginnings while these are worked on.
    for (size_t next = at + 16; next < std::min(at + 32, count); ++next) {
      const float* begin = p.points + static_cast<size_t>(first[next].id) * p.d;
      for (size_t i = 0; i < std::min<size_t>(p.d, 128); i += 16) __builtin_prefetch(begin + i);
    }
    const float* row[16];
    float sum[16];
    for (size_t h = 0; h < 16; ++h)
      row[h] = p.points + static_cast<size_t>(first[std::min(at + h, count - 1)].id) * p.d;
    Score16(from, row, p.d, sum);
    for (size_t h = 0; h < std::min<size_t>(16, count - at); ++h) {
      const uint32_t id = first[at + h].id;
      const float scale = p.scale ? p.scale[id] : 1.0f, bias = p.bias ? p.bias[id] : 0.0f;
      hits.push_back({__builtin_fmaf(sum[h], scale, bias), id});
    }
  }
}

// Moves the k best by their lower ends to the front, appends their scores to `hits`, and returns the least of them:
// a score that k points reach. At least k of `count`.
float RescoreBest(const TopKProblem& p, size_t query, Candidate* first, size_t count, std::vector<Hit>& hits) {
  std::nth_element(first, first + (p.k - 1), first + count,
                   [](const Candidate& a, const Candidate& b) { return a.low > b.low; });
  Rescore(p, query, first, p.k, hits);
  float least = hits.front().score;
  for (const Hit& hit : hits) least = std::min(least, hit.score);
  return least;
}

// Drops what cannot reach `bar`; returns how many remain.
size_t Keep(Candidate* first, size_t count, float bar) {
  return static_cast<size_t>(std::remove_if(first, first + count, [&](const Candidate& c) { return c.high < bar; }) -
                             first);
}

// The candidates of a batch of rows, as one thread finds them. A row's bar is a score that k points are known to
// reach: what cannot reach it is dropped.
class Candidates {
 public:
  Candidates(const TopKProblem& problem, size_t first, size_t rows)
      : problem_(problem),
        first_(first),
        capacity_(1024 + 8 * problem.k + kPanel),
        all_(new Candidate[rows * capacity_]),
        count_(rows, 0),
        bar_(rows, -kInfinity) {}

  float bar(size_t row) const { return bar_[row]; }
  void Push(size_t row, Candidate c) { all_[row * capacity_ + count_[row]++] = c; }
  bool failed(size_t row) const { return bar_[row] == kInfinity; }
  Candidate* begin(size_t row) { return all_.get() + row * capacity_; }
  size_t count(size_t row) const { return count_[row]; }

  // To be called after at most kPanel pushes.
  void CutIfFull(size_t row) {
    if (count_[row] + kPanel > capacity_) Cut(row);
  }

 private:
  void Cut(size_t row) {
    hits_.clear();
    bar_[row] = std::max(bar_[row], RescoreBest(problem_, first_ + row, begin(row), count_[row], hits_));
    count_[row] = Keep(begin(row), count_[row], bar_[row]);
    // Hardly anything goes: the bound says too little about this row.
    if (count_[row] > capacity_ / 4 * 3) bar_[row] = kInfinity;
  }

  const TopKProblem& problem_;
  size_t first_, capacity_;
  std::unique_ptr<Candidate[]> all_;
  std::vector<size_t> count_;
  std::vector<float> bar_;
  std::vector<Hit> hits_;
};

// The queries of a batch: packed[tile][quad][row][4], and what the bounds need of each.
struct Queries {
  std::vector<int8_t> packed;
  std::vector<float> step, norm, residual;
  std::vector<int32_t> shift;  // 128 * sum of the codes, which the points' shift adds to each product
};

Queries PackQueries(const TopKProblem& p, size_t first, size_t rows, size_t quads) {
  const size_t tiles = (rows + kQueries - 1) / kQueries;
  Queries q{std::vector<int8_t>(tiles * quads * kQueries * 4, 0), std::vector<float>(rows), std::vector<float>(rows),
            std::vector<float>(rows), std::vector<int32_t>(rows)};
  SharedPool().Run(tiles, [&](size_t tile, size_t) {
    std::vector<int8_t> code(quads * 4, 0);
    for (size_t row = tile * kQueries; row < std::min(rows, (tile + 1) * kQueries); ++row) {
      const Rounded rounded = RoundRow(p.queries + (first + row) * p.d, p.d, code.data());
      q.step[row] = rounded.step;
      q.norm[row] = rounded.exact_norm;
      q.residual[row] = rounded.residual;
      int8_t* to = q.packed.data() + (tile * quads * kQueries + row % kQueries) * 4;
      for (size_t quad = 0; quad < quads; ++quad) std::memcpy(to + quad * kQueries * 4, &code[quad * 4], 4);
      for (size_t i = 0; i < p.d; ++i) q.shift[row] += 128 * code[i];
    }
  });
  return q;
}

// For the points of a panel, what turns an integer product into a score with its bound:
// score = product * q.step * slope + bias, within q.norm * of_norm + q.residual * of_residual + constant.
struct Affine {
  alignas(64) float slope[kPanel], bias[kPanel], of_norm[kPanel], of_residual[kPanel], constant[kPanel];

  Affine(const TopKProblem& p, const CoarsePoints& points, size_t first, size_t count) {
    // A sum of d products in order is within d roundings of |q| |p|; a few more are those of the affine map.
    const float rounding = static_cast<float>(static_cast<double>(p.d + 32) * 0x1p-24 * 1.01);
    for (size_t c = 0; c < kPanel; ++c) {
      const size_t at = first + std::min(c, count - 1);
      const float scale = p.scale ? p.scale[at] : 1.0f, size = std::abs(scale) * static_cast<float>(kInflate);
      slope[c] = scale * points.step()[at];
      bias[c] = p.bias ? p.bias[at] : 0.0f;
      of_norm[c] = size * (points.residual()[at] + rounding * points.norm()[at]);
      of_residual[c] = size * points.norm()[at];
      constant[c] = std::isfinite(bias[c]) ? 0x1p-19f * std::abs(bias[c]) + 1e-30f : 0.0f;
    }
  }
};

// One panel of points against all queries.
EBMVK_VNNI void ScorePanel(const CoarsePoints& points, const Affine& affine, const Queries& queries, size_t rows,
                           size_t panel, Candidates& candidates) {
  const size_t quads = points.quads(), first = panel * kPanel, count = std::min(kPanel, points.n() - first);
  const __mmask16 there[2] = {static_cast<__mmask16>(count >= 16 ? 0xffff : (1u << count) - 1),
                              static_cast<__mmask16>(count >= 32   ? 0xffff
                                                     : count <= 16 ? 0
                                                                   : (1u << (count - 16)) - 1)};
  const int8_t* query = queries.packed.data();
  for (size_t row = 0; row < rows; row += kQueries) {
    __m512i sum[kQueries][2];
#pragma GCC unroll 12
    for (size_t r = 0; r < kQueries; ++r) sum[r][0] = sum[r][1] = _mm512_setzero_si512();
    const uint8_t* point = points.panel(panel);
    for (size_t quad = 0; quad < quads; ++quad, point += kPanel * 4, query += kQueries * 4) {
      const __m512i p0 = _mm512_loadu_si512(point), p1 = _mm512_loadu_si512(point + 64);
#pragma GCC unroll 12
      for (size_t r = 0; r < kQueries; ++r) {
        int32_t four;
        std::memcpy(&four, query + r * 4, 4);
        const __m512i q = _mm512_set1_epi32(four);
        sum[r][0] = _mm512_dpbusd_epi32(sum[r][0], p0, q);
        sum[r][1] = _mm512_dpbusd_epi32(sum[r][1], p1, q);
      }
    }
    const size_t tall = std::min(kQueries, rows - row);
    alignas(64) int32_t product[kQueries][2][16];
#pragma GCC unroll 12
    for (size_t r = 0; r < kQueries; ++r) {
      _mm512_store_si512(product[r][0], sum[r][0]);
      _mm512_store_si512(product[r][1], sum[r][1]);
    }
    for (size_t r = 0; r < tall; ++r) {
      const size_t at = row + r;
      if (candidates.failed(at)) continue;
      const __m512 bar = _mm512_set1_ps(candidates.bar(at)), step = _mm512_set1_ps(queries.step[at]);
      const __m512 norm = _mm512_set1_ps(queries.norm[at]), residual = _mm512_set1_ps(queries.residual[at]);
      const __m512i shift = _mm512_set1_epi32(queries.shift[at]);
      for (size_t half = 0; half < 2; ++half) {
        const size_t c = half * 16;
        const __m512i whole = _mm512_sub_epi32(_mm512_load_si512(product[r][half]), shift);
        const __m512 dot = _mm512_mul_ps(_mm512_cvtepi32_ps(whole), step);
        const __m512 middle = _mm512_fmadd_ps(dot, _mm512_load_ps(affine.slope + c), _mm512_load_ps(affine.bias + c));
        __m512 bound = _mm512_fmadd_ps(norm, _mm512_load_ps(affine.of_norm + c), _mm512_load_ps(affine.constant + c));
        bound = _mm512_fmadd_ps(residual, _mm512_load_ps(affine.of_residual + c), bound);
        const __m512 high = _mm512_add_ps(middle, bound);
        // Not less, so that NaN, where something overflowed, stays in.
        unsigned in = _mm512_mask_cmp_ps_mask(there[half], high, bar, _CMP_NLT_UQ);
        if (in == 0) continue;
        alignas(64) float lows[16], highs[16];
        _mm512_store_ps(lows, _mm512_sub_ps(middle, bound));
        _mm512_store_ps(highs, high);
        for (; in != 0; in &= in - 1) {
          const unsigned lane = static_cast<unsigned>(__builtin_ctz(in));
          const uint32_t id = static_cast<uint32_t>(first + c + lane);
          candidates.Push(at, lows[lane] <= highs[lane] ? Candidate{lows[lane], highs[lane], id}
                                                        : Candidate{-kInfinity, kInfinity, id});
        }
      }
      candidates.CutIfFull(at);
    }
  }
}

// The exact top-k of one row out of its candidates; false if there are not enough.
bool Finish(const TopKProblem& p, size_t query, std::vector<Candidate>& all, float* scores, int64_t* ids) {
  thread_local std::vector<Hit> hits;
  hits.clear();
  if (all.size() < p.k) return false;
  const float bar = RescoreBest(p, query, all.data(), all.size(), hits);
  Candidate* rest = all.data() + p.k;
  Rescore(p, query, rest, Keep(rest, all.size() - p.k, bar), hits);
  std::partial_sort(hits.begin(), hits.begin() + static_cast<std::ptrdiff_t>(p.k), hits.end(), Better);
  for (size_t j = 0; j < p.k; ++j) {
    scores[j] = hits[j].score;
    ids[j] = hits[j].id;
  }
  return true;
}

void CoarseBatch(const TopKProblem& p, const CoarsePoints& points, size_t first, size_t rows, float* scores,
                 int64_t* ids, std::vector<char>& failed) {
  ThreadPool& pool = SharedPool();
  const Queries queries = PackQueries(p, first, rows, points.quads());
  std::vector<std::unique_ptr<Candidates>> found(pool.threads());
  pool.Run((p.n + kPanel - 1) / kPanel, [&](size_t panel, size_t thread) {
    if (!found[thread]) found[thread] = std::make_unique<Candidates>(p, first, rows);
    const size_t start = panel * kPanel;
    ScorePanel(points, Affine(p, points, start, std::min(kPanel, p.n - start)), queries, rows, panel, *found[thread]);
  });
  pool.Run(rows, [&](size_t row, size_t) {
    thread_local std::vector<Candidate> all;
    all.clear();
    bool good = true;
    for (const auto& part : found) {
      if (!part) continue;
      good = good && !part->failed(row);
      all.insert(all.end(), part->begin(row), part->begin(row) + part->count(row));
    }
    const size_t query = first + row;
    failed[query] = !(good && Finish(p, query, all, scores + query * p.k, ids + query * p.k));
  });
}

}  // namespace

void CoarseTopK(const TopKProblem& problem, const CoarsePoints& points, float* scores, int64_t* ids,
                std::vector<size_t>& failed) {
  std::vector<char> bad(problem.rows, 0);
  for (size_t first = 0; first < problem.rows; first += kBatch) {
    CoarseBatch(problem, points, first, std::min(kBatch, problem.rows - first), scores, ids, bad);
  }
  for (size_t row = 0; row < problem.rows; ++row) {
    if (bad[row]) failed.push_back(row);
  }
}
#endif

}  // namespace ebmvk
