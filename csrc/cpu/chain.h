// The state of one running chain, shared by the code that sets it up and the code for each
// instruction set.
#pragma once

#include <cstddef>
#include <cstdint>

namespace ebmvk {

// The Philox streams of the first and second O of a step.
constexpr uint32_t kNoiseStream = 0, kNoiseStream2 = 3;

struct ChainParams {
  uint64_t seed;
  uint32_t chain;
  size_t integrator;  // its number in integrators::All
  uint32_t leapfrogs;
  double temperature;
};

struct Chain {
  float *x, *v, *pull, *noise;  // padded with zeros
  float* start;                 // x, v and pull before a GHMC trajectory, one after the other
  float vv = 0;                 // |v|^2
  double heat = 0;              // what the O moves of this step have added to |v|^2 / 2
  float energy = 0;
  float tangency = 0;             // maximum over the steps
  double kinetic = 0, error = 0;  // sums over the steps; so is the next
  double accepted = 0;
};

// The uniform number that accepts or rejects trajectory `step`: word 0 of counter (step, chain, 0,
// stream 2), in (0, 1).
inline double MetropolisUniform(uint64_t seed, uint32_t step, uint32_t chain) {
  uint32_t c[4] = {step, chain, 0, 2};
  uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
  for (int round = 0; round < 10; ++round, k0 += 0x9E3779B9u, k1 += 0xBB67AE85u) {
    const uint64_t p0 = uint64_t{0xD2511F53u} * c[0], p1 = uint64_t{0xCD9E8D57u} * c[2];
    const uint32_t next[4] = {static_cast<uint32_t>(p1 >> 32) ^ c[1] ^ k0, static_cast<uint32_t>(p1),
                              static_cast<uint32_t>(p0 >> 32) ^ c[3] ^ k1, static_cast<uint32_t>(p0)};
    for (int i = 0; i < 4; ++i) c[i] = next[i];
  }
  return (c[0] + 0.5) * 0x1p-32;
}

}  // namespace ebmvk
