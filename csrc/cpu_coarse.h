// A coarse 8-bit product that finds the few points an exact top-k has to look at, with a bound that proves it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "cpu_coarse_product.h"
#include "cpu_topk.h"

namespace ebmvk {

// The names of the 8-bit products that are compiled in and that this processor has, best first: "amx" (tiles of
// int8), "vnni" (AVX-512); last of all "none".
std::vector<std::string> CoarseKernels();
// The one in use.
std::string CoarseKernel();
// Use this one from now on. For tests: results are the same bits. Throws std::invalid_argument.
void UseCoarseKernel(const std::string& name);

// The store in 8 bits per coordinate, each row with its own scale. n * d bytes, beside the float32 rows.
class CoarsePoints {
 public:
  static constexpr size_t kMostDimensions = 16384;  // 255 * 127 * d fits in 32 bits with room

  // Needs a kernel other than "none".
  CoarsePoints(const float* points, size_t n, size_t d);

  size_t n() const { return n_; }
  size_t d() const { return d_; }
  size_t bytes() const { return packed_.size() + sizeof(float) * (step_.size() + residual_.size() + norm_.size()); }
  // Blocks of coordinates, and the packed codes of panel p, as cpu_coarse_product.h has them.
  size_t blocks() const { return blocks_; }
  const uint8_t* panel(size_t p) const;
  // Per point, rounded up where it enters a bound: size of a step, |row - rounded row|, the larger of both lengths.
  const float* step() const { return step_.data(); }
  const float* residual() const { return residual_.data(); }
  const float* norm() const { return norm_.data(); }

 private:
  size_t n_, d_, blocks_;
  LineVector<uint8_t> packed_;
  std::vector<float> step_, residual_, norm_;
};

// As TopK, the same bits. Rows of which the bound leaves too many points are appended to `failed`, nothing being
// written for them. Needs a kernel other than "none", and points of the shape of `problem.points`.
void CoarseTopK(const TopKProblem& problem, const CoarsePoints& points, float* scores, int64_t* ids,
                std::vector<size_t>& failed);

}  // namespace ebmvk
