#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/energy.cpp"
#include "cpu/simd.h"
//
#include "cpu/energy-inl.h"

HWY_BEFORE_NAMESPACE();
namespace ebmvk::HWY_NAMESPACE {
namespace {

// x and pull: padded to c.n. Writes one row of each output.
void EnergyScoreRow(const Gathered& c, const float* x, float* pull, size_t k, size_t d, size_t row,
                    const EnergyScoreResults& out) {
  const Force force = Evaluate(c, x, pull);
  out.energy[row] = force.energy;
  out.background[row] = std::exp(c.log_background + force.energy);
  Combine(force.scale, pull, -force.radial, x, d, out.score + row * d);
  const VF energy = hn::Set(F32(), force.energy);
  for (size_t j = 0; j < k; j += kLanes) {
    hn::StoreU(Exp(hn::Add(hn::LoadU(F32(), c.logits + j), energy)), F32(), c.logits + j);
  }
  std::copy_n(c.logits, k, out.responsibilities + row * k);
}

}  // namespace
}  // namespace ebmvk::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include <vector>

#include "cpu/thread_pool.h"

namespace ebmvk {
HWY_EXPORT(EnergyScoreRow);

void EnergyScore(const EnergyScoreArguments& in, const EnergyScoreResults& out) {
  struct Space {
    GatherSpace candidates;
    AlignedFloats state;
  };
  ThreadPool& pool = SharedPool();
  const size_t n = RoundUp(in.d, 32);
  std::vector<Space> spaces;
  for (size_t thread = 0; thread < pool.threads(); ++thread) {
    spaces.push_back({GatherSpace(in.k, in.d), AllocateFloats(2 * n)});
  }
  pool.Run(in.rows, [&](size_t row, size_t thread) {
    float* state = spaces[thread].state.get();
    std::copy_n(in.x + row * in.d, in.d, state);
    const Gathered& candidates = spaces[thread].candidates.Gather(in, row);
    HWY_DYNAMIC_DISPATCH(EnergyScoreRow)(candidates, state, state + n, in.k, in.d, row, out);
  });
}

}  // namespace ebmvk
#endif
