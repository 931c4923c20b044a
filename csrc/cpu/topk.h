// Exact top-k of scale_n * (points_n . query) + bias_n, by a blocked matrix product with a running
// selection.
#pragma once

#include <cstddef>
#include <cstdint>

namespace ebmvk {

struct TopKProblem {
  size_t rows, n, d, k;  // 1 <= k <= n < 2^32
  const float* queries;  // (rows, d)
  const float* points;   // (n, d)
  const float* scale;    // (n) or null for 1
  const float* bias;     // (n) or null for 0
};

// scores, ids: (rows, k); scores descend; ties are in ascending order of id.
void TopK(const TopKProblem& problem, float* scores, int64_t* ids);

}  // namespace ebmvk
