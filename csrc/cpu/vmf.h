// The tangent part of von Mises-Fisher samples; their cosine comes from ebmvk/engine/wood.py.
#pragma once

#include <cstddef>
#include <cstdint>

namespace ebmvk {

// out, mu: (rows, d); deficit: (rows), 1 - mu.x of each sample.
void VmfPlace(size_t rows, size_t d, const float* mu, const double* deficit, uint64_t seed, uint32_t first_row,
              float* out);

}  // namespace ebmvk
