// Why the result is exact. Let p' and q' be a point and a query rounded to 8 bits a coordinate
// (times their steps). Then
//
//     |q.p - q'.p'| = |q.(p - p') + (q - q').p'| <= |q| |p - p'| + |q - q'| |p'|,
//
// and q'.p' is an integer product that is computed exactly. With the roundings of the float32 score
// and of this arithmetic added, every point's score lies in a known interval [low, high]. (If a
// norm or a scale is so large that something might overflow, the plain kernel takes the row.)
//
// A bar of a row is a number that the scores of at least k points reach. A point with high < bar is
// out, because k points are better and none of them ties with it. There are three sources of bars:
// - Points are dealt into at least k groups, and each group keeps its largest low. The k-th largest
//   of these is a bar, because k different points reach it. This costs one maximum per vector of
//   scores.
// - The k-th largest of any scores that were computed in float32.
// - An earlier bar, even one from the points of a single thread: seeing more points doesn't
//   invalidate it.
//
// The points that remain are scored in float32 with the same operations in the same order as in
// topk.cpp. So both give the same bits, whatever points a thread happened to see.
//
// Panels are visited in an order that spreads over the store. The first ones only feed the groups,
// so that no candidate is kept before a bar exists; they are visited again at the end.
//
// With AVX2 a query has fewer bits, as coarse_avx2.cpp says; the proof is the same.
//
// Why 8 bits and not bfloat16: the 8-bit dot product is twice as fast and reads half the bytes. Its
// bound is wider, but leaves only hundreds of 50,000 points. Why intrinsics: Highway 1.0.3 has
// neither product.
#include "cpu/coarse.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <numeric>

#include "cpu/coarse_codes.h"
#include "cpu/coarse_loops.h"
#include "cpu/coarse_product.h"
#include "cpu/coarse_rescore.h"
#include "cpu/thread_pool.h"
#include "cpu/topk_select.h"

#if EBMVK_COARSE
#include <immintrin.h>
#endif

namespace ebmvk {

#if !EBMVK_COARSE
// Never called, because the only kernel is "none".
CoarsePoints::CoarsePoints(const float*, size_t n, size_t d) : n_(n), d_(d), blocks_(0) {}

void CoarseTopK(const TopKProblem&, const CoarsePoints&, float*, int64_t*, std::vector<size_t>&) {}
#else
namespace {

// Rows processed together; this bounds the memory of their candidates.
constexpr size_t kBatch = 1024;
// The share of the panels that gives the first bars; bars are raised again after each further share
// of that size.
constexpr size_t kFirstPart = 16;

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// What one thread knows about the rows of a batch: the groups' largest lower ends, and the
// candidates.
class Findings {
 public:
  Findings(const TopKProblem& problem, size_t first, size_t rows, size_t rounds)
      : problem_(problem),
        first_(first),
        rows_(rows),
        capacity_(1024 + 8 * problem.k + kPanel),
        largest_(rounds * rows * kPanel, -kInfinity),
        all_(rows * capacity_),
        count_(rows, 0),
        bar_(rows, -kInfinity) {}

  // For the groups of a round: [row][kPanel].
  float* largest(size_t round) { return largest_.data() + round * rows_ * kPanel; }
  float bar(size_t row) const { return bar_[row]; }
  // The bound is too weak for this row: its bar is infinite, and it takes no more candidates.
  bool failed(size_t row) const { return bar_[row] == kInfinity; }
  void Fail(size_t row) { bar_[row] = kInfinity; }
  void Raise(size_t row, float bar) { bar_[row] = std::max(bar_[row], bar); }
  Candidate* begin(size_t row) { return all_.data() + row * capacity_; }
  Candidate* end(size_t row) { return begin(row) + count_[row]; }

  // Of the 16 points from id `first` on, adds those whose bit is set in `in`. They are few, so there
  // is no branch per point.
  EBMVK_AVX512 void Push(size_t row, __m512 high, __mmask16 in, size_t first) {
    const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const __m512i ids = _mm512_add_epi32(lanes, _mm512_set1_epi32(static_cast<int>(first)));
    const __m512i highs_in = _mm512_castps_si512(_mm512_maskz_compress_ps(in, high));
    const __m512i ids_in = _mm512_maskz_compress_epi32(in, ids);
    // high 0, id 0, high 1, id 1, ...: lanes of the second operand count from 16.
    const __m512i pairs = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    const size_t count = static_cast<size_t>(__builtin_popcount(in));
    Candidate* to = end(row);
    _mm512_storeu_si512(to, _mm512_permutex2var_epi32(highs_in, pairs, ids_in));
    if (count > 8) {
      const __m512i more = _mm512_add_epi32(pairs, _mm512_set1_epi32(8));
      _mm512_storeu_si512(to + 8, _mm512_permutex2var_epi32(highs_in, more, ids_in));
    }
    count_[row] += count;
  }
  // The same for the points of a panel.
  void PushEach(size_t row, const float* high, unsigned in, size_t first) {
    for (; in != 0; in &= in - 1) {
      const size_t c = static_cast<size_t>(__builtin_ctz(in));
      *end(row) = {high[c], static_cast<uint32_t>(first + c)};
      ++count_[row];
    }
  }
  // Call this after the pushes of a panel.
  void CutIfFull(size_t row) {
    if (count_[row] + kPanel > capacity_) Cut(row);
  }

 private:
  void Cut(size_t row) {
    hits_.clear();
    Raise(row, RescoreBest(problem_, first_ + row, begin(row), count_[row], hits_));
    count_[row] = static_cast<size_t>(Keep(begin(row), end(row), bar_[row], begin(row)) - begin(row));
    // Hardly any candidate drops out.
    if (count_[row] > capacity_ / 4 * 3) Fail(row);
  }

  const TopKProblem& problem_;
  size_t first_, rows_, capacity_;
  LineVector<float> largest_;
  LineVector<Candidate> all_;
  std::vector<size_t> count_;
  std::vector<float> bar_;
  std::vector<Hit> hits_;
};

struct Affine : Coefficients {
  Affine(const TopKProblem& p, const CoarsePoints& points, size_t first, size_t count) {
    // A sum of d products in order is off by at most d roundings of |q| |p|; the affine map adds a
    // few more.
    const float rounding = static_cast<float>(static_cast<double>(p.d + 32) * 0x1p-24 * 1.01);
    for (size_t c = 0; c < kPanel; ++c) {
      const size_t at = first + std::min(c, count - 1);
      const float scale = p.scale ? p.scale[at] : 1.0f, size = std::abs(scale) * static_cast<float>(kInflate);
      slope[c] = scale * points.step()[at];
      bias[c] = c >= count ? -kInfinity : p.bias ? p.bias[at] : 0.0f;
      of_norm[c] = size * (points.residual()[at] + rounding * points.norm()[at]);
      of_residual[c] = size * points.norm()[at];
      constant[c] = std::isfinite(bias[c]) ? 0x1p-19f * std::abs(bias[c]) + 1e-24f : 0.0f;
    }
  }
};

// A batch of queries and the store.
struct Batch {
  const TopKProblem& problem;
  const CoarsePoints& points;
  const CoarseQueries& queries;
  size_t first, rows;
  size_t rounds;  // groups for each lane of a panel
};

// Scores one panel of points for all queries. Its points belong to the groups of `round`. Keeps
// candidates if `keep`.
EBMVK_AVX512 void ScorePanel(const Batch& b, Product multiply, size_t panel, size_t round, bool keep, Findings& found) {
  const size_t first = panel * kPanel, count = std::min(kPanel, b.points.n() - first);
  const Affine affine(b.problem, b.points, first, count);
  const __mmask16 there[2] = {static_cast<__mmask16>(count >= 16 ? 0xffff : (1u << count) - 1),
                              static_cast<__mmask16>(count >= 32   ? 0xffff
                                                     : count <= 16 ? 0
                                                                   : (1u << (count - 16)) - 1)};
  const CoarseQueries& q = b.queries;
  const size_t blocks = b.points.blocks();
  alignas(64) int32_t product[kStrip * kPanel];
  for (size_t strip = 0; strip < b.rows; strip += kStrip) {
    const size_t tall = std::min(kStrip, b.rows - strip);
    multiply(q.packed.data() + strip * blocks * kBlock, b.points.panel(panel), q.start.data() + strip * 16, blocks,
             tall, product);
    float* largest = found.largest(round) + strip * kPanel;
    for (size_t r = 0; r < tall; ++r) {
      const size_t at = strip + r;
      if (found.failed(at)) continue;
      const __m512 bar = _mm512_set1_ps(found.bar(at)), step = _mm512_set1_ps(q.step[at]);
      const __m512 norm = _mm512_set1_ps(q.norm[at]), residual = _mm512_set1_ps(q.residual[at]);
      __m512 high[2];
      unsigned in = 0;
#pragma GCC unroll 2
      for (size_t half = 0; half < 2; ++half) {
        const size_t c = half * 16;
        const __m512 whole = _mm512_cvtepi32_ps(_mm512_load_si512(product + r * kPanel + c));
        const __m512 middle = _mm512_fmadd_ps(_mm512_mul_ps(step, _mm512_load_ps(affine.slope + c)), whole,
                                              _mm512_load_ps(affine.bias + c));
        __m512 bound = _mm512_fmadd_ps(norm, _mm512_load_ps(affine.of_norm + c), _mm512_load_ps(affine.constant + c));
        bound = _mm512_fmadd_ps(residual, _mm512_load_ps(affine.of_residual + c), bound);
        high[half] = _mm512_add_ps(middle, bound);
        float* group = largest + r * kPanel + c;
        _mm512_storeu_ps(group, _mm512_max_ps(_mm512_sub_ps(middle, bound), _mm512_loadu_ps(group)));
        in |= static_cast<unsigned>(_mm512_mask_cmp_ps_mask(there[half], high[half], bar, _CMP_GE_OQ)) << c;
      }
      if (in == 0 || !keep) continue;
      found.Push(at, high[0], static_cast<__mmask16>(in), first);
      found.Push(at, high[1], static_cast<__mmask16>(in >> 16), first + 16);
      found.CutIfFull(at);
    }
  }
}

// The same without AVX-512.
void ScorePanelAvx2(const Batch& b, size_t panel, size_t round, bool keep, Findings& found) {
  const size_t first = panel * kPanel, count = std::min(kPanel, b.points.n() - first);
  const Affine affine(b.problem, b.points, first, count);
  const unsigned there = count == kPanel ? ~0u : (1u << count) - 1;
  const CoarseQueries& q = b.queries;
  alignas(64) int32_t product[kStrip * kPanel];
  alignas(64) float high[kPanel];
  for (size_t strip = 0; strip < b.rows; strip += kStrip) {
    const size_t tall = std::min(kStrip, b.rows - strip);
    Avx2Product(q.avx2, strip, tall, q.packed.data() + strip * b.points.blocks() * kBlock, b.points.panel(panel),
                b.points.squares(panel), product);
    for (size_t at = strip; at < strip + tall; ++at) {
      if (found.failed(at)) continue;
      const QueryBound query{q.step[at], q.norm[at], q.residual[at], found.bar(at)};
      float* largest = found.largest(round) + at * kPanel;
      const unsigned in = there & BoundRowAvx2(product + (at - strip) * kPanel, affine, query, largest, high);
      if (in == 0 || !keep) continue;
      found.PushEach(at, high, in, first);
      found.CutIfFull(at);
    }
  }
}

// The findings of all threads that did any work.
using AllFindings = std::vector<std::unique_ptr<Findings> >;

// A number near the k-th largest value that at least k values reach. Bisection is a tenth of the
// work of std::nth_element, and a bar within 2^-16 of the range is good enough.
float NearKth(const float* values, size_t count, size_t k) {
  const auto range = std::minmax_element(values, values + count);
  float below = std::max(*range.first, -kMostMagnitude * kMostMagnitude), above = *range.second;
  if (LoopsInUse().count_reaching(values, count, below) < k) return -kInfinity;
  for (int i = 0; i < 16; ++i) {
    const float middle = below + (above - below) / 2;
    (LoopsInUse().count_reaching(values, count, middle) >= k ? below : above) = middle;
  }
  return below;
}

// Raises a row's bar on all threads, from the groups of all threads.
void RaiseBars(const Batch& b, size_t row, const AllFindings& all) {
  thread_local std::vector<float> largest;
  largest.assign(b.rounds * kPanel, -kInfinity);
  for (const auto& found : all) {
    if (!found) continue;
    for (size_t round = 0; round < b.rounds; ++round) {
      const float* of_thread = found->largest(round) + row * kPanel;
      float* to = largest.data() + round * kPanel;
      for (size_t c = 0; c < kPanel; ++c) to[c] = std::max(to[c], of_thread[c]);
    }
  }
  const float bar = NearKth(largest.data(), largest.size(), b.problem.k);
  for (const auto& found : all) {
    if (found) found->Raise(row, bar);
  }
}

// Of one row, what the threads found: the k candidates that are likely the best are scored, and of
// the others those are kept that can still be among the best. False if the bound doesn't prove that
// the top-k is among these.
bool Prepare(const TopKProblem& p, size_t query, size_t row, const AllFindings& all, Remaining& found) {
  float bar = -kInfinity;
  size_t count = 0;
  for (const auto& of_thread : all) {
    if (!of_thread) continue;
    bar = std::max(bar, of_thread->bar(row));
    count += static_cast<size_t>(of_thread->end(row) - of_thread->begin(row));
  }
  if (!(bar < kInfinity)) return false;
  thread_local std::vector<Candidate> candidates;
  candidates.resize(count + 1);
  Candidate *first = candidates.data(), *last = first;
  for (const auto& of_thread : all) {
    if (of_thread) last = Keep(of_thread->begin(row), of_thread->end(row), bar, last);
  }
  if (static_cast<size_t>(last - first) < p.k) return false;
  bar = RescoreBest(p, query, first, static_cast<size_t>(last - first), found.hits);
  first += p.k;
  found.rest.assign(first, Keep(first, last, bar, first));
  return true;
}

void Finish(const TopKProblem& p, std::vector<Hit>& hits, float* scores, int64_t* ids) {
  std::partial_sort(hits.begin(), hits.begin() + static_cast<std::ptrdiff_t>(p.k), hits.end(), Better);
  for (size_t j = 0; j < p.k; ++j) {
    scores[j] = hits[j].score;
    ids[j] = hits[j].id;
  }
}

// A stride near the golden ratio of `count` that has no common factor with it, so that its
// multiples spread evenly.
size_t Stride(size_t count) {
  size_t stride = static_cast<size_t>(0.618 * static_cast<double>(count)) | 1;
  while (std::gcd(stride, count) != 1) stride += 2;
  return stride;
}

void CoarseBatch(const TopKProblem& p, const CoarsePoints& points, size_t first, size_t rows, float* scores,
                 int64_t* ids, std::vector<char>& failed) {
  ThreadPool& pool = SharedPool();
  const CoarseQueries queries(p.queries + first * p.d, rows, p.d);
  const Batch batch{p, points, queries, first, rows, (4 * p.k + kPanel - 1) / kPanel};
  const Product multiply = ProductInUse();
  AllFindings all(pool.threads());
  const size_t panels = (p.n + kPanel - 1) / kPanel, stride = Stride(panels);
  const auto take = [&](size_t from, size_t to, bool keep) {
    pool.Run(to - from, [&, from, keep](size_t task, size_t thread) {
      std::unique_ptr<Findings>& found = all[thread];
      if (!found) found = std::make_unique<Findings>(p, first, rows, batch.rounds);
      const size_t turn = from + task;
      const size_t panel = turn * stride % panels, round = turn % batch.rounds;
      if (multiply) {
        ScorePanel(batch, multiply, panel, round, keep, *found);
      } else {
        ScorePanelAvx2(batch, panel, round, keep, *found);
      }
    });
  };
  // Findings that are made later start without bars, which is correct but slower.
  const auto raise = [&] { pool.Run(rows, [&](size_t row, size_t) { RaiseBars(batch, row, all); }); };
  const size_t sample = std::min(panels, std::max(panels / kFirstPart, 2 * batch.rounds));
  take(0, sample, false);
  raise();
  for (size_t from = sample; from < panels; from *= 2) {
    take(from, std::min(panels, 2 * from), true);
    raise();
  }
  take(0, sample, true);
  std::vector<Remaining> found(rows);
  pool.Run(rows, [&](size_t row, size_t) {
    const size_t query = first + row;
    failed[query] = !(queries.norm[row] <= kMostMagnitude && Prepare(p, query, row, all, found[row]));
  });
  RescoreRest(p, first, found);
  pool.Run(rows, [&](size_t row, size_t) {
    const size_t query = first + row;
    if (!failed[query]) Finish(p, found[row].hits, scores + query * p.k, ids + query * p.k);
  });
}

// True if the bounds hold for these points and scales.
bool Tame(const TopKProblem& p, const CoarsePoints& points) {
  bool tame = true;
  for (size_t i = 0; i < p.n; ++i) {
    tame &= points.norm()[i] <= kMostMagnitude && (!p.scale || std::abs(p.scale[i]) <= kMostMagnitude);
  }
  return tame;
}

}  // namespace

void CoarseTopK(const TopKProblem& problem, const CoarsePoints& points, float* scores, int64_t* ids,
                std::vector<size_t>& failed) {
  std::vector<char> bad(problem.rows, 0);
  if (!Tame(problem, points)) {
    bad.assign(problem.rows, 1);
  } else {
    for (size_t first = 0; first < problem.rows; first += kBatch) {
      CoarseBatch(problem, points, first, std::min(kBatch, problem.rows - first), scores, ids, bad);
    }
  }
  for (size_t row = 0; row < problem.rows; ++row) {
    if (bad[row]) failed.push_back(row);
  }
}
#endif

}  // namespace ebmvk
