// The additive statistics of splats: mass, resultant and token counts (ebmvk/engine/api.py).
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "cpu_operations.h"

namespace ebmvk {

struct TokenCounts {
  std::vector<int64_t> splat_token;  // (m, 2), sorted and unique
  std::vector<float> counts;         // (m), positive
};

// mass: (n); resultant: (n, d). Sums run over a splat's pairs in ascending order, with any number
// of threads.
TokenCounts Accumulate(const AccumulateArguments& in, float* mass, float* resultant);

}  // namespace ebmvk
