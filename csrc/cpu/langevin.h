// Integrators of integrators.toml on the sphere over annealed levels, one chain after the other on
// each thread (model section 7).
#pragma once

#include <cstddef>
#include <cstdint>

namespace ebmvk {

// The parameters of one level for one chain.
struct Level {
  float kappa_scale, logw_shift, step_size, gamma;
  uint32_t steps;
};

// The normals that the chains draw, (steps, chains, d), to test against the reference.
void Normals(uint64_t seed, uint32_t first_step, size_t steps, uint32_t first_chain, size_t chains, uint32_t stream,
             size_t d, float* out);

}  // namespace ebmvk
