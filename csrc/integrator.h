// How integrators.toml describes an integrator; integrators.h, made from it, holds the rows.
#pragma once

#include <cstdint>

namespace ebmvk::integrators {

// What is done for one or several moves of a step (ebmvk/engine/integrators.py says more). `share`
// and `kick` are shares of the step size; `number` is that of an O within a step.
struct Part {
  enum class Kind { kick, drift, noise, land } kind;
  double share, kick;
  uint32_t number;
};

// A row of the table, without its parts.
struct Description {
  const char* name;
  bool metropolis;
  uint32_t noises;       // how often a step draws noise
  double friction;       // the share of the step size in each O
  uint32_t evaluations;  // of the force per step; per leapfrog if `metropolis`
};

}  // namespace ebmvk::integrators
