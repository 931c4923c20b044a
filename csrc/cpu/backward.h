// Gradients of the latent energy and its score (ebmvk/engine/api.py has the formulas).
#pragma once

#include <cstddef>

#include "cpu/energy.h"

namespace ebmvk {

struct EnergyGradientsOut {
  float* x;               // (rows, d)
  float* points;          // (n, d)
  float* logw;            // (rows, k)
  float* kappa;           // (rows, k)
  float* log_background;  // (rows)
};

// Working memory for one row: states padded like candidates, and lists padded by one more vector.
struct BackwardSpace {
  float *x, *w, *pull, *mean, *along_x, *along_w, *weight;
};

// x, grad_score: (rows, d); grad_energy: (rows).
void EnergyScoreBackward(const CandidateLists& lists, size_t n, const float* x, const float* grad_energy,
                         const float* grad_score, const EnergyGradientsOut& out);

}  // namespace ebmvk
