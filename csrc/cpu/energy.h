// Latent energy, score and responsibilities over candidate lists (see ebmvk/engine/api.py for the
// formulas).
#pragma once

#include <cstddef>
#include <cstdint>

namespace ebmvk {

// Candidate lists of `rows` states, row-major. Arrays have the sizes given; ids are in [0, n).
struct CandidateLists {
  size_t rows, k, d;
  const float* points;          // (n, d)
  const int64_t* ids;           // (rows, k)
  const float* logw;            // (rows, k)
  const float* kappa;           // (rows, k)
  const float* log_background;  // (rows)
};

struct EnergyScoreOut {
  float* energy;            // (rows)
  float* score;             // (rows, d)
  float* responsibilities;  // (rows, k)
  float* background;        // (rows)
};

void EnergyScore(const CandidateLists& lists, const float* x, const EnergyScoreOut& out);

}  // namespace ebmvk
