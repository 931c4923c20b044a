// A coarse 8-bit product that finds the few points that an exact top-k must look at, with a bound
// that proves it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "cpu/coarse_avx2.h"
#include "cpu/coarse_product.h"
#include "cpu/topk.h"

namespace ebmvk {

// The names of the 8-bit products that are compiled in and that this processor supports, best
// first: "amx" (int8 tiles), "vnni" (AVX-512), "avx2" (only for that target), and always "none".
std::vector<std::string> CoarseKernels();
// The one in use.
std::string CoarseKernel();
// Use this one from now on; for tests. It doesn't change a bit of any result. Throws
// std::invalid_argument.
void UseCoarseKernel(const std::string& name);

// The store in 8 bits per coordinate, each row with its own scale. Takes n * d bytes in addition to
// the float32 rows.
class CoarsePoints {
 public:
  static constexpr size_t kMostDimensions = 16384;  // so that 255 * 127 * d fits well into 32 bits

  // Needs a kernel other than "none".
  CoarsePoints(const float* points, size_t n, size_t d);

  size_t n() const { return n_; }
  size_t d() const { return d_; }
  size_t bytes() const {
    return packed_.size() + sizeof(float) * (step_.size() + residual_.size() + norm_.size()) +
           sizeof(SpanSquares) * squares_.size();
  }
  // The number of blocks of coordinates, and the packed codes of panel p (see
  // coarse_product.h).
  size_t blocks() const { return blocks_; }
  const uint8_t* panel(size_t p) const;
  // Per point: the size of a step, |row - rounded row|, and the larger of both lengths. Numbers that
  // a bound uses are rounded up.
  const float* step() const { return step_.data(); }
  const float* residual() const { return residual_.data(); }
  const float* norm() const { return norm_.data(); }
  // Of panel p.
  const SpanSquares& squares(size_t p) const { return squares_[p]; }

 private:
  size_t n_, d_, blocks_;
  LineVector<uint8_t> packed_;
  std::vector<float> step_, residual_, norm_;
  std::vector<SpanSquares> squares_;
};

// Like TopK, with the same bits. Rows for which the bound leaves too many points are appended to
// `failed`, and nothing is written for them. Needs a kernel other than "none", and points of the
// shape of `problem.points`.
void CoarseTopK(const TopKProblem& problem, const CoarsePoints& points, float* scores, int64_t* ids,
                std::vector<size_t>& failed);

}  // namespace ebmvk
