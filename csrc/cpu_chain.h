// The state of one chain while it runs: shared by the code for each instruction set and the code that sets it up.
#pragma once

#include <cstdint>

namespace ebmvk {

struct ChainParams {
  uint64_t seed;
  uint32_t chain;
  double temperature;
};

struct Chain {
  float *x, *v, *pull, *noise;  // padded with zeros
  float vv = 0;                 // |v|^2
  float energy = 0;
  float tangency = 0;             // maximum over the steps
  double kinetic = 0, error = 0;  // sums over the steps
};

}  // namespace ebmvk
