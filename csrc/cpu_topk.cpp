#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu_topk.cpp"
#include "simd.h"
//
#include "cpu_scratch.h"
#include "cpu_topk.h"
#include "cpu_topk_select.h"
#include "cpu_vector-inl.h"

HWY_BEFORE_NAMESPACE();
namespace ebmvk::HWY_NAMESPACE {
namespace {

// A tile is kQueries x (two vectors of points) in registers: 24 accumulators of 32 registers, or 12 of 16.
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

// packed[i][c] = points[first + c][i]; missing points are zero. A few coordinates at a time, so that what is written
// stays in the first-level cache: for few queries this is most of the work.
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

// Each product is summed over i in order, in one register: its bits depend neither on the tile nor on the batch.
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

// One panel of points against all packed queries.
void ScorePanel(const TopKProblem& p, size_t rows, const float* queries, const float* panel, size_t first, size_t count,
                Selection& selection) {
  alignas(64) float scale[kPanel], bias[kPanel], scores[kPanel];
  for (size_t c = 0; c < kPanel; ++c) {
    scale[c] = p.scale && c < count ? p.scale[first + c] : 1.0f;
    bias[c] = p.bias && c < count ? p.bias[first + c] : 0.0f;
  }
  const VF s0 = hn::Load(F32(), scale), s1 = hn::Load(F32(), scale + kLanes);
  const VF b0 = hn::Load(F32(), bias), b1 = hn::Load(F32(), bias + kLanes);
  for (size_t row = 0; row < rows; row += kQueries, queries += p.d * kQueries) {
    VF sum[kQueries][2];
    Tile(queries, panel, p.d, sum);
    const size_t tall = rows - row < kQueries ? rows - row : kQueries;
    for (size_t r = 0; r < tall; ++r) {
      const float threshold = selection.threshold(row + r);
      const VF bar = hn::Set(F32(), threshold);
      const VF v0 = hn::MulAdd(sum[r][0], s0, b0), v1 = hn::MulAdd(sum[r][1], s1, b1);
      if (hn::AllTrue(F32(), hn::Le(v0, bar)) && hn::AllTrue(F32(), hn::Le(v1, bar))) continue;
      hn::Store(v0, F32(), scores);
      hn::Store(v1, F32(), scores + kLanes);
      for (size_t c = 0; c < count; ++c) {
        if (!(scores[c] <= threshold)) selection.Push(row + r, {scores[c], static_cast<uint32_t>(first + c)});
      }
      selection.CutIfFull(row + r);
    }
  }
}

}  // namespace
}  // namespace ebmvk::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include "thread_pool.h"

namespace ebmvk {
namespace {
HWY_EXPORT(TileQueries);
HWY_EXPORT(TilePoints);
HWY_EXPORT(PackQueries);
HWY_EXPORT(PackPanel);
HWY_EXPORT(ScorePanel);

// Rows worked off together: bounds the memory of the selections and of the packed queries.
constexpr size_t kBatch = 4096;

// What one thread needs; made by the thread that turns out to work.
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
  const AlignedFloats queries = AllocateFloats(tiles * height * p.d);
  pool.Run(tiles, [&](size_t tile, size_t) { HWY_DYNAMIC_DISPATCH(PackQueries)(p, first, rows, tile, queries.get()); });
  Spaces spaces(pool.threads());
  // A thread sees its panels in ascending order, as Selection needs; which thread sees which does not matter.
  pool.Run(panels, [&](size_t panel, size_t thread) {
    std::unique_ptr<Space>& space = spaces[thread];
    if (!space) space.reset(new Space{AllocateFloats(width * p.d), Selection(rows, p.k, width)});
    const size_t start = panel * width, count = std::min(width, p.n - start);
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
