#include "cpu/scratch.h"

#include <algorithm>
#include <limits>

namespace ebmvk {

AlignedFloats AllocateFloats(size_t count) {
  auto* memory = static_cast<float*>(::operator new[](count * sizeof(float), std::align_val_t{64}));
  std::fill_n(memory, count, 0.0f);
  return AlignedFloats(memory);
}

GatherSpace::GatherSpace(size_t k, size_t d) {
  Gathered& g = gathered_;
  g.k = RoundUp(k, Gathered::kBlock);
  g.n = RoundUp(d, 32);
  // Code may read a whole vector past the end of the last block of logits.
  const size_t list = RoundUp(g.k, 16) + 16;
  memory_ = AllocateFloats(g.k * g.n + 3 * list);
  g.rows = memory_.get();
  g.logw = g.rows + g.k * g.n;
  g.kappa = g.logw + list;
  g.logits = g.kappa + list;
  std::fill(g.logw + k, g.logw + list, -std::numeric_limits<float>::infinity());
}

Gathered& GatherSpace::Gather(const EnergyScoreArguments& lists, size_t row) {
  constexpr size_t kBlock = Gathered::kBlock, kChunk = Gathered::kChunk;
  Gathered& g = gathered_;
  const int64_t* ids = lists.ids + row * lists.k;
  for (size_t j = 0; j < lists.k; ++j) {
    const float* from = lists.points + static_cast<size_t>(ids[j]) * lists.d;
    float* to = g.rows + j / kBlock * kBlock * g.n + j % kBlock * kChunk;
    for (size_t i = 0; i < lists.d; i += kChunk, to += kBlock * kChunk) {
      std::copy_n(from + i, std::min(kChunk, lists.d - i), to);
    }
  }
  std::copy_n(lists.logw + row * lists.k, lists.k, g.logw);
  std::copy_n(lists.kappa + row * lists.k, lists.k, g.kappa);
  g.log_background = lists.log_background[row];
  return g;
}

}  // namespace ebmvk
