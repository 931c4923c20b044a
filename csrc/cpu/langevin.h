// Integrators of integrators.toml on the sphere over annealed levels, one chain after the other on
// each thread (model section 7).
#pragma once

#include <cstddef>
#include <cstdint>

#include "cpu/energy.h"

namespace ebmvk {

// The parameters of one level for one chain.
struct Level {
  float kappa_scale, logw_shift, step_size, gamma;
  uint32_t steps;
};

struct LangevinParams {
  const Level* levels;  // (rows, level_count) if per_chain, else (level_count)
  size_t level_count;
  bool per_chain;
  uint64_t seed;
  uint32_t first_step, first_chain;
  double temperature;
  size_t integrator;   // its number in integrators::All
  uint32_t leapfrogs;  // per trajectory, if the integrator has them
};

// x and v: (rows, d), read and written; the rest: (rows).
struct LangevinState {
  float *x, *v;
  float *energy, *kinetic_temperature, *energy_error, *tangency, *acceptance;
};

void Langevin(const CandidateLists& lists, const LangevinParams& params, const LangevinState& state);

// The normals that the chains draw, (steps, chains, d), to test against the reference.
void Normals(uint64_t seed, uint32_t first_step, size_t steps, uint32_t first_chain, size_t chains, uint32_t stream,
             size_t d, float* out);

}  // namespace ebmvk
