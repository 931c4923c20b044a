// A coarse 8-bit product that finds the few points an exact top-k has to look at, with a bound that proves it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "cpu_scratch.h"
#include "cpu_topk.h"

namespace ebmvk {

// Whether this processor has the 8-bit dot products of AVX-512 (VNNI).
bool HasCoarse();

// The store in 8 bits per coordinate, each row with its own scale. n * d bytes, beside the float32 rows.
class CoarsePoints {
 public:
  static constexpr size_t kPanel = 32;
  static constexpr size_t kMostDimensions = 16384;  // 255 * 127 * d fits in 32 bits with room

  CoarsePoints(const float* points, size_t n, size_t d);

  size_t n() const { return n_; }
  size_t d() const { return d_; }
  size_t quads() const { return quads_; }
  size_t bytes() const { return packed_.size() + sizeof(float) * (step_.size() + residual_.size() + norm_.size()); }
  // [quad][point][4] of panel p: coordinates 4 quad .. 4 quad + 3, shifted by 128 into unsigned bytes.
  const uint8_t* panel(size_t p) const { return packed_.data() + p * quads_ * kPanel * 4; }
  // Per point, rounded up where it enters a bound: size of a step, |row - rounded row|, |rounded row|.
  const float* step() const { return step_.data(); }
  const float* residual() const { return residual_.data(); }
  const float* norm() const { return norm_.data(); }

 private:
  size_t n_, d_, quads_;
  std::vector<uint8_t> packed_;
  std::vector<float> step_, residual_, norm_;
};

// As TopK, the same bits. Rows of which the bound leaves too many points are appended to `failed`, nothing being
// written for them. Needs HasCoarse(), and points of the shape of `problem.points`.
void CoarseTopK(const TopKProblem& problem, const CoarsePoints& points, float* scores, int64_t* ids,
                std::vector<size_t>& failed);

}  // namespace ebmvk
