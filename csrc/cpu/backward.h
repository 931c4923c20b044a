// Gradients of the latent energy and its score (ebmvk/engine/api.py has the formulas).
#pragma once

namespace ebmvk {

// Working memory for one row: states padded like candidates, and lists padded by one more vector.
struct BackwardSpace {
  float *x, *w, *pull, *mean, *along_x, *along_w, *weight;
};

}  // namespace ebmvk
