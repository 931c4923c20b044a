#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/backward.cpp"
#include "cpu/simd.h"
//
#include "cpu/backward.h"
#include "cpu/energy-inl.h"

HWY_BEFORE_NAMESPACE();
namespace ebmvk::HWY_NAMESPACE {
namespace {

// s.x must be filled in. Writes the two factors of a point's gradient, for x and for w, to `of_x`
// and `of_w` (rows, k); leaves w in s.w.
void BackwardRow(const Gathered& c, const BackwardSpace& s, float grad_energy, const float* grad_score, size_t row,
                 size_t k, size_t d, float* of_x, float* of_w, const EnergyScoreBackwardResults& out) {
  const Force force = Evaluate(c, s.x, s.pull);
  const float inward = Dot(s.x, grad_score, d);
  Combine(1, grad_score, -inward, s.x, d, s.w);
  const VF energy = hn::Set(F32(), force.energy);
  for (size_t j = 0; j < c.k; j += kLanes) {
    hn::StoreU(Exp(hn::Add(hn::LoadU(F32(), c.logits + j), energy)), F32(), s.weight + j);
  }
  double mean = 0;
  for (size_t j = 0; j < c.k; j += kBlock) {
    BlockDots(c.rows + j * c.n, s.x, c.n, s.along_x + j);
    BlockDots(c.rows + j * c.n, s.w, c.n, s.along_w + j);
  }
  for (size_t j = 0; j < k; ++j) mean += static_cast<double>(s.weight[j]) * c.kappa[j] * s.along_w[j];
  for (size_t j = 0; j < k; ++j) {
    const float rho = s.weight[j], kappa = c.kappa[j];
    // Subtract first: if one candidate has all the weight, both terms are large and equal.
    const double above = static_cast<double>(kappa) * s.along_w[j] - mean;
    const float slope = static_cast<float>(rho * (above - grad_energy));
    out.logw[row * k + j] = slope;
    out.kappa[row * k + j] = slope * s.along_x[j] + rho * s.along_w[j];
    of_x[row * k + j] = s.weight[j] = slope * kappa;
    of_w[row * k + j] = rho * kappa;
  }
  std::fill(s.weight + k, s.weight + c.k, 0.0f);
  out.log_background[row] = static_cast<float>(-std::exp(c.log_background + force.energy) * (mean + grad_energy));
  std::fill(s.mean, s.mean + c.n, 0.0f);
  for (size_t j = 0; j < c.k; j += kBlock) BlockPull(c.rows + j * c.n, s.weight + j, 1.0f, c.n, s.mean);
  float* gradient = out.x + row * d;
  Combine(1, s.mean, -inward * force.scale, s.pull, d, gradient);
  Combine(1, gradient, -force.radial, grad_score, d, gradient);
}

// to += p a + q b
void AddRow(float p, const float* a, float q, const float* b, size_t d, float* to) {
  const VF vp = hn::Set(F32(), p), vq = hn::Set(F32(), q);
  size_t i = 0;
  for (; i + kLanes <= d; i += kLanes) {
    const VF sum = hn::MulAdd(vp, hn::LoadU(F32(), a + i), hn::LoadU(F32(), to + i));
    hn::StoreU(hn::MulAdd(vq, hn::LoadU(F32(), b + i), sum), F32(), to + i);
  }
  for (; i < d; ++i) to[i] = (to[i] + p * a[i]) + q * b[i];
}

}  // namespace
}  // namespace ebmvk::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include <vector>

#include "cpu/groups.h"
#include "cpu/rows.h"

namespace ebmvk {
namespace {
HWY_EXPORT(BackwardRow);
HWY_EXPORT(AddRow);

// Sums over each point's (row, candidate) pairs in ascending order, so the number of threads
// doesn't change a bit.
void AddPoints(const EnergyScoreBackwardArguments& in, const float* w, const float* of_x, const float* of_w,
               float* points) {
  const Groups groups = GroupById(in.ids, in.rows * in.k, in.n);
  const size_t d = in.d;
  ForEach(in.n, kGroupsPerTask, [&](size_t g) {
    float* to = points + g * d;
    std::fill_n(to, d, 0.0f);
    for (size_t i = groups.first[g]; i < groups.first[g + 1]; ++i) {
      const size_t pair = groups.order[i], row = pair / in.k;
      HWY_DYNAMIC_DISPATCH(AddRow)(of_x[pair], in.x + row * d, of_w[pair], w + row * d, d, to);
    }
  });
}

}  // namespace

void EnergyScoreBackward(const EnergyScoreBackwardArguments& in, const EnergyScoreBackwardResults& out) {
  const size_t d = in.d, wide = RoundUp(d, 32), list = RoundUp(in.k, 16) + 16;
  std::vector<float> of_x(in.rows * in.k), of_w(of_x.size()), w(in.rows * d);
  ForCandidateRows(in, 4 * wide + 3 * list, [&](size_t row, RowSpace& own) {
    float* at = own.floats.get();
    float* lists_at = at + 4 * wide;
    const BackwardSpace space{at,       at + wide,       at + 2 * wide,      at + 3 * wide,
                              lists_at, lists_at + list, lists_at + 2 * list};
    std::copy_n(in.x + row * d, d, space.x);
    const Gathered& candidates = own.candidates.Gather(in, row);
    HWY_DYNAMIC_DISPATCH(BackwardRow)
    (candidates, space, in.grad_energy[row], in.grad_score + row * d, row, in.k, d, of_x.data(), of_w.data(), out);
    std::copy_n(space.w, d, w.data() + row * d);
  });
  AddPoints(in, w.data(), of_x.data(), of_w.data(), out.points);
}

}  // namespace ebmvk
#endif
