// The additive statistics of splats: mass, resultant and token counts (ebmvk/engine/api.py).
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace ebmvk {

struct Shares {
  size_t rows, k, d, n;
  const float* x;         // (rows, d)
  const int64_t* ids;     // (rows, k), in [0, n)
  const float* share;     // (rows, k)
  const int64_t* tokens;  // (rows)
};

struct TokenCounts {
  std::vector<int64_t> splat_token;  // (m, 2), sorted and unique
  std::vector<float> counts;         // (m), positive
};

// mass: (n); resultant: (n, d). Sums run over a splat's pairs in ascending order, with any number
// of threads.
TokenCounts Accumulate(const Shares& shares, float* mass, float* resultant);

}  // namespace ebmvk
