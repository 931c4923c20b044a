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
#include "cpu/rows.h"

namespace ebmvk {
HWY_EXPORT(EnergyScoreRow);

void EnergyScore(const EnergyScoreArguments& in, const EnergyScoreResults& out) {
  const size_t n = RoundUp(in.d, 32);
  ForCandidateRows(in, 2 * n, [&](size_t row, RowSpace& space) {
    float* state = space.floats.get();
    std::copy_n(in.x + row * in.d, in.d, state);
    const Gathered& candidates = space.candidates.Gather(in, row);
    HWY_DYNAMIC_DISPATCH(EnergyScoreRow)(candidates, state, state + n, in.k, in.d, row, out);
  });
}

}  // namespace ebmvk
#endif
