// The annealing levels of chains (Schedule in ebmvk/engine/api.py).
#pragma once

#include <cstdint>
#include <vector>

namespace ebmvk {

struct Schedule {
  std::uint32_t rows = 0, levels = 0;                                             // rows: 1 for all chains, or B
  const float *kappa_scale = {}, *logw_shift = {}, *step_size = {}, *gamma = {};  // (rows, levels)
  std::vector<std::uint32_t> steps;                                               // of each level
};

}  // namespace ebmvk
