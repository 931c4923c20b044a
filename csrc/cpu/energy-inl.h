// The kernel shared by energy_score and langevin: one pass over candidates gathered into one padded
// block.
#if defined(EBMVK_CPU_ENERGY_INL_H) == defined(HWY_TARGET_TOGGLE)
#ifdef EBMVK_CPU_ENERGY_INL_H
#undef EBMVK_CPU_ENERGY_INL_H
#else
#define EBMVK_CPU_ENERGY_INL_H
#endif

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "cpu/math-inl.h"
#include "cpu/scratch.h"
#include "cpu/vector-inl.h"

HWY_BEFORE_NAMESPACE();
namespace ebmvk::HWY_NAMESPACE {
namespace {

constexpr size_t kBlock = Gathered::kBlock, kChunk = Gathered::kChunk;
static_assert(kChunk % kLanes == 0, "a chunk is whole vectors");

// out[j] = sum of the lanes of v[j], four at a time by transposing adds.
inline void StoreSums(const VF (&v)[4], float* out) {
  const VF ab = hn::Add(hn::InterleaveLower(F32(), v[0], v[1]), hn::InterleaveUpper(F32(), v[0], v[1]));
  const VF cd = hn::Add(hn::InterleaveLower(F32(), v[2], v[3]), hn::InterleaveUpper(F32(), v[2], v[3]));
  const VU64 ab64 = hn::BitCast(U64(), ab), cd64 = hn::BitCast(U64(), cd);
  const VF low = hn::BitCast(F32(), hn::InterleaveLower(U64(), ab64, cd64));
  const VF high = hn::BitCast(F32(), hn::InterleaveUpper(U64(), ab64, cd64));
  alignas(64) float sums[kLanes];
  hn::Store(hn::Add(low, high), F32(), sums);
  for (size_t j = 0; j < 4; ++j) out[j] = sums[j];
  for (size_t part = 4; part < kLanes; part += 4) {
    for (size_t j = 0; j < 4; ++j) out[j] += sums[part + j];
  }
}

// out[j] = rows[j].x for a block of kBlock rows of n floats, which Gathered interleaves kChunk
// floats at a time.
inline void BlockDots(const float* rows, const float* x, size_t n, float* out) {
  VF low[4], high[4];
  for (size_t j = 0; j < 4; ++j) low[j] = high[j] = hn::Zero(F32());
  for (size_t i = 0; i < n; i += kChunk, rows += kBlock * kChunk) {
    for (size_t part = 0; part < kChunk; part += kLanes) {
      const VF at = hn::Load(F32(), x + i + part);
      for (size_t j = 0; j < 4; ++j) {
        low[j] = hn::MulAdd(hn::Load(F32(), rows + j * kChunk + part), at, low[j]);
        high[j] = hn::MulAdd(hn::Load(F32(), rows + (4 + j) * kChunk + part), at, high[j]);
      }
    }
  }
  StoreSums(low, out);
  StoreSums(high, out + 4);
}

// pull = decay * pull + sum_j weight[j] rows[j].
inline void BlockPull(const float* rows, const float* weight, float decay, size_t n, float* pull) {
  VF w[kBlock];
  for (size_t j = 0; j < kBlock; ++j) w[j] = hn::Set(F32(), weight[j]);
  const VF keep = hn::Set(F32(), decay);
  for (size_t i = 0; i < n; i += kChunk, rows += kBlock * kChunk) {
    for (size_t part = 0; part < kChunk; part += kLanes) {
      VF low = hn::Mul(keep, hn::Load(F32(), pull + i + part));
      VF high = hn::Mul(w[4], hn::Load(F32(), rows + 4 * kChunk + part));
      low = hn::MulAdd(w[0], hn::Load(F32(), rows + part), low);
      for (size_t j = 1; j < 4; ++j) {
        low = hn::MulAdd(w[j], hn::Load(F32(), rows + j * kChunk + part), low);
        high = hn::MulAdd(w[4 + j], hn::Load(F32(), rows + (4 + j) * kChunk + part), high);
      }
      hn::Store(hn::Add(low, high), F32(), pull + i + part);
    }
  }
}

// Energy at a state; its tangent score is scale * pull - radial * x.
struct Force {
  float energy, scale, radial;
};

// Online softmax: weights are relative to the largest logit so far, and sums are scaled down when a
// larger one appears. So each block of candidates is read once, for both its dot products and its
// part of the pull.
inline Force Evaluate(const Gathered& c, const float* x, float* pull) {
  // Below this weight, relative to the sum so far, 64 candidates can't change a float, so skip
  // their pull.
  constexpr float kNegligible = 0x1p-40f;
  constexpr size_t kWidth = kBlock > kLanes ? kBlock : kLanes;
  alignas(64) float dots[kWidth] = {}, weight[kWidth];
  float top = std::max(c.log_background, -std::numeric_limits<float>::max());
  float total = c.log_background > -std::numeric_limits<float>::infinity() ? 1.0f : 0.0f;
  float radial = 0;
  std::memset(pull, 0, c.n * sizeof(float));
  for (size_t first = 0; first < c.k; first += kBlock) {
    const float* rows = c.rows + first * c.n;
    BlockDots(rows, x, c.n, dots);
    float* logits = c.logits + first;
    float highest = top;
    for (size_t j = 0; j < kBlock; ++j) {
      logits[j] = c.logw[first + j] + c.kappa[first + j] * dots[j];
      highest = std::max(highest, logits[j]);
    }
    const float decay = highest > top ? std::exp(top - highest) : 1.0f;
    for (size_t j = 0; j < kBlock; j += kLanes) {
      const VF relative = hn::Sub(hn::LoadU(F32(), logits + j), hn::Set(F32(), highest));
      hn::Store(Exp(relative), F32(), weight + j);
    }
    float sum = 0, largest = 0;
    for (size_t j = 0; j < kBlock; ++j) {
      sum += weight[j];
      largest = std::max(largest, weight[j]);
      weight[j] *= c.kappa[first + j];
    }
    const float before = decay * total;
    top = highest;
    total = before + sum;
    if (largest <= kNegligible * before) continue;
    float push = 0;
    for (size_t j = 0; j < kBlock; ++j) push += weight[j] * dots[j];
    radial = decay * radial + push;
    BlockPull(rows, weight, decay, c.n, pull);
  }
  return {-(top + std::log(total)), 1 / total, radial / total};
}

}  // namespace
}  // namespace ebmvk::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif
