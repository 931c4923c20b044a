#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/topk.cpp"
#include "cpu/simd.h"
#if EBMVK_HAVE_HIGHWAY
#include <hwy/cache_control.h>
#endif
//
#include "cpu/scratch.h"
#include "cpu/topk.h"
#include "cpu/topk_select.h"
#include "cpu/vector-inl.h"

HWY_BEFORE_NAMESPACE();
namespace ebmvk::HWY_NAMESPACE {
namespace {

// A tile is kQueries x (two vectors of points) in registers: its sums take 24 of 32 registers, or 12
// of 16.
constexpr size_t kQueries = kLanes == 16 ? 12 : 6;
constexpr size_t kPanel = 2 * kLanes;

size_t TileQueries() { return kQueries; }
size_t TilePoints() { return kPanel; }

// packed[t][i][r] = queries[t * kQueries + r][i], tile t; missing rows are zero.
void PackQueries(const TopKProblem& p, size_t first, size_t rows, size_t tile, float* packed) {
  float* to = packed + tile * p.d * kQueries;
  for (size_t r = 0; r < kQueries; ++r) {
    const size_t row = tile * kQueries + r;
    const float* from = p.queries + (first + row) * p.d;
    for (size_t i = 0; i < p.d; ++i) to[i * kQueries + r] = row < rows ? from[i] : 0.0f;
  }
}

// packed[i][c] = points[first + c][i]; missing points are zero. Copies a few coordinates at a time,
// so that writes stay in the first-level cache.
void PackPanel(const TopKProblem& p, size_t first, size_t count, float* packed) {
  constexpr size_t kStep = 16;
  for (size_t begin = 0; begin < p.d; begin += kStep) {
    const size_t end = begin + kStep < p.d ? begin + kStep : p.d;
    for (size_t c = 0; c < kPanel; ++c) {
      const float* from = p.points + (first + c) * p.d;
      for (size_t i = begin; i < end; ++i) packed[i * kPanel + c] = c < count ? from[i] : 0.0f;
    }
  }
}

// Each product is summed over i in order, in one register, so its bits depend neither on tile nor
// batch.
inline void Tile(const float* queries, const float* points, size_t d, VF (&sum)[kQueries][2]) {
  for (size_t r = 0; r < kQueries; ++r) sum[r][0] = sum[r][1] = hn::Zero(F32());
  for (size_t i = 0; i < d; ++i, queries += kQueries, points += kPanel) {
    const VF p0 = hn::Load(F32(), points), p1 = hn::Load(F32(), points + kLanes);
#pragma GCC unroll 16
    for (size_t r = 0; r < kQueries; ++r) {
      const VF q = hn::Set(F32(), queries[r]);
      sum[r][0] = hn::MulAdd(q, p0, sum[r][0]);
      sum[r][1] = hn::MulAdd(q, p1, sum[r][1]);
    }
  }
}

// The coefficients that turn products with a panel's points into scores.
struct Affine {
  VF scale[2], bias[2];

  Affine(const TopKProblem& p, size_t first, size_t count) {
    alignas(64) float s[kPanel], b[kPanel];
    for (size_t c = 0; c < kPanel; ++c) {
      s[c] = p.scale && c < count ? p.scale[first + c] : 1.0f;
      b[c] = p.bias && c < count ? p.bias[first + c] : 0.0f;
    }
    for (size_t half = 0; half < 2; ++half) {
      scale[half] = hn::Load(F32(), s + half * kLanes);
      bias[half] = hn::Load(F32(), b + half * kLanes);
    }
  }
};

// Offers a panel's points to a row's selection, given their products with the row.
inline void Offer(const VF (&sum)[2], const Affine& affine, size_t first, size_t count, size_t row,
                  Selection& selection) {
  const float threshold = selection.threshold(row);
  const VF bar = hn::Set(F32(), threshold);
  const VF v0 = hn::MulAdd(sum[0], affine.scale[0], affine.bias[0]);
  const VF v1 = hn::MulAdd(sum[1], affine.scale[1], affine.bias[1]);
  if (hn::AllTrue(F32(), hn::Le(v0, bar)) && hn::AllTrue(F32(), hn::Le(v1, bar))) return;
  alignas(64) float scores[kPanel];
  hn::Store(v0, F32(), scores);
  hn::Store(v1, F32(), scores + kLanes);
  for (size_t c = 0; c < count; ++c) {
    if (!(scores[c] <= threshold)) selection.Push(row, {scores[c], static_cast<uint32_t>(first + c)});
  }
  selection.CutIfFull(row);
}

// Scores one packed panel of points for all packed queries.
void ScorePanel(const TopKProblem& p, size_t rows, const float* queries, const float* panel, size_t first, size_t count,
                Selection& selection) {
  const Affine affine(p, first, count);
  for (size_t row = 0; row < rows; row += kQueries, queries += p.d * kQueries) {
    VF sum[kQueries][2];
    Tile(queries, panel, p.d, sum);
    const size_t tall = rows - row < kQueries ? rows - row : kQueries;
    for (size_t r = 0; r < tall; ++r) Offer(sum[r], affine, first, count, row + r, selection);
  }
}

#if EBMVK_PLAIN
size_t FewQueries() { return 0; }

void ScoreFew(const TopKProblem&, size_t, size_t, size_t, size_t, Selection&) {}
#else
// For at most this many queries, panels are not packed. That divides the time of 8 queries by three
// (AVX3) or two (AVX2, SSE4).
constexpr size_t kFew = 8;

size_t FewQueries() { return kFew; }

// Four coordinates of kLanes / 4 points that are `stride` apart. Each block of four lanes has the
// coordinates of one point.
template <class D>
hn::Vec<D> LoadBlocks(D tag, const float* from, size_t stride) {
  if constexpr (hn::MaxLanes(D()) == 4) {
    return hn::LoadU(tag, from);
  } else {
    const hn::Half<D> half;
    const size_t upper = hn::MaxLanes(half) / 4 * stride;
    return hn::Combine(tag, LoadBlocks(half, from + upper, stride), LoadBlocks(half, from, stride));
  }
}

// column[j][c] = from[c * d + j]: four coordinates of kLanes points, transposed in registers.
inline void LoadColumns(const float* from, size_t d, VF (&column)[4]) {
  VF a[4];  // block b of a[r]: point 4 b + r
#pragma GCC unroll 4
  for (size_t r = 0; r < 4; ++r) a[r] = LoadBlocks(F32(), from + r * d, 4 * d);
  const VU64 low01 = hn::BitCast(U64(), hn::InterleaveLower(F32(), a[0], a[1]));
  const VU64 low23 = hn::BitCast(U64(), hn::InterleaveLower(F32(), a[2], a[3]));
  const VU64 high01 = hn::BitCast(U64(), hn::InterleaveUpper(F32(), a[0], a[1]));
  const VU64 high23 = hn::BitCast(U64(), hn::InterleaveUpper(F32(), a[2], a[3]));
  column[0] = hn::BitCast(F32(), hn::InterleaveLower(U64(), low01, low23));
  column[1] = hn::BitCast(F32(), hn::InterleaveUpper(U64(), low01, low23));
  column[2] = hn::BitCast(F32(), hn::InterleaveLower(U64(), high01, high23));
  column[3] = hn::BitCast(F32(), hn::InterleaveUpper(U64(), high01, high23));
}

// Tile() for kRows queries and a panel in the caller's own memory. A panel is read in kPanel
// streams, which processors prefetch badly. So lines are prefetched kAhead coordinates in advance;
// at the end of a panel, lines of `next`.
template <size_t kRows>
inline void FewTile(const float* queries, const float* points, const float* next, size_t d, VF (&sum)[kRows][2]) {
  constexpr size_t kAhead = 96, kLine = 16;
  const size_t ahead = d < kAhead ? d : kAhead;
  for (size_t r = 0; r < kRows; ++r) sum[r][0] = sum[r][1] = hn::Zero(F32());
  size_t i = 0;
  for (; i + 4 <= d; i += 4) {
    // Prefetch for a quarter of the points each time, because a line lasts for four iterations.
    const float* fetch = i + ahead < d ? points + i + ahead : next + i + ahead - d;
    fetch += i % kLine / 4 * (kPanel / 4) * d;
#pragma GCC unroll 8
    for (size_t c = 0; c < kPanel / 4; ++c) hwy::Prefetch(fetch + c * d);
#pragma GCC unroll 2
    for (size_t half = 0; half < 2; ++half) {
      VF column[4];
      LoadColumns(points + half * kLanes * d + i, d, column);
#pragma GCC unroll 4
      for (size_t j = 0; j < 4; ++j) {
#pragma GCC unroll 8
        for (size_t r = 0; r < kRows; ++r) {
          sum[r][half] = hn::MulAdd(hn::Set(F32(), queries[r * d + i + j]), column[j], sum[r][half]);
        }
      }
    }
  }
  for (; i < d; ++i) {
    alignas(64) float column[kPanel];
    for (size_t c = 0; c < kPanel; ++c) column[c] = points[c * d + i];
    const VF p0 = hn::Load(F32(), column), p1 = hn::Load(F32(), column + kLanes);
    for (size_t r = 0; r < kRows; ++r) {
      const VF q = hn::Set(F32(), queries[r * d + i]);
      sum[r][0] = hn::MulAdd(q, p0, sum[r][0]);
      sum[r][1] = hn::MulAdd(q, p1, sum[r][1]);
    }
  }
}

// Scores a whole, unpacked panel of points for the kRows rows of a batch.
template <size_t kRows>
void FewRows(const TopKProblem& p, const float* queries, size_t first, size_t next, Selection& selection) {
  VF sum[kRows][2];
  FewTile(queries, p.points + first * p.d, p.points + next * p.d, p.d, sum);
  const Affine affine(p, first, kPanel);
  for (size_t r = 0; r < kRows; ++r) Offer(sum[r], affine, first, kPanel, r, selection);
}

template <size_t kRows>
void FewRowsOf(size_t rows, const TopKProblem& p, const float* queries, size_t first, size_t next,
               Selection& selection) {
  if (rows == kRows) return FewRows<kRows>(p, queries, first, next, selection);
  if constexpr (kRows > 1) FewRowsOf<kRows - 1>(rows, p, queries, first, next, selection);
}

// ScorePanel() without packing, for a whole panel and at most kFew rows. `next`: the likely next
// panel of this thread.
void ScoreFew(const TopKProblem& p, size_t start, size_t rows, size_t first, size_t next, Selection& selection) {
  FewRowsOf<kFew>(rows, p, p.queries + start * p.d, first, next, selection);
}
#endif

}  // namespace
}  // namespace ebmvk::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include "cpu/thread_pool.h"

namespace ebmvk {
namespace {
HWY_EXPORT(TileQueries);
HWY_EXPORT(TilePoints);
HWY_EXPORT(PackQueries);
HWY_EXPORT(PackPanel);
HWY_EXPORT(ScorePanel);
HWY_EXPORT(FewQueries);
HWY_EXPORT(ScoreFew);

// Rows processed together; this bounds the memory of selections and packed queries.
constexpr size_t kBatch = 4096;

// The memory of one thread, allocated only by threads that get work.
struct Space {
  AlignedFloats panel;
  Selection selection;
};
using Spaces = std::vector<std::unique_ptr<Space>>;

void Merge(const Spaces& spaces, size_t row, size_t k, float* scores, int64_t* ids) {
  std::vector<Hit> all;
  for (const auto& space : spaces) {
    if (space) all.insert(all.end(), space->selection.begin(row), space->selection.end(row));
  }
  std::partial_sort(all.begin(), all.begin() + static_cast<std::ptrdiff_t>(k), all.end(), Better);
  for (size_t j = 0; j < k; ++j) {
    scores[j] = all[j].score;
    ids[j] = all[j].id;
  }
}

void TopKBatch(const TopKProblem& p, size_t first, size_t rows, float* scores, int64_t* ids) {
  ThreadPool& pool = SharedPool();
  const size_t height = HWY_DYNAMIC_DISPATCH(TileQueries)(), width = HWY_DYNAMIC_DISPATCH(TilePoints)();
  const size_t tiles = (rows + height - 1) / height, panels = (p.n + width - 1) / width;
  const bool few = rows <= HWY_DYNAMIC_DISPATCH(FewQueries)();
  const AlignedFloats queries = AllocateFloats(tiles * height * p.d);
  pool.Run(tiles, [&](size_t tile, size_t) { HWY_DYNAMIC_DISPATCH(PackQueries)(p, first, rows, tile, queries.get()); });
  Spaces spaces(pool.threads());
  // A thread sees its panels in ascending order, as Selection requires; it doesn't matter which
  // panels these are.
  pool.Run(panels, [&](size_t panel, size_t thread) {
    std::unique_ptr<Space>& space = spaces[thread];
    if (!space) space.reset(new Space{AllocateFloats(width * p.d), Selection(rows, p.k, width)});
    const size_t start = panel * width, count = std::min(width, p.n - start);
    if (few && count == width) {
      const size_t next = std::min(start + width * pool.threads(), p.n - width);
      HWY_DYNAMIC_DISPATCH(ScoreFew)(p, first, rows, start, next, space->selection);
      return;
    }
    HWY_DYNAMIC_DISPATCH(PackPanel)(p, start, count, space->panel.get());
    HWY_DYNAMIC_DISPATCH(ScorePanel)(p, rows, queries.get(), space->panel.get(), start, count, space->selection);
  });
  pool.Run(rows, [&](size_t row, size_t) {
    Merge(spaces, row, p.k, scores + (first + row) * p.k, ids + (first + row) * p.k);
  });
}

}  // namespace

void TopK(const TopKProblem& problem, float* scores, int64_t* ids) {
  for (size_t first = 0; first < problem.rows; first += kBatch) {
    TopKBatch(problem, first, std::min(kBatch, problem.rows - first), scores, ids);
  }
}

}  // namespace ebmvk
#endif
